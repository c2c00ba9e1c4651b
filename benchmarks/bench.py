# SPDX-License-Identifier: Apache-2.0
"""`noisefuse bench` with more rivals, cases of images and tokens, and a picture.

    python benchmarks/bench.py                     beside JAX, MKL, Numba and NumPy with care, too
    python benchmarks/bench.py --augment           noise added to images, beside NumPy and other libraries
    python benchmarks/bench.py --discrete          masks, tokens and their loss, beside LLaDA's and torch's
    python benchmarks/bench.py --cliffs            every function in every spelling, over its plain call
    python benchmarks/bench.py --plot FILE.png     draws the results, too

Other options are those of `noisefuse bench`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cliffs
import peers
import peers_of_images
import peers_of_tokens
from noisefuse.commands import bench
from noisefuse.commands.bench.contenders import contenders
from noisefuse.commands.bench.timing import Device
from noisefuse.commands.cli import add_bench
from plot import Plot


def forward() -> Device:
    return dataclasses.replace(bench.cpu(), calls=partial(contenders, of=peers.CONTENDERS), rivals=peers.RIVALS)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--augment", dest="device_of", action="store_const", const=peers_of_images.device)
    of.add_argument("--discrete", dest="device_of", action="store_const", const=peers_of_tokens.device)
    of.add_argument("--cliffs", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    add_bench(parser)
    arguments = parser.parse_args(argv)
    if arguments.device != "cpu":
        parser.error("--device cuda is an option of `noisefuse bench`")
    if arguments.cliffs:
        cliffs.run(0.01 if arguments.quick else 0.1)
        return
    plot = arguments.plot and Plot(arguments.plot)
    device = (arguments.device_of or forward)()
    results = bench.run_on(device, arguments)
    if plot:
        plot.draw(device.where, results)


if __name__ == "__main__":
    main()
