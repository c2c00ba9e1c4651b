# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for diffusion models: noise for free, and the same seed gives the same bits everywhere."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import augment, density, discrete, fields, paths, samplers, weights
from .backends import info, set_num_threads, use_backend
from .ground.lazy import lazy
from .ground.version import __version__ as __version__
from .noise import NOISE_VERSION, Noise
from .operations.categorical import categorical
from .operations.cross_entropy import masked_cross_entropy
from .operations.draw import philox4x32, randn, randn_like, uniform
from .operations.interpolate import interpolate
from .operations.loss import mse_loss, mse_loss_grad
from .operations.noised import noised
from .operations.process import q_sample, q_step, q_walk
from .operations.update import update
from .sampler import Sampler
from .schedule import Schedule
from .tableau import Row, Tableau

if TYPE_CHECKING:
    from . import interop as interop
    from . import legacy as legacy
    from . import numba as numba

__all__ = [
    "NOISE_VERSION", "Noise", "Row", "Sampler", "Schedule", "Tableau", "augment", "categorical", "density",
    "discrete", "fields", "info", "interpolate", "masked_cross_entropy", "mse_loss", "mse_loss_grad", "noised",
    "paths", "philox4x32", "q_sample", "q_step", "q_walk", "randn", "randn_like", "samplers", "set_num_threads",
    "uniform", "update", "use_backend", "weights",
]  # fmt: skip

__getattr__: Callable[[str], Any]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy(__name__, ("legacy", "numba"), [*__all__, "__version__", "interop"])
import_module(".interop", __name__)  # stands above, and registers the libraries of arrays that it knows
