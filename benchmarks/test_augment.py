# SPDX-License-Identifier: Apache-2.0
"""The targets of augmentation, each a ratio within one run.

    pytest benchmarks/test_augment.py      every figure; writes results/<processor>-augment.json and .md

Rivals are called through their public classes, with probability 1, each on images in its own layout, one at a time if
its class takes one. They make new arrays, and so do ours.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

import figures
import noisefuse as nf
from figures import NOISE, SCHEDULE, Figure, Pair
from noisefuse.commands.bench.contenders import Call
from peers_of_images import CONTENDERS, Images

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
BATCH, CLIPS = (16, 512, 512, 3), (16, 441_000)
STD = 25.5  # a tenth of the range


def images() -> Any:
    return Images("gaussian", 1, BATCH, "uint8").x


def call(name: str, operation: str = "gaussian") -> Call:
    """A contender of `bench.py --augment`, on bytes. ImportError: it is not installed."""
    found = CONTENDERS[name](Images(operation, 1, BATCH, "uint8"))
    assert found
    return found


# ---- rivals ------------------------------------------------------------------------------------------------


def over_albumentations(operation: str) -> Pair:
    return Pair(call("noisefuse", operation), call("albumentations", operation))


def class_over_albumentations() -> Pair:
    """Compares theirs and ours in the same Compose, image by image."""
    import albumentations as A
    import cv2

    from noisefuse.interop.albumentations import GaussNoise

    cv2.setNumThreads(1)
    x = images()
    ours, theirs = (A.Compose([kind(std_range=(0.1, 0.1), p=1.0)]) for kind in (GaussNoise, A.GaussNoise))
    return Pair(lambda: [ours(image=image) for image in x], lambda: [theirs(image=image) for image in x])


def over_torchvision(ours: bool) -> Pair:
    """A batch at once, in theirs and in ours."""
    theirs = call("torchvision")
    import torch

    from noisefuse.interop.torchvision import GaussianNoise

    x = torch.from_numpy(np.ascontiguousarray(images().transpose(0, 3, 1, 2)))
    return Pair(partial(GaussianNoise(sigma=0.1), x) if ours else partial(nf.augment.gaussian, x, STD, NOISE), theirs)


def class_over_audiomentations(name: str) -> Pair:
    """Compares theirs and ours in the same Compose, clip by clip. Each clip is freed before the next one."""
    import audiomentations

    from noisefuse.interop import audiomentations as named

    x = np.random.default_rng(0).standard_normal(CLIPS, dtype=np.float32)
    kinds = (getattr(named, name), getattr(audiomentations, name))
    ours, theirs = (audiomentations.Compose([kind(p=1.0)]) for kind in kinds)

    def each(augment: Any) -> None:
        for clip in x:
            augment(clip, 44_100)

    return Pair(partial(each, ours), partial(each, theirs))


def class_over_kornia() -> Pair:
    """Compares a whole batch of float images."""
    import torch
    from kornia.augmentation import RandomGaussianNoise as Theirs

    from noisefuse.interop.kornia import RandomGaussianNoise

    torch.set_num_threads(1)
    x = torch.rand((16, 3, 512, 512))
    return Pair(*(partial(kind(std=0.1, p=1.0), x) for kind in (RandomGaussianNoise, Theirs)))


def class_over_monai() -> Pair:
    """Compares a volume of floats."""
    import torch
    from monai.transforms import RandGaussianNoise as Theirs

    from noisefuse.interop.monai import RandGaussianNoise

    torch.set_num_threads(1)
    x = torch.rand((1, 128, 256, 256))
    return Pair(*(partial(kind(prob=1.0), x) for kind in (RandGaussianNoise, Theirs)))


def over_opencv() -> Pair:
    """Draws normals of int16 alone, without adding them to the image."""
    import cv2

    cv2.setNumThreads(1)
    z = np.empty(BATCH, np.int16)
    return Pair(call("noisefuse"), lambda: [cv2.randn(one, 0, STD) for one in z])


def preparing(over: str) -> Pair:
    """Compares with torchvision's ToDtype, Normalize and GaussianNoise, or with q_sample from as many bytes."""
    x, mean, std = images(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ours = partial(nf.augment.prepare, x, noise=NOISE, scale_mean=mean, scale_std=std, noise_std=0.1)
    if over == "q_sample":
        return Pair(ours, partial(nf.q_sample, x, 500, SCHEDULE, NOISE))
    import torch
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
    steps = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), v2.GaussianNoise(sigma=0.1, clip=False)]
    return Pair(ours, partial(v2.Compose(steps), channels_first))


# ---- our own -----------------------------------------------------------------------------------------------


def to_q_sample() -> Pair:
    x = np.random.default_rng(0).random(BATCH, np.float32)
    return Pair(call("noisefuse"), lambda: nf.q_sample(x, 500, SCHEDULE, NOISE))


def to_gaussian(name: str, *numbers: float) -> Pair:
    x = images()
    return Pair(lambda: getattr(nf.augment, name)(x, *numbers, NOISE), call("noisefuse"))


