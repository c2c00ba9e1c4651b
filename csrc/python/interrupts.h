// SPDX-License-Identifier: Apache-2.0
// Long calls: other threads hold the interpreter meanwhile, Ctrl-C ends them, and C++ errors become Python's.
#pragma once
#include <chrono>
#include <functional>
#include <new>
#include <thread>

#include "../cpu/pool.h"
#include "python.h"

namespace nf {
namespace {

// Takes the interpreter back. While the interpreter ends, CPython up to 3.13 ends a thread here by unwinding its stack,
// and no destructor below could run without the interpreter. So the thread waits for the end of the process, as in
// 3.14.
inline void take_back(PyThreadState* thread) {
    try {
        PyEval_RestoreThread(thread);
    } catch (...) {
        for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

// While this object lives, other threads have the interpreter. A call of it between chunks (pool.h) takes the
// interpreter back every 50 milliseconds, while signal handlers run. It returns false if a handler has raised an error.
class Released {
  public:
    Released() : thread_(PyEval_SaveThread()) {}
    Released(const Released&) = delete;
    ~Released() { take_back(thread_); }

    bool operator()() {
        if (Clock::now() < next_) return true;
        take_back(thread_);
        const bool none_raised = PyErr_CheckSignals() == 0;
        thread_ = PyEval_SaveThread();
        next_ = Clock::now() + kPause;
        return none_raised;
    }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds kPause{50};
    PyThreadState* thread_;
    Clock::time_point next_ = Clock::now() + kPause;
};

[[gnu::noinline]] bool run_any(bool is_long, const std::function<bool(const GoOn&)>& run) {
    try {
        if (!is_long) return run(nullptr);
        Released released;
        return run(std::ref(released));
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const Forked&) {
        PyErr_SetString(PyExc_RuntimeError,
                        "a signal handler forked in the middle of this call, whose other threads the child does not "
                        "have: its outputs are incomplete; make the call again");
    }
    return false;
}

// Calls run(go_on), which a long run asks between its chunks. A short run gets no go_on, because giving the interpreter
// away costs more than its work. False: a Python error is set.
template <class Run>
bool run_call(bool is_long, const Run& run) {
    return run_any(is_long, std::cref(run));
}

}  // namespace
}  // namespace nf
