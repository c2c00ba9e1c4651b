# SPDX-License-Identifier: Apache-2.0
"""Compares pipelines of diffusers before and after `accelerate`: the same pictures, and the cost of a step.

    python examples/diffusers_pipeline.py         writes diffusers_pipeline.png, in under a minute

The network is a small UNet2DModel with random weights, so that nothing is downloaded: its pictures mean nothing, but
they are the same. Then the schedulers are timed alone, on the sizes of a robot's actions and of latents.

Needs matplotlib and rich: pip install '.[demo,diffusers]'.
"""

from __future__ import annotations

import argparse
import inspect
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

import noisefuse as nf
from noisefuse.interop.diffusers import SCHEDULERS as ALL
from noisefuse.interop.diffusers import accelerate

SEED, PICTURES, STEPS = 2026, 4, 20
PIPELINES = {"DDPM": {}, "DDIM": {"eta": 0.5}}
SHAPES = {"actions": (1, 16, 7), "latents": (4, 4, 128, 128)}


# ---- pictures ----------------------------------------------------------------------------------------------


def pipeline(kind: str) -> Any:
    torch.manual_seed(SEED)
    unet = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    made = getattr(diffusers, f"{kind}Pipeline")(unet, getattr(diffusers, f"{kind}Scheduler")())
    made.set_progress_bar_config(disable=True)
    return made


def pictures(pipe: Any, **options: Any) -> np.ndarray:
    """Returns (n, height, width, 3), from the same seed."""
    generator = torch.Generator().manual_seed(SEED)
    answer = pipe(batch_size=PICTURES, generator=generator, num_inference_steps=STEPS, output_type="np", **options)
    return np.asarray(answer.images)


def draw(rows: dict[str, np.ndarray], out: Path) -> None:
    figure = Figure(figsize=(1.6 * PICTURES, 1.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), PICTURES)
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
        row[0].set_title(title, loc="left", fontsize=9)
    figure.savefig(out, dpi=110)


# ---- steps -------------------------------------------------------------------------------------------------

# Those that have a step's usual arguments, and as many steps as are asked for.
OTHERS = "CogVideoXDPMScheduler", "ConsistencyDecoderScheduler", "DDPMWuerstchenScheduler"
SCHEDULERS = [kind for kind in ALL if kind.__name__ not in OTHERS]


def microseconds(scheduler: Any, shape: tuple[int, ...], noise: nf.Noise | None = None) -> float:
    """Returns the time of a step within a run: the fastest of several runs."""
    x = torch.randn(shape)
    draws = {"generator": noise} if noise and "generator" in inspect.signature(scheduler.step).parameters else {}
    ends = isinstance(scheduler, diffusers.SCMScheduler)  # its last time is the end of the run
    runs = []
    for _ in range(8):
        scheduler.set_timesteps(STEPS, **({"intermediate_timesteps": None} if ends else {}))
        times = list(scheduler.timesteps)[: -1 if ends else None]
        scheduler.scale_model_input(x, times[0]) if hasattr(scheduler, "scale_model_input") else None
        scheduler.step(x, times[0], x, **draws)
        start = time.perf_counter()
        for t in times[1:]:
            scheduler.step(x, t, x, **draws)
        runs.append((time.perf_counter() - start) / (len(times) - 1))
    return 1e6 * min(runs)


def comparison(threads: int) -> Table:
    torch.set_num_threads(threads)
    title = f"one step, microseconds: diffusers / here, noise drawn in the step ({threads} thread{'s' * (threads > 1)})"
    table = Table(box=SIMPLE_HEAD, title=title)
    table.add_column("scheduler")
    for name, shape in SHAPES.items():
        table.add_column(f"{name} {shape}", justify="right")
    with nf.set_num_threads(threads), warnings.catch_warnings(action="ignore"):  # diffusers', of NumPy; torchsde's
        for theirs in track(SCHEDULERS, description="schedulers", transient=True):
            cells = []
            for shape in SHAPES.values():
                before = microseconds(theirs(), shape)
                after = microseconds(accelerate(theirs()), shape, nf.Noise(SEED))
                cells.append(f"{before:.0f} / {after:.1f}  {before / after:4.1f} x")
            table.add_row(theirs.__name__, *cells)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("diffusers_pipeline.png"), help="where to draw")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of noisefuse, for the schedulers alone")
    options = parser.parse_args(arguments)
    console, rows = Console(), {}
    for kind, extra in PIPELINES.items():
        pipe = pipeline(kind)
        rows[f"{kind}, diffusers"] = pictures(pipe, **extra)
        rows[f"{kind}, accelerated"] = pictures(accelerate(pipe), **extra)
        apart = np.abs(rows[f"{kind}, diffusers"] - rows[f"{kind}, accelerated"]).max()
        console.print(f"{kind}: the pictures differ by {apart:.1g}, where black is 0 and white is 1")
    draw(rows, options.out)
    console.print(comparison(options.threads))
    console.print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
