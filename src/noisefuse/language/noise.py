# SPDX-License-Identifier: Apache-2.0
"""Noise: the key of a Gaussian field. It stores four numbers, never the field."""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, NoReturn, SupportsIndex, TypeAlias, TypeGuard, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ground import notebook, stored
from ..ground.checks import check_integer, got, is_tracer
from ..ground.libraries import check_plain, library
from ..ground.version import __version__
from .increments import CELLS, RUNS, Terms, grid_terms, tree_terms

# The versions of the contract in docs/noise.md: of its stable part, which is frozen, and of its provisional one. Each
# grows when a bit of its part changes.
NOISE_VERSION = 1
PROVISIONAL_VERSION = 1

# The uses of the streams of one seed. Users have 64 to 127 for themselves.
FIELD, WALK, START, SAMPLER, INTERVAL, UNIFORM, AUGMENT = 0, 1, 2, 3, 4, 7, 8
OFFSET, PERTURBATION, NEAREST, PYRAMID, SHARED, ORDER = 5, 6, 9, 10, 11, 12  # the streams of `fields`
RACE, MASKS, TOKENS, PLACES, TIMES = 13, 14, 15, 16, 17  # the streams of discrete diffusion

SEEDS, SAMPLES, STEPS, STREAMS = 1 << 64, 1 << 56, 1 << 32, 128
ELEMENTS = 1 << 34  # in one sample
LOGITS = 1 << 51  # in one sample: 2^20 for each of 2^31 positions, which have words of their own

# What the next Noise does that is made where JAX is loaded: `interop` adds the import that makes Noise a pytree.
with_jax: list[Callable[[], None]] = []


