// SPDX-License-Identifier: Apache-2.0
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nf {
namespace {

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

int processor() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// Moves the calling thread to another processor if it is on this one and may run on others.
void leave([[maybe_unused]] int number) {
#if defined(__linux__)
    cpu_set_t all, others;
    if (number < 0 || processor() != number || sched_getaffinity(0, sizeof all, &all) != 0) return;
    others = all;
    CPU_CLR(number, &others);
    if (CPU_COUNT(&others) == 0) return;
    sched_setaffinity(0, sizeof others, &others);
    sched_setaffinity(0, sizeof all, &all);
#endif
}

int forks = 0;  // how many forks lead to this process; only the child's one thread counts

// The pool does one job at a time. Its caller works, too, and waits only for helpers that have joined. A helper that
// wakes up too late finds the job closed.
class Pool {
  public:
    std::atomic<int> threads_{1};

    // Returns false if another job runs. (A signal handler that go_on calls may start one.)
    bool take() { return !busy_.exchange(true); }

    bool run(int64_t total, int64_t chunk, const Body& body, const GoOn& go_on) {
        wanted_ = static_cast<int>(std::min<int64_t>(threads_, (total + chunk - 1) / chunk)) - 1;
        start();
        body_ = &body, total_ = total, chunk_ = chunk;
        share_out();
        caller_ = processor();
        {
            const std::lock_guard lock(mutex_);  // so no helper looks at the state, misses the job and sleeps
            state_ = (state_ / kJob + 1) * kJob + kOpen;
        }
        for (int i = 0; i < wanted_ && wanted_ < started_; ++i) wake_.notify_one();
        if (wanted_ >= started_) wake_.notify_all();
        const bool all = work(0, go_on);
        state_ &= ~kOpen;
        if (!soon([this] { return state_ % kJob == 0; })) {
            std::unique_lock lock(mutex_);
            done_.wait(lock, [this] { return state_ % kJob == 0; });
        }
        busy_ = false;
        return all;
    }

  private:
    void start() {
        while (started_ < wanted_ && start_one()) ++started_;  // if the system gives no more threads, fewer do the work
    }

    bool start_one() {
#if defined(__unix__) || defined(__APPLE__)
        // Kernels need up to half of 128 KiB, which is a thread's whole stack by default with musl.
        constexpr size_t kStack = 512 << 10;
        pthread_attr_t attributes;
        if (pthread_attr_init(&attributes) != 0) return false;
        pthread_attr_setstacksize(&attributes, kStack);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_t thread;
        const auto serve = [](void* pool) -> void* {
            static_cast<Pool*>(pool)->serve();
            return nullptr;
        };
        const bool made = pthread_create(&thread, &attributes, serve, this) == 0;
        pthread_attr_destroy(&attributes);
        return made;
#else
        try {
            std::thread(&Pool::serve, this).detach();
        } catch (const std::exception&) {
            return false;
        }
        return true;
#endif
    }

    void share_out() {
        const int64_t chunks = (total_ + chunk_ - 1) / chunk_;
        n_spans_ = std::min(wanted_ + 1, kMostSpans);
        for (int64_t i = 0; i < n_spans_; ++i) {
            spans_[i].next = chunks * i / n_spans_;
            spans_[i].end = chunks * (i + 1) / n_spans_;
        }
    }

    // A thread takes its own span first, which is in its caches if the last job had the same arrays. Then it takes what
    // others have left.
    bool work(int own, const GoOn& go_on) {
        const int before = forks;
        for (int i = 0; i < n_spans_; ++i) {
            Span& span = spans_[(own + i) % n_spans_];
            for (int64_t chunk; (chunk = span.next++) < span.end;) {
                const int64_t begin = chunk * chunk_;
                (*body_)(begin, std::min(begin + chunk_, total_));
                if (go_on && !go_on()) return leave_the_rest();
                if (forks != before) throw Forked();
            }
        }
        return true;
    }

    bool leave_the_rest() {
        for (int i = 0; i < n_spans_; ++i) spans_[i].next = spans_[i].end;
        return false;
    }

    bool join(uint64_t& seen) {
        uint64_t state = state_;
        seen = state / kJob;
        while (state / kJob == seen && state & kOpen && static_cast<int>(state % kOpen) < wanted_)
            if (state_.compare_exchange_weak(state, state + 1)) return true;
        return false;
    }

    void serve() {
        const int number = ++serving_;
        uint64_t seen = 0;
        for (bool looks_out = false;;) {
            const auto called = [&] { return state_ / kJob != seen; };
            if (!looks_out || !soon(called)) {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, called);
            }
            leave(caller_);  // on the caller's processor it would only take turns with it
            const bool joined = join(seen);
            looks_out = joined || !(state_ & kOpen);  // too late: the next job may be as short as this one
            if (!joined) continue;
            work(number, nullptr);
            if (--state_ % kJob == 0) {
                const std::lock_guard lock(mutex_);
                done_.notify_one();
            }
        }
    }

    // Tells whether it becomes true within the time that falling asleep and waking up take. Many steps of samplers come
    // sooner. Meanwhile any other thread may have the processor.
    template <class Condition>
    static bool soon(Condition condition) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
        do {
            for (int i = 0; i < 20; ++i) {
                if (condition()) return true;
                pause();
            }
            std::this_thread::yield();
        } while (std::chrono::steady_clock::now() < end);
        return false;
    }

    // The sum of three: the latest job's number times kJob, kOpen while it takes helpers, and how many work on it.
    static constexpr uint64_t kOpen = uint64_t{1} << 16, kJob = 2 * kOpen;
    std::atomic<uint64_t> state_{0};

    std::atomic<bool> busy_{false};
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const Body* body_ = nullptr;
    int64_t total_ = 0, chunk_ = 1;
    // Consecutive chunks for one thread, while it has any: the numbers of the next one and of the end.
    struct alignas(64) Span {
        std::atomic<int64_t> next;
        int64_t end;
    };
    static constexpr int kMostSpans = 64;
    Span spans_[kMostSpans];
    int n_spans_ = 0;
    std::atomic<int> wanted_{0};   // helpers
    std::atomic<int> caller_{-1};  // where it works
    int started_ = 0;
    std::atomic<int> serving_{0};
};

// Never destroyed: at exit, as in a forked child, its threads may be gone or asleep and must not be waited for.
Pool* pool = nullptr;

void reset() { pool = new Pool; }

void reset_after_fork() {
    ++forks;
    reset();
}

constexpr int kTogether = 4;  // chunks between two calls of go_on, on one thread

}  // namespace

void init_pool() {
    reset();
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, reset_after_fork);
#endif
}

int num_threads() { return pool->threads_; }

void set_num_threads(int n) { pool->threads_ = n; }

bool parallel_for(int64_t total, int64_t chunk, const Body& body, const GoOn& go_on) {
    if (pool->threads_ > 1 && total > chunk && pool->take()) return pool->run(total, chunk, body, go_on);
    const int64_t at_once = go_on ? kTogether * chunk : total;
    for (int64_t begin = 0; begin < total; begin += at_once) {
        body(begin, std::min(begin + at_once, total));
        if (go_on && !go_on()) return false;
    }
    return true;
}

}  // namespace nf
