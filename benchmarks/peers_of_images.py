# SPDX-License-Identifier: Apache-2.0
"""`bench.py --augment`: noise added to images, beside NumPy, albumentations and torchvision if installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import noisefuse as nf
from noisefuse.commands.bench.contenders import RIVALS, Array, Call, Case, Rival, contenders, copy
from noisefuse.commands.bench.timing import Device, machine
from noisefuse.ground.kept import kept_property

OPERATIONS = ("gaussian", "multiplicative", "poisson")
STD, PEAK, GAMMA = 0.1, 5.0, 2.2  # the fraction of the range; the number of photons for white


class Images(Case):
    """Images with channels last, in [0, 255] or [0, 1]. All are augmented into arrays of their own dtype."""

    @property
    def exists(self) -> bool:
        return self.dtype in ("uint8", "float32") and (self.operation != "poisson" or self.dtype == "uint8")

    @property
    def arrays(self) -> int:
        return 2

    @property
    def out_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @property
    def white(self) -> float:
        return 255.0 if self.dtype == "uint8" else 1.0

    @kept_property
    def x(self) -> Array:
        return (np.random.default_rng(0).random(self.shape) * self.white).astype(self.dtype)


def device() -> Device:
    return Device(
        machine(), OPERATIONS, ((4, 64, 64, 3), (4, 224, 224, 3), (16, 512, 512, 3)), ("uint8", "float32"),
        partial(contenders, of=CONTENDERS), nf.info()["threads"], case=Images, columns=("img/s", "ns", "±", "copy"),
        rivals={
            "naive": RIVALS["naive"],
            "albumentations": Rival("image by image", "albumentations"),
            "torchvision": Rival("the batch at once", "torchvision"),
        },
    )  # fmt: skip


def _noisefuse(case: Images) -> Call:
    x, noise, augment, clip = case.x, nf.Noise(0), nf.augment, None if case.dtype == "uint8" else (0.0, 1.0)
    return {
        "gaussian": lambda: augment.gaussian(x, STD * case.white, noise, clip=clip),
        "multiplicative": lambda: augment.multiplicative(x, STD, noise, clip=clip),
        "poisson": lambda: augment.poisson(x, PEAK, noise, gamma=GAMMA),
    }[case.operation]


def _naive(case: Images) -> Call:
    """NumPy, as its users write it."""
    rng, x, white = np.random.default_rng(0), case.x, case.white

    def stored(y: Array) -> Array:
        return (np.rint(y) if white == 255 else y).clip(0, white).astype(case.dtype)

    def counted() -> Array:
        return stored(white * (rng.poisson(PEAK * (x / white) ** GAMMA) / PEAK) ** (1 / GAMMA))

    normal = partial(rng.standard_normal, case.shape, dtype=np.float32)
    std = np.float32(STD)
    return {
        "gaussian": lambda: stored(x + std * np.float32(white) * normal()),
        "multiplicative": lambda: stored(x * (1 + std * normal())),
        "poisson": counted,
    }[case.operation]


def _albumentations(case: Images) -> Call | None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network for its newest version
    library, cv2 = import_module("albumentations"), import_module("cv2")
    cv2.setNumThreads(case.threads)
    kinds: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: library.GaussNoise(std_range=(STD, STD), p=1.0),
        "poisson": lambda: library.ShotNoise(scale_range=(1 / PEAK, 1 / PEAK), p=1.0),
    }
    if case.operation not in kinds:
        return None  # its MultiplicativeNoise is uniform
    augment = library.Compose([kinds[case.operation]()])
    return lambda: [augment(image=image)["image"] for image in case.x]


def _torchvision(case: Images) -> Call | None:
    torch, v2 = import_module("torch"), import_module("torchvision.transforms.v2")
    if case.operation != "gaussian":
        return None
    torch.set_num_threads(case.threads)
    return partial(v2.GaussianNoise(sigma=STD), torch.from_numpy(np.moveaxis(case.x, -1, 1).copy()))


CONTENDERS: dict[str, Callable[[Images], Call | None]] = {
    "noisefuse": _noisefuse,
    "naive": _naive,
    "albumentations": _albumentations,
    "torchvision": _torchvision,
    "copyto": copy,
}
