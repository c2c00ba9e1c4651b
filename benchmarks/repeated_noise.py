# SPDX-License-Identifier: Apache-2.0
"""Trains the network of examples/train_digits.py with right noise and with noise that each epoch repeats, and prints
the losses that docs/drawings.py shows: python benchmarks/repeated_noise.py"""

import sys
from pathlib import Path

import numpy as np
import torch

import noisefuse as nf

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_digits import SCHEDULE, Denoiser, batches, load

VALIDATION, EVERY = 320, 250  # images that are not trained on; steps


def loss_of(network, images, labels, noise):
    t = torch.from_numpy((len(SCHEDULE) * nf.uniform(len(images), noise)).astype(np.int64))
    x_t = nf.q_sample(images, t, SCHEDULE, noise)
    return nf.mse_loss(network(x_t, t, labels), images, t, SCHEDULE, noise, target="v")


def train(repeated, steps=3000):
    torch.manual_seed(0)
    images, labels = load()
    network = Denoiser()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    told, shown = [], []
    for step, (epoch, ids) in zip(range(steps), batches(len(images) - VALIDATION, 128, 0), strict=False):
        noise = nf.Noise(0, sample=ids.numpy(), step=0 if repeated else epoch)
        loss = loss_of(network, images[ids], labels[ids], noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(loss.item())
        if (step + 1) % EVERY == 0:
            with torch.no_grad():  # the same images, times and noise each time: a step that training does not reach
                fixed = nf.Noise(0, sample=len(images), step=2**32 - 1)
                found = loss_of(network, images[-VALIDATION:], labels[-VALIDATION:], fixed).item()
            shown.append((round(float(np.mean(told[-EVERY:])), 3), round(found, 3)))
    return shown


if __name__ == "__main__":
    for repeated in (False, True):
        print("repeated" if repeated else "right", train(repeated))