class Noise:
    """A Gaussian field: a pure function of (seed, sample, step, stream) and the number of the element.

    The same four numbers give the same values on every backend and processor, whatever the batch, the chunking and the
    number of threads, so noise need never be stored. Row b of an array takes the sample `sample + b`.

    Args:
        seed: an int in [0, 2^64). None takes fresh entropy from the system. `repr` shows the seed, so every run can be
            repeated: `eval(repr(noise)) == noise` if the step is an int and there are at most 32 sample ids. Seeds
            below 2^32 are shown in decimal.
        sample: the id of the first sample, in [0, 2^56), or an array of ids, one for each row (copied, read-only).
        step: an int in [0, 2^32): the training step, the epoch. q_step and q_walk at time t use `step + t`. Or a 0-d
            CuPy array of integers, for operations on its device: kernels read it when they run, modulo 2^32, so a CUDA
            graph draws fresh noise at every replay. Under `jax.jit` seed, step, sample and a window's start may be
            traced numbers, for operations on JAX's arrays.
        stream: an int in [0, 128), which keeps different uses of one seed apart (docs/noise.md); 64 to 127 are the
            user's.
        version: the version of the contract that a program relies on (docs/noise.md): only 1 is drawn here. It is not
            stored.

    Raises:
        OverflowError: a number is out of its range.
        TypeError: a number is no integer.
        ValueError: another version is asked for.

    It is not for cryptography or differential privacy.

    >>> noise = nf.Noise(2026, sample=40, step=3)
    >>> noise
    Noise(2026, sample=40, step=3)
    >>> noise.at(step=4)
    Noise(2026, sample=40, step=4)
    """

    __slots__ = ("__weakref__", "sample", "seed", "step", "stream", "window_shape", "window_start")

    seed: int
    sample: int | NDArray[np.uint64]
    step: Any  # int, or a 0-d array on a device
    stream: int
    window_shape: tuple[int, ...] | None
    window_start: tuple[int, ...]

    def __init__(
        self, seed: SupportsIndex | None = None, *, sample: int | ArrayLike = 0, step: Any = 0, stream: int = 0,
        version: int = NOISE_VERSION,
    ) -> None:  # fmt: skip
        if version != NOISE_VERSION:
            refuse_version(version)
        if with_jax and "jax.tree_util" in sys.modules:
            for load in tuple(with_jax):
                load()
            with_jax.clear()
        if seed is None:
            _check_no_trace()
        put = object.__setattr__
        put(self, "seed", int.from_bytes(os.urandom(8), "little") if seed is None else _checked("seed", seed, SEEDS))
        put(self, "sample", _ids(sample))
        put(self, "step", _step(step))
        put(self, "stream", _checked("stream", stream, STREAMS))
        put(self, "window_shape", None)
        put(self, "window_start", ())

    @classmethod
    def from_rng(
        cls, rng: SupportsIndex | np.random.SeedSequence | np.random.BitGenerator | np.random.Generator
    ) -> Noise:
        """Makes a Noise from NumPy's sources of seeds (SPEC 7).

        Args:
            rng: an int is the seed itself. The seed of a SeedSequence is its first 64-bit word. A Generator or
                BitGenerator draws one 64-bit word, so each call gives another Noise.

        Raises:
            TypeError: rng is none of these.
            OverflowError: an int lies outside [0, 2^64).

        >>> nf.Noise.from_rng(np.random.default_rng(7)) == nf.Noise.from_rng(np.random.PCG64(7))
        True
        """
        if isinstance(rng, np.random.SeedSequence):
            return cls(int(rng.generate_state(1, np.uint64)[0]))
        if isinstance(rng, np.random.BitGenerator):
            rng = np.random.Generator(rng)
        if isinstance(rng, np.random.Generator):
            return cls(word(rng))
        try:
            return cls(operator.index(rng))
        except TypeError:
            expected = "an int, or numpy.random's SeedSequence, Generator or BitGenerator"
            raise TypeError(f"rng: expected {expected}, got {type(rng).__name__}") from None

    @classmethod
    def from_key(cls, key: Any) -> Noise:
        """Makes a Noise from a typed JAX key, ``jax.random.key(7)``.

        The seed is the 64 bits of a threefry key, whose first word is the high half. `interop.jax.to_key` is the
        inverse. An rbg key has four words: the seed is the first two words of `philox4x32(words, [0, 0])`, of which the
        second is the high half.

        Raises:
            TypeError: key is no key, or an array of keys.

        >>> import jax
        >>> nf.Noise.from_key(jax.random.key(7))
        Noise(7)
        """
        noise: Noise = library("jax").from_key(key)
        return noise

    def at(self, *, sample: int | ArrayLike | None = None, step: Any = None, stream: int | None = None) -> Noise:
        """Returns the field of the same seed (and window) at another sample, step or stream.

        With sample ids (B,), integers, row b of an array takes the field of ``sample[b]``.

        >>> nf.Noise(7, sample=40).at(step=3, stream=64)
        Noise(7, sample=40, step=3, stream=64)
        >>> x = nf.randn((3, 4), nf.Noise(7).at(sample=[17, 4, 99]))
        >>> np.array_equal(x[1:2], nf.randn((1, 4), nf.Noise(7, sample=4)))
        True
        """
        new_sample = self.sample if sample is None else _ids(sample)
        new_step = self.step if step is None else _step(step)
        new_stream = self.stream if stream is None else _checked("stream", stream, STREAMS)
        return made_of(self.seed, new_sample, new_step, new_stream, self.window_shape, self.window_start)

    @overload
    def of(self, name: str) -> Noise: ...  # type: ignore[overload-overlap]  # a str is one name
    @overload
    def of(self, name: Iterable[str]) -> dict[str, Noise]: ...
    def of(self, name: str | Iterable[str]) -> Noise | dict[str, Noise]:
        """Returns the field of a thing with a name, such as a parameter of a network.

        A name's noise does not depend on the other names, their order, or on the process that draws it. The name takes
        the place of the sample, so step and stream are left for what else tells draws apart.

        Args:
            name: a str: the sample is the first 56 bits of its BLAKE2b hash, `augment.sample_id`. Or several: the
                result is a dict of their fields.

        Raises:
            TypeError: a name is no str.
            ValueError: one of several names stands there twice, or two of them have the same 56 bits.

        >>> noise = nf.Noise(7).of("layers.3.mlp")
        >>> noise == nf.Noise(7, sample=nf.augment.sample_id("layers.3.mlp"))
        True
        >>> z = nf.randn((64, 32), noise.at(step=5), batched=False)
        """
        if isinstance(name, str):
            return self.at(sample=name_id(name))
        names = list(name) if isinstance(name, Iterable) else [name]
        named = {name_id(one): one for one in names}
        if len(named) < len(names):
            lost = next(one for k, one in enumerate(names) if name_id(one) in map(name_id, names[:k]))
            raise ValueError(f"of: name {lost!r}: an earlier one of these names has the same 56 bits")
        return {one: self.at(sample=sample) for sample, one in named.items()}

    def window(self, shape: Sequence[int], start: Sequence[int]) -> Noise:
        """Returns the field of a slice `full[start[0] :, start[1] :, ...]` of each full sample.

        Args:
            shape: the shape of one full sample, without the batch axis.
            start: the first index of the slice along each of those axes.

        A tile, chunk or shard that is drawn with it equals that part of the whole, bit for bit.

        >>> whole = nf.randn((2, 16, 7), nf.Noise(7))
        >>> tile = nf.randn((2, 4, 5), nf.Noise(7).window((16, 7), start=(8, 2)))
        >>> np.array_equal(tile, whole[:, 8:12, 2:7])
        True
        """
        shape, start = tuple(map(operator.index, shape)), tuple(map(_start, start))
        if len(shape) != len(start):
            raise ValueError(f"window: shape {shape} and start {start} differ in length")
        if any(not is_tracer(s) and not 0 <= s <= n for s, n in zip(start, shape, strict=True)):
            raise ValueError(f"window: start {start} lies outside of shape {shape}")
        if math.prod(shape) > LOGITS:
            raise OverflowError(f"window: a sample of shape {shape} has more than 2^51 elements")
        return made_of(self.seed, self.sample, self.step, self.stream, shape, start)

    def interval(
        self, t0: float, t1: float, *, span: tuple[float, float] = (0.0, 1.0), grid: Sequence[float] | None = None
    ) -> Increment:
        """Returns the increment of a Brownian motion W as standard normals: (W(t1) - W(t0)) / sqrt(|t1 - t0|).

        W is one path on the whole span, however it is divided: a stochastic sampler with another number of steps sees
        the same path. `randn` and `randn_like` draw it, from stream 4; a list of increments gives each row its own
        times.

        Args:
            t0, t1: times in the span. With t1 < t0 the increment is the negative (as in k-diffusion).
            span: (low, high). Times are rounded to 2^-24 of it. An increment is the sum of up to 49 draws.
            grid: all times of the path, increasing, in place of a span: an increment adds one draw for each of the
                grid's intervals between t0 and t1. This path differs from the span's, and between grids.

        Raises:
            ValueError: the times lie outside the span, or are one time; a time is not on the grid; the noise has a
                stream other than 0.
            OverflowError: the noise's step is beyond 127: a path takes 2^24 steps of stream 4.
            TypeError: the step lies on a device, or JAX traces it.

        Source: the construction of Levy and Ciesielski, Ciesielski (1961); for subdivided intervals k-diffusion's
        BrownianTreeNoiseSampler. docs/noise.md has its bits.

        >>> noise = nf.Noise(7)
        >>> a, b, whole = (nf.randn((2, 3), noise.interval(*t)) for t in ((0, 0.3), (0.3, 1), (0, 1)))
        >>> bool(np.allclose(0.3**0.5 * a + 0.7**0.5 * b, whole, atol=1e-5))
        True
        """
        for name, times in (("span", span), ("grid", grid)):
            if type(times) is tuple or (times is None and name == "grid"):
                continue
            if not isinstance(times, Sequence | np.ndarray):
                raise TypeError(f"interval: {name}: expected times, got {times!r}")
        if grid is not None and tuple(span) != (0.0, 1.0):
            raise TypeError("interval: expected a span or a grid, which has a span of its own")
        span = _times("span", *span)
        return Increment(self, float(t0), float(t1), span, None if grid is None else _times("grid", *grid))

    def local(self, whole: Any, *splits: tuple[int, int, int], batched: bool = True) -> Noise:
        """Returns the field of one rank's part of a shared array. Its draws are that part of the whole array's draws.

        Args:
            whole: a torch DTensor, or its spec: the part is that of ``to_local()``. Or the shape of the whole.
            splits: with a shape, (rank, world, axis): the axis is split as by torch.chunk, into parts of equal length
                of which the last may be shorter, or empty. Each further split divides the part that the earlier ones
                left.
            batched: as in `randn`, whether axis 0 is the batch.

        Nothing is communicated. Replicated arrays have the same noise on all ranks.

        Raises:
            ValueError: a placement is neither Shard nor Replicate, a rank lies outside the mesh, or the noise has a
                window.
            IndexError: an axis or a rank is out of range.

        >>> part = nf.randn((2, 8), nf.Noise(7).local((6, 8), (2, 3, 0)))  # rank 2 of 3
        >>> np.array_equal(part, nf.randn((6, 8), nf.Noise(7))[4:])
        True
        """
        if self.window_shape is not None:
            raise ValueError("local: expected a noise without a window, got one with a window")
        if hasattr(whole, "placements"):
            if splits:
                raise ValueError(f"local: expected no splits, as a {type(whole).__name__} has its own, got {splits}")
            splits = _splits_of(whole)
            whole = whole.shape
        shape = tuple(map(operator.index, whole))
        if any(length < 0 for length in shape):
            raise ValueError(f"local: expected lengths of at least 0, got shape {shape}")
        if math.prod(shape[batched:]) > LOGITS:
            raise OverflowError(f"local: a sample of shape {shape[batched:]} has more than 2^51 elements")
        start, lengths = _part(shape, tuple(map(_split, splits)))
        if not shape:
            return self
        if not batched:
            return made_of(self.seed, self.sample, self.step, self.stream, shape, start)
        sample: Any = self.sample
        if not getattr(sample, "ndim", 0):
            sample += start[0] if lengths[0] else 0
        elif sample.shape[0] != shape[0]:
            raise ValueError(
                f"local: has {sample.shape[0]} sample ids, expected one for each of {shape[0]} rows of the whole"
            )
        else:
            sample = _ids(sample[start[0] : start[0] + lengths[0]])
        window = (shape[1:], start[1:]) if lengths[1:] != shape[1:] else (None, ())
        return made_of(self.seed, sample, self.step, self.stream, *window)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if a slice of this shape does not lie in the window's full sample."""
        full, start = self.window_shape, self.window_start
        if full is None:
            return
        known = [0 if is_tracer(s) else s for s in start]
        if len(shape) != len(full) or any(s + n > f for s, n, f in zip(known, shape, full, strict=True)):
            raise ValueError(f"noise window: a slice of shape {shape} at {start} lies outside of samples of {full}")

    def _key(self) -> tuple[Any, ...]:
        ids = self.sample.tobytes() if isinstance(self.sample, np.ndarray) else _known(self.sample)
        start = tuple(map(_known, self.window_start))
        return _known(self.seed), ids, _known(self.step), self.stream, self.window_shape, start

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Noise) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Equal noises give layers of dask's graphs equal names."""
        if not isinstance(self.step, int):
            raise TypeError("noise.step lies on a device and dask cannot read it: use noise.at(step=int(noise.step))")
        return "noisefuse.Noise", *self._key()

    def __repr__(self) -> str:
        window = "" if self.window_shape is None else f".window({self.window_shape}, start={self.window_start})"
        seed, *others = self._parts().items()
        parts = [seed[1], *(f"{name}={text}" for name, text in others if text != "0")]
        return f"Noise({', '.join(parts)}){window}"

    def _parts(self) -> dict[str, str]:
        """Returns the parts of the key as text."""
        ids = _listed(self.sample.tolist()) if isinstance(self.sample, np.ndarray) else self.sample
        return {
            # typed, or of entropy
            "seed": f"{self.seed:#x}" if isinstance(self.seed, int) and self.seed >> 32 else str(self.seed),
            "sample": str(ids),
            "step": str(self.step) if isinstance(self.step, int) or is_tracer(self.step) else "<on a device>",
            "stream": str(self.stream),
        }

    def _repr_html_(self) -> str:
        """The parts of the key as a table, for notebooks."""
        window = {} if self.window_shape is None else {"window": f"{self.window_shape}, start={self.window_start}"}
        return notebook.table("Noise: a key", [*(self._parts() | window).items()])

    def __reduce__(self) -> tuple[Any, ...]:
        if any(map(is_tracer, (self.seed, self.step, self.sample, *self.window_start))):
            raise TypeError("this noise is of a program that JAX is tracing, and cannot be pickled")
        if not isinstance(self.step, int):
            raise TypeError("noise.step lies on a device and cannot be pickled: use noise.at(step=int(noise.step))")
        sample = self.sample if isinstance(self.sample, int) else self.sample.copy()
        key = self.seed, sample, self.step, self.stream, self.window_shape, self.window_start
        return _unpickled, (*key, NOISE_VERSION)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Noise is frozen: use noise.at({name}=...) for another field")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("Noise is frozen")


