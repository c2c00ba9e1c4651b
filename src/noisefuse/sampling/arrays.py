# SPDX-License-Identifier: Apache-2.0
"""The arrays of a run: draws for rows, times for each sample, zeros, masks, and the errors of wrong answers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..arguments.arrays import device_of, host_view, is_array, is_lazy, is_written, output
from ..arguments.types import Array
from ..ground.checks import got, is_tracer
from ..ground.libraries import library_for, library_of
from ..language.levels import levels_of
from ..language.noise import Noises, at_row, check_stream_0
from ..operations.draw import are_increments, arithmetic, drawn_like
from .types import Model


def check_answer(answer: Any, x: Array, i: Any, any_library: bool = False) -> None:
    """Raises TypeError if a model's answer in row i is neither an array nor a pair, or does not fit NumPy's x."""
    for m in answer if isinstance(answer, list | tuple) and answer else (answer,):
        if not hasattr(m, "shape") and not is_array(m):
            hint = "; return its .sample" if hasattr(m, "sample") else ""
            expected = f"an array like x, {told(x)}, or a pair of them with guidance_scale"
            raise TypeError(f"model: expected {expected}, got {type(m).__name__} in row {i}{hint}")
        if type(m) is not type(x) and not any_library and library_of(x) is None and library_of(m) is not None:
            kind = f"{type(m).__module__.partition('.')[0]}.{type(m).__name__}"
            raise TypeError(
                f"model: expected NumPy's arrays, as x is one, got {kind} in row {i}; give an x of that kind, or for a "
                'new sample dtype=torch.float32, device="cpu" or, of JAX, dtype=jnp.float32'
            )


def in_words_of_a_step(error: Exception, denoised: str | None, kept: Sequence[Array], x: Array) -> Exception:
    """Returns an error of ``update`` with a user's names for denoised_out and for the arrays of a state."""
    if denoised is not None and denoised in str(error):
        return type(error)(str(error).replace(denoised, "denoised_out"))
    if not str(error).startswith(("past", "aux_out")):
        return error
    own, given = (f"of shape {tuple(a.shape)} and dtype {a.dtype}" for a in (kept[0], x))
    return error if own == given else type(error)(f"state: made for an x {own}, got an x {given}")


def at(noise: Noises, i: int, stream: int) -> Any:
    """Returns row i's draw from one of the sampler's streams. TypeError: no noise; ValueError: the noise has a
    stream."""
    check_stream_0(noise)
    return at_row(noise, i, stream)


def drawn_for(noise: Noises, i: int, stream: int, x: Array) -> Array:
    """Returns the noise of row i as an array: for tables whose rows are those of samples, so that i is no step."""
    return drawn_like(x, at(noise, i, stream))


def times_like(x: Array, t: Any, integers: bool) -> Array:
    """Returns t for each sample of x: see ``Sampler.model_input``."""
    return library_for(x).times(x, t, "int64" if integers else arithmetic(x))


def zeros_like(x: Array) -> Array:
    if not hasattr(x, "dtype"):
        raise TypeError(f"expected an array, got {type(x).__name__}")
    if isinstance(x, np.ndarray):
        return _zeros(x.shape, x)
    return library_for(x).zeros_like(x)


def check_output(out: Any, x: Array) -> None:
    """Raises the errors that the last row would raise for `out`, before the run. (That row checks tensors itself.)"""
    if out is not None and library_of(x) is None:
        kind = np.dtype(levels_of(getattr(out, "dtype", None)) or x.dtype.newbyteorder("="))
        output("out", out, x.shape, kind, device_of(x))


def told(given: Any) -> str:
    return f"{given.dtype} of shape {tuple(given.shape)}" if hasattr(given, "dtype") else type(given).__name__


