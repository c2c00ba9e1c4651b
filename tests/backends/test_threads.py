# SPDX-License-Identifier: Apache-2.0
"""Threads, forks, signals and settings: none of them changes a bit, and none leaves a broken state."""

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import noisefuse as nf
from conftest import NATIVE, NUMBA, bits, using
from noisefuse import _native, backends
from noisefuse.backends.threads import _workers, quota, together
from noisefuse.language.rows import Rows

LARGE = (8, 50_000)  # more than a dozen chunks
S = nf.Schedule.linear(20)
# Python 3.12, and JAX, warn of every fork where there are threads; here that is the point.
forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork"),
]


def draw(sample=0):
    return nf.randn(LARGE, nf.Noise(1, sample=sample))


@pytest.fixture
def expected():
    with nf.set_num_threads(1):
        return bits(draw())


def python(code, seconds=60, **environment):
    """Runs code in a new interpreter; variables set to None are removed."""
    variables = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=seconds)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cgroup": "0::/\n", "unified cpu.max": "max 100000\n"}, None),
        ({"cgroup": "0::/\n", "unified cpu.max": "150000 100000\n"}, 2),
        ({"cgroup": "0::/pod/box\n", "unified pod/cpu.max": "300000 100000\n", "unified pod/box/cpu.max": "max 1"}, 3),
        ({"cgroup": "0::/pod/box\n", "unified pod/cpu.max": "max 1", "unified pod/box/cpu.max": "5000 100000"}, 1),
        ({"cgroup": "0::/not/mounted/here\n", "unified cpu.max": "200000 100000\n"}, 2),
        (
            {
                "cgroup": "4:memory:/\n3:cpu,cpuacct:/docker/1\n0::/\n",
                "cpu cpu.cfs_quota_us": "250000",
                "cpu cpu.cfs_period_us": "100000",
                "cpu docker/1/cpu.cfs_quota_us": "-1",
                "cpu docker/1/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        ({"cgroup": "what is this\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota(files, expected, tmp_path):
    """The limits are those of control groups, version 2 and version 1; of a group or of its parent."""
    folders = {"cgroup": "proc/self/cgroup", "unified": "sys/fs/cgroup", "cpu": "sys/fs/cgroup/cpu"}
    for name, text in files.items():
        kind, _, rest = name.partition(" ")
        path = tmp_path / folders[kind] / rest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert quota(tmp_path) == expected


# ---- fork --------------------------------------------------------------------------------------------------


def child_says_yes(function, seconds=30):
    """Returns whether function() is true in a forked child. A child that hangs is killed: False."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if function() else 1
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


class TestFork:
    pytestmark = forks

    @pytest.fixture(autouse=True, params=[NATIVE[0], *NUMBA])
    def backend(self, request):
        with using(request.param):
            yield request.param

    def test_a_child_works_after_its_parent_used_the_pool(self, expected):
        with nf.set_num_threads(4):
            assert bits(draw()) == expected
            assert child_says_yes(lambda: bits(draw()) == expected)
            assert bits(draw()) == expected

    def test_a_child_may_start_threads_of_its_own(self, expected):
        def threads_of_its_own():
            nf.set_num_threads(3)
            same, tasks = bits(draw()) == expected, "/proc/self/task"
            started = not os.path.exists(tasks) or len(os.listdir(tasks)) == 3
            return same and started and child_says_yes(lambda: bits(draw()) == expected)

        with nf.set_num_threads(4):
            draw()
            assert child_says_yes(threads_of_its_own)

    def test_a_child_starts_with_one_thread(self):
        with nf.set_num_threads(4):
            assert child_says_yes(lambda: _native.num_threads() == nf.info()["threads"] == 1)

    def test_a_child_starts_with_as_many_threads_as_the_environment_says(self):
        code = """
import os
import noisefuse as nf
from noisefuse import _native
from noisefuse.backends import threads
nf.randn((1, 4), nf.Noise(0))
child = os.fork() == 0
os._exit(10 * _native.num_threads() + threads.count() if child else os.waitstatus_to_exitcode(os.wait()[1]))
"""
        assert python(code, NOISEFUSE_NUM_THREADS="3").returncode == 33

    def test_a_fork_in_the_middle_of_a_call(self, expected):
        """The pool is busy, with its locks held, when the child is born."""
        stop = threading.Event()
        with nf.set_num_threads(4), ThreadPoolExecutor(1) as other:
            busy = other.submit(lambda: [draw() for _ in iter(stop.is_set, True)])
            try:
                assert all(child_says_yes(lambda: bits(draw()) == expected) for _ in range(10))
            finally:
                stop.set()
            assert busy.result()

    def test_a_fork_in_the_middle_of_a_kept_property(self, monkeypatch):
        """Another thread makes rows when the child is born, which makes rows of its own. Seen to hang: on Python 3.11
        cached_property held one lock for all rows."""
        x = np.ones((2, 3), np.float32)

        def halved():
            return nf.update(nf.Tableau([nf.Row(out=0.5 * nf.tableau.x)]), 0, x)

        expected, inside, go_on = bits(halved()), threading.Event(), threading.Event()
        main, kept = threading.main_thread(), vars(Rows)["plain"]
        rows_of = kept.func

        def slow(rows):
            if threading.current_thread() is not main:
                inside.set()
                go_on.wait(60)
            return rows_of(rows)

        monkeypatch.setattr(kept, "func", slow)
        with ThreadPoolExecutor(1) as other:
            busy = other.submit(halved)
            try:
                assert inside.wait(60)
                assert child_says_yes(lambda: bits(halved()) == expected, seconds=10)
            finally:
                go_on.set()
            assert bits(busy.result()) == expected

    def test_a_fork_by_a_signals_handler_in_the_middle_of_a_call(self, backend):
        """The child returns into the call, without the call's other threads. Seen to wait for them for ever."""
        code = f"""
import os, signal, time
import numpy as np, noisefuse as nf
nf.use_backend({nf.info()["backend"]!r})
nf.set_num_threads(2)
walk = lambda n: nf.q_walk(np.zeros((4, n), np.float32), nf.Schedule.linear(1000), nf.Noise(1), keep=[999])
first = walk(1 << 12)  # compiled, and the other thread started
child, before = None, os.getpid()

def fork(*_):
    global child
    if child is None:
        child = os.fork()

signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    walk(1 << 18)
except RuntimeError as error:
    assert "forked in the middle of this call" in str(error)
if os.getpid() != before:
    os._exit(7 if np.array_equal(walk(1 << 12), first) else 1)  # it can work on
assert child is not None  # the call was long enough
end = time.monotonic() + 60
while time.monotonic() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    time.sleep(0.01)
os.kill(child, signal.SIGKILL)
raise SystemExit("the child hangs")
"""
        done = python(code, seconds=120)
        assert done.returncode == 7, done.stderr

    def test_multiprocessing(self, expected):
        with nf.set_num_threads(4), multiprocessing.get_context("fork").Pool(2) as pool:
            draw()
            children = pool.map_async(_draw_bits, [0, 0, 7]).get(timeout=30)
        assert children == [expected, expected, _draw_bits(7)]

    def test_a_data_loader(self, expected):
        torch = pytest.importorskip("torch")
        loader = torch.utils.data.DataLoader(
            _Fields(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=30
        )
        with nf.set_num_threads(4):
            draw()
            assert [bits(field.numpy()) for field in loader] == [_draw_bits(b) for b in range(3)]


class _Fields:
    def __len__(self):
        return 3

    def __getitem__(self, b):
        return draw(b)


def _draw_bits(sample):
    return bits(draw(sample))


# ---- threads -----------------------------------------------------------------------------------------------


def test_many_threads_at_once(compiled):
    """One of them has the pool, the others work alone; settings change meanwhile."""
    x = np.random.default_rng(0).standard_normal(LARGE, np.float32)
    t = np.arange(8)
    calls = [
        lambda: draw(3),
        lambda: nf.q_sample(x, t, S, nf.Noise(2)),
        lambda: nf.q_sample(x[:2, :50], 3, S, nf.Noise(2)),
        lambda: nf.q_step(x, t, S, nf.Noise(3)),
        lambda: nf.q_walk(x[:, :500], S, nf.Noise(4), keep=[5, 19]),
        lambda: nf.mse_loss(x, x[::-1], t, S, nf.Noise(5), target="v", reduction="none"),
        lambda: nf.mse_loss_grad(x, x[::-1], t, S, nf.Noise(5), target="v"),
        lambda: np.float64(nf.mse_loss(x[:, :5000], None, t, S, nf.Noise(5), target="epsilon")),
    ]
    alone = [bits(call()) for call in calls]

    def work(k):
        nf.set_num_threads(1 + k % 5)
        return bits(calls[k % len(calls)]()) == alone[k % len(calls)]

    with nf.set_num_threads(5), ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(60)))


@pytest.mark.parametrize("name", ["native-portable", *NUMBA])
def test_the_interpreter_runs_on_during_a_call(name):
    """Large calls let go of the lock: another thread ticks in the middle of them, not only at their ends.

    The interpreter takes the lock from no thread meanwhile. On a busy machine the other thread ticks rarely, so its
    ticks are counted over several calls.
    """
    ticks, stop, middle = [], threading.Event(), 0
    out = np.empty((1, 1 << 24), np.float32)

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    with using(name), nf.set_num_threads(1), ThreadPoolExecutor(1) as other:
        nf.randn((1, 300), nf.Noise(1))  # compiled
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            other.submit(tick)
            for _ in range(30):
                begin = time.perf_counter()
                nf.randn(out.shape, nf.Noise(1), out=out)
                end = time.perf_counter()
                middle += sum(begin + 0.25 * (end - begin) < t < begin + 0.75 * (end - begin) for t in ticks)
                if middle > 3:
                    break
            stop.set()
        finally:
            sys.setswitchinterval(interval)
    assert middle > 3


@pytest.mark.parametrize("change", ["t[:] = 1 << 40", "past.clear()", "aux.clear()"])
def test_what_a_call_was_given_may_change_meanwhile(change):
    """Seen to end the process: the row numbers, or the arrays of a list, were another thread's."""
    code = f"""
import threading, time
import numpy as np, noisefuse as nf
from noisefuse.tableau import past as h, x
table = nf.Tableau([nf.Row(out=x + h[0], aux1=x)] * 1000)
shape = (64, 1 << 17)
for _ in range(20):
    ones, t, past = np.ones(shape, "f4"), np.zeros(64, int), [np.ones(shape, "f4")]
    aux = [np.zeros(shape, "f4")]

    def meanwhile():
        time.sleep(0.002)
        {change}

    other = threading.Thread(target=meanwhile)
    other.start()
    try:
        out = nf.update(table, t, ones, past=past, aux_out=aux)
        assert (out == 2).all()
    except (IndexError, TypeError, ValueError):  # it changed before
        pass
    other.join()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["native", *NUMBA, "reference"])
def test_row_numbers_and_weights_may_change_meanwhile(name):
    """Another thread writes to them all the time, right numbers and wrong ones. A call takes them or refuses them, and
    reads within its tables. Seen to end the process: draws_nothing, weights, and Numba's copy of t after its check."""
    code = """
import sys, threading, time
import numpy as np, noisefuse as nf
nf.use_backend(NAME)
schedule, table = nf.Schedule.linear(20), nf.samplers.ddim(nf.Schedule.linear(20), 20).tableau
sys.setswitchinterval(1e-6)
shape = (1 << 15, 4)
x, weight, noise, stop = np.ones(shape, "f4"), np.ones(20), nf.Noise(1), threading.Event()
t, tokens = np.zeros(shape[0], int), np.zeros(shape, int)
calls = [
    lambda: nf.q_sample(x, t, schedule, noise),
    lambda: nf.q_step(x, tokens, schedule, noise),
    lambda: nf.update(table, t, x, x),
    lambda: nf.mse_loss(x, x, t, schedule, noise, target="v", weight=weight),
    lambda: nf.mse_loss_grad(x, x, tokens, schedule, noise, target="v", weight=weight),
]

def meanwhile():
    while not stop.is_set():
        for number in (0, 1 << 40, -1 << 40):
            t[:], tokens[:] = number, number
            weight[:] = np.nan if number else 1

other = threading.Thread(target=meanwhile)
other.start()
end = time.monotonic() + SECONDS
while time.monotonic() < end:
    for call in calls:
        try:
            call()
        except (IndexError, ValueError):
            pass
stop.set()
other.join()
"""
    done = python(code.replace("NAME", repr(name)).replace("SECONDS", "0.7"))
    assert done.returncode == 0, done.stderr


def test_logits_may_change_meanwhile():
    """Only that call's tokens are then any tokens. Seen to end the process, within a second for each of the first four
    calls: the search for a largest logit that was gone ran off the array, and bins of top_k were counted from the
    largest of other numbers."""
    code = """
import threading, time
import ml_dtypes, numpy as np, noisefuse as nf
nf.set_num_threads(1)
V, noise, ids = 1 << 14, nf.Noise(1), np.zeros((1, 8), int)
calls = [
    (lambda: nf.categorical(x, noise, temperature=0.0), "f4"),
    (lambda: nf.categorical(x, noise, top_k=50), "f4"),
    (lambda: nf.categorical(x, noise, top_p=0.9), "f4"),
    (lambda: nf.masked_cross_entropy(x, ids), "f4"),
    (lambda: nf.masked_cross_entropy_and_grad(x, ids), "f4"),
    (lambda: nf.categorical(x, noise, info=("log_prob", "log_prob_raw", "entropy", "margin", "rank"))[0], "f4"),
    (lambda: nf.categorical(x, noise, temperature=0.0), "f2"),
    (lambda: nf.categorical(x, noise, temperature=0.0), ml_dtypes.bfloat16),
    (lambda: nf.categorical(x, noise, top_k=50, top_p=0.9), "f2"),
]

def meanwhile(x, stop):
    rising = (np.arange(V) % 977 / 40).astype(x.dtype)
    while not stop.is_set():
        for row in x.dtype.type(1000), rising[::-1], x.dtype.type(-1000), rising:
            np.copyto(x, row)

for call, dtype in calls:
    x, stop = np.zeros((1, 8, V), dtype), threading.Event()
    other = threading.Thread(target=meanwhile, args=(x, stop))
    other.start()
    end = time.monotonic() + (0.7 if dtype == "f4" else 0.2)
    while time.monotonic() < end:
        found = call()
        if isinstance(found, np.ndarray):
            assert 0 <= found.min() and found.max() < V
    stop.set()
    other.join()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "call", ["nf.q_walk(x, S, n, keep=[9])", "nf.randn(x.shape, n)", "nf.augment.gaussian(x, t, n)"]
)
def test_the_interpreter_may_end_while_threads_are_in_calls(call, threads):
    """The threads are like those of a data loader that fetches ahead. Seen to abort: CPython up to 3.13 unwinds such a
    thread's stack."""
    code = f"""
import threading, time
import numpy as np, noisefuse as nf
nf.set_num_threads({threads})
x, S, n, t = np.zeros((4, 1 << 18), np.float32), nf.Schedule.linear(10), nf.Noise(1), [1.0, 2.0, 3.0, 4.0]

def fetch():
    while True:
        {call}

for _ in range(3):
    threading.Thread(target=fetch, daemon=True).start()
time.sleep(0.3)
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NATIVE)
def test_kernels_fit_a_thread_of_128_kib(name):
    """The stack has musl's default size. Seen to end the process: float64's losses took 132 KiB, half of it rows for
    each element."""
    code = """
import threading
import numpy as np, noisefuse as nf
from noisefuse import _native
from noisefuse.tableau import ROW

_native.use_isa(ISA)
nf.set_num_threads(1)
random, noise, schedule = np.random.default_rng(0), nf.Noise(1), nf.Schedule.linear(10)
numbers = random.normal(size=(3, 36))
numbers[:, 4:6] = -1, 1
whole = nf.Tableau(numbers.view(ROW)[:, 0])  # every column is read
policy = nf.samplers.flow_sde(nf.Schedule.flow(1000), steps=5).tableau
levels, wide = np.zeros((3, 5000), np.uint8), np.ones((3, 5000), np.uint16)

def calls(dtype):
    x, few, t = np.ones((3, 5000), dtype), np.ones((3, 700), dtype), [0, 1, 2]
    yield lambda: nf.randn(x.shape, noise, dtype=dtype)
    yield lambda: nf.uniform((900, 5), noise, dtype="float32" if dtype == "float16" else dtype)
    yield lambda: nf.q_sample(x, t, schedule, noise, target="v")
    yield lambda: nf.q_sample(levels, t, schedule, noise, dtype=dtype, target="v")
    yield lambda: nf.q_walk(x, schedule, noise)
    for each in (x, few, np.ones((3, 7), dtype)):
        past = [each] * 4
        yield lambda each=each, past=past: nf.update(whole, t, each, (each, each), past=past, noise=noise, aux_out=2)
    yield lambda: nf.update(policy.transpose()["m1"], 0, x, x, past=[x])
    yield lambda: nf.mse_loss_and_grad(x, x, t, schedule, noise, target="v")
    yield lambda: nf.mse_loss(x, x, t, schedule, noise, target="v")
    yield lambda: nf.density.update_with_log_prob(policy, 1, x, x, noise)
    yield lambda: nf.density.log_prob_grad(policy, 1, x, x, x)
    yield lambda: nf.augment.gaussian(x, [1.0, 2.0, 3.0], noise)

def all_calls():
    for dtype in ("float32", "float64", "float16"):
        for call in calls(dtype):
            call()
    nf.augment.poisson(levels, 5.0, noise)
    nf.augment.sensor(levels, 0.1, 0.1, noise)
    nf.augment.by_level(levels, np.zeros(256), np.ones(256), noise)
    nf.q_sample(wide, 1, schedule, noise, dtype="uint16")
    nf.philox4x32(np.zeros((5000, 4), np.uint32), [1, 2])

all_calls()  # imports, and what is looked up once
threading.stack_size(128 << 10)
thread = threading.Thread(target=all_calls)
thread.start()
thread.join()
print("done")
""".replace("ISA", repr(name.removeprefix("native-")))
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", ""), done.stderr


def with_alarm(seconds, call):
    """Sets the alarm inside the block that expects it: on a busy machine it may come before the call."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    call()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", [NATIVE[0], *NUMBA, "reference"])
