# SPDX-License-Identifier: Apache-2.0
"""Measures the images per second of noised data from memory, in several ways: ``python benchmarks/loading.py``.

Each process has one thread. All ways take turns; the figure is the median of the rounds. docs/torch.md cites the
ratios.

``python benchmarks/loading.py --jpeg loading.png`` draws what an image takes in six pipelines, from a file to a batch:
decoding, noise, and the rest, which is the crop, floats, normalisation and collation. The files are JPEGs that
scikit-image ships. It measures processor time, which other programs disturb less. docs/augment.md shows the picture.
"""

import io
import os
import statistics
import sys
import time
from pathlib import Path

os.environ["NOISEFUSE_NUM_THREADS"] = "1"  # workers inherit it

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import noisefuse as nf
from noisefuse.ground.drawing import BLUE, GREY, STYLE
from noisefuse.interop.torch_data import NoisyBatch

SCHEDULE, BATCH, ROUNDS = nf.Schedule.linear(1000), 256, 9
ALPHA, SIGMA = (torch.tensor(column, dtype=torch.float32) for column in (SCHEDULE.alpha, SCHEDULE.sigma))
IMAGES = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8)
NOISY = NoisyBatch(SCHEDULE, nf.Noise(7))


def by_torch(images):
    """Returns (x_t, t, noise) of images (B, ...), as most people write it."""
    x0 = images / 127.5 - 1
    t = torch.randint(0, len(SCHEDULE), (len(x0),))
    noise = torch.randn_like(x0)
    alpha, sigma = (column[t].view(-1, *[1] * (x0.ndim - 1)) for column in (ALPHA, SIGMA))
    return alpha * x0 + sigma * noise, t, noise


class Images(Dataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, i):
        return i, IMAGES[i]


class ItemsByTorch(Images):
    def __getitem__(self, i):
        return [x[0] for x in by_torch(IMAGES[i : i + 1])]


class Items(Images):
    def __getitem__(self, i):
        noise = nf.Noise(7, sample=i)
        t = int(len(SCHEDULE) * nf.uniform(1, noise)[0])
        x_t, target = nf.q_sample(IMAGES[i : i + 1], t, SCHEDULE, noise, target="epsilon")
        return x_t[0], t, target[0]


def batches_by_torch(items):
    return by_torch(torch.stack([image for _, image in items]))


def load(data, workers, **options):
    return DataLoader(data, BATCH, shuffle=True, num_workers=workers, **options)


WAYS = {
    "torch, item by item": lambda workers: load(ItemsByTorch(), workers),
    "noisefuse, item by item": lambda workers: load(Items(), workers),
    "torch, in collate_fn": lambda workers: load(Images(), workers, collate_fn=batches_by_torch),
    "noisefuse, in collate_fn": lambda workers: load(Images(), workers, collate_fn=NOISY.collate),
    "torch, after the loader": lambda workers: (by_torch(images) for _, images in load(Images(), workers)),
    "noisefuse, after the loader": lambda workers: (NOISY(*batch) for batch in load(Images(), workers)),
    "(the loader alone)": lambda workers: load(Images(), workers),
}


def measure(workers):
    times = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            start = time.perf_counter()
            for _ in way(workers):
                pass
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    first = medians["torch, item by item"]
    print(f"{workers} workers, batches of {BATCH} images of {tuple(IMAGES.shape[1:])}")
    for name, seconds in medians.items():
        print(f"    {name:28} {len(IMAGES) / seconds:9,.0f} images/s  {first / seconds:5.2f}")


# ---- from files --------------------------------------------------------------------------------------------

SIDE, MEANS, STDS = 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PHOTOGRAPHS = "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg"
SPENT = {"decode": 0.0, "noise": 0.0, "rest": 0.0}


def timed(part, function):
    def call(*arguments, **options):
        start = time.process_time()
        result = function(*arguments, **options)
        SPENT[part] += time.process_time() - start
        return result

    return call


