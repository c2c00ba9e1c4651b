# SPDX-License-Identifier: Apache-2.0
"""Draws two pictures: a photograph under each kind of noise, and the images per second.

    python examples/augment.py --sheet augment.jpg --speed augment_speed.png

The sheet has a row for each kind of noise and three strengths as columns, each with the standard deviation that was
measured over the whole picture. The right half of a picture is another library's noise of this kind and strength, if
the library is installed. The bars are images of 512 x 512 x 3 bytes per second on one thread, beside the transforms of
other libraries.

It needs `pip install '.[demo]'`, and for the others albumentations, monai and torchvision.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import noisefuse as nf
from noisefuse.ground.drawing import BLUE, GREY, INK, STYLE

Image = NDArray[np.uint8]
NOISE = nf.Noise(7)
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
# By kind: the strength's name, strengths, noisefuse's call, and the other library with what makes its transform.
KINDS: dict[str, tuple[str, tuple[float, ...], Callable[..., Any], str, Callable[[float], Callable[[Image], Any]]]] = {
    "gaussian": ("std", (10, 25, 60), nf.augment.gaussian, "albumentations", lambda std: _of_albumentations(
        "GaussNoise", std_range=(std / 255, std / 255))),
    "multiplicative": ("std", (0.1, 0.25, 0.6), nf.augment.multiplicative, "", lambda std: _nothing()),
    "sensor": ("a", (0.5, 3, 15), partial(nf.augment.sensor, b=4.0), "", lambda a: _nothing()),
    "impulse": ("amount", (0.02, 0.1, 0.4), partial(nf.augment.impulse, layout="HWC", shared=True), "albumentations",
        lambda amount: _of_albumentations("SaltAndPepper", amount=(amount, amount), salt_vs_pepper=(0.5, 0.5))),
    "rician": ("std", (10, 25, 60), nf.augment.rician, "MONAI", lambda std: _of_monai(std)),
}  # fmt: skip


def _nothing() -> Callable[[Image], Any]:
    raise ImportError("no library has this kind")


def _of_albumentations(name: str, **options: Any) -> Callable[[Image], Any]:
    import albumentations as A

    transform = A.Compose([getattr(A, name)(p=1.0, **options)], seed=7)
    return lambda image: transform(image=image)["image"]


def _of_monai(std: float) -> Callable[[Image], Any]:
    from monai.transforms import RandRicianNoise

    transform = RandRicianNoise(prob=1.0, std=std, sample_std=False)
    transform.set_random_state(7)
    return lambda image: np.asarray(transform(image.astype(np.float32))).round().clip(0, 255).astype(np.uint8)


def photograph() -> Image:
    from skimage.data import astronaut

    image: Image = astronaut()
    return image


def sheet(image: Image, out: Path) -> dict[str, list[float]]:
    """Draws the sheet, one pixel for one of the photograph's, and returns its standard deviations."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    side, gap, line = 164, 8, 19
    # dark paper, for bright pages and for dark ones
    page = Pictures.new("RGB", (3 * side + 2 * gap, len(KINDS) * (side + 2 * line + gap)), INK)
    draw, found = ImageDraw.Draw(page), {}
    for row, (kind, (strength, values, ours, library, theirs)) in enumerate(KINDS.items()):
        top, stds = row * (side + 2 * line + gap), []
        beside = False
        for column, value in enumerate(values):
            noisy = np.array(ours(image, value, noise=NOISE, batched=False))
            stds.append(float((noisy.astype(float) - image).std()))
            try:
                noisy[:, 219:] = theirs(value)(image)[:, 219:]
                noisy[:, 218:220], beside = 255, True
            except ImportError:
                pass
            left = column * (side + gap)
            page.paste(Pictures.fromarray(noisy[32 : 32 + side, 137 : 137 + side]), (left, top + 2 * line))
            label = f"{strength} {value:g}: {stds[-1]:.1f}"
            draw.text((left + 3, top + line), label, "white", ImageFont.load_default(13))
        title = f"{kind}; the right half by {library}" if beside else kind
        draw.text((3, top), title, "white", ImageFont.load_default(15))
        found[kind] = stds
    page.save(out, quality=70, optimize=True)
    return found


def contenders(image: Image) -> dict[str, Callable[[], Any]]:
    """Returns functions, by name, that add noise with a standard deviation of a tenth to the image."""
    found: dict[str, Callable[[], Any]] = {"noisefuse": lambda: nf.augment.gaussian(image, 25.5, NOISE, batched=False)}
    try:
        import albumentations as A
        import cv2

        from noisefuse.interop.albumentations import GaussNoise

        cv2.setNumThreads(1)
        for name, kind in (("noisefuse in albumentations", GaussNoise), ("albumentations", A.GaussNoise)):
            compose = A.Compose([kind(std_range=(0.1, 0.1), p=1.0)])
            found[name] = partial(compose, image=image)
    except ImportError:
        pass
    try:
        import torch
        from torchvision.transforms import v2

        torch.set_num_threads(1)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        found["torchvision"] = partial(v2.GaussianNoise(sigma=0.1), tensor)
    except ImportError:
        pass
    rng = np.random.default_rng(0)

    def numpy() -> Image:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(25.5)
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

    found["NumPy"] = numpy
    return found


def images_a_second(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Returns the best of many turns, in which all take part."""
    best, until = dict.fromkeys(calls, float("inf")), time.perf_counter() + seconds
    while time.perf_counter() < until or float("inf") in best.values():
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begin)
    return {name: 1 / least for name, least in best.items()}


def bars(speeds: dict[str, float], out: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"font.size": 14}):
        figure = Figure((8, 0.6 * len(speeds) + 1), layout="constrained")
        ax = figure.subplots()
        names = sorted(speeds, key=speeds.__getitem__)
        colors = [BLUE if "noisefuse" in name else GREY for name in names]
        drawn = ax.barh(names, [speeds[name] for name in names], color=colors)
        ax.bar_label(drawn, [f"{speeds[name]:.0f}" for name in names], padding=3)
        ax.set_xlabel("images (512 x 512 x 3) a second, one thread")
        ax.margins(x=0.12)
        figure.savefig(out, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, default=Path("augment.jpg"))
    parser.add_argument("--speed", type=Path, default=Path("augment_speed.png"))
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    image = photograph()
    for kind, stds in sheet(image, options.sheet).items():
        print(f"{kind:20}", *(f"{std:8.2f}" for std in stds))
    with nf.set_num_threads(1):
        speeds = images_a_second(contenders(image), options.seconds)
    for name, speed in speeds.items():
        print(f"{name:30}{speed:8.0f} images a second")
    bars(speeds, options.speed)
    print(f"wrote {options.sheet}\nwrote {options.speed}")


if __name__ == "__main__":
    main()
