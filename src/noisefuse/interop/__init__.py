# SPDX-License-Identifier: Apache-2.0
"""Other libraries: each module is loaded when its library's arrays are first seen, or when it is asked for."""

from typing import Any

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


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