def levels() -> Pair:
    x, of_level = images(), np.arange(256.0)
    return Pair(lambda: nf.augment.by_level(x, of_level, 0.1 * of_level, NOISE), call("noisefuse"))


def channels_last(function: str) -> Pair:
    """Compares numbers for each channel of each sample with one number for all."""
    x, numbers = images(), np.full((BATCH[0], BATCH[-1]), 2.0)
    noise = getattr(nf.augment, function)
    many, one = ((given,) * (2 if function == "sensor" else 1) for given in (numbers, 2.0))
    return Pair(lambda: noise(x, *many, NOISE, layout="HWC"), lambda: noise(x, *one, NOISE))


def bytes_to_floats() -> Pair:
    """Compares q_sample from bytes into bytes and into floats."""
    x = images()
    into = [partial(nf.q_sample, x, 500, SCHEDULE, NOISE, dtype=dtype) for dtype in ("uint8", "float32")]
    return Pair(*into)


def uint16_of_bytes(function: str) -> Pair:
    """Keeps the dtype, with one pass each."""
    x = images()
    wide = x.astype(np.uint16) * 257

    def of(x: Any) -> Call:
        if function == "q_sample":
            return lambda: nf.q_sample(x, 500, SCHEDULE, NOISE, out=x)
        return lambda: nf.augment.gaussian(x, STD, NOISE, out=x)

    return Pair(of(wide), of(x))


def clips_over_numpy() -> Pair:
    """Does the work of audiomentations (AddGaussianSNR): the root mean square of a clip, and NumPy's normals."""
    x, rng = np.random.default_rng(0).standard_normal(CLIPS, dtype=np.float32), np.random.default_rng(0)

    def usual() -> Any:
        rms = np.sqrt(np.mean(np.square(x), axis=1, keepdims=True))
        return x + rng.normal(0.0, 1.0, x.shape).astype(np.float32) * (rms * np.float32(0.1))

    return Pair(lambda: nf.augment.at_snr(x, 20.0, NOISE), usual)


def two_threads() -> Pair:
    x = images()

    def on(threads: int) -> Any:
        nf.set_num_threads(threads)
        return nf.augment.gaussian(x, STD, NOISE)

    return Pair(partial(on, 2), partial(on, 1))


TITLE, SUFFIX = "Augmentation", "-augment"
ABOUT = """\
Written by `pytest benchmarks/test_augment.py`, in one run. Images are 16x512x512x3 bytes, clips 16 of ten
seconds at 44.1 kHz; one thread on both sides where nothing else is said."""
FIGURES = [
    Figure("gaussian, over albumentations", ">=", 18, partial(over_albumentations, "gaussian")),
    Figure("gaussian in albumentations' Compose, over theirs", ">=", 12, class_over_albumentations),
    Figure("gaussian, over torchvision", ">=", 6, partial(over_torchvision, False)),
    Figure("GaussianNoise, over torchvision's", ">=", 6, partial(over_torchvision, True)),
    Figure(
        "AddGaussianSNR in audiomentations' Compose, over theirs",
        ">=",
        8,
        partial(class_over_audiomentations, "AddGaussianSNR"),
    ),
    Figure(
        "AddColorNoise in audiomentations' Compose, over theirs",
        ">=",
        4,
        partial(class_over_audiomentations, "AddColorNoise"),
    ),
    Figure("RandomGaussianNoise, over kornia's", ">=", 6, class_over_kornia),
    Figure("RandGaussianNoise, over MONAI's", ">=", 12, class_over_monai),
    Figure("gaussian, over cv2.randn alone", ">=", 4.5, over_opencv),
    Figure("gaussian of bytes, of q_sample of float32", "<=", 1.3, to_q_sample),
    Figure("q_sample into bytes, of that into float32", "<=", 1.3, bytes_to_floats),
    *(
        Figure(f"{name} of uint16, of that of bytes", "<=", 1.3, partial(uint16_of_bytes, name))
        for name in ("q_sample", "gaussian")
    ),
    Figure("multiplicative, of gaussian", "<=", 1.25, partial(to_gaussian, "multiplicative", 0.1)),
    Figure("sensor, of gaussian", "<=", 1.25, partial(to_gaussian, "sensor", 0.5, 2.0)),
    Figure("by_level, of gaussian", "<=", 1.6, levels),
    Figure("poisson, over albumentations' ShotNoise", ">=", 20, partial(over_albumentations, "poisson")),
    *(
        Figure(
            f"{name} with numbers for channels that lie last, of one for all", "<=", 1.25, partial(channels_last, name)
        )
        for name in ("gaussian", "multiplicative", "sensor")
    ),
    Figure("prepare, over torchvision's three transforms", ">=", 12, partial(preparing, "torchvision")),
    Figure("prepare, of q_sample from bytes", "<=", 1.5, partial(preparing, "q_sample")),
    Figure("at_snr, over NumPy", ">=", 8, clips_over_numpy),
    Figure("gaussian, 2 threads over 1", ">=", 1.8, two_threads, threads=2),
]
test_figure = figures.test_figure