@dataclass(frozen=True, slots=True)
class Increment:
    """The increment of a Brownian motion between two times. `Noise.interval` makes it."""

    noise: Noise
    t0: float
    t1: float
    span: tuple[float, float]
    grid: tuple[float, ...] | None
    _terms: Terms = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.noise, Noise):
            raise TypeError(f"interval: expected a Noise, got {type(self.noise).__name__}")
        step = self.noise.step
        if type(step) is not int:
            raise TypeError("interval: expected a noise whose step is an int, as the step tells paths apart")
        if step >= RUNS:
            raise OverflowError(f"interval: step {step} has no path of its own, expected a step below {RUNS}")
        check_stream_0(self.noise)
        times = (tree_terms, self.span) if self.grid is None else (grid_terms, self.grid)
        object.__setattr__(self, "_terms", times[0](step, self.t0, self.t1, times[1]))  # this checks the times

    __setstate__: ClassVar[stored.SetState] = stored.make_again

    def terms(self) -> Terms:
        """Returns the draws that it adds, in order: their step words, and their factors."""
        return self._terms

    def only(self) -> Noise | None:
        """Returns its field if it is one draw, as from one time of a grid to the next."""
        return self.draw(self._terms[0][0]) if len(self._terms) == 1 and self._terms[0][1] == 1 else None

    def draw(self, word: int) -> Noise:
        """Returns the field of one draw."""
        n = self.noise
        return made_of(n.seed, n.sample, word, INTERVAL, n.window_shape, n.window_start)


