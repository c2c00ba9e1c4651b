# SPDX-License-Identifier: Apache-2.0
"""dask arrays in, dask arrays out, lazily: the function of the same name computes each block.

A block's place in the whole array gives its place in the noise: its rows have their numbers as samples, and along other
axes it is a window (`Noise.window`). So the chunks do not change the result. Nothing is rechunked, and all tasks are of
one size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import noisefuse as nf

from ...ground.libraries import Library
from ...ground.needs import needs

with needs(__name__, "dask"):
    import dask.array as da
    from dask.array.core import normalize_chunks

from .augment import augmented, prepare
from .blocks import Call, check_none, known_chunks, mapped
from .tokens import categorical, masked_cross_entropy, through

__all__ = ["check_workers", "library"]


def times(x: Any, t: Any, kind: str) -> Any:
    """Returns t for each sample of x."""
    return da.full(x.shape[:1], t, chunks=x.chunks[:1], dtype=kind)


# ---- clusters ----------------------------------------------------------------------------------------------


def _sent() -> Callable[[], str]:
    """Returns a function without a module. It is pickled by value, because a worker may lack noisefuse."""

    def version() -> str:
        try:
            import noisefuse
        except Exception as error:
            return f"cannot import noisefuse: {error}"
        return f"noisefuse {noisefuse.__version__} with NOISE_VERSION {noisefuse.NOISE_VERSION}"

    return version


version: Callable[[], str] = _sent()  # workers must have the same version


def check_workers(client: Any) -> None:
    """Raises an error if a worker of a cluster would draw other noise than this process, or none.

    Args:
        client: a ``distributed.Client``. Workers that join later are not seen.

    Raises:
        RuntimeError: workers have no noisefuse, another version of it, or another `NOISE_VERSION`. The message lists
            them.
    """

    here, there = version(), client.run(version, on_error="return")
    wrong = [f"{address}: {what}" for address, what in sorted(there.items()) if what != here]
    if wrong:
        raise RuntimeError("\n".join([f"{len(wrong)} of {len(there)} workers differ; here is {here}", *wrong]))


# ---- operations --------------------------------------------------------------------------------------------
# Their arguments are those of the functions of the same names; `operations` calls them if x is dask's, or has chunks.


def randn(shape: Any, noise: Any, **options: Any) -> Any:
    return _random("randn", shape, noise, **options)


def randn_like(x: Any, noise: Any, *, dtype: Any, **options: Any) -> Any:
    chunks, kind = known_chunks("x", x), np.float32 if x.dtype.kind in "biu" else x.dtype
    return randn(
        x.shape, noise, chunks=chunks, dtype=kind if dtype is None else dtype, out=None, device=None, **options
    )


def uniform(shape: Any, noise: Any, **options: Any) -> Any:
    return _random("uniform", shape, noise, **options)


def q_sample(x0: Any, t: Any, schedule: Any, noise: Any, *, out: Any, target_out: Any, **options: Any) -> Any:
    check_none(out=out, target_out=target_out)
    constants = {"name": "q_sample", "table": schedule, **options}
    call = Call("q_sample", _at_times, constants, None if options["target"] is None else 2)
    return mapped(call, x0, {"t": t}, noise, {})


def q_step(x: Any, t: Any, schedule: Any, noise: Any, *, out: Any, **options: Any) -> Any:
    check_none(out=out)
    return mapped(Call("q_step", _at_times, {"name": "q_step", "table": schedule, **options}), x, {"t": t}, noise, {})


def q_walk(x0: Any, schedule: Any, noise: Any, *, keep: Any, out: Any, **options: Any) -> Any:
    check_none(out=out)
    if hasattr(noise, "shape"):
        raise TypeError("noise: expected a Noise, as q_walk draws at every time, got an array")
    kept = len(schedule) if keep is None else np.size(keep)
    return mapped(Call("q_walk", _walk, {"table": schedule, "keep": keep, **options}, kept=kept), x0, {}, noise, {})


def update(
    table: Any, i: Any, x: Any, model_output: Any, *, past: Any, noise: Any, out: Any, aux_out: Any, **options: Any
) -> Any:  # fmt: skip
    check_none(out=out)
    if not isinstance(aux_out, int) and len(aux_out):
        raise TypeError("aux_out: dask arrays are not written to; give the number of auxiliary outputs")
    models = model_output if isinstance(model_output, tuple) else (model_output,)
    arrays = {f"m{n + 1}": m for n, m in enumerate(models) if m is not None}
    arrays |= {f"past{n + 1}": p for n, p in enumerate(past)}
    for name, array in arrays.items():
        if not hasattr(array, "shape"):
            raise TypeError(f"{nf.tableau.ARGUMENTS[name]}: expected an array, got {type(array).__name__}")
    axes = dict.fromkeys(arrays, tuple(range(len(known_chunks("x", x)))))
    constants = {"table": table, "aux_out": aux_out if isinstance(aux_out, int) else (), **options}
    outputs = aux_out + 1 if isinstance(aux_out, int) else None
    return mapped(Call("update", _row, constants, outputs), x, {"i": i, **arrays}, noise, axes)


def _random(name: str, shape: Any, noise: Any, *, chunks: Any, dtype: Any, out: Any, device: Any, batched: bool) -> Any:
    check_none(out=out, device=device)
    kind = getattr(nf, name)(0, nf.Noise(0), dtype=dtype).dtype
    if not isinstance(kind, np.dtype):
        raise TypeError(f"dtype {dtype}: expected a dtype of NumPy, as chunks= gives a dask array")
    sizes = normalize_chunks(chunks, shape, dtype=kind)
    return mapped(Call(name, _drawn, {"name": name, "dtype": dtype, "batched": batched}), sizes, {}, noise, {})


# ---- the functions of a block ------------------------------------------------------------------------------


def _drawn(shape: Any, noise: Any, *, name: str, **options: Any) -> Any:
    return getattr(nf, name)(shape, noise, **options)


def _at_times(x: Any, noise: Any, *, name: str, t: Any, table: Any, **options: Any) -> Any:
    return getattr(nf, name)(x, t, table, noise, **options)


def _walk(x: Any, noise: Any, *, table: Any, **options: Any) -> Any:
    return nf.q_walk(x, table, noise, **options)


def _row(
    x: Any, noise: Any, *, table: Any, i: Any, m1: Any = None, m2: Any = None, **options: Any
) -> Any:  # fmt: skip
    past = [options.pop(name) for name in sorted(options) if name.startswith("past")]
    return nf.update(table, i, x, m1 if m2 is None else (m1, m2), past=past, noise=noise, **options)


library: Library = Library(
    "dask", is_written=False, is_lazy=True, adds_draws=lambda: False, where=da.where, times=times, randn=randn,
    randn_like=randn_like, uniform=uniform, q_sample=q_sample, q_step=q_step, q_walk=q_walk, update=update,
    augmented=augmented, prepare=prepare, through=through, categorical=categorical,
    masked_cross_entropy=masked_cross_entropy,
)  # fmt: skip
