# SPDX-License-Identifier: Apache-2.0
"""Asks the sites that the reference links to whether they still have the names of these inventories, and where:

    python docs/inventories/refresh.py

Pages that moved are written into the files. It fails, and says which, where a site has a name no more. It needs
Python alone.
"""

import ast
import re
import sys
import zlib
from pathlib import Path
from urllib.request import Request, urlopen

HERE = Path(__file__).parent
ENTRY = re.compile(r"(\S+)\s+py:\S+\s+\S+\s+(\S+)\s")  # of version 2: name, kind, priority, page, title


def projects(text):
    """{file: site} of docs/conf.py, which cannot be imported without what it describes."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "intersphinx_mapping":
            return {file: site for site, file in ast.literal_eval(node.value).values()}
    raise ValueError("conf.py: expected intersphinx_mapping")


def download(url):
    with urlopen(Request(url, headers={"User-Agent": "noisefuse docs"}), timeout=60) as answer:
        return answer.read()


def pages(inventory):
    """{name: page} of the bytes of an objects.inv: four lines of text, then compressed ones."""
    first, _, _, _, packed = inventory.split(b"\n", 4)
    if first != b"# Sphinx inventory version 2":
        raise ValueError(f"expected an inventory of version 2, got one that begins with {first[:60]!r}")
    entries = map(ENTRY.match, zlib.decompress(packed).decode().splitlines())
    return {entry[1]: entry[2].partition("#")[0] for entry in entries if entry}


def refreshed(ours, theirs):
    """The text of one of our files with their pages, and the names that they have no more."""
    lines, gone = [], []
    for line in ours.splitlines():
        if not line.startswith("#"):
            name, kind, page = line.split()
            gone += [name] if name not in theirs else []
            line = f"{name} {kind} {theirs.get(name, page)}"
        lines.append(line)
    return "\n".join([*lines, ""]), gone


def main():
    failed = 0
    for file, site in projects((HERE.parent / "conf.py").read_text()).items():
        path = HERE.parent / file
        text, gone = refreshed(path.read_text(), pages(download(f"{site}objects.inv")))
        path.write_text(text)
        for name in gone:
            print(f"{file}: {site} has no {name} any more", file=sys.stderr)
        failed += len(gone)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