@lru_cache(maxsize=64)
def _times(name: str, *numbers: float) -> Any:
    times = tuple(map(float, numbers))
    if not 2 <= len(times) <= (2 if name == "span" else CELLS + 1):
        raise ValueError(f"{name}: expected {'a pair (low, high)' if name == 'span' else 'at least 2 times'}")
    if not all(later > t for t, later in pairwise(times)) or not math.isfinite(times[-1] - times[0]):
        raise ValueError(f"{name}: expected finite times that increase, got {times if len(times) < 9 else '..'}")
    return times


Noises: TypeAlias = Noise | Sequence[Noise]  # one for all samples, or one for each


def listed(noise: Any) -> Sequence[Any]:
    """Returns a list of noises, one for each sample, as it is. A single noise becomes a tuple of one."""
    return noise if isinstance(noise, list | tuple) else (noise,)


def are_names(noise: object) -> TypeGuard[Noise | list[Noise] | tuple[Noise, ...]]:
    """Tells whether this is a Noise, or a list of one for each sample."""
    return all(isinstance(name, Noise) for name in listed(noise))


def names_of(noise: object, expected: str = "a Noise or a list of one for each sample") -> Sequence[Noise]:
    """Returns `listed`. It raises TypeError if anything in it is no Noise."""
    names = listed(noise)
    for n, name in enumerate(names):
        if not isinstance(name, Noise):
            what, wanted = (f"noise[{n}]", "a Noise") if names is noise else ("noise", expected)
            raise TypeError(f"{what}: expected {wanted}, got {got(name)}")
    return names


