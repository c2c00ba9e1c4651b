# SPDX-License-Identifier: Apache-2.0
"""The forward process as people write it in NumPy today: the benchmarks' baseline and the tests' oracle.

It imports nothing of noisefuse. These are the good one-liners of papers and tutorials. The package has this file so
that ``noisefuse demo`` and ``noisefuse bench`` can measure it too.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Rng: TypeAlias = np.random.Generator
Times: TypeAlias = int | Array


def naive_randn(rng: Rng, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
    """Returns N(0, 1). NumPy draws float32 and float64; half types are rounded from float32."""
    z: Array = rng.standard_normal(shape, dtype=_arithmetic(dtype))
    return z.astype(dtype, copy=False)


def naive_q_sample(x0: Array, t: Times, alpha: Array, sigma: Array, rng: Rng) -> Array:
    """Returns x_t = alpha_t x_0 + sigma_t z; t is a scalar or of a shape that x0's begins with, such as (B,).

    Half types go through float32 and are rounded once; uint8 images are [-1, 1] in float32.
    """
    image = x0.dtype == np.uint8
    dtype = np.dtype(np.float32) if image else x0.dtype
    x: Array = x0.astype(_arithmetic(dtype), copy=False)
    if image:
        x = x / 127.5 - 1
    z = rng.standard_normal(x.shape, dtype=x.dtype.type)
    return (against(x, alpha[t]) * x + against(x, sigma[t]) * z).astype(dtype, copy=False)


def _arithmetic(dtype: npt.DTypeLike) -> type[np.float32] | type[np.float64]:
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def against(x: Array, values: Array) -> Array:
    """Returns values in x's dtype, with axes of length 1 appended, so that they broadcast against x."""
    values = np.asarray(values, dtype=x.dtype)
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))
