// SPDX-License-Identifier: Apache-2.0
// The native pool, alone, under ThreadSanitizer (tests/sanitize.sh thread): several threads ask for jobs at once, on
// changing numbers of threads, and end some of them before their time. Ends with 1 where a job's work is not what it
// says: every chunk once or, of one that was ended, no chunk twice, and all that was begun finished.
#include "cpu/pool.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

namespace {

constexpr int kCallers = 4, kSeconds = 3;
std::atomic<int64_t> jobs{0}, ended{0}, wrong{0};

void job(std::mt19937& random) {
    const int64_t chunk = 1 + random() % 9, total = random() % 400, stop_after = random() % 60;
    const bool asks = random() % 2, sleeps = random() % 8 == 0;
    std::vector<int> times(total);  // plain numbers: what is not ordered with their reader is a race
    const nf::Body body = [&](int64_t begin, int64_t end) {
        if (sleeps) std::this_thread::sleep_for(std::chrono::microseconds(20));
        for (int64_t i = begin; i < end; ++i) ++times[i];
    };
    int64_t asked = 0;  // on the caller's thread alone
    const nf::GoOn go_on = asks ? nf::GoOn([&] { return ++asked <= stop_after; }) : nf::GoOn();
    const bool all = nf::parallel_for(total, chunk, body, go_on);
    if (all != (asked <= stop_after)) ++wrong;
    for (int64_t i = 0; i < total; ++i)
        if (times[i] > 1 || times[i] < (all ? 1 : 0) || times[i] != times[i / chunk * chunk]) ++wrong;
    ++jobs;
    ended += !all;
}

}  // namespace

int main() {
    nf::init_pool();
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(kSeconds);
    std::vector<std::thread> callers;
    for (int k = 0; k < kCallers; ++k)
        callers.emplace_back([k, end] {
            std::mt19937 random(k);
            while (std::chrono::steady_clock::now() < end) {
                if (random() % 16 == 0) nf::set_num_threads(1 + random() % 6);
                job(random);
            }
        });
    for (std::thread& caller : callers) caller.join();
    std::printf("pool: %ld jobs, %ld ended before their time, %ld wrong\n", long(jobs), long(ended), long(wrong));
    return wrong || !ended;
}