def check_stream_0(noise: object) -> None:
    """Raises ValueError for a noise of another stream, because the operation draws from its own streams."""
    names = names_of(noise)
    for n, name in enumerate(names):
        if name.stream:
            what = f"noise[{n}]" if names is noise else "noise"
            raise ValueError(f"{what}: this operation has a stream of its own and takes stream 0, got {name.stream}")


def each(noise: Any, change: Callable[[Any], Any]) -> Any:
    """Returns the noise changed, or the list with each of its noises changed."""
    return [change(name) for name in noise] if isinstance(noise, list | tuple) else change(noise)


def one_each(noise: Noises, batch: int) -> list[Noise]:
    """Returns the Noise of each sample of a batch. ValueError: the noise is that of another number of samples."""
    names = names_of(noise)
    if not isinstance(noise, Noise):
        if len(names) != batch:
            raise ValueError(f"noise: expected one Noise for each of {batch} samples, got {len(names)}")
        return list(names)
    if isinstance(noise.sample, int):
        return [noise.at(sample=noise.sample + b) for b in range(batch)]
    if len(noise.sample) != batch:
        raise ValueError(f"noise: has {len(noise.sample)} sample ids, expected one for each of {batch} rows")
    return [noise.at(sample=int(sample)) for sample in noise.sample]


def whole(noise: Noise, stream: int) -> Noise:
    """Returns the noise on this stream, without its window."""
    return made_of(noise.seed, noise.sample, noise.step, stream, None, ())


