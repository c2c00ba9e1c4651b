# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for diffusion models: noise for free, and the same seed gives the same bits everywhere."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import paths
from .backends import info, set_num_threads, use_backend
from .ground.lazy import lazy
from .ground.version import __version__ as __version__
from .noise import NOISE_VERSION, PROVISIONAL_VERSION, Noise
from .operations.draw import philox4x32, randn, randn_like, uniform
from .operations.interpolate import interpolate
from .operations.loss import interpolate_loss, interpolate_loss_and_grad, mse_loss, mse_loss_and_grad, mse_loss_grad
from .operations.noised import noised
from .operations.process import q_sample, q_step, q_walk
from .operations.update import update
from .schedule import Schedule
from .tableau import Row, Tableau

if TYPE_CHECKING:
    from . import augment as augment
    from . import density as density
    from . import discrete as discrete
    from . import fields as fields
    from . import interop as interop
    from . import legacy as legacy
    from . import numba as numba
    from . import samplers as samplers
    from . import triton as triton
    from . import views as views
    from . import weights as weights
    from .discrete_sampler import DiscreteSampler
    from .ground.headers import get_include
    from .interop.audits import audit
    from .sampler import Sampler
    from .token_table import TokenRow, TokenTable
    from .tokens.categorical import categorical
    from .tokens.cross_entropy import masked_cross_entropy, masked_cross_entropy_and_grad
    from .tokens.forward import q_mask, q_transition, q_uniform
    from .tokens.rate_loss import rate_loss, rate_loss_and_grad

__all__ = [
    "NOISE_VERSION", "PROVISIONAL_VERSION", "DiscreteSampler", "Noise", "Row", "Sampler", "Schedule", "Tableau",
    "TokenRow", "TokenTable", "audit", "augment", "categorical", "density", "discrete", "fields", "get_include", "info",
    "interpolate", "interpolate_loss", "interpolate_loss_and_grad", "masked_cross_entropy",
    "masked_cross_entropy_and_grad", "mse_loss", "mse_loss_and_grad", "mse_loss_grad", "noised", "paths", "philox4x32",
    "q_mask", "q_sample", "q_step", "q_transition", "q_uniform", "q_walk", "randn", "randn_like", "rate_loss",
    "rate_loss_and_grad", "samplers", "set_num_threads", "uniform", "update", "use_backend", "weights",
]  # fmt: skip

# What not every program needs is loaded when it is asked for.
_HOMES = {
    "DiscreteSampler": "discrete_sampler",
    "Sampler": "sampler",
    "TokenRow": "token_table",
    "TokenTable": "token_table",
    "audit": "interop.audits",
    "categorical": "discrete tokens.categorical",  # the former shows the class of a partial result
    "get_include": "ground.headers",
    "masked_cross_entropy": "tokens.cross_entropy",
    "masked_cross_entropy_and_grad": "tokens.cross_entropy",
    "q_mask": "tokens.forward",
    "q_transition": "tokens.forward",
    "q_uniform": "tokens.forward",
    "rate_loss": "tokens.rate_loss",
    "rate_loss_and_grad": "tokens.rate_loss",
}
_MODULES = ("augment", "density", "discrete", "fields", "legacy", "numba", "samplers", "triton", "weights")
lazy(__name__, _MODULES, [*__all__, "__version__", "interop"], _HOMES)
import_module(".interop", __name__)  # stands above, and registers the libraries of arrays that it knows
