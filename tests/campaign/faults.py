# SPDX-License-Identifier: Apache-2.0
"""Faults around a call: interrupts, forks, killed processes, no memory, no threads, models that raise; and around the
command `noisefuse noise`: a full disk, denied permission.

python tests/campaign/faults.py [--seed N] [--minutes M] [--json FILE]

Each row of the table runs in a new process, with a time limit. After each fault, the same process still has to give the
same bits as before.
"""

import argparse
import faulthandler
import gc
import io
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np

import noisefuse as nf
from noisefuse.commands.cli import main as command

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "backends")]
from conftest import NUMBA, bits, using  # noqa: E402
from test_threads import child_says_yes  # noqa: E402

LIMIT = 120  # seconds that a row may take beyond its share
S = nf.Schedule.linear(20)
SAMPLER = nf.samplers.dpmpp_2m_sde(S, 4)  # remembers, and draws
NOISE = nf.Noise(7, sample=2**32 - 1, step=3)


class Impossible(Exception):
    """The reason why a fault cannot be caused here."""


class Report:
    """The findings of one row."""

    def __init__(self, seed, seconds):
        self.rng, self.seconds, self.lock = random.Random(seed), seconds, threading.Lock()
        self.cases, self.failures, self.worst = 0, [], ""

    def check(self, good, what):
        with self.lock:
            self.cases += 1
        if not good:
            self.failures.append(what)

    def rounds(self):
        """Yields as often as there is time for from now on, but at least once."""
        end = time.monotonic() + self.seconds
        yield 0
        while time.monotonic() < end:
            yield 0