def as_mask(given: Any, x: Array) -> Array:
    """Returns a mask in x's shape, kind and dtype. Its values are checked to lie in [0, 1] if they can be read."""
    expected = f"expected numbers from 0 to 1, of x's kind, whose shape broadcasts to {tuple(x.shape)}"
    try:
        made = zeros_like(x)
        if not is_written(x):
            made = (made + given).astype(x.dtype)
        else:
            made[...] = given
    except (TypeError, ValueError, RuntimeError):
        made = None
    if made is None or made.shape != x.shape:
        raise ValueError(f"mask: {expected}, got {told(given)}")
    if not (is_tracer(made) or is_lazy(made) or bool(((made >= 0) & (made <= 1)).all())):
        raise ValueError(f"mask: {expected}, got other values")
    return made


def _zeros(shape: tuple[int, ...], x: Array) -> Array:
    """Returns zeros of x's dtype, as a plain array in native byte order even if x is not."""
    return np.zeros(shape, x.dtype.newbyteorder("="))


def several_zeros_like(x: Array, n: int) -> list[Array]:
    """Returns n arrays. NumPy's lie in one block: each begins on a cache line, three lines after the end of the last
    one. So a stored vector lies in one line, which saves a tenth of a step, and the arrays' places in a page differ."""
    if not isinstance(x, np.ndarray):
        return [zeros_like(x) for _ in range(n)]
    line = max(1, 64 // x.itemsize)
    apart = (-(-x.size // line) + 3) * line
    block = _zeros((n * apart + line,), x)
    first = -block.ctypes.data % 64 // x.itemsize
    return [block[at : at + x.size].reshape(x.shape) for at in range(first, first + n * apart, apart)]


def bar(rows: range, progress: bool) -> Iterable[int]:
    if not progress:
        return rows
    try:
        bar: Iterable[int] = importlib.import_module("tqdm.auto").tqdm(rows)
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return bar


_HINT = 'for a network in torch give dtype=torch.float32 or device="cpu", for one in JAX dtype=jnp.float32'


# What is said of arrays in place of tensors; of t[:, None] and of x.size(0), the last two.
_OF_ARRAYS = "Tensor", "numpy.", "scalar variable", "'int' object is not callable"


def asked(model: Callable[..., Any], x: Any, t: Any, hint: str = _HINT) -> Any:
    """Returns what the model answers NumPy's x of a new sample. TypeError: it takes another library's arrays."""
    try:
        return model(x, t)
    except (AttributeError, IndexError, TypeError) as error:  # networks raise these for arrays of another library
        if not {"torch", "jax"} & sys.modules.keys() or not any(said in str(error) for said in _OF_ARRAYS):
            raise
        what = f"{type(error).__name__} ({str(error)[:80]})"
        raise TypeError(f"model: {what} where x is NumPy's and t = {t!r}; {hint}") from error


def first_answer(model: Model, x: Array, x_in: Array, t: Any) -> tuple[Any, Array]:
    """Asks the model about the input of NumPy's x, a new sample. Returns the answer, and x in the answer's library and
    on its device."""
    answer = asked(model, x_in, t)
    check_answer(answer, x, 0, any_library=True)
    first = answer[0] if isinstance(answer, list | tuple) else answer
    return answer, library_for(first).moved(x, first)


def arrays_of_rows(noise: Any, x: Array, draws: Sequence[bool], start: int) -> list[Array | None]:
    """Returns each row's array of noise that was drawn before, from row ``start`` on. It is None for a row that draws
    none."""
    n, noise = len(draws) - start, host_view("noise", noise)
    if not isinstance(noise, list | tuple) and not getattr(noise, "shape", ()):
        expected = "a Noise, a list of them, or an array for each row"
        raise TypeError(f"noise: expected {expected}, got {got(noise)}")
    if len(noise) != n:
        raise ValueError(f"noise: expected {n} arrays, one for each row from {start} on, got {len(noise)}")
    arrays: list[Any] = [z if drawn else None for z, drawn in zip(noise, draws[start:], strict=True)]
    for k, z in enumerate(arrays):
        if draws[start + k] and getattr(z, "shape", None) != x.shape and not are_increments(z):
            expected = f"row {start + k} draws; expected an array of shape {tuple(x.shape)}"
            what = f"shape {tuple(z.shape)}" if hasattr(z, "shape") else type(z).__name__
            raise ValueError(f"noise[{k}]: {expected}, got {what}")
    return arrays