def at_row(noise: object, i: int, stream: int) -> Any:
    """Returns row i's draw from this stream: the noise i steps later, or each of a list i steps later."""
    names_of(noise)
    return each(noise, lambda name: name.at(step=name.step + i, stream=stream))


def lower(noise: Noise) -> Noise:
    """Returns the field of the further digits, for words alone: its counters have low = 1, the bit above the stream."""
    return made_of(noise.seed, noise.sample, noise.step, noise.stream | STREAMS, noise.window_shape, noise.window_start)


def _known(number: Any) -> Any:
    """Returns what a number is compared by: an array on a device, or a traced one, by its identity."""
    return number if isinstance(number, int) else ("the array", id(number))


def _listed(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 32 else f"[{ids[0]}, {ids[1]}, {ids[2]}, <{len(ids) - 6} more>, {str(ids[-3:])[1:]}"


def made_of(
    seed: int, sample: int | NDArray[np.uint64], step: Any, stream: int, window_shape: tuple[int, ...] | None,
    window_start: tuple[int, ...],
) -> Noise:  # fmt: skip
    """Makes a Noise of checked numbers. (torch.compile can trace it.)"""
    new = Noise.__new__(Noise)
    object.__setattr__(new, "seed", seed)
    object.__setattr__(new, "sample", sample)
    object.__setattr__(new, "step", step)
    object.__setattr__(new, "stream", stream)
    object.__setattr__(new, "window_shape", window_shape)
    object.__setattr__(new, "window_start", window_start)
    return new


_put_seed, _put_sample, _put_step, _put_stream, _put_shape, _put_start = (
    getattr(Noise, name).__set__ for name in ("seed", "sample", "step", "stream", "window_shape", "window_start")
)


def plain(seed: int, sample: int, step: int) -> Noise:
    """Makes a Noise of checked numbers in half of the time of `made_of`. (torch before 2.15 traces no such calls.)"""
    new = Noise.__new__(Noise)
    _put_seed(new, seed)
    _put_sample(new, sample)
    _put_step(new, step)
    _put_stream(new, 0)
    _put_shape(new, None)
    _put_start(new, ())
    return new


def _splits_of(tensor: Any) -> tuple[tuple[int, int, int], ...]:
    """Returns (rank, world, axis) for each mesh axis that splits this DTensor, or this spec."""
    mesh = tensor.device_mesh if hasattr(tensor, "device_mesh") else tensor.mesh
    ranks = mesh.get_coordinate()
    if ranks is None:
        raise ValueError("local: this rank is not in the mesh, and has no part of the tensor")
    splits = []
    for rank, world, placement in zip(ranks, mesh.shape, tensor.placements, strict=True):
        if placement.is_replicate():
            continue
        if not placement.is_shard() or hasattr(placement, "split_factor"):
            raise ValueError(f"local: expected Shard and Replicate, got {placement}")
        splits.append((rank, world, placement.dim))
    return tuple(splits)


def _split(split: Sequence[SupportsIndex]) -> tuple[int, int, int]:
    try:
        rank, world, axis = map(operator.index, split)
    except (TypeError, ValueError):
        raise TypeError(f"local: expected (rank, world, axis), three integers, got {split!r}") from None
    return rank, world, axis


@lru_cache(maxsize=256)
def _part(shape: tuple[int, ...], splits: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns where the part begins along each axis, and its lengths."""
    start, lengths = [0] * len(shape), list(shape)
    for rank, world, axis in splits:
        if not 0 <= rank < world:
            raise IndexError(f"local: rank {rank} of {world}: expected 0 <= rank < world")
        if not -len(shape) <= axis < len(shape):
            raise IndexError(f"local: axis {axis} of an array of {len(shape)} axes")
        each = -(-lengths[axis] // world)
        begin = min(rank * each, lengths[axis])
        start[axis] += begin
        lengths[axis] = min(each, lengths[axis] - begin)
    return tuple(start), tuple(lengths)


def _unpickled(
    seed: int, sample: Any, step: int, stream: int, window_shape: Any, window_start: Any, version: int = 1
) -> Noise:
    """Makes a Noise with checks, because a pickle may come from anywhere, and kernels trust these numbers. The first
    pickles had no version."""
    noise = Noise(_checked("seed", seed, SEEDS), sample=sample, step=step, stream=stream, version=version)
    return noise if window_shape is None else noise.window(window_shape, window_start)


def refuse_version(given: object, name: str = "NOISE_VERSION") -> NoReturn:
    """Raises ValueError: a program, a pickle or a table was made for another version of the contract."""
    drawn = {"NOISE_VERSION": NOISE_VERSION, "PROVISIONAL_VERSION": PROVISIONAL_VERSION}[name]
    raise ValueError(
        f"version = {given!r}: expected {drawn}, the {name} of this noisefuse, {__version__}; another version of the "
        "noise contract has other bits, so install a noisefuse that draws it"
    )


def _check_no_trace() -> None:
    core = sys.modules.get("jax.extend.core")
    if core is not None and getattr(core, "unsafe_am_i_under_a_jit_DO_NOT_USE", bool)():
        raise TypeError(
            "seed: expected an int, as JAX is tracing: fresh entropy would be drawn once, and be the same in every run "
            "of the program; make the Noise outside"
        )


def _traced(name: str, value: Any, most: int = 0) -> Any:
    if value.dtype.kind not in "iu" or value.ndim > most:
        raise TypeError(f"{name}: expected an integer, got {value.dtype} of shape {value.shape}")
    return value


def name_id(name: str) -> int:
    """Returns the first 56 bits of a name's BLAKE2b hash."""
    import hashlib  # OpenSSL's library takes three milliseconds, which processes without such keys save

    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")


def word(rng: np.random.Generator) -> int:
    """Draws 64 bits from a generator: `rng.integers(1 << 64, dtype=np.uint64)`, in a fifth of its time."""
    bits: Any = rng.bit_generator
    if type(bits) is np.random.PCG64:  # as in `default_rng`; others draw 32 bits at a time
        drawn: int = bits.random_raw()
        return drawn
    return int(rng.integers(1 << 64, dtype=np.uint64))


def _checked(name: str, value: SupportsIndex, end: int) -> int:
    if type(value) is int and 0 <= value < end:
        return value
    if is_tracer(value):
        if name == "seed":
            return _traced(name, value)
        raise TypeError(f"{name}: expected a number that is known while JAX traces; trace a seed, step or sample")
    number = check_integer(name, value)
    if not 0 <= number < end:
        raise OverflowError(f"{name} = {number} is out of range: expected 0 <= {name} < 2^{end.bit_length() - 1}")
    return number


def _start(value: Any) -> Any:
    return _traced("start", value) if is_tracer(value) else operator.index(value)


def _step(value: Any) -> Any:
    if type(value) is int:
        return _checked("step", value, STEPS)
    if is_tracer(value):
        return _traced("step", value)
    if isinstance(value, int) or type(value).__module__.partition(".")[0] != "cupy":
        return _checked("step", value, STEPS)
    # The kernel reads the lower 32 bits.
    if value.shape != () or value.dtype.kind not in "iu" or value.dtype.itemsize < 4:
        raise TypeError(f"step: expected a 0-d array of int32, uint32 or wider, got {value.dtype} {value.shape}")
    return value


def _ids(sample: int | ArrayLike) -> int | NDArray[np.uint64]:
    if type(sample) is int:  # at once: the next line takes a microsecond
        return _checked("sample", sample, SAMPLES)
    if is_tracer(sample):
        return _traced("sample", sample, 1)
    # This tests for SupportsIndex in a fifth of isinstance's time.
    if not isinstance(sample, list | np.ndarray) and hasattr(sample, "__index__") and not getattr(sample, "ndim", 0):
        return _checked("sample", sample, SAMPLES)  # type: ignore[arg-type]
    check_plain("sample", sample)
    ids = np.asarray(sample)
    if ids.size == 0:
        ids = ids.astype(np.uint64)  # NumPy makes an empty list float
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        hint = "; augment.sample_id makes an id of a str" if ids.dtype.kind in "UO" else ""
        raise TypeError(f"sample: expected an int or integer ids (B,), got {ids.dtype} of shape {ids.shape}{hint}")
    copied = ids.astype(np.uint64)  # numbers below 0 become those above 2^63
    if ids.size and copied.item(copied.argmax()) >= SAMPLES:  # for few ids, max takes four times as long
        bad = next(int(i) for i in ids if not 0 <= int(i) < SAMPLES)
        raise OverflowError(f"sample = {bad} is out of range: expected 0 <= sample < 2^56")
    copied.flags.writeable = False
    return copied
