# SPDX-License-Identifier: Apache-2.0
"""The dtypes that kernels know: floats, and the integer dtypes of levels, which are whole numbers from 0."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

FLOATS = ("float32", "float64", "float16", "bfloat16")
LEVELS = {"uint8": 255, "uint16": 65535}
"""The largest level of each integer dtype. x and first results may have these dtypes."""
LOGITS = ("float32", "bfloat16", "float16")
INFO = {"log_prob": "float32", "log_prob_raw": "float32", "entropy": "float32", "margin": "float32", "rank": "int32"}
"""The dtypes of logits, and of what `categorical` tells of a token that it draws."""
OF_NUMPY = (*LEVELS, *(name for name in FLOATS if name != "bfloat16"))

Range: TypeAlias = tuple[float, float]  # scale and offset
DEFAULT_RANGE = {name: (2 / top, -1.0) for name, top in LEVELS.items()}  # from 0 .. top to -1 .. 1
DEFAULT_RESULT = {name: (top / 2, top / 2) for name, top in LEVELS.items()}  # and back

_NAMES = {name: name for name in LEVELS}
_OF_NUMPYS = {  # apart, as torch below 2.12 compiles no such keys
    key: name for name in LEVELS for key in (np.dtype(name), np.dtype(name).newbyteorder(), np.dtype(name).type)
}

NUMPYS = np.dtype, type  # a union would be made anew at each call


class Levels(NamedTuple):
    """The integer dtype of a result, and its range."""

    dtype: str
    range: Range


def level_bounds(levels: str, bounds: Range) -> Range:
    """Returns the bounds for numbers that are rounded to integer levels: rounded, and within the dtype's range."""
    low, high = (min(max(round(bound), 0), LEVELS[levels]) for bound in bounds)
    return low, high


def levels_of(dtype: Any) -> str | None:
    """Returns which of LEVELS a dtype is, or None. The dtype is NumPy's (of either byte order) or torch's, in any
    spelling."""
    return _OF_NUMPYS.get(dtype) if isinstance(dtype, NUMPYS) else _NAMES.get(str(dtype).removeprefix("torch."))
