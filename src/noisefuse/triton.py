# SPDX-License-Identifier: Apache-2.0
"""The library's noise inside your own Triton kernels: functions of blocks and of scalars.

The bits are those of `noisefuse.randn`: on NVIDIA's and AMD's devices and in Triton's interpreter, and whether or not
Triton fuses the products and sums of your kernel.

All arguments are integers, each a constant, a scalar or a block, as in docs/noise.md; other numbers do not compile.
Nothing else is checked: an argument out of range gives the noise of another element, sample, step or stream. An element
of 32 bits is read as unsigned; from 2^32 elements on your indices have to be int64.
"""

from .ground.lazy import show_public
from .ground.needs import needs

with needs(__name__, "triton"):
    from .backends.triton.noise import normal, normal4, normal64, uniform, uniform64, words

__all__ = ["normal", "normal4", "normal64", "uniform", "uniform64", "words"]

show_public(__name__)
