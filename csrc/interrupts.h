// SPDX-License-Identifier: Apache-2.0
// Long calls and Ctrl-C.
#pragma once
#include <chrono>

#include "python.h"

namespace nf {
namespace {

// While it lives, other threads have the interpreter. Asked between chunks (pool.h), it takes the interpreter back
// every 50 milliseconds, for as long as handlers of signals take: false where one of them has raised.
class Released {
  public:
    Released() : thread_(PyEval_SaveThread()) {}
    Released(const Released&) = delete;
    ~Released() { PyEval_RestoreThread(thread_); }

    bool operator()() {
        if (Clock::now() < next_) return true;
        PyEval_RestoreThread(thread_);
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

}  // namespace
}  // namespace nf
