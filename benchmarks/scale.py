# SPDX-License-Identifier: Apache-2.0
"""What a block costs, by its size: ``python benchmarks/scale.py``, about a minute and 1 GiB of /dev/shm.

Threads and processes take turns; a figure is the median of the rounds. docs/scale.md cites them.
"""

import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import noisefuse as nf
from noisefuse._noise_files import Npy, Work

SCHEDULE, NOISE, ROUNDS = nf.Schedule.cosine(1000), nf.Noise(7), 5
SIZES = [1 << n for n in (16, 18, 20, 22, 24, 26)]
WORK = Work("cosine", 300, None, 7, 0, None)


def in_memory(size, total=1 << 26):
    """ns an element of a loop over blocks, one thread."""
    x = np.zeros((1, size), np.float32)
    nf.set_num_threads(1)
    begin = time.perf_counter()
    for block in range(total // size):
        nf.q_sample(x, 300, SCHEDULE, NOISE.at(sample=block), out=x)
    return 1e9 * (time.perf_counter() - begin) / total


def on_disk(size, folder, total=1 << 26):
    """The same of a file that is read and one that is written, as `noisefuse noise` does it."""
    job = Npy.of(folder / "x.npy", folder / "y.npy", WORK, size)
    nf.set_num_threads(1)
    begin = time.perf_counter()
    for block in range(total // size):
        job.make(block)
    return 1e9 * (time.perf_counter() - begin) / total


def main():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        np.save(folder / "x.npy", np.zeros((1, 1 << 26), np.float32))
        Npy.of(folder / "x.npy", folder / "y.npy", WORK, 1 << 26).prepare()
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(in_memory, [1 << 20] * 2))  # they have started
            print("| elements of a block | one process | two, each | on disk, one process |")
            for size in SIZES:
                rows = [
                    (in_memory(size), max(pool.map(in_memory, [size] * 2)), on_disk(size, folder))
                    for _ in range(ROUNDS)
                ]
                figures = [statistics.median(column) for column in zip(*rows, strict=True)]
                print(f"| 2^{size.bit_length() - 1} | " + " | ".join(f"{f:.2f}" for f in figures) + " |", flush=True)
        few, many = (statistics.median(on_disk(n, folder, n << 8) * n for _ in range(ROUNDS)) for n in (1, 1 << 10))
        print(f"a block of one element on disk: {few / 1e3:.0f} us; of 1,024: {many / 1e3:.0f} us")


if __name__ == "__main__":
    main()
