# SPDX-License-Identifier: Apache-2.0
"""Other libraries. A module is loaded when its library's arrays are first seen, or when it is imported."""

from ..ground.lazy import lazy
from ..ground.libraries import Library as Library
from ..ground.libraries import register as register
from ..language.noise import with_jax
from .adapter import ThroughNumPy as ThroughNumPy

_MODULES = (
    "albumentations",
    "audiomentations",
    "columns",
    "dask",
    "diffusers",
    "diffusers_tokens",
    "grain",
    "jax",
    "k_diffusion",
    "kornia",
    "llada",
    "monai",
    "skimage",
    "torch",
    "torch_data",
    "torchvision",
)


def _torch() -> Library:
    from . import torch  # a statement, which torch.compile can trace

    return torch.library


def _jax() -> Library:
    from . import jax

    return jax.library


def _jax_keys() -> None:
    from . import jax_keys as jax_keys


def _dask() -> Library:
    from . import dask

    return dask.library


register("torch", _torch)
register("jax", _jax)
register("jaxlib", _jax)
register("dask", _dask)
with_jax.append(_jax_keys)

lazy(__name__, _MODULES, ("Library", "ThroughNumPy", "register"))