def test_an_interrupt_ends_a_long_call(name, threads, expected):
    """The call would take ten seconds. Seen to fail: handlers ran after its end, helpers went on to the end."""
    ended = []

    def interrupt(*_):
        ended.append(False)
        raise KeyboardInterrupt

    def walk():
        nf.q_walk(np.ones((16, 1 << 16), np.float32), nf.Schedule.linear(20_000), nf.Noise(0), keep=[19_999])
        ended.append(True)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with using(name), nf.set_num_threads(threads):
            nf.q_walk(np.ones((1, 300), np.float32), S, nf.Noise(0))  # compiled
            for delay in (0.01, 0.1):
                begin = time.monotonic()
                with pytest.raises(KeyboardInterrupt):
                    with_alarm(delay, walk)
                assert time.monotonic() - begin < 4
                assert bits(draw()) == expected
        assert ended == [False, False]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize(
    "call",
    [
        "nf.legacy.TorchCPU(1).randn(1 << 25)",
        "nf.legacy.WebUI(1).randn(1 << 24)",
        "nf.legacy.NumPy(1).randn(1 << 25)",
        "nf.q_step(strided, 1, nf.Schedule.linear(9), nf.Noise(1))",
    ],
)
def test_an_interrupt_is_heard_between_parts(call):
    """Measures processor time from the signal to the error. Seen to take seconds: NumPy computed everything at once."""
    code = f"""
import signal, time
import numpy as np, noisefuse as nf
nf.set_num_threads(1)
strided = np.zeros((5, 1 << 25), np.float32).T
came = []

def interrupt(*_):
    came.append(time.process_time())
    raise KeyboardInterrupt

def late():
    for _ in range(2):  # the first call touches new memory, which may take longer than all else
        begin = time.process_time()
        {call}
        whole = time.process_time() - begin
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        signal.signal(signal.SIGPROF, interrupt)
        signal.setitimer(signal.ITIMER_PROF, part * whole)
        begin = time.process_time()
        try:
            {call}
        except KeyboardInterrupt:
            yield came[-1] - begin - part * whole
        signal.setitimer(signal.ITIMER_PROF, 0)

print(max(late()))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("name", [NATIVE[0], *NUMBA])
def test_a_signals_handler_may_make_calls_itself(name, expected):
    """A call runs inside another one, which goes on. Seen to fail: a pool that its own caller found locked."""
    drawn = []
    before = signal.signal(signal.SIGALRM, lambda *_: drawn.append(bits(draw())))
    try:
        with using(name), nf.set_num_threads(3):
            alone = bits(nf.randn((64, 1 << 20), nf.Noise(0)))
            for delay in (0.001, 0.01, 0.02):
                signal.setitimer(signal.ITIMER_REAL, delay)
                assert bits(nf.randn((64, 1 << 20), nf.Noise(0))) == alone
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert drawn
    assert set(drawn) == {expected}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("name", [NATIVE[0], *NUMBA, "reference"])
def test_an_interrupted_call_leaves_all_in_order(name, expected):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # what is raised in the midst of a collection is lost
    try:
        with using(name), nf.set_num_threads(2):
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    with_alarm(0.03, lambda: [draw(sample) for sample in range(10_000)])
                assert bits(draw()) == expected
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupt_waits_for_the_threads_that_have_begun():
    """The threads write to the caller's memory, so an interrupt waits for them. Seen to fail: raised at once."""
    begun, done = threading.Event(), []

    def work():
        if threading.current_thread() is threading.main_thread():
            begun.wait()
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.05)
        done.append(True)

    with pytest.raises(KeyboardInterrupt):
        together(work, lambda: None, 2)
    assert done


