# SPDX-License-Identifier: Apache-2.0
"""The noise contract in Triton."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def state() -> str:
    """Returns "available" for `noisefuse.info`, or why it is not."""
    try:
        torch: Any = import_module("torch")
    except (ImportError, OSError):
        torch = None
    if torch is None or find_spec("triton") is None:
        return "needs torch and Triton: pip install 'noisefuse[triton]'"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    too_old: str = import_module(".arrays", __name__).too_old()
    return too_old or "available"