class Operations:
    """The public operations on arrays of one kind, and the bits of their results before any fault."""

    def __init__(self, kind, shape=(4, 20_000)):
        if nf.info()["backend"] == "reference":  # slow
            shape = (shape[0], max(1, shape[1] // 16))
        drawn = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.place = {}
        if kind == "torch":
            import torch

            drawn, self.place = torch.from_numpy(drawn), {"device": "cpu", "dtype": torch.float32}
        self.x, self.t, self.y = drawn, np.arange(shape[0]) % 20, drawn * 0.5
        self.names = ["randn", "q_sample", "q_step", "q_walk", "update", "sample", "mse_loss"]
        self.outs, self.known = {}, {}
        for name in self.names:  # twice: the second call may take the fast path
            self.outs[name] = (self.call(name), self.call(name))[1][-1]
            self.known[name] = self.bits(name)

    def call(self, name, out=None):
        """Returns a tuple whose last item is the written array."""
        x, y, t = self.x, self.y, self.t
        match name:
            case "randn":
                place = self.place if out is None else {}
                return (nf.randn(tuple(x.shape), NOISE, out=out, **place),)
            case "q_sample":
                return (nf.q_sample(x, t, S, NOISE, out=out),)
            case "q_step":
                return (nf.q_step(x, t, S, NOISE, out=out),)
            case "q_walk":
                return (nf.q_walk(x, S, NOISE, keep=[5, 19], out=out),)
            case "update":
                return (nf.update(SAMPLER.tableau, 1, x, y, past=[y], noise=NOISE, out=out, aux_out=1)[0],)
            case "sample" if out is None:
                return (SAMPLER.sample(model, x, NOISE),)
            case "sample":
                state, out[...] = SAMPLER.state(x), x
                for i in range(len(SAMPLER)):
                    SAMPLER.step(i, out, model(*SAMPLER.model_input(i, out)), NOISE, state, out=out)
                return (out,)
            case "mse_loss":
                return nf.mse_loss_and_grad(x, y, t, S, NOISE, target="v", out=True if out is None else out)

    def bits(self, name, out=None):
        return b"".join(bits(np.asarray(part)) for part in self.call(name, out))

    def right(self, report, name, out=None, what=""):
        report.check(self.bits(name, out) == self.known[name], f"{name}{what}: other bits")


def model(x, _t):
    return x  # it returns at once, so that an interrupt waits for the library's code


# ---- scenarios ---------------------------------------------------------------------------------------------


def interrupt(call, delay):
    """Repeats call() until a KeyboardInterrupt, `delay` seconds from now. Returns how late it came, or None for
    never."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    due = time.perf_counter() + delay
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        while time.perf_counter() < due + 10:
            call()
    except KeyboardInterrupt:
        return time.perf_counter() - due
    return None


def interrupts(report, kind, shape=(4, 20_000), longest=0.02, at_once=1):
    """Interrupts every operation at any moment, with given and new outputs. Arguments are freed, too."""
    nf.set_num_threads(3)
    ops, late = Operations(kind, shape), []
    arguments = (ops.x, ops.y, ops.t, S, NOISE, SAMPLER, SAMPLER.tableau, *ops.outs.values())
    before = list(map(sys.getrefcount, arguments))
    for _ in report.rounds():
        for name in ops.names:
            for out in (None, ops.outs[name]):
                for _ in range(at_once):
                    seconds = interrupt(partial(ops.call, name, out), report.rng.uniform(1e-5, longest))
                    report.check(seconds is not None, f"{name}: an interrupt that nobody saw")
                    late.append((seconds or 0, name))
                ops.right(report, name, out, " after an interrupt")
    del name, out
    gc.collect()
    kept = [after - n for after, n in zip(map(sys.getrefcount, arguments), before, strict=True)]
    report.check(not any(kept), f"interrupted calls kept their arguments: {kept}")
    median, (most, slowest) = statistics.median_low(late)[0], max(late)
    latency = f"latency median {median * 1e3:.1f} ms, maximum {most * 1e3:.1f} ms ({slowest})"
    report.worst = f"{len(late) // len(ops.names)} interrupts of each operation; {latency}"
    report.check(most < 1, f"{latency}: expected less than 1 s, on the busiest machine")


def forks(report, kind):
    """Two threads fork while three others make calls; children make all calls, and end with status 0."""
    nf.set_num_threads(4)
    ops, stop = Operations(kind), threading.Event()

    def child():
        return all(ops.bits(name) == ops.known[name] for name in ops.names)

    def busy(k):
        for n in iter(lambda: -1 if stop.is_set() else k, -1):
            ops.right(report, ops.names[n % len(ops.names)], None, " beside forks")

    with ThreadPoolExecutor(3) as others, ThreadPoolExecutor(2) as forking:
        running = [others.submit(busy, 2 * k) for k in range(3)]
        try:
            for _ in report.rounds():
                for good in forking.map(child_says_yes, [child] * 2):
                    report.check(good, "a child hung, or had other bits")
        finally:
            stop.set()
        [thread.result() for thread in running]


def kills(report, kind):
    """Workers that write to shared memory are killed. Their parent's results meanwhile and afterwards are right."""
    nf.set_num_threads(3)
    ops = Operations(kind)
    for _ in report.rounds():
        memory = shared_memory.SharedMemory(create=True, size=3 * ops.x.nbytes)
        parts = list(np.frombuffer(memory.buf, np.float32, 3 * ops.x.size).reshape(3, *ops.x.shape))
        workers, me = [], os.getpid()
        for part in parts:
            if (pid := os.fork()) == 0:
                while os.getppid() == me:
                    nf.set_num_threads(2)
                    nf.q_sample(ops.x, ops.t, S, NOISE, out=part)
                os._exit(1)
            workers.append(pid)
        for worker in workers:
            time.sleep(report.rng.uniform(0, 0.02))
            ops.right(report, report.rng.choice(ops.names), None, " beside workers")
            os.kill(worker, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
            report.check(status == -signal.SIGKILL, f"a worker ended by itself: {status}")
        for part in parts:
            ops.right(report, "q_sample", part, " where a killed worker wrote")
        del part, parts
        memory.close()  # BufferError where a call has kept an output
        memory.unlink()


def memory_limits(report, kind):
    """There is no memory for an output, or for some of them: MemoryError. Small calls then work, and large ones once
    there is memory."""
    import resource

    nf.set_num_threads(3)
    small, large, raised, calls = Operations(kind), Operations(kind, (4, 1 << 19)), 0, 0
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    for _ in report.rounds():
        for name in large.names:
            taken = [large.call("randn") for _ in range(report.rng.randrange(8))]  # memory that the library keeps
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
            limit, error = mapped + report.rng.randrange(1 << 16, 3 * large.x.nbytes), None
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            try:
                large.call(name)
            except (MemoryError, RuntimeError) as caught:  # torch raises the latter
                error = caught
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            raised, calls = raised + (error is not None), calls + 1
            plain = error is None or isinstance(error, MemoryError) or "memory" in str(error)
            report.check(plain, f"{name} without memory: {error!r}")
            error = None  # it holds the frames, and their arrays
            taken.clear()
            for after in small.names:
                small.right(report, after, None, f" after no memory for {name}")
            large.right(report, name, None, " with memory again")
    report.check(raised > 0 or calls < 50, "no limit was met")  # one in three, but for what an allocator has left
    report.worst = f"{raised} MemoryErrors"


def thread_limits(report, kind):
    """The system starts no more threads, so the existing ones do the work."""
    import resource

    nf.set_num_threads(1)
    ops = Operations(kind)
    if os.getuid() == 0:
        os.setuid(65534)  # root may have as many as it likes
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    before = len(os.listdir("/proc/self/task"))
    for _ in report.rounds():
        nf.set_num_threads(report.rng.randrange(2, 65))
        for name in ops.names:
            for out in (None, ops.outs[name]):
                ops.right(report, name, out, " without further threads")
    report.check(len(os.listdir("/proc/self/task")) == before, "the limit did not hold")


def outputs(report, kind):
    """Read-only arrays are refused, unchanged; views outlive their arrays, and mappings the name of their file."""
    ops = Operations(kind)
    for _ in report.rounds():
        for name, known in ops.outs.items():
            with tempfile.NamedTemporaryFile() as file:
                file.truncate(known.nbytes)
                mapped = np.memmap(file.name, np.float32, "r+", shape=known.shape)
                locked = np.memmap(file.name, np.float32, "r", shape=known.shape)
            ops.right(report, name, mapped, " into a file without a name")
            ops.right(report, name, np.empty((3, *known.shape), np.float32)[1], " into a view")
            view = mapped[...]
            view.flags.writeable = False
            for out in (locked, view, np.frombuffer(known.tobytes(), np.float32).reshape(known.shape)):
                before = bits(out)
                try:
                    ops.call(name, out)
                    report.check(False, f"{name} wrote to a read-only array")
                except ValueError:
                    report.check(bits(out) == before, f"{name} changed a read-only array")


def models_that_raise(report, kind):
    """A model raises in the middle of a run, or in its callback, or answers with the wrong kind. A new run is right."""
    ops = Operations(kind)
    answers = [None, "x", lambda x: x[:, :-1], lambda x: (x, x), lambda x: x.shape]

    def bad(at, answer, x, t):
        calls.append(t)
        ops.right(report, "sample", None, " in the middle of a run")
        if len(calls) <= at:
            return model(x, t)
        if isinstance(answer, BaseException):
            raise answer
        return answer(x) if callable(answer) else answer

    def callback(at, i, _x, _denoised):
        if i == at:
            raise ZeroDivisionError

    for _ in report.rounds():
        calls = []  # this run goes on to its end, with another run in the middle of each step
        x = SAMPLER.sample(partial(bad, len(SAMPLER), None), ops.x, NOISE)
        report.check(bits(np.asarray(x)) == ops.known["sample"], "other bits around another run")
        for at in range(len(SAMPLER)):
            errors = [ZeroDivisionError(), KeyboardInterrupt(), SystemExit(), StopIteration(), MemoryError()]
            runs = [(partial(bad, at, answer), None) for answer in [*errors, *answers]]
            for wrong, then in [*runs, (model, partial(callback, at))]:
                calls = []
                try:
                    SAMPLER.sample(wrong, ops.x, NOISE, callback=then)
                    report.check(False, f"no error at step {at}")
                except BaseException as error:
                    expected = [type(e) for e in errors] + [TypeError, ValueError]
                    report.check(type(error) in expected, f"step {at}: {error!r}")
                ops.right(report, "sample", None, f" after an error at step {at}")


def many_threads(report, kind):
    """Sixteen threads make mixed calls, small and large, on changing numbers of threads, with frequent switches."""
    several = [Operations(kind, shape) for shape in ((4, 20_000), (3, 7), (1, 1), (2, 200_000))]
    sys.setswitchinterval(1e-5)

    def work(seed):
        mine = random.Random(seed)
        for _ in report.rounds():
            ops = mine.choice(several)
            nf.set_num_threads(mine.randrange(1, 9))
            ops.right(report, mine.choice(ops.names), None, " beside fifteen other threads")

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, [report.rng.random() for _ in range(16)]))


def windows(report, _kind):
    """Several axes of samples of 2^34 elements, about element 2^32: uniform numbers from the words of docs/noise.md,
    and the normals of windows of one axis (which tests/noise compares with their words).
    """
    full, high = (1 << 9, 1 << 16, 1 << 9), 1 << 7  # [high, 0, 0] is element 2^32
    for _ in report.rounds():
        start = (high - 1, report.rng.randrange((1 << 16) - 40, 1 << 16), report.rng.randrange((1 << 9) - 7))
        shape, noise = (2, 2, (1 << 16) - start[1], 7), NOISE.window(full, start).at(stream=5)
        element = np.ravel_multi_index(np.add(np.indices(shape[1:]).T, start).T, full)
        report.check(element.max() >= 1 << 32 > element.min(), "not about 2^32")
        sample, tag = NOISE.sample + 1, 5 << 24 | (NOISE.sample + 1) >> 32
        counter = [(e >> 2, NOISE.step, sample % 2**32, tag) for e in element.ravel().tolist()]
        w = nf.philox4x32(counter, [NOISE.seed, 0])[np.arange(element.size), element.ravel() & 3]
        found = nf.uniform(shape, noise)[1].ravel()
        report.check((found == ((w >> 9) + 0.5) / 2**23).all(), f"uniform at {start}: other values")
        for part, first in zip(nf.randn(shape, noise)[1].reshape(-1, 7), element[..., 0].ravel(), strict=True):
            alone = nf.randn((2, 7), noise.window((1 << 34,), (int(first),)))[1]
            report.check(bits(part) == bits(alone), f"randn at element {first}: other bits")


# ---- of the command `noisefuse noise` ----------------------------------------------------------------------

NOBODY = 65534


class DataSets:
    """Makes sources of each kind for the command, in a folder, and the paths of their targets."""

    def __init__(self, folder):
        import zarr
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (12, 40, 40), np.uint8)
        np.save(folder / "x.npy", pixels)
        zarr.create_array(folder / "x.zarr", shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 40, 40))[...] = pixels
        for n, image in enumerate(pixels):
            path = folder / "x" / f"in{n % 2}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        self.folder, self.kinds = folder, [".npy", ".zarr", ""]
        self.known = {}
        for kind in self.kinds:
            status, said = self.noised(kind, folder / f"known{kind}")
            assert status == 0, said
            self.known[kind] = files(folder / f"known{kind}")

    def noised(self, kind, target):
        """Returns the command's status, and its output."""
        options = ["--schedule", "cosine", "--t", "300", "--seed", "7", "--block", "2000"]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
            status = command(["noise", str(self.folder / f"x{kind}"), str(target), *options])
        return status, said.getvalue()

    def fails(self, report, kind, target, expected, what):
        """Asserts that it failed in one line with the reason, and without a target."""
        status, said = self.noised(kind, target)
        good = status == 2 and expected in said and said.count("\n") == 1 and not os.path.lexists(target)
        report.check(good, f"{kind or 'images'}, {what}: status {status}, {said!r}")

    def goes_on(self, report, kind, target, what):
        status, said = self.noised(kind, target)
        good = status == 0 and files(target) == self.known[kind]
        report.check(good, f"{kind or 'images'}, after {what}: status {status}, or other bits; {said!r}")