class Files(Dataset):
    """JPEGs of 256 pixels on the shorter side, as data sets for training store them."""

    def __init__(self, *stages):
        import skimage
        from PIL import Image

        self.stages, self.files = stages, []
        self.decoded = timed("decode", lambda file: np.array(Image.open(io.BytesIO(file))))
        for name in PHOTOGRAPHS * 16:
            image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
            scale, into = 256 / min(image.size), io.BytesIO()
            image.resize([round(scale * length) for length in image.size]).save(into, "JPEG", quality=90)
            self.files.append(into.getvalue())

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        x = self.decoded(self.files[i])
        for stage in self.stages:
            x = stage(x)
        return i, x


def pipelines():
    """Returns loaders by name, whose noise has a standard deviation of a tenth of the range."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2
    from torchvision.transforms import v2

    from noisefuse.interop import albumentations, torchvision
    from noisefuse.interop.torch_data import AugmentedBatch

    cv2.setNumThreads(1)

    def load(*stages, **options):
        return DataLoader(Files(*stages), 16, **options)

    def of_albumentations(*steps):
        compose = A.Compose(steps)
        return lambda image: compose(image=image)["image"]

    def by_albumentations(kind):
        noise = timed("noise", of_albumentations(kind(std_range=(0.1, 0.1), p=1.0)))
        return load(cropped, noise, of_albumentations(A.Normalize(MEANS, STDS), ToTensorV2()))

    def by_torchvision(kind):
        noise = timed("noise", kind(sigma=0.1))
        return load(tensor, v2.ToDtype(torch.float32, scale=True), noise, v2.Normalize(MEANS, STDS))

    def at_once(images, noise):
        std = 0.1 / STDS[1]  # in units of the result
        return nf.augment.prepare(images, noise=noise, noise_std=std, scale_mean=MEANS, scale_std=STDS)

    cropped, tensor = of_albumentations(A.RandomCrop(SIDE, SIDE)), v2.Compose([v2.ToImage(), v2.RandomCrop(SIDE)])
    prepared = torchvision.Prepare(MEANS, STDS, sigma=0.1 / STDS[1])
    batch = AugmentedBatch(timed("noise", at_once), noise=nf.Noise(7))
    return {
        "albumentations": by_albumentations(A.GaussNoise),
        "with noisefuse": by_albumentations(albumentations.GaussNoise),
        "torchvision": by_torchvision(v2.GaussianNoise),
        "with noisefuse ": by_torchvision(torchvision.GaussianNoise),
        "and Prepare": load(tensor, timed("noise", prepared)),
        "prepare, a batch": load(cropped, collate_fn=batch.collate),
    }


def measure_files():
    """Returns the milliseconds of an image's parts for each pipeline: medians of rounds, in which all take turns."""
    loaders, rounds = pipelines(), {}
    for _ in range(ROUNDS):
        for name, loader in loaders.items():
            SPENT.update(dict.fromkeys(SPENT, 0.0))
            start = time.process_time()
            for _ in loader:
                pass
            SPENT["rest"] = time.process_time() - start - SPENT["decode"] - SPENT["noise"]
            rounds.setdefault(name, []).append([1000 * SPENT[part] / len(loader.dataset) for part in SPENT])
    return {name: dict(zip(SPENT, np.median(times, axis=0), strict=True)) for name, times in rounds.items()}


def draw_files(found, out):
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    with matplotlib.rc_context(STYLE | {"font.size": 14}):
        figure = Figure((8, 4.6), layout="constrained")
        ax, end = figure.subplots(), np.zeros(len(found))
        for part, color in (("decode", GREY), ("rest", "#e4e8ee"), ("noise", BLUE)):
            lengths = [parts[part] for parts in found.values()]
            bars = ax.barh([*found], lengths, left=end, color=color, label=part)
            end += lengths
        ax.bar_label(bars, [f"{length:.2f}" for length in lengths], padding=4)
        ax.invert_yaxis()
        ax.margins(x=0.1)
        ax.set_xlabel("processor milliseconds an image (number: noise)")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(into := io.BytesIO(), dpi=80)
        Image.open(into).convert("RGB").quantize(32).save(out, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--jpeg" in sys.argv:
        found = measure_files()
        for name, parts in found.items():
            print(f"{name:20}", *(f"{part} {spent:6.3f}" for part, spent in parts.items()), "ms an image")
        draw_files(found, sys.argv[sys.argv.index("--jpeg") + 1])
        sys.exit()
    for workers in [int(argument) for argument in sys.argv[1:]] or [0, 2]:
        measure(workers)
