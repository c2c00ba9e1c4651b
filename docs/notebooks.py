# SPDX-License-Identifier: Apache-2.0
"""Pages and programs as notebooks and as scripts, which the site offers for download.

    python docs/notebooks.py PAGE.md    prints the page's notebook

The site writes them when it is built, so they are those of the page; tests run the pages' code.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```\n?", re.MULTILINE | re.DOTALL)
SHOW = """from io import BytesIO

from IPython.display import Image, display


def show(draw, size):
    file = BytesIO()
    with matplotlib.rc_context(STYLE | {"axes.titlesize": 10}):
        figure = Figure(size, layout="constrained")
        draw(figure)
        figure.savefig(file, dpi=100)
    display(Image(file.getvalue()))"""


def parts(page: str) -> list[tuple[str, str]]:
    """Returns the page as ("markdown" or "code", text), one after the other. Pictures and printed text are left out."""
    found, end = [], 0
    for match in FENCE.finditer(page):
        found.append(("markdown", page[end : match.start()]))
        if match["language"] == "python":
            found.append(("code", match["code"]))
        elif not match["language"].startswith(("{", "text")):
            found.append(("markdown", match[0]))
        end = match.end()
    found.append(("markdown", page[end:]))
    return [(kind, text.strip()) for kind, text in found if text.strip()]


def of_program(path: Path) -> list[tuple[str, str]]:
    """Returns a program whose functions draw on a figure: what they share, and each with a cell that shows it.

    A line of its dictionary ``SIZES`` says the size of each picture in inches.
    """
    text = path.read_text()
    lines = text.splitlines()
    shared, pictures = [], []
    sizes = dict(re.findall(r"^    (\w+): (\([\d., ]+\)),$", text, re.MULTILINE))
    body = ast.parse(text).body
    for node in body:
        first = min(
            [
                node.lineno,
                *(one.lineno for one in getattr(node, "decorator_list", [])),
            ]
        )
        code = "\n".join(lines[first - 1 : node.end_lineno])
        draws = isinstance(node, ast.FunctionDef) and [one.arg for one in node.args.args] == ["figure"]
        (pictures if draws else shared).append((code, getattr(node, "name", "")))
    names = re.compile(rf"\b(?:{'|'.join(name for _, name in pictures)}|main)\b")  # what comes after the pictures
    made = [("markdown", ast.get_docstring(ast.parse(text)) or "")]
    for node in body:  # programs beside it, which a reader's folder does not have
        beside = path.parent / f"{getattr(node, 'module', None)}.py"
        if isinstance(node, ast.ImportFrom) and beside.exists():
            made.append(("code", f"%%writefile {beside.name}\n{beside.read_text()}"))
    made.append(
        (
            "code",
            "".join(("\n\n\n" if name else "\n") + code for code, name in shared[1:] if not names.search(code)).strip(),
        )
    )
    made.append(("code", SHOW))
    return [
        *made,
        *(("code", f"{code}\n\n\nshow({name}, {sizes[name]})") for code, name in pictures),
    ]


def notebook(cells: list[tuple[str, str]]) -> str:
    """Returns JSON in Jupyter's format 4.5."""
    made: list[dict[str, Any]] = []
    for n, (kind, text) in enumerate(cells):
        name = hashlib.sha256(f"{n}{text}".encode()).hexdigest()[:12]
        cell = {
            "cell_type": kind,
            "id": name,
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
    }
    return (
        json.dumps(
            {
                "cells": made,
                "metadata": kernel,
                "nbformat": 4,
                "nbformat_minor": 5,
            },
            indent=1,
        )
        + "\n"
    )


def script(cells: list[tuple[str, str]]) -> str:
    """Returns a program, with the text as comments."""
    made = []
    for kind, text in cells:
        made.append(text if kind == "code" else "\n".join(f"# {line}".rstrip() for line in text.splitlines()))
    return "\n\n".join(made) + "\n"


if __name__ == "__main__":
    print(notebook(parts(Path(sys.argv[1]).read_text())), end="")
