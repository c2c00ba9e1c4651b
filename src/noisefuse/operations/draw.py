# SPDX-License-Identifier: Apache-2.0
"""Random draws: words, uniform numbers, standard normals and increments of Brownian motion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Concatenate, Protocol, TypeAlias, TypeGuard, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import backends
from ..arguments import arrays
from ..arguments.calls import Index, is_batch, make_call, names_or_array, run
from ..arguments.options import fast_path, lengths
from ..arguments.types import Array, ArrayT, Device, Drawn, DType, Like, NumPyDType, Shape
from ..call.description import Draw, Philox, Step
from ..ground.checks import got
from ..ground.layouts import pieces
from ..ground.libraries import library, library_of
from ..language.increments import Terms
from ..language.levels import FLOATS
from ..language.noise import FIELD, UNIFORM, Increment, Noise
from ..language.rows import Z_BITS, Rows, X

if TYPE_CHECKING:
    import torch


UNIT = Rows.of({"out.z": 1.0})


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al. 2011): the raw words of the generator, in Random123's order.

    Args:
        counter: uint32 (..., 4).
        key: uint32 (..., 2). The leading shapes of both broadcast.

    Returns:
        uint32 (..., 4).

    Raises:
        TypeError: a value is no integer, or the last axis has another length.
        OverflowError: a word lies outside [0, 2^32).

    >>> [hex(word) for word in nf.philox4x32([0, 0, 0, 0], [0, 0]).tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c, k = _words("counter", counter, 4), _words("key", key, 2)
    shape = np.broadcast_shapes(c.shape[:-1], k.shape[:-1])
    c = arrays.contiguous(np.broadcast_to(c, (*shape, 4))).reshape(-1, 4)
    k = arrays.contiguous(np.broadcast_to(k, (*shape, 2))).reshape(-1, 2)
    words = np.empty_like(c)
    for part in pieces(c.shape):
        backends.current().run(Philox(c[part], k[part], words[part], len(c[part])))
    return words.reshape(*shape, 4)


N = TypeVar("N", contravariant=True)


class DrawFunction(Protocol[N]):
    """The type of a function that draws: its result's type is that of the dtype, the device or `out`."""

    @overload
    def __call__(
        self, shape: Shape, noise: N, *, dtype: NumPyDType = "float32", batched: bool = True, out: None = None,
        device: None = None, chunks: None = None,
    ) -> NDArray[Any]: ...  # fmt: skip
    @overload
    def __call__(
        self, shape: Shape, noise: N, *, dtype: torch.dtype, batched: bool = True, out: None = None,
        device: Device | None = None, chunks: None = None,
    ) -> torch.Tensor: ...  # fmt: skip
    @overload
    def __call__(
        self, shape: Shape, noise: N, *, dtype: NumPyDType = "float32", batched: bool = True, out: None = None,
        device: Device, chunks: None = None,
    ) -> torch.Tensor: ...  # fmt: skip
    @overload
    def __call__(
        self, shape: Shape, noise: N, *, dtype: DType | None = "float32", batched: bool = True, out: Like[ArrayT],
        device: None = None, chunks: None = None,
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def __call__(
        self, shape: Shape, noise: N, *, dtype: DType | None = "float32", batched: bool = True, out: None = None,
        device: None = None, chunks: Any,
    ) -> Any: ...  # fmt: skip


def _typed(function: Callable[Concatenate[Shape, N, ...], Any]) -> DrawFunction[N]:
    return function  # type: ignore[return-value]


@_typed
def randn(
    shape: Shape, noise: Drawn, *, dtype: DType | None = "float32", batched: bool = True, out: Array | None = None,
    device: Device | None = None, chunks: Any = None,
) -> Array:  # fmt: skip
    """Standard normals, the field of the key `noise` (docs/noise.md): torch.randn with a key instead of a generator.

    Args:
        shape: the result's shape. Axis 0 is the batch; row b is the sample `noise.sample + b`.
        noise: a Noise, or an increment of a Brownian motion (`Noise.interval`), or a list with one for each row.
        dtype: float32 (or None), float64 (the same field with more digits), float16, bfloat16 (float32's values,
            rounded). A dtype of torch gives a tensor, one of jax.numpy an array of JAX.
        batched: False makes the whole array one sample.
        out: an array of this shape and dtype to write to, C-contiguous.
        device: give a torch tensor on this device: "cuda", torch.device("cuda:1"). With None and a dtype of torch, the
            tensor lies on the CPU.
        chunks: give an array of dask, in chunks as dask takes them (docs/dask.md).

    Returns:
        An array of this shape and dtype, or out if it is given.

    Raises:
        OverflowError: a sample id beyond 2^56 - 1, or a sample of more than 2^34 elements.
        TypeError, ValueError: the message says what was given and what was expected; nothing is written then.

    Source: Box & Muller (1958) on Philox4x32-10; radius within 2.5 ulp, cos and sin within 2^-22 (float32).

    >>> z = nf.randn((4, 3), nf.Noise(7))
    >>> np.array_equal(z[2:], nf.randn((2, 3), nf.Noise(7, sample=2)))
    True

    A layer's weights are no batch, in which row 1 would be row 0 of sample 1:

    >>> weights = [nf.randn((4, 3), nf.Noise(7, sample=layer), batched=False) for layer in range(2)]
    >>> np.array_equal(weights[0][1], weights[1][0])
    False
    """
    if chunks is not None:
        _check_adding(noise, dask := library("dask"))
        options: dict[str, Any] = {"dtype": dtype, "batched": batched, "out": out, "device": device}
        return dask.randn(lengths(shape), noise, chunks=chunks, **options)
    if device is not None:
        out = _made_on(device, shape, dtype, out)
    return _random("randn", shape, noise, dtype, batched, out)


def randn_like(x: Like[ArrayT], noise: Drawn, *, dtype: DType | None = None, batched: bool | None = None) -> ArrayT:
    """`randn` with x's shape, kind, dtype, device and, for torch, memory format: ``randn_like(images, Noise(7))``.

    Args:
        x: An array of NumPy, CuPy, torch or, in host memory, any that speaks DLPack, of any dtype. Its values are not
            read.
        noise: as in `randn`.
        batched: as in `q_sample`.
        dtype: the result's dtype, one that `randn` takes. None: x's, or float32 if x holds integers or bools.

    Returns:
        A new array of x's shape and kind, on its device.

    Raises:
        TypeError: x is no array, or the dtype is none of `randn`'s floats.
        ValueError: x may be one image, as in `q_sample`.

    >>> images = np.zeros((2, 3, 8, 8), np.uint8)
    >>> nf.randn_like(images, nf.Noise(7)).dtype
    dtype('float32')
    """
    if type(x) is np.ndarray and dtype is None and x.dtype.kind == "f" and x.dtype.isnative:
        return _random("randn", x.shape, noise, x.dtype, True if batched is None else batched, None)
    if (library := library_of(x)) is not None and not library.is_traced():
        asked = None if dtype is None else arrays.fast_dtype(dtype, library)
        whole = True if batched is None else batched
        done = backends.fast_random(UNIT.plain, x, noise, False, asked, whole, True, None)
        if done is not NotImplemented:
            return done
    batched = is_batch("x", x, batched)
    if library is not None:
        library.check_plain("x", x)
        if hasattr(x, "shape"):  # a dtype has none
            _check_adding(noise, library)
            return library.randn_like(x, noise, dtype=dtype, batched=batched)
    if not arrays.is_array(x):
        raise TypeError(f"x: expected {arrays.wanted(x)}, got {type(x).__name__}")
    x = arrays.host_view("x", x)
    kind = arrays.float_dtype(dtype or (np.float32 if x.dtype.kind in "biu" else x.dtype.newbyteorder("=")))
    out = arrays.output("out", None, x.shape, kind, arrays.device_of(x))
    return _random("randn", tuple(x.shape), noise, kind, batched, out)


@_typed
def uniform(
    shape: Shape, noise: Noise | Sequence[Noise], *, dtype: DType | None = "float32", batched: bool = True,
    out: Array | None = None, device: Device | None = None, chunks: Any = None,
) -> Array:  # fmt: skip
    """Draws uniform numbers in (0, 1), never 0 or 1. Stream 0 stands for stream 7, which keeps them apart from `randn`.

    float32: (floor(w / 2^9) + 1/2) / 2^23 of the word w; float64: the same field with 52 bits. Other dtypes would round
    to 1.

    Args:
        shape, noise, batched, out, device, chunks: as in `randn`.
        dtype: float32 (or None) or float64, of NumPy, torch or jax.numpy.

    Returns:
        An array of this shape and dtype, or out if it is given.

    Raises:
        TypeError: the dtype is another one. Other errors are those of `randn`.

    >>> t = (1000 * nf.uniform(8, nf.Noise(7))).astype(int)  # a time for each sample
    >>> bool(t.min() >= 0 and t.max() < 1000)
    True
    """
    if chunks is not None:
        options: dict[str, Any] = {"dtype": dtype, "batched": batched, "out": out, "device": device}
        return library("dask").uniform(lengths(shape), noise, chunks=chunks, **options)
    if device is not None:
        out = _made_on(device, shape, dtype, out)
    return _random("uniform", shape, noise, dtype, batched, out)


def _words(name: str, words: ArrayLike, n: int) -> NDArray[np.uint32]:
    values = np.asarray(words)
    if values.dtype.kind not in "iu" or values.ndim == 0 or values.shape[-1] != n:
        raise TypeError(f"{name}: expected uint32 (..., {n}), got {values.dtype} of shape {values.shape}")
    for part in pieces(values.shape):
        piece = values[part]
        if piece.size and (int(piece.min()) < 0 or int(piece.max()) >= 1 << 32):
            raise OverflowError(f"{name}: expected words in [0, 2^32), got {piece.min()} to {piece.max()}")
    return arrays.copy(values, np.dtype(np.uint32))


_SEVERAL = list, tuple  # a union would be made anew at each call


def _random(name: str, shape: Shape, noise: Drawn, dtype: Any, batched: bool, out: Array | None) -> Array:
    is_uniform = name == "uniform"
    # (The frame names np so that Dynamo resumes here after a graph break; else it would enter fast_dtype's frame.)
    library = None if type(out) is np.ndarray else library_of(dtype if out is None else out)
    allowed = ("float32", "float64") if is_uniform else FLOATS
    if type(noise) is not Noise and not is_uniform and are_increments(noise):
        return _increment(shape, noise, dtype, batched, out)
    if (draw := backends.fast_random if library is None else fast_path(library, "fast_random")) is not None:
        kind = arrays.fast_dtype(dtype, library, allowed)
        drawn = draw(UNIT.plain, shape, noise, is_uniform, kind, batched, library is not None, out)
        if drawn is not NotImplemented:
            return drawn
    if library is not None:
        return getattr(library, name)(shape, noise, dtype=dtype, batched=batched, out=out)
    return run(random_call(name, shape, noise, dtype, batched, out))[0]


Increments: TypeAlias = Increment | list[Increment] | tuple[Increment, ...]


def are_increments(noise: object) -> TypeGuard[Increments]:
    """Tells whether the noise is an increment, or a list of one for each row."""
    if isinstance(noise, _SEVERAL):
        return len(noise) > 0 and all(type(n) is Increment for n in noise)
    return type(noise) is Increment


def _check_adding(noise: object, library: Any) -> None:
    """Raises NotImplementedError for increments if the library does not add draws, or does not while it is traced."""
    if are_increments(noise) and not library.adds_draws():
        raise NotImplementedError("noise: an increment is not drawn by dask or under torch.compile")


def _increment(shape: Any, noise: Increments, dtype: Any, batched: bool, out: Any) -> Array:
    library = library_of(dtype if out is None else out)
    if library is not None:
        _check_adding(noise, library)
    if type(noise) is Increment and (field := noise.only()) is not None:
        return _random("randn", shape, field, dtype, batched, out)
    if library is not None:
        return library.randn(shape, noise, dtype=dtype, batched=batched, out=out)
    full, kind = lengths(shape), arrays.float_dtype(dtype)
    result = arrays.output("out", out, full, kind, None if out is None else arrays.device_of(out))
    if isinstance(noise, Increment):
        _sum_draws(noise, result, batched)
        return result
    # every key is checked before anything is written
    names_or_array([one.draw(0) for one in noise], full, kind, batched, FIELD, any_stream=True)
    for b, one in enumerate(noise):
        _sum_draws(one, result[b : b + 1] if batched and full else result, batched)
    return result


def _sum_draws(increment: Increment, out: Array, batched: bool) -> None:
    """Sets out = the sum of c z over the increment's draws, in the arithmetic's type. Each sum is fma(1, sum, c z)."""
    terms = increment.terms()
    first, sums = rows_of_sum(terms)
    wide = out.dtype in (np.float32, np.float64)
    total = out if wide else arrays.output("out", None, out.shape, np.dtype(np.float32), arrays.device_of(out))
    plain, row, last = first.plain, backends.fast_row, len(terms) - 1
    for n, (word, _) in enumerate(terms):
        z, to = increment.draw(word), out if n == last else total
        kind = None if wide or n < last else arrays.fast_dtype(out.dtype, None)
        if row(plain, n, total, None, None, z, -1, to, None, kind, batched) is NotImplemented:
            names, _ = names_or_array(z, out.shape, to.dtype, batched, FIELD, any_stream=True)
            index = Index(np.array([n]), max(1, out.size))
            run(make_call(out.shape, to.dtype, sums if n else first, index, names, {X: total}, {"out": to}, batched))
        plain = sums.plain


@lru_cache(maxsize=64)
def rows_of_sum(terms: Terms) -> tuple[Rows, Rows]:
    """Returns rows that multiply z by a coefficient, for the first term, and rows that add this to x."""
    rows = Rows.of({"out.x": 1.0, "out.z": [coefficient for _, coefficient in terms]})
    return Rows(rows.table, rows.active & Z_BITS), rows


def drawn_like(x: Array, noise: Any, batched: bool = True) -> Array:
    """The noise of a pass over x, as an array: in the pass's arithmetic, before it is rounded to x's dtype."""
    return randn_like(x, noise, dtype=arithmetic(x), batched=batched)


def arithmetic(x: Array) -> str:
    """Returns "float64" for x of that dtype, else "float32"."""
    if not hasattr(x, "dtype"):
        raise TypeError(f"expected an array, got {type(x).__name__}")
    return "float64" if "float64" in str(x.dtype) else "float32"


def random_call(
    name: str, shape: Shape, noise: Noise | Sequence[Noise] | Array, dtype: DTypeLike | None, batched: bool,
    out: Array | None = None,
) -> Step:  # fmt: skip
    """Returns `randn` or `uniform` as a checked call; nothing is written yet."""
    is_uniform = name == "uniform"
    full = lengths(shape)
    dtype = arrays.float_dtype(dtype, ("float32", "float64") if is_uniform else FLOATS)
    if not isinstance(noise, Noise | list | tuple):
        raise TypeError(f"noise: expected a Noise or a list of them, got {got(noise)}")
    names, _ = names_or_array(noise, full, dtype, batched, UNIFORM if is_uniform else FIELD, any_stream=True)
    one_row, outs = Index(np.zeros(1, np.int64), max(1, math.prod(full))), {"out": out}
    draw: Draw = "uniform" if is_uniform else "normal"
    return make_call(full, dtype, UNIT, one_row, names, {}, outs, batched, draw=draw)


def _made_on(device: Any, shape: Shape, dtype: Any, out: Array | None) -> Array:
    """Returns an empty tensor on the device."""
    if out is not None:
        raise ValueError("device: given with out=, which lies somewhere already")
    if library_of(dtype) not in (None, torch := library("torch")):
        raise TypeError(f"device: expected a dtype of torch with it, such as dtype=torch.float32, got {dtype!r}")
    return torch.empty(shape if torch.is_traced() else lengths(shape), dtype, device)
