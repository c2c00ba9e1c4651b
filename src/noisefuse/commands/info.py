# SPDX-License-Identifier: Apache-2.0
"""`noisefuse info`: the parts that run here, and the reasons why others do not."""

from __future__ import annotations

import argparse
import textwrap

import noisefuse as nf

from .shared import WIDTH


def run(arguments: argparse.Namespace) -> None:
    lines = _lines()
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        first, rest = f"{name:{width}}  ", " " * (width + 4)
        print(textwrap.fill(value, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False))


def _lines() -> list[tuple[str, str]]:
    info = nf.info()
    contract = f"noise contract {info['noise_version']}, its provisional part {info['provisional_version']}"
    return [
        ("noisefuse", f"{info['version']}, {contract}"),
        ("processor", info["cpu"]),
        ("threads", str(info["threads"])),
        *_choices("instruction sets", info["isas"], info["isa"]),
        *_choices("backends", info["backends"], info["backend"]),
        *([("", "none is in use: NOISEFUSE_BACKEND asks for one that is not available")] * (info["backend"] is None)),
    ]


def _choices(title: str, choices: dict[str, str], chosen: str | None) -> list[tuple[str, str]]:
    """Returns one line each: available, in use, or the reason why not."""
    return [
        ("" if i else title, f"{name}: {state}" + (", in use" if name == chosen else ""))
        for i, (name, state) in enumerate(choices.items())
    ]
