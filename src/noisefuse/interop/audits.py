# SPDX-License-Identifier: Apache-2.0
"""`audit`: it watches who draws noise, in torch, in NumPy and by keys of noisefuse, and finds draws that repeat others.

A draw of torch or NumPy is known by its first numbers: another one that has them used the same noise. A draw by a key
is known by the key, and each of its samples counts.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial, wraps
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, cast
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..call.description import Impulses, Masks, Poisson, Race, Rician, Step, StepAndLoss, Walk
from ..language.noise import INTERVAL

__all__ = ["Audit", "Draw", "audit"]

HEAD, FIRST = 16, 512  # numbers that are looked at: of floats, and of what has few values, such as a mask
BITS = 48  # which they must tell: draws that tell less may be equal by chance
NOISE = re.compile(  # what returns noise alone, of torch and of NumPy. An order (randperm) is none
    r"rand(n|int)?(_like)?|random_?|random_sample|integers|((log_|standard_)?normal|uniform|bernoulli|geometric|cauchy"
    r"|(standard_)?exponential)_?|normal_functional|multinomial|poisson|binomial|laplace|gamma|native_dropout"
)
DRAWING = {
    "fast_row", "fast_random", "fast_tokens", "fast_categorical", "fast_token_step", "fast_walk", "fast_impulse",
    "fast_rician", "fast_factors", "fast_iso", "fast_photons",
}  # fmt: skip
INIT, CHECKPOINT = (os.path.join("torch", *path) for path in (("nn", "init.py"), ("utils", "checkpoint.py")))
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd


class Draw(NamedTuple):
    """A draw of noise.

    Attributes:
        what: The function, and the shape of what it drew.
        where: The file and line that called it, outside of torch, NumPy and noisefuse.
        rank: That of torch.distributed or RANK, else 0.
        worker: The number of the data loader's worker that drew it, or None.
        on_purpose: Whether it may repeat another one: torch's checkpoint draws again, or `Audit.on_purpose` says so.
    """

    what: str
    where: str
    rank: int
    worker: int | None
    on_purpose: bool


class Audit:
    """An audit lists the draws that it sees, while the block runs. Its text is a report."""

    def __init__(self, watch: str, group: Any, folder: str = "", rank: int = 0) -> None:
        self._watch, self._group, self._folder, self._rank = watch, group, folder, rank
        self._process = 0 if folder else os.getpid()  # 0: this is a worker
        self._seen: list[tuple[Any, Any, Draw]] = []
        self._meant = False
        self.patches: ExitStack = ExitStack()

    @property
    def made(self) -> list[Draw]:
        """All draws, those on purpose too."""
        return [draw for _, _, draw in self._seen]

    @property
    def repeated(self) -> list[tuple[Draw, ...]]:
        """Draws that repeat one another. Those of a tuple have the same numbers, or share samples."""
        fields: dict[Any, dict[int, list[int]]] = {}  # of each field: the draws that have an id
        for n, (field, known, draw) in enumerate(self._seen):
            of_ids = {} if draw.on_purpose else fields.setdefault(field, {})
            for row in _ids(known).tolist():
                of_ids.setdefault(row, []).append(n)
        shared = (tuple(draws) for of_ids in fields.values() for draws in of_ids.values() if len(draws) > 1)
        return [tuple(self._seen[n][2] for n in group) for group in dict.fromkeys(shared)]

    def __str__(self) -> str:
        repeated, meant = self.repeated, sum(draw.on_purpose for draw in self.made)
        others = {id(draw) for draws in repeated for draw in draws[1:]}
        lines = [f"{len(self._seen)} draws of noise: {len(others)} repeat others, {meant} may do so"]
        for draws in repeated[:8]:
            lines += [f"the same noise in {len(draws)} draws:"]
            lines += ["    {} at {}, rank {}, worker {}".format(*draw) for draw in draws[:4]]
        return "\n".join(lines)

    def on_purpose(self) -> backends.Setting:
        """Lets draws repeat others, from now on or in a ``with`` block: those of a validation, for example."""
        before, self._meant = self._meant, True
        return backends.Setting(lambda: setattr(self, "_meant", before))

    @property
    def worker(self) -> Callable[[int], None]:
        """A data loader's ``worker_init_fn``: spawned workers need it, forked ones do not."""
        return partial(_watch_worker, self._watch, self._folder, self._rank)

    def __enter__(self) -> Audit:
        if not self._folder:
            self._folder, ranks = tempfile.mkdtemp(prefix="noisefuse-audit-"), _distributed()
            self._rank = int(ranks.get_rank() if ranks else os.environ.get("RANK", 0))
        _open[self._folder] = self
        loaded = [sys.modules[name] for name in ("noisefuse", "numpy", "torch") if name in sys.modules]
        self._libraries = tuple(os.path.join(os.path.dirname(str(library.__file__)), "") for library in loaded)
        self.patches.enter_context(backends.use_backend(cast(backends.Backend, Keys(backends.current(), self.note))))
        _watch_numpy(self)
        if (torch := sys.modules.get("torch")) is not None and self._watch == "python":
            _watch_names(self, "torch", torch, torch.Tensor)
        elif torch is not None:
            _watch_operators(self)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.patches.close()
        del _open[self._folder]
        for name in sorted(os.listdir(self._folder)):
            with open(os.path.join(self._folder, name), "rb") as file, suppress(EOFError, pickle.UnpicklingError):
                while True:
                    self._seen.append(pickle.load(file))  # `note` wrote it  # nosec B301
        shutil.rmtree(self._folder, ignore_errors=True)
        if kind is None and (ranks := _distributed()) is not None:
            gathered: list[Any] = [None] * ranks.get_world_size(self._group)
            ranks.all_gather_object(gathered, self._seen, group=self._group)
            self._seen = [each for seen in gathered for each in seen]

    def note(self, field: Any, known: Any, what: str) -> None:
        """Takes down a draw by what is known of its numbers in a field. Workers write it to a file."""
        if (found := _caller(self._libraries)) is None:
            return
        (where, inside, again), process, worker = found, os.getpid(), None
        if process != self._process:
            data = sys.modules.get("torch.utils.data")
            worker = info.id if data and (info := data.get_worker_info()) else process
        draw = Draw(what.replace("{}", inside), where, self._rank, worker, again or self._meant)
        if worker is None:
            self._seen.append((field, known, draw))
            return
        with suppress(OSError), open(os.path.join(self._folder, str(process)), "ab") as file:  # gone after the block
            file.write(pickle.dumps((field, known, draw)))

    def numbers(self, library: str, name: str, out: Any, args: Any) -> None:
        """Takes down a draw by its numbers."""
        out = out[1] if name == "native_dropout" else out
        if (first := _first(out)) is not None and (known := _identity(first, _chances(name, out, args))) is not None:
            self.note(None, known, f"{library}.{name} {tuple(out.shape)}")


