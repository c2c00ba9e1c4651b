# SPDX-License-Identifier: Apache-2.0
"""The library's noise inside your own Triton kernels: functions of blocks and of scalars.

    from noisefuse.triton import normal

    @triton.jit
    def langevin(x, gradient, rate, scale, seed, sample, step, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        drift = rate * tl.load(gradient + i, i < n)
        tl.store(x + i, tl.load(x + i, i < n) - drift + scale * normal(seed, sample, step, i), i < n)

The bits are those of `noisefuse.randn`: on NVIDIA's and AMD's devices and in Triton's interpreter, and whether or not
Triton fuses the products and sums of your kernel.

All arguments are integers, each a constant, a scalar or a block: seed in [0, 2^64), sample in [0, 2^56), step in
[0, 2^32), element in [0, 2^34), block = element // 4 in [0, 2^32), stream in [0, 128), as in docs/noise.md. Other
numbers do not compile. Nothing else is checked: an argument out of range gives the noise of another element, sample,
step or stream. An element of 32 bits is read as unsigned; from 2^32 elements on your indices have to be int64.
"""

from .ground.lazy import show_public
from .ground.needs import needs

with needs(__name__, "triton"):
    from .backends.triton.noise import normal, normal4, normal64, uniform, uniform64, words

__all__ = ["normal", "normal4", "normal64", "uniform", "uniform64", "words"]

show_public(__name__)
