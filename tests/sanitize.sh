#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs tests of the extension with instrumented code, in a virtual environment and a build folder of its own:
#     tests/sanitize.sh address [pytest arguments]    AddressSanitizer and UndefinedBehaviorSanitizer
#     tests/sanitize.sh calls --minutes M             the same, of random calls (tests/campaign/random_calls.py)
#     tests/sanitize.sh thread [pytest arguments]     ThreadSanitizer: the pool alone (tests/campaign/pool.cpp), then
#                                                     tests/backends/test_threads.py and large calls of tokens
# Arguments take the place of the tests below. The compiler is c++, or $CXX: clang (with its runtimes: libclang-rt-dev)
# instruments in a quarter of GCC's time, which is minutes for the kernels of one instruction set. All are
# one text: so it is done for the one that this processor takes by itself and, for addresses, the portable one.
# That no kernel of the others reaches past the ends of an array is what tests/backends/test_bounds.py looks at.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
options=log_path=$tmp/report # pytest keeps what goes to stderr
others=avx2 # not instrumented
grep -q ' avx512vl ' /proc/cpuinfo || others=avx512
case $kind in
address | calls)
    flags=-g
    settings=(-C cmake.define.NOISEFUSE_SANITIZE=ON)
    # What hands the extension arrays, names of noise and tables, right and wrong ones. Left out is what is of Python
    # alone (samplers, schedules, the reference, pages, examples), and the tests of threads, which `thread` runs.
    tests=(tests/test_known.py tests/test_errors.py tests/augment tests/density tests/backends tests/forward/test_forward.py
        tests/forward/test_bytes.py tests/forward/test_plain_calls.py tests/losses tests/noise/test_noise.py tests/cuda/test_cuda.py
        tests/discrete/test_categorical.py tests/discrete/test_cross_entropy.py tests/discrete/test_tokens.py
        --ignore tests/backends/test_threads.py -k 'not reference and not native-avx2')
    export STAND_IN_FLAGS='-g -fsanitize=address,undefined -fno-sanitize-recover=undefined' # tests/cuda_kernels
    runtimes=(libasan.so libubsan.so)
    # The interpreter does not free all it allocates; and compilers misalign AVX-512 frames that are moved to the heap.
    export ASAN_OPTIONS=$options:detect_leaks=0:detect_stack_use_after_return=0
    export UBSAN_OPTIONS=$options:print_stacktrace=1
    ;;
thread)
    flags='-g -fsanitize=thread'
    others+=';portable'
    settings=()
    tests=(tests/backends/test_threads.py tests/discrete/test_categorical.py::test_bits_of_threads_and_batches
        tests/discrete/test_cross_entropy.py::test_bits_of_threads tests/discrete/test_tokens.py::test_bits_of_threads)
    runtimes=(libtsan.so)
    # BLAS is not instrumented: its threads meet in ways that the runtime cannot see.
    echo 'called_from_lib:openblas' >"$tmp/suppressions"
    export TSAN_OPTIONS=$options:suppressions=$tmp/suppressions:halt_on_error=1:die_after_fork=0
    "${CXX:-c++}" -std=c++20 -O1 $flags -Icsrc tests/campaign/pool.cpp csrc/cpu/pool.cpp -o "$tmp/pool"
    TSAN_OPTIONS=halt_on_error=1 setarch -R "$tmp/pool"
    ;;
*)
    echo "usage: tests/sanitize.sh address|calls|thread [arguments]" >&2
    exit 2
    ;;
esac
shift
[ $# -gt 0 ] || set -- "${tests[@]}"

python3 -m venv "$tmp/venv"
# A build folder of its own: the usual one would remember the setting at the next build. Not stripped, for the reports.
# -O1: instrumented, the kernels take GCC two minutes more each to optimise further.
CXXFLAGS=$flags "$tmp/venv/bin/pip" install --quiet --disable-pip-version-check \
    -C build-dir="$tmp/build" -C install.strip=false -C cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O1 \
    -C cmake.define.NOISEFUSE_NOT_SANITIZED="$others" "${settings[@]}" \
    . hypothesis matplotlib ml_dtypes pytest scipy

# The interpreter is not instrumented, so the runtime must be loaded before it; and libstdc++ with it, or it does not find
# the __cxa_throw that it wraps. setarch: with the address space laid out as the runtime expects. Left out are what takes
# away the address space, which the runtime needs as well (tests/campaign and a test); and a test that interrupts threads
# of Python alone, of which nothing is instrumented (the interpreter was once seen to wait for its own lock for ever,
# under ThreadSanitizer).
of_compiler() { "${CXX:-c++}" -print-file-name="$1"; }
of_clang=libclang_rt.${runtimes[0]:3:4}-$(uname -m).so # one, which GCC does not have
[ ! -e "$(of_compiler "$of_clang")" ] || runtimes=("$of_clang")
preload=
for library in "${runtimes[@]}" libstdc++.so; do preload+=" $(of_compiler "$library")"; done
instrumented() { LD_PRELOAD=$preload setarch -R "$tmp/venv/bin/python" "$@"; }
status=0
# Random calls, wrong ones among them, are what the fast path's reading of arguments is tried with.
[ "$kind" != address ] || instrumented tests/campaign/random_calls.py --no-numba --cases 2000 --seed 2 || status=$?
run=(-m pytest -p no:cacheprovider -p no:faulthandler
    --deselect tests/backends/test_threads.py::test_where_no_thread_can_be_started_the_call_goes_on
    --deselect tests/backends/test_threads.py::test_interrupts_at_any_moment_leave_no_lock_taken
    --deselect tests/backends/test_dispatch.py::test_the_extension_is_hardened) # instrumented code is not
# The race is what this one tests.
[ "$kind" != thread ] || run+=(--deselect tests/backends/test_threads.py::test_logits_may_change_meanwhile)
[ "$kind" != calls ] || run=(tests/campaign/random_calls.py --no-numba --against native-portable) # the reference is slow
instrumented "${run[@]}" "$@" || status=$?
if compgen -G "$tmp/report*" >/dev/null; then
    cat "$tmp"/report*
    exit 1
fi
[ $status = 0 ] || echo "tests/sanitize.sh: the random calls or the tests above failed" >&2
exit $status
