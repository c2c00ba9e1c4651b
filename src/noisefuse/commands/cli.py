# SPDX-License-Identifier: Apache-2.0
"""The command line: noisefuse demo | info | bench | selftest | noise. Each is a module, imported when it runs."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import __version__
from ..language.levels import OF_NUMPY
from ..language.noise import SEEDS, STEPS
from .bench.contenders import DTYPES

# Packages that a command may lack, by module, with the name to install each by.
_OPTIONAL = {
    "PIL": "pillow",
    "dask": "dask",
    "distributed": "distributed",
    "matplotlib": "matplotlib",
    "skimage": "scikit-image",
    "zarr": "zarr",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 (a self-test failed), or after one line on stderr 2 (an error) or 130 (Ctrl-C);
    141 if nothing reads the output any more."""
    arguments = _parser().parse_args(argv)
    if arguments.command is None:
        _parser().print_help(sys.stderr)
        return 2
    try:
        status: int = import_module(f".{arguments.command}", __package__).run(arguments) or 0
        sys.stdout.flush()
        return status
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _OPTIONAL:
            raise
        return _fail(arguments, f"needs {_OPTIONAL[missing]}: pip install 'noisefuse[{arguments.command}]'")
    except BrokenPipeError:  # as with `| head`, after its last line
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for output that is still to be flushed
        return 141
    except (ImportError, OSError, ValueError) as error:  # a file that the user named, a NOISEFUSE_* variable
        return _fail(arguments, str(error))
    except KeyboardInterrupt:
        return _fail(arguments, "stopped", 130)


def _fail(arguments: argparse.Namespace, problem: str, status: int = 2) -> int:
    clear = "\r\033[K" if sys.stderr.isatty() else ""  # removes a progress line
    print(f"{clear}noisefuse {arguments.command}: {' '.join(problem.splitlines())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="noisefuse", description="Fused kernels for diffusion models.")
    parser.add_argument("--version", action="version", version=f"noisefuse {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    _add_demo(commands)
    commands.add_parser("info", help="version, instruction sets, threads and backends")

    does = "is it faster here? beside NumPy, torch, JAX, albumentations and diffusers"
    takes = "It takes some two minutes of processor time, with --quick one."
    add_bench(commands.add_parser("bench", help=does, description=f"Answers: {does}. {takes}"))

    selftest = commands.add_parser("selftest", help="check the bits against the contract")
    selftest.add_argument("--level", type=_level, default="quick", help="quick; other tests are those of the sources")

    _add_noise(commands)
    return parser


def add_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    bench.add_argument("--quick", action="store_true", help="few rounds; of the table few and small cases")
    bench.add_argument("--table", action="store_true", help="operations by sizes and dtypes; as do the options below")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    bench.add_argument("--compare", type=Path, metavar="OLD.json", help="with the results of an earlier run")
    bench.add_argument("--sizes", nargs="+", type=_shape, metavar="SHAPE", help="such as 256x3x128x128")
    bench.add_argument("--dtypes", nargs="+", choices=(*DTYPES, "int64"), metavar="DTYPE", help=", ".join(DTYPES))
    bench.add_argument("--threads", nargs="+", type=_positive, metavar="N", help="default: as `noisefuse info`")


def _add_noise(commands: Any) -> None:
    does = "noise a data set on disk, resumable"
    noise = commands.add_parser(
        "noise",
        help=does,
        description=_ABOUT.format(does=does),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    noise.add_argument(
        "source", type=Path, metavar="SOURCE", help=".npy or zarr (axis 0: samples), or a folder of images"
    )
    noise.add_argument("target", type=Path, metavar="TARGET", help="likewise; TARGET.noisefuse says what made it")
    noise.add_argument("--schedule", choices=("linear", "cosine", "flow"), help="of 1000 steps, as `q_sample` takes it")
    noise.add_argument("--t", type=_natural, help="the time in the schedule, 0 the least noisy")
    noise.add_argument("--std", type=_deviation, help="or this much noise, in units of the values")
    noise.add_argument("--seed", type=_seed, required=True, help="of the noise; samples are numbered from 0")
    noise.add_argument("--step", type=_step, default=0, help="of the noise, such as the epoch (default: %(default)s)")
    noise.add_argument("--dtype", choices=OF_NUMPY, help="of the target")
    noise.add_argument(
        "--range",
        type=_finite,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the values that 0 and 255 (uint8) or 65535 (uint16) of the target stand for; with --schedule -1 1, if "
        "nothing is said",
    )
    noise.add_argument(
        "--block",
        type=_positive,
        default=1 << 22,
        metavar="N",
        help="elements made at once, of .npy (default: %(default)s)",
    )
    where = noise.add_mutually_exclusive_group()
    where.add_argument("--workers", type=_workers, metavar="N", help="on so many processes of dask.distributed")
    where.add_argument("--scheduler", metavar="ADDRESS", help="or on the workers of this one, tcp://..")


_ABOUT = """To {does}.
Noise is added as by `q_sample` (--schedule, --t) or `augment.gaussian` (--std)."""
_EXAMPLES = """examples:
  noisefuse noise latents.npy noised.npy --schedule cosine --t 300 --seed 7
  noisefuse noise photographs noisy --std 20 --seed 7
  noisefuse noise x.npy bytes.npy --std 0.1 --dtype uint8 --range -1 1 --seed 7"""


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="noise photographs, and draw and time it")
    demo.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="default: an astronaut")
    demo.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture (default: %(default)s)")
    demo.add_argument("--schedule", choices=("linear", "cosine"), default="linear")
    demo.add_argument("--seed", type=_seed, default=0, help="of the noise (default: %(default)s)")


def _shape(text: str) -> tuple[int, ...]:
    """Reads B x ...; a lone number is one sample of that many elements."""
    try:
        shape = tuple(_positive(length) for length in text.split("x"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected lengths joined by x, as in 256x3x128x128, got {text!r}") from None
    return shape if len(shape) > 1 else (1, *shape)


def _level(text: str) -> str:
    if text != "quick":
        raise argparse.ArgumentTypeError(
            f"expected quick, got {text!r}: random calls, and the noise against theory, are run from the sources, by "
            "tests/campaign/random_calls.py and tests/campaign/noise_statistics.py"
        )
    return text


def _integer(expected: str, first: int, end: float = math.inf) -> Callable[[str], int]:
    """Returns a reader of integers in [first, end), which are expected in these words."""

    def read(text: str) -> int:
        if not text.isdecimal() or not first <= int(text) < end:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return int(text)

    return read


_natural = _integer("an integer from 0", 0)
_positive = _integer("a positive integer", 1)
_seed = _integer("an integer in [0, 2^64)", 0, SEEDS)
_step = _integer("an integer in [0, 2^32)", 0, STEPS)
_workers = _integer("a number of processes from 1 to 1024", 1, 1025)


def _deviation(text: str) -> float:
    std = _finite(text)
    if std < 0:
        raise argparse.ArgumentTypeError(f"expected a finite number from 0, got {text!r}")
    return std


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value