def test_what_no_thread_has_begun_keeps_nothing_alive():
    """Seen to fail: outputs of one thread's calls lived on until busy threads of another call had time to look."""

    class Memory:
        def work(self):
            pass

    def wait():
        begun.release()
        go.wait(60)

    begun, go = threading.Semaphore(0), threading.Event()
    everyone = len(_workers) + 2
    busy = threading.Thread(target=together, args=(wait, lambda: None, everyone))
    busy.start()
    for _ in range(everyone):
        begun.acquire(timeout=60)
    memory = Memory()
    gone = weakref.ref(memory)
    together(memory.work, lambda: None, 2)
    del memory
    assert gone() is None
    go.set()
    busy.join()


def test_interrupts_at_any_moment_leave_no_lock_taken():
    """This catches a deadlock. Seen to fail: a pool of concurrent.futures, which hung after some hundreds."""
    code = """
import faulthandler, random, signal, time
from noisefuse.backends.threads import together

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
faulthandler.dump_traceback_later(60, exit=True)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3))
        while True:
            together(lambda: None, lambda: None, 6)
    except KeyboardInterrupt:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
together(lambda: None, lambda: None, 6)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["native", *(pytest.param(name, marks=pytest.mark.slow) for name in NUMBA)])
def test_a_hundred_threads(name):
    """Seen to end the process: a share of the work for each, past the memory for 64 shares."""
    code = """