def files(path):
    """Returns the contents of the files of a folder, or of one file, by name."""
    return {str(file.relative_to(path)): file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}


def full_disk(report, kind):
    """The disk has a few pages, and is full before everything is written: at the journal, or anywhere. Once it is
    larger, the same command goes on."""
    ops = Operations(kind)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as disk:
        data = DataSets(Path(folder))
        with mounted(disk) as resize:
            for _ in report.rounds():
                for ending in data.kinds:
                    target = Path(disk, f"y{ending}")
                    pages = report.rng.randrange(sum(-(-len(file) // 4096) for file in data.known[ending].values()))
                    resize(max(pages, 1))
                    if not pages:
                        Path(disk, "full").write_bytes(bytes(4096))
                    data.fails(report, ending, target, "No space left on device", f"a disk of {pages} pages")
                    ops.right(report, report.rng.choice(ops.names), None, " after a full disk")
                    resize(1000)
                    data.goes_on(report, ending, target, f"a disk of {pages} pages")
                    for path in Path(disk).iterdir():
                        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def mounted(folder):
    """Mounts a disk in memory on the folder, and yields a function that changes its number of pages."""

    def mount(options, *where):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, *where], capture_output=True, text=True)
        if done.returncode:
            raise Impossible(f"no tmpfs can be mounted here: {done.stderr.partition(chr(10))[0]}")

    try:
        mount("size=4k", "tmpfs", folder)
    except FileNotFoundError as error:
        raise Impossible(f"no tmpfs can be mounted here: {error}") from error
    try:
        yield lambda pages: mount(f"remount,size={4 * pages}k", folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def denied_permission(report, kind):
    """A user may not read the source, or some of it, or may not write the target's folder, the journal, the partial
    target, or some of it. Once it is allowed again, the same command goes on."""
    ops = Operations(kind)
    with tempfile.TemporaryDirectory() as folder:
        data = DataSets(Path(folder))
        place = Path(folder, "place")
        place.mkdir()
        os.chmod(folder, 0o755)
        with as_nobody(place):
            for _ in report.rounds():
                for ending in data.kinds:
                    target = place / f"y{ending}"
                    denied_source(report, data, ending, target)
                    if target.exists():
                        denied_target(report, data, ending, target)
                    ops.right(report, report.rng.choice(ops.names), None, " after no permission")
                    for path in place.iterdir():
                        shutil.rmtree(path) if path.is_dir() else path.unlink()


def denied_source(report, data, ending, target):
    source = data.folder / f"x{ending}"
    inside = {".npy": [], ".zarr": ["zarr.json", "c", "c/3"], "": ["in1", "in0/4.png"]}[ending]
    for path in [source, *(source / name for name in inside)]:
        with denied(path, report.rng.choice([0o000, 0o100])):
            data.fails(report, ending, target, "Permission denied", f"no permission for {path}")
    with denied(target.parent, 0o555):
        data.fails(report, ending, target, "Permission denied", f"no permission for {target.parent}")
    data.goes_on(report, ending, target, "no permission for the source")


def denied_target(report, data, ending, target):
    """Makes the state of a command that was stopped when only one chunk, or one image, was missing."""
    journal, partial = (target.with_name(f"{target.name}.noisefuse{part}") for part in ("", "-partial"))
    target.rename(partial)
    missing = {".npy": "", ".zarr": "c/3/0/0", "": "in0/4.png"}[ending]
    if missing:
        (partial / missing).unlink()
    for path in [journal, (partial / missing).parent if missing else partial]:
        with denied(path, 0o500):
            data.fails(report, ending, target, "Permission denied", f"no permission for {path}")
    data.goes_on(report, ending, target, "no permission for the target")


@contextmanager
def as_nobody(place):
    """Root, who may do everything, becomes another user, who owns this folder."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(place, NOBODY, NOBODY)
    try:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    except PermissionError as error:
        raise Impossible(f"root cannot become another user here: {error}") from error
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def denied(path, mode):
    """Restricts the permissions of everybody to this."""
    before = path.stat().st_mode
    with as_owner():
        path.chmod(mode)
    try:
        yield
    finally:
        with as_owner():
            path.chmod(before)


@contextmanager
def as_owner():
    """Becomes root again, if it was root."""
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(user)


ALL = ["native", *NUMBA, "reference"]
TORCH = ["native torch"]
# name: the scenario; its share of the time; its platforms
SCENARIOS = {
    "interrupts": (interrupts, 10, [*ALL, *TORCH, *(f"{name} torch" for name in NUMBA)]),
    "interrupts, long calls": (partial(interrupts, shape=(8, 1 << 22), longest=0.5, at_once=10), 6, ["native"]),
    "forks": (forks, 1, ["native", *NUMBA]),
    "kills": (kills, 1, ["native", *NUMBA]),
    "memory limits": (memory_limits, 1, [*ALL, *TORCH]),
    "thread limits": (thread_limits, 1, ["native", *NUMBA]),
    "outputs": (outputs, 1, ["native", "reference"]),
    "models that raise": (models_that_raise, 1, [*ALL, *TORCH]),
    "many threads": (many_threads, 2, [*ALL, *TORCH]),
    "windows": (windows, 1, ALL),
    "full disk": (full_disk, 1, ["native"]),
    "denied permission": (denied_permission, 1, ["native"]),
}
# Seconds of the quick level, natively.
QUICK = {name: 2 if name == "many threads" else 0.2 for name in SCENARIOS if name != "interrupts, long calls"}


# ---- running them ------------------------------------------------------------------------------------------


def run(name, on, seed, seconds):
    """Runs a row of the table in a new process. If that process dies, this is a failure, with all its output."""
    child = [sys.executable, __file__, "--child", name, on, "--seed", str(seed), "--minutes", str(seconds / 60)]
    begin = time.monotonic()
    done = subprocess.run(child, capture_output=True, text=True)
    row = {"name": name, "on": on, "cases": 0, "failures": [f"status {done.returncode}: {done.stderr}"], "worst": ""}
    if done.returncode == 0:
        row |= json.loads(done.stdout.splitlines()[-1])
    return row | {"seconds": round(time.monotonic() - begin, 1)}


def child(name, on, seed, seconds):
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds + LIMIT, exit=True)
    backend, _, kind = on.partition(" ")
    report = Report(seed, seconds)
    row = {}
    try:
        with using(backend):
            SCENARIOS[name][0](report, kind)
    except Impossible as why:
        row["skipped"] = str(why)
    row |= {"cases": report.cases, "failures": report.failures[:20], "worst": report.worst}
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--minutes", type=float, default=10, help="of all rows together, about; some take longer")
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep the table there")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child, given.seed, 60 * given.minutes)
        return 0
    print(f"seed {given.seed}")
    rows = []
    shares = [(name, on, share) for name, (_, share, everywhere) in SCENARIOS.items() for on in everywhere]
    unit = 60 * given.minutes / sum(share for *_, share in shares)
    for name, on, share in shares:
        row = run(name, on, given.seed, share * unit)
        label, failed = f"{name}, {on}", len(row["failures"])
        said = f"skipped: {row['skipped']}" if "skipped" in row else row["worst"]
        print(f"{label:40}{row['cases']:8} cases{failed:4} failures{row['seconds']:8} s  {said}")
        print("".join(f"    {text}\n" for text in row["failures"]), end="", flush=True)
        rows.append(row)
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "noisefuse": nf.info(), "rows": rows}, indent=1))
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
