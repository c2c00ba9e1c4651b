# SPDX-License-Identifier: Apache-2.0
"""Measures the images per second of noised data from memory, in several ways: ``python benchmarks/loading.py``.

Each process has one thread. All ways take turns; the figure is the median of the rounds. docs/torch.md cites the
ratios.
"""

import os
import statistics
import sys
import time

os.environ["NOISEFUSE_NUM_THREADS"] = "1"  # workers inherit it

import torch
from torch.utils.data import DataLoader, Dataset

import noisefuse as nf
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for workers in [int(argument) for argument in sys.argv[1:]] or [0, 2]:
        measure(workers)