import noisefuse as nf
found = []
for n in (1, 100):
    nf.set_num_threads(n)
    found.append(nf.randn((4, 1 << 20), nf.Noise(1)))
print((found[0] == found[1]).all())
"""
    done = python(code, **NONE | {"NOISEFUSE_BACKEND": name})
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
@pytest.mark.parametrize("name", ["native", *NUMBA])
def test_large_calls_have_as_many_threads_as_they_may(name):
    """The helpers stay free to run everywhere. Seen to fail: all on the caller's processor; helpers kept off its
    processor for good."""
    code = """
import os, time, numpy as np, noisefuse as nf
def tasks():
    return len(os.listdir("/proc/self/task"))
def long_way():
    nf.randn((8, 50_000), nf.Noise(1))
def fast_path(x=np.ones((8, 50_000), "f4"), schedule=nf.Schedule.linear(20)):
    nf.q_sample(x, 5, schedule, nf.Noise(1))
nf.set_num_threads(1)
long_way()
fast_path()
before = tasks()
for n, call in ((2, long_way), (4, fast_path), (3, long_way)):
    nf.set_num_threads(n)
    call()
    print(tasks() - before)
for _ in range(300):
    nf.randn((8, 50_000), nf.Noise(1))
def places():
    return len({frozenset(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")})
end = time.monotonic() + 10
while places() > 1 and time.monotonic() < end:  # one may be on its way
    time.sleep(0.01)
print(places())
"""
    assert python(code, **NONE | {"NOISEFUSE_BACKEND": name}).stdout.split() == ["1", "3", "3", "1"]


@pytest.mark.parametrize("name", ["native", *NUMBA])
def test_where_no_thread_can_be_started_the_call_goes_on(name):
    """There is no address space for another stack, so the existing threads do the work."""
    code = """
import resource, numpy as np, noisefuse as nf
out = np.empty((8, 50_000), np.float32)
nf.randn((1, 40_000), nf.Noise(1))
pages = int(open("/proc/self/statm").read().split()[0])
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), hard))
nf.set_num_threads(5)
nf.randn(out.shape, nf.Noise(1), out=out)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
print(out.tobytes().hex())
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    done = python(code, NOISEFUSE_BACKEND=name)
    assert done.returncode == 0, done.stderr
    assert bytes.fromhex(done.stdout) == draw().tobytes()


