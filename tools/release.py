# SPDX-License-Identifier: Apache-2.0
"""Changes all the text that a release changes:

python tools/release.py 0.1.0 2030-12-31    this version is released, on this day; its notes: build/release_notes.md
python tools/release.py 0.2.0.dev0          afterwards: work on the next one
python tools/release.py --check v0.1.0      fails unless this is the tag of what the files say; runs before an upload
python tools/release.py --rehearse 17       the version .dev17, so that a rehearsal uploads something new

It writes files and commits nothing. docs/releasing.md says when.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]

FIRST = ROOT / "tools" / "first_release.toml"
UNRELEASED = re.compile(
    r"not released|(once|until) it is( released)?\b|from a checkout|before the first release", re.IGNORECASE
)
# An extra of a checkout. It is not beside a program or a test, which only a checkout has.
EXTRA = re.compile(r"^(?!.*(?:examples/|pytest)).*'\.\[", re.MULTILINE)


def pages(root: Path) -> list[Path]:
    """Returns the pages that users read. docs/noise.md is not among them: its promises hold before the first release
    and after it."""
    readmes = [root / folder / "README.md" for folder in (".", "integrations/comfyui", "tests/known")]
    docs = [page for page in sorted((root / "docs").rglob("*.md")) if page.name not in ("noise.md", "releasing.md")]
    return [*readmes, *docs]


def unreleased(root: Path) -> list[str]:
    """Returns the lines of pages that only an unreleased version may have."""
    lines = [(page, line) for page in pages(root) for line in page.read_text().splitlines()]
    found = [(page, line) for page, line in lines if UNRELEASED.search(line)]
    found += [(page, line) for page, line in lines if page.name != "start.md" and EXTRA.search(line)]
    return [f"{page.relative_to(root)}: {line}" for page, line in found]


def put(root: Path, name: str, pattern: str, text: str) -> None:
    """Replaces the pattern's match by text, and stops if there is none."""
    file = root / name
    changed, count = re.subn(pattern, lambda match: match.expand(text), file.read_text(), flags=re.MULTILINE)
    if not count:
        raise SystemExit(f"{name}: expected {pattern!r}")
    file.write_text(changed)


def changes(root: Path, version: str) -> str:
    """Returns what the changelog has below this version's heading."""
    text = (root / "CHANGELOG.md").read_text()
    return text.partition(f"\n## [{version}]")[2].partition("\n")[2].partition("\n## [")[0].strip() + "\n"


def set_version(root: Path, version: str, day: str | None) -> None:
    """Sets the version in the package, in CITATION.cff, in the recipe and in ComfyUI's folder, and the targets of the
    README's links on the package index."""
    put(root, "src/noisefuse/ground/version.py", r'^__version__ = ".*"$', f'__version__ = "{version}"')
    cited = f"version: {version}\n" + (f"date-released: {day}\n" if day else "")
    put(root, "CITATION.cff", r"^version: .*\n(?:date-released: .*\n)?", cited)
    number = version.partition(".dev")[0]
    put(root, "integrations/comfyui/pyproject.toml", r'^version = ".*"$', f'version = "{number}"')
    put(root, "recipe/recipe.yaml", r"^  version: [\d.]+$", f"  version: {number}")
    major, minor, _ = map(int, number.split("."))
    asked = f"noisefuse>={major}.{minor}.0.dev0,<{major}.{minor + 1}"
    put(root, "integrations/comfyui/pyproject.toml", r'^dependencies = \[".*"\]$', f'dependencies = ["{asked}"]')
    put(root, "integrations/comfyui/requirements.txt", r"^noisefuse>=.*$", asked)
    branch = f"v{version}" if day else "main"
    put(root, "pyproject.toml", r"(/noisefuse/noisefuse/(?:blob/)?)(?:main|v[\d.]+)/(?=')", rf"\g<1>{branch}/")


def release(root: Path, version: str, day: str) -> None:
    set_version(root, version, day)
    put(root, "CHANGELOG.md", r"^## \[Unreleased\]$", f"## [{version}] - {day}")
    notes = changes(root, version)
    first = tomllib.loads(FIRST.read_text()) if FIRST.exists() else {"text": []}
    for change in first["text"]:
        file = root / change["file"]
        text = file.read_text()
        if change["before"] in text:
            notes = first["notes"]
            file.write_text(text.replace(change["before"], change["after"]))
    (root / "build").mkdir(exist_ok=True)
    (root / "build" / "release_notes.md").write_text(notes)
    for page in pages(root):
        if page.name != "start.md":
            page.write_text(EXTRA.sub(lambda line: line[0].replace("'.[", "'noisefuse["), page.read_text()))
    if left := unreleased(root):
        raise SystemExit("expected no word of what is to come, got\n" + "\n".join(left))


def begin_next(root: Path, version: str) -> None:
    set_version(root, version, None)
    text = (root / "CHANGELOG.md").read_text()
    (root / "CHANGELOG.md").write_text(text.replace("\n## [", "\n## [Unreleased]\n\n## [", 1))


def version_of(root: Path) -> str:
    text = (root / "src/noisefuse/ground/version.py").read_text()
    return re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)[1]


def rehearse(root: Path, number: int) -> None:
    set_version(root, f"{version_of(root).partition('.dev')[0]}.dev{number}", None)


def wrong(root: Path, tag: str) -> list[str]:
    """Returns the reasons against uploading this tag. A .dev version is nobody's release: its texts may speak of one to
    come."""
    version = version_of(root)
    found = [] if tag == f"v{version}" else [f"expected the tag v{version}, got {tag}"]
    if ".dev" in version:
        return found
    heading = re.search(rf"^## \[{re.escape(version)}\] - (\S+)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = rf"^version: {re.escape(version)}\ndate-released: {heading[1] if heading else '?'}$"
    found += [] if heading else [f"CHANGELOG.md: expected a heading ## [{version}] - DATE"]
    found += (
        []
        if re.search(cited, (root / "CITATION.cff").read_text(), re.MULTILINE)
        else ["CITATION.cff: expected this version, and the changelog's date"]
    )
    return found + unreleased(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?")
    parser.add_argument("day", nargs="?", type=date.fromisoformat)
    parser.add_argument("--check", metavar="TAG")
    parser.add_argument("--rehearse", metavar="NUMBER", type=int)
    arguments = parser.parse_args()
    if arguments.check:
        if found := wrong(ROOT, arguments.check):
            raise SystemExit("\n".join(found))
        return
    if arguments.rehearse is not None:
        rehearse(ROOT, arguments.rehearse)
        return
    if not re.fullmatch(r"\d+\.\d+\.\d+(\.dev0)?", arguments.version or ""):
        parser.error(f"expected a version such as 0.1.0 or 0.2.0.dev0, got {arguments.version}")
    if arguments.version.endswith(".dev0") == (arguments.day is not None):
        parser.error("expected a day with a version, and none with a .dev0")
    if arguments.day:
        release(ROOT, arguments.version, str(arguments.day))
    else:
        begin_next(ROOT, arguments.version)


if __name__ == "__main__":
    main()