_open: dict[str, Audit] = {}  # by their folders; forked workers have it too


def _watch_worker(watch: str, folder: str, rank: int, worker: int) -> None:
    if folder not in _open:
        Audit(watch, None, folder, rank).__enter__()


def _distributed() -> Any:
    """Returns torch.distributed if its processes have met."""
    found = sys.modules.get("torch.distributed")
    return found if found is not None and found.is_available() and found.is_initialized() else None


class Keys:
    """The backend in use. It tells the keys of what it draws; losses, which draw again, go their way."""

    tests_itself = False

    def __init__(self, backend: Any, note: Callable[[Any, Any, str], None]) -> None:
        self._backend, self._note = backend, note
        self.empty: Callable[..., Any] = backend.empty
        for name in backends.FAST_PATH:
            setattr(self, name, None if name in DRAWING else getattr(backend, name))

    def run(self, call: Any) -> Any:
        done = self._backend.run(call)
        while isinstance(call, Walk | Masks | Impulses | Poisson | Rician | StepAndLoss):
            call = call.first if isinstance(call, Walk) else call.step
        drawn: Any = (), (), ()
        if isinstance(call, Race):
            drawn = call.fields, (call.rows, call.n), (call.of_sample, None, call.position)
        elif isinstance(call, Step) and call.draw != "none":
            index = call.index[np.arange(call.batch) * call.size // call.segment] if call.step_by_index else None
            drawn = call.noise, (call.batch, *call.sample_shape), (1, index, None)
        names, shape, rest = drawn
        for n, name in enumerate(() if done is NotImplemented else names):
            if name.stream != INTERVAL:  # whose draws are parts of several increments
                rows = name.sample, name.step, None if len(names) == 1 else n, shape[0], *rest
                field = name.seed, name.stream, name.window_shape, name.window_start
                self._note(field, rows, f"noisefuse.{{}} {shape}")
        return done


def _ids(known: Any) -> NDArray[np.uint64]:
    """Returns what tells the rows of a draw apart in its field: sample, step and place, made one number."""
    if isinstance(known, int):  # a draw that is known by its numbers
        return np.array([known], np.uint64)
    sample, step, only, n, of_sample, steps, places = known
    row = np.arange(n, dtype=np.uint64) // np.uint64(of_sample)
    ids = sample[row] if isinstance(sample, np.ndarray) else np.uint64(sample) + row * np.uint64(only is None)
    mixed = np.zeros(n, np.uint64)
    for part in (ids, np.add(step, 0 if steps is None else steps), 0 if places is None else places):
        mixed = (mixed + np.asarray(part, np.uint64)) * MIX
        mixed ^= mixed >> np.uint64(32)
    return mixed if only is None else mixed[row == only]


def _watch_numpy(audit: Audit) -> None:
    """Watches the functions of numpy.random, and generators that `default_rng` makes from now on."""
    make = np.random.default_rng
    generator: Any = type("Generator", (np.random.Generator,), {})

    @wraps(make)
    def default_rng(seed: Any = None) -> Any:
        made = make(seed)
        return made if made is seed else generator(made.bit_generator)

    _watch_names(audit, "numpy", np.random, generator)
    audit.patches.enter_context(patch.object(np.random, "default_rng", default_rng))


def _watch_operators(audit: Audit) -> None:
    """Watches torch's operators, whoever calls them."""
    from .torch.internals import TorchDispatchMode

    names: dict[int, str] = {}

    class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **kwargs) if kwargs else func(*args)
            name = names.get(id(func))
            if name is None:
                name = func.name().partition("::")[2].partition(".")[0]
                name = names[id(func)] = name if NOISE.fullmatch(name) else ""
            if name:
                audit.numbers("torch", name, out, args)
            return out

    audit.patches.enter_context(Watching())  # type: ignore[no-untyped-call]