# ---- settings ----------------------------------------------------------------------------------------------


def test_settings_go_back_at_the_end_of_the_block():
    before, backend = _native.num_threads(), nf.info()["backend"]
    other = next(name for name in ("reference", "native") if name != backend)
    with nf.set_num_threads(3), nf.use_backend(other):
        assert _native.num_threads() == nf.info()["threads"] == 3
        assert nf.info()["backend"] == other
        with nf.set_num_threads(4), nf.use_backend(backend):
            assert _native.num_threads() == 4
            assert nf.info()["backend"] == backend
        assert _native.num_threads() == 3
        assert nf.info()["backend"] == other
    assert _native.num_threads() == before
    assert nf.info()["backend"] == backend
    with nf.use_backend("reference"):
        assert backends.fast_row is backends.fast_mse is backends.declined
    with pytest.raises(ZeroDivisionError), nf.set_num_threads(before + 1), nf.use_backend(other):
        1 / 0  # noqa: B018
    assert _native.num_threads() == before
    assert nf.info()["backend"] == backend


def test_settings_are_also_plain_calls():
    before = nf.info()
    try:
        nf.set_num_threads(7)
        nf.use_backend("reference")
        assert (nf.info()["threads"], nf.info()["backend"]) == (7, "reference")
    finally:
        nf.set_num_threads(before["threads"])
        nf.use_backend(before["backend"])


