# SPDX-License-Identifier: Apache-2.0
"""Draws two pictures: a photograph under each kind of noise, and the images per second.

    python examples/augment.py --sheet augment.jpg --speed augment_speed.png

The sheet has a row for each kind of noise and three strengths as columns, with the measured standard deviation over the
whole picture. The bars are images of 512 x 512 x 3 bytes per second on one thread, beside the transforms of other
libraries if they are installed.

It needs `pip install '.[demo]'`, and for the other bars albumentations and torchvision.
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
from noisefuse.ground.drawing import BLUE, GREY, STYLE

Image = NDArray[np.uint8]
NOISE = nf.Noise(7)
KINDS: dict[str, list[tuple[str, Callable[[Image], Image]]]] = {
    "gaussian": [
        (f"std {std}", partial(nf.augment.gaussian, std=std, noise=NOISE, batched=False)) for std in (10, 25, 60)
    ],
    "gaussian, shared": [
        (
            f"std {std}",
            partial(nf.augment.gaussian, std=std, noise=NOISE, layout="HWC", shared=True, batched=False),
        )
        for std in (10, 25, 60)
    ],
    "multiplicative": [
        (f"std {std}", partial(nf.augment.multiplicative, std=std, noise=NOISE, batched=False))
        for std in (0.1, 0.25, 0.6)
    ],
    "sensor": [(f"a {a}, b 4", partial(nf.augment.sensor, a=a, b=4, noise=NOISE, batched=False)) for a in (0.5, 3, 15)],
}


def photograph() -> Image:
    from skimage.data import astronaut

    image: Image = astronaut()
    return image


def sheet(image: Image, out: Path) -> dict[str, list[float]]:
    """Draws the sheet, and returns its standard deviations."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3 * len(KINDS)), layout="constrained")
    found: dict[str, list[float]] = {}
    for axes, (kind, strengths) in zip(figure.subplots(len(KINDS), 3), KINDS.items(), strict=True):
        for ax, (label, noised) in zip(axes, strengths, strict=True):
            noisy = noised(image)
            found.setdefault(kind, []).append(float((noisy.astype(float) - image).std()))
            ax.imshow(noisy[20:220, 120:320])
            ax.set_title(f"{kind}: {label}\nmeasured {found[kind][-1]:.1f}", fontsize=9)
            ax.set_axis_off()
    figure.savefig(out, dpi=80)
    return found


def contenders(image: Image) -> dict[str, Callable[[], Any]]:
    """Returns functions, by name, that add noise with a standard deviation of a tenth to the image."""
    found: dict[str, Callable[[], Any]] = {"noisefuse": lambda: nf.augment.gaussian(image, 25.5, NOISE, batched=False)}
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
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

    with matplotlib.rc_context(STYLE):
        figure = Figure((8, 0.5 * len(speeds) + 1), layout="constrained")
        ax = figure.subplots()
        names = sorted(speeds, key=speeds.__getitem__)
        colors = [BLUE if "noisefuse" in name else GREY for name in names]
        drawn = ax.barh(names, [speeds[name] for name in names], color=colors)
        ax.bar_label(drawn, [f"{speeds[name]:.0f}" for name in names], padding=3)
        ax.set_xlabel("images of 512 x 512 x 3 bytes a second, one thread")
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