def _watch_names(audit: Audit, library: str, *owners: Any) -> None:
    """Takes down the results of their functions, but not while a compiler traces them."""

    def telling(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def told(*args: Any, **kwargs: Any) -> Any:
            out = function(*args, **kwargs)
            if library == "numpy" or not sys.modules["torch"].compiler.is_compiling():
                audit.numbers(library, function.__name__, out, args)
            return out

        return told

    for owner in owners:
        for name in filter(NOISE.fullmatch, dir(owner)):
            if callable(function := getattr(owner, name)):
                audit.patches.enter_context(patch.object(owner, name, telling(function)))


def _first(out: Any) -> NDArray[Any] | None:
    """Returns the first numbers of an array or tensor that has some in memory."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(out, torch.Tensor):
        out = out.to_local() if hasattr(out, "to_local") else out  # a DTensor: this rank's part
        if type(out) not in (torch.Tensor, torch.nn.Parameter) or out.is_meta or out.is_nested:
            return None
        if out.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        out = out.detach()
        while out.ndim > 1 and len(out) and out[0].numel() >= FIRST:  # else `reshape` may copy it all
            out = out[0]
        out = out.reshape(-1)[:FIRST].cpu()
        out = (out.float() if out.dtype == torch.bfloat16 else out).numpy()
    return out.reshape(-1)[:FIRST] if isinstance(out, np.ndarray) else None


def _chances(name: str, out: Any, args: Any) -> Any:
    """Returns the probabilities of what was drawn, if an argument has them: what is nearly certain may be equal."""
    p: Any = args[-1] if args and hasattr(args[-1], "cpu") and args[-1] is not out else None
    if name == "multinomial" and args and hasattr(out, "cpu"):
        return _first(args[0].gather(-1, out) / args[0].sum(-1, keepdim=True))
    return None if p is None or not name.startswith("bernoulli") else _first(out * p + (1 - out) * (1 - p))


def _identity(first: NDArray[Any], chances: Any) -> int | None:
    """Returns a number for these numbers, or None if others may be equal by chance."""
    if first.dtype.kind in "fc" and len({*first[:HEAD].tolist()}) >= HEAD // 2:
        first = first[:HEAD]
    else:
        if chances is None:
            counts = np.unique(first, return_counts=True)[1]
            chances = np.repeat(counts / len(first), counts)
        if -np.log2(np.maximum(chances, 1e-12, dtype=np.float64)).sum() < BITS:
            return None
    return int.from_bytes(blake2b(first.tobytes(), digest_size=8).digest(), "little")


def _caller(libraries: tuple[str, ...]) -> tuple[str, str, bool] | None:
    """Returns the line that draws, what it calls, and whether torch's checkpoint calls it again. Returns None in
    torch.nn.init, whose weights ranks share."""
    frame: Any = sys._getframe(2)
    where, inside, again = "", "", False
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.endswith(INIT):
            return None
        again |= file.endswith(CHECKPOINT) and name in ("unpack_hook", "backward")
        if not where and file.startswith(libraries):
            inside = name
        else:
            where = where or f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return where, inside, again


def audit(*, watch: Literal["operators", "python"] = "operators", group: Any = None) -> Audit:
    """Watches the noise that is drawn in a ``with`` block, and finds draws that repeat others: those of ranks, workers,
    layers or steps that share a seed or a key by mistake.

    It watches torch's operators in the block's thread, the functions of numpy.random and generators that `default_rng`
    makes in the block, and keys of noisefuse, but not what runs in JAX's programs and on CUDA devices by keys. At the
    block's end, which all ranks must reach, torch.distributed's processes gather what they saw. Forked workers of data
    loaders are watched; for others see `Audit.worker`.

    Reported are neither weights that torch.nn.init draws, nor orders (randperm), nor noise that losses draw again, nor
    draws of fewer than 8 numbers or 48 bits.

    Args:
        watch: "python" watches functions and methods of torch in place of its operators: it does not see dropout, nor
            what was imported by name or compiled before. A small training loop costs 2 to 7 % more, not 20 to 30 %.
        group: the processes whose noise must differ: the data-parallel ones. None: all.

    Returns:
        An `Audit`, whose ``repeated`` lists the draws that repeat others. Its text is a report.

    Raises:
        ValueError: watch is another word.

    >>> with nf.audit() as draws:
    ...     for step in range(3):
    ...         z = nf.randn((4, 8), nf.Noise(7))  # without the step
    >>> [len(same) for same in draws.repeated]
    [3]
    """
    if watch not in ("operators", "python"):
        raise ValueError(f"watch: expected 'operators' or 'python', got {watch!r}")
    return Audit(watch, group)
