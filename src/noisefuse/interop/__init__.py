# SPDX-License-Identifier: Apache-2.0
"""Other libraries: each module is loaded when its library's arrays are first seen, or when it is asked for."""

from typing import Any

from ..ground.kinds import register
from ..ground.lazy import lazy

_MODULES = (
    "albumentations",
    "audiomentations",
    "columns",
    "dask",
    "diffusers",
    "grain",
    "jax",
    "k_diffusion",
    "kornia",
    "monai",
    "torch",
    "torch_data",
    "torchvision",
)


def _torch() -> Any:
    from . import torch  # a statement, which torch.compile can follow

    return torch


def _jax() -> Any:
    from . import jax

    return jax


def _dask() -> Any:
    from . import dask

    return dask


register("torch", _torch)
register("jax", _jax)
register("jaxlib", _jax)
register("dask", _dask)


__getattr__, __dir__ = lazy(__name__, _MODULES, ())
