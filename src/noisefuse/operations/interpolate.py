# SPDX-License-Identifier: Apache-2.0
"""Interpolants of two arrays: a path's point and its target, in one pass."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from .. import backends
from ..arguments.arrays import as_array, is_traced
from ..arguments.calls import Index, is_batch, like, make_call, names_or_array, run, segments
from ..arguments.options import result_dtype, row_numbers
from ..arguments.types import Array, NoiseLike
from ..call.description import Step
from ..ground.checks import check_choice, got, lie_within
from ..ground.libraries import library_for, library_of
from ..language.levels import FLOATS, levels_of
from ..language.noise import FIELD
from ..language.rows import M1, Rows, X, Z
from ..language.tableau import of_rows
from ..paths import OF_NOISE, Path, PathTarget
from .draw import drawn_like
from .update import update


def interpolate(
    x0: Array, x1: Array, t: ArrayLike | Array, path: Path, noise: NoiseLike | None = None, *,
    target: PathTarget | None = None, batched: bool | None = None, out: Array | None = None,
    target_out: Array | None = None,
) -> Any:  # fmt: skip
    """A point on a path between two arrays, in one pass: x_t = a(t) x0 + b(t) x1 + g(t) z, z ~ N(0, 1).

    Args:
        x0, x1: Arrays or tensors of one shape; float32, float64, float16 or bfloat16. x1's dtype may be another float.
        t: Times in [0, 1] as floats: a number, (B,), or any prefix of x0's shape (a time for each token).
        path: The functions a, b and g: `noisefuse.paths` has the usual ones.
        noise: As in `q_sample`, whose draws these are: a Noise, a list of one for each row, or an array of x0's shape.
            None is enough for a path without noise.
        target: Also return what a network learns: "velocity" a' x0 + b' x1 + g' z, "score" -z / g, or "denoiser" z
            (Albergo et al. 2023); computed in the same pass.
        batched: As in `q_sample`.
        out, target_out: Where to write; C-contiguous, of x0's shape and dtype. `out` may be x0 or x1 itself.

    Returns:
        x_t of x0's shape, dtype and kind, or (x_t, target).

    Raises:
        ValueError: An array has another shape, a time lies outside of [0, 1], or a function of the path is not finite
            there.
        TypeError: The arrays hold no floats, `path` is no Path, or a path with noise is given no `noise`. Nothing is
            written then.

    Tensors that require grad and dask arrays take two passes: `randn_like` and `update`.

    Source: Albergo, Boffi & Vanden-Eijnden 2023 (stochastic interpolants); Tong et al. 2024 (torchcfm).

    >>> x0, x1 = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    >>> x_t, velocity = nf.interpolate(x0, x1, [0.25, 0.5], nf.paths.linear(), target="velocity")
    >>> x_t[:, 0].tolist(), velocity[:, 0].tolist()
    ([0.25, 0.5], [1.0, 1.0])
    >>> x_t = nf.interpolate(x0, x1, 0.5, nf.paths.brownian_bridge(0.1), nf.Noise(7))
    """
    library = None if type(x0) is np.ndarray else library_of(x0)
    known = type(path) is Path and (target_out is None if target is None else type(target) is str)
    if known and (library is None or not library.is_traced()) and (table := path.plain[target]) is not None:
        aux: Any = None if target is None else 1 if target_out is None else (target_out,)
        done = backends.fast_row(table, t, x0, x1, None, noise, -1, out, aux, None, batched)
        if done is not NotImplemented:
            return done if target_out is None else (done, target_out)
    if target is not None or not isinstance(path, Path):
        check_path(path, target)
    if target is None and target_out is not None:
        raise ValueError("target_out: given without target=")
    if path.draws and noise is None:
        raise TypeError(f"noise: expected a Noise, which the path {path.name} draws from, got {got(noise)}")
    given = x0, x1, t, path, noise, target, is_batch("x0", x0, batched), out, target_out
    return library_for(x0).untraced(_interpolate, *given) if is_traced(x0) else _interpolate(*given)


def _interpolate(
    x0: Any, x1: Any, t: Any, path: Path, noise: Any, target: PathTarget | None, batched: bool, out: Any,
    target_out: Any,
) -> Any:  # fmt: skip
    if (library := library_of(x0)) is not None:
        return (library.interpolate or _of_library)(x0, x1, t, path, noise, target, batched, out, target_out)
    call = interpolate_call(x0, x1, t, path, noise, target, batched, out, target_out)
    results = run(call)
    return results[0] if target is None else (results[0], results[1])


def check_path(path: Path, target: PathTarget | None) -> None:
    """Raises TypeError or ValueError if it is no path, or does not have this target."""
    if not isinstance(path, Path):
        raise TypeError(f"path: expected one of noisefuse.paths, got {type(path).__name__}")
    check_choice("target", target, get_args(PathTarget))
    if target in OF_NOISE and not path.draws:
        raise ValueError(f"target = {target!r}: the path {path.name} has no noise")


def path_rows(path: Path, t: Any, shape: tuple[int, ...], target: PathTarget | None) -> tuple[Rows, Index]:
    """Returns the rows of x_t and of the target at each time, and which elements each covers."""
    times, index = _at(t, shape)
    return Rows.of(path.columns(times, target)), index


_RESIDUAL = {"aux1.x": "out.x", "aux1.m1": "out.m2", "aux1.z": "out.z"}


def residual_rows(path: Path, t: Any, shape: tuple[int, ...], target: PathTarget) -> tuple[Rows, Index]:
    """Returns the rows of m1 minus the target, with x1 as m2, at each time, and which elements each covers."""
    times, index = _at(t, shape)
    found = path.columns(times, target)
    columns = {to: -found[name] for name, to in _RESIDUAL.items() if name in found}
    return Rows.of({"out.m1": np.ones_like(times), **columns}), index


def _at(t: Any, shape: tuple[int, ...]) -> tuple[Any, Index]:
    """Returns the checked times, and which elements each covers."""
    times, segment = segments("t", t, shape)
    if times.dtype.kind != "f":
        raise TypeError(f"t: expected floats from 0 to 1, got {times.dtype}")
    times = times.astype(np.float64)
    if not lie_within(times, 0, 1):
        wrong = times[~((times >= 0) & (times <= 1))][0]
        raise ValueError(f"t: expected times from 0 to 1, got {wrong}")
    return times, Index(np.arange(len(times)), segment)


def interpolate_call(
    x0: Array, x1: Array, t: ArrayLike | Array, path: Path, noise: NoiseLike | None, target: PathTarget | None,
    batched: bool, out: Array | None, target_out: Array | None,
) -> Step:  # fmt: skip
    """Returns `interpolate` as a checked call; nothing is written yet."""
    x = as_array("x0", x0)
    y = like("x1", x1, x, FLOATS)
    dtype = result_dtype(x)
    rows, index = path_rows(path, t, x.shape, target)
    inputs: dict[int, Array | None] = {X: x, M1: y}
    names: tuple[Any, ...] = ()
    if path.draws:
        names, inputs[Z] = names_or_array(noise, x.shape, dtype, batched, FIELD, any_stream=True)
    outs = {"out": out} if target is None else {"out": out, "target_out": target_out}
    return make_call(x.shape, dtype, rows, index, names, inputs, outs, batched)


def _of_library(
    x0: Any, x1: Any, t: Any, path: Path, noise: Any, target: PathTarget | None, batched: bool, out: Any,
    target_out: Any,
) -> Any:  # fmt: skip
    """Interpolates arrays of other libraries: noise is drawn, and rows read it."""
    if library_of(x1) is not library_of(x0):
        raise TypeError(f"x1: expected an array of {library_for(x0).name}, as x0 is one, got {type(x1).__name__}")
    if x1.shape != x0.shape:
        raise ValueError(f"x1: expected shape {tuple(x0.shape)}, got {tuple(x1.shape)}")
    for name, array in (("x0", x0), ("x1", x1)):
        if levels_of(array.dtype):
            raise TypeError(f"{name}: dtype {levels_of(array.dtype)} is not supported, expected {', '.join(FLOATS)}")
    rows, index = path_rows(path, library_for(t).to_numpy(t), tuple(x0.shape), target)
    table = of_rows(rows, path.name)
    z = None
    if path.draws:
        z = noise if hasattr(noise, "shape") else drawn_like(x0, noise, batched)
    numbers = row_numbers(index, np.shape(t))
    outputs: Any = () if target is None else 1 if target_out is None else (target_out,)
    made = update(table, numbers, x0, x1, noise=z, out=out, aux_out=outputs)
    if target is None:
        return made
    return (made[0], made[1]) if target_out is None else (made, target_out)
