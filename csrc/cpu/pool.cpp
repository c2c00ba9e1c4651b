// SPDX-License-Identifier: Apache-2.0
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace nf {
namespace {

class Pool {
  public:
    explicit Pool(int threads) : threads_(threads) {}

    std::atomic<int> threads_;

    bool run(int64_t total, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) {
        std::unique_lock busy(busy_, std::try_to_lock);
        if (!busy) return false;
        const int64_t chunks = (total + chunk - 1) / chunk;
        const int helpers = static_cast<int>(std::min<int64_t>(threads_, chunks)) - 1;
        {
            std::lock_guard lock(mutex_);
            body_ = &body, total_ = total, chunk_ = chunk;
            next_ = 0;
            start(helpers);
            wanted_ = running_ = std::min(helpers, started_);
            ++job_;
        }
        wake_.notify_all();
        work();
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        return true;
    }

  private:
    void start(int helpers) {
        try {
            for (; started_ < helpers; ++started_) std::thread(&Pool::serve, this, started_).detach();
        } catch (const std::system_error&) {  // the system gives no more: fewer do the work
        }
    }

    void work() {
        for (int64_t begin; (begin = chunk_ * next_++) < total_;) (*body_)(begin, std::min(begin + chunk_, total_));
    }

    void serve(int me) {
        uint64_t seen = 0;
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return job_ != seen; });
                seen = job_;
                if (me >= wanted_) continue;
            }
            work();
            std::lock_guard lock(mutex_);
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex busy_;  // held by the caller whose job runs
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int64_t, int64_t)>* body_ = nullptr;
    int64_t total_ = 0, chunk_ = 1;
    std::atomic<int64_t> next_{0};
    int started_ = 0, wanted_ = 0, running_ = 0;
    uint64_t job_ = 0;
};

int threads_from_environment() {
    const char* text = std::getenv("NOISEFUSE_NUM_THREADS");
    return text ? std::max(0, std::atoi(text)) : 0;
}

int threads_of_machine() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Never destroyed: at exit, as in a forked child, its threads may be gone or asleep and must not be waited for.
Pool* pool = nullptr;

void reset_in_child() { pool = new Pool(std::max(1, threads_from_environment())); }

}  // namespace

void init_pool() {
    if (pool) return;
    const int wanted = threads_from_environment();
    pool = new Pool(wanted ? wanted : threads_of_machine());
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, reset_in_child);
#endif
}

int num_threads() { return pool->threads_; }

void set_num_threads(int n) { pool->threads_ = n; }

void parallel_for(int64_t total, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) {
    if (pool->threads_ > 1 && total > chunk && pool->run(total, chunk, body)) return;
    body(0, total);
}

}  // namespace nf