NONE = dict.fromkeys(("NOISEFUSE_ISA", "NOISEFUSE_BACKEND", "NOISEFUSE_NUM_THREADS"))
SHOW = """
import noisefuse as nf
from noisefuse import _native
print(nf.info()["backend"], nf.info()["isa"], nf.info()["threads"], _native.num_threads())
"""


@pytest.mark.parametrize("isa", [name.removeprefix("native-") for name in NATIVE])
def test_the_environment_chooses_the_instruction_set(isa):
    assert python(SHOW, **NONE | {"NOISEFUSE_ISA": isa}).stdout.split()[1] == isa


def test_the_environment_chooses_the_backend_and_the_threads():
    environment = {"NOISEFUSE_BACKEND": "reference", "NOISEFUSE_NUM_THREADS": "6"}
    backend, _, *threads = python(SHOW, **NONE | environment).stdout.split()
    assert (backend, threads) == ("reference", ["6", "6"])


def test_a_block_before_the_first_call_ends_with_the_backend_of_the_environment():
    code = f"import noisefuse as nf\nwith nf.use_backend('native'): pass\n{SHOW}"
    assert python(code, **NONE | {"NOISEFUSE_BACKEND": "reference"}).stdout.split()[0] == "reference"


def test_without_an_environment_all_processors_are_used():
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert python(SHOW, **NONE).stdout.split() == ["native", NATIVE[0].removeprefix("native-"), *[str(allowed)] * 2]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NOISEFUSE_ISA", "sse9", r"sse9.*portable"),
        ("NOISEFUSE_BACKEND", "gpu", r"NOISEFUSE_BACKEND='gpu'.*native.*reference"),
        ("NOISEFUSE_NUM_THREADS", "many", r"NOISEFUSE_NUM_THREADS.*many"),
        ("NOISEFUSE_NUM_THREADS", "0", r"NOISEFUSE_NUM_THREADS.*0"),
        ("NOISEFUSE_NUM_THREADS", "-2", r"NOISEFUSE_NUM_THREADS.*-2"),
        ("NOISEFUSE_NUM_THREADS", "1025", r"NOISEFUSE_NUM_THREADS='1025'.* 1 to 1024"),
        ("NOISEFUSE_NUM_THREADS", "\u0663", r"NOISEFUSE_NUM_THREADS='.+'.* 1 to 1024"),  # a 3, but not to atoi
    ],
)
def test_a_bad_environment_is_an_error(name, value, message):
    done = python("import noisefuse as nf; nf.randn((1, 4), nf.Noise(1))", **NONE | {name: value})
    assert done.returncode == 1
    assert re.search(rf"\nValueError: .*{message}", done.stderr)
