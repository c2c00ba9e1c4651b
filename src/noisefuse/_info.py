# SPDX-License-Identifier: Apache-2.0
"""`noisefuse info`: what runs here, and why something does not."""

from __future__ import annotations

import argparse

import noisefuse as nf


def run(arguments: argparse.Namespace) -> None:
    lines = _lines()
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        width = max(len(name) for name, _ in lines)
        print("\n".join(f"{name:{width}}  {value}".rstrip() for name, value in lines))
        return
    grid = Table.grid("", "", padding=(0, 2))
    for name, value in lines:
        grid.add_row(Text(name, "bold"), Text(value))  # Text: "noisefuse[cuda13]" is no markup
    Console(highlight=False).print(grid)


def _lines() -> list[tuple[str, str]]:
    info = nf.info()
    return [
        ("noisefuse", f"{info['version']}, noise contract {info['noise_version']}"),
        ("processor", info["cpu"]),
        ("threads", str(info["threads"])),
        *_choices("instruction sets", info["isas"], info["isa"]),
        *_choices("backends", info["backends"], info["backend"]),
    ]


def _choices(title: str, choices: dict[str, str], chosen: str | None) -> list[tuple[str, str]]:
    """One line each: available, in use, or the reason why not."""
    return [
        ("" if i else title, f"{name}: {state}" + (", in use" if name == chosen else ""))
        for i, (name, state) in enumerate(choices.items())
    ]
