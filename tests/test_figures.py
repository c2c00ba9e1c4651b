# SPDX-License-Identifier: Apache-2.0
"""Tables of figures agree with the files of results, and pages have the right counts.

Seen to fail: a number changed in the page, a value changed in a file, a marker taken away, one sampler more.
"""

import json
import re
import runpy
from pathlib import Path

import pytest

import noisefuse as nf
from noisefuse.tokens.samplers import __all__ as OF_TOKENS

ROOT = Path(__file__).parents[1]
TABLES = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
PAGE = (ROOT / "docs" / "performance.md").read_text()
COMPARE = (ROOT / "docs" / "compare.md").read_text()


@pytest.mark.parametrize("page", TABLES["TABLES"])
def test_the_page_has_what_was_measured(page):
    text = (ROOT / page).read_text()
    assert TABLES["filled"](page, text) == text, "python benchmarks/tables.py writes the tables anew"


def test_another_number_is_seen():
    planted = re.sub(r"\| [\d.]+ x \|", "| 99 x |", PAGE, count=1)
    assert planted != PAGE
    assert TABLES["filled"]("docs/performance.md", planted) == PAGE


def test_a_marker_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="/rivals"):
        TABLES["filled"]("docs/compare.md", COMPARE.replace("<!-- /rivals -->", ""))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0948, "0.09"), (1.04, "1.04"), (1.996, "2.0"), (9.94, "9.9"), (9.96, "10"), (17.5192, "18"), (594.65, "595")],
)
def test_numbers_are_rounded(value, text):
    assert TABLES["number"](value) == text


def test_a_ratio_of_ours_is_turned_round():
    """MKL's normals take less time than all of ours: the file has ours over theirs."""
    (row,) = TABLES["RIVALS"]["MKL"]
    file = ROOT / "benchmarks" / "results" / f"{TABLES['MACHINES'][TABLES['RIVALS_ON']]}.json"
    records = json.loads(file.read_text())["figures"]
    (ours,) = [record["ours_ms"] / record["other_ms"] for record in records if record["figure"] == row.figure]
    assert TABLES["beside"](row).endswith(f": {TABLES['number'](1 / ours)} x")


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ("docs/compare.md", r"\| samplers \| (\d+),"),
        ("docs/index.md", r"(\d+) samplers, each"),
    ],
)
def test_pages_count_the_samplers(page, count):
    (found,) = re.findall(count, (ROOT / page).read_text())
    assert int(found) == sum(name.islower() for name in {*nf.samplers.__all__} - {*OF_TOKENS})  # the others are classes


def test_the_readme_fits_a_screen_or_two():
    """Seen to fail: two tables of figures in it."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_pages_say_of_the_picture_what_it_shows():
    """Seen to fail: another least or greatest ratio."""
    drawn = [TABLES["number"](ratio) for *_, ratio in runpy.run_path(str(ROOT / "docs" / "drawings.py"))["times"]()]
    least, greatest = min(map(float, drawn)), max(map(float, drawn))
    for page in ("README.md", "docs/performance.md", "docs/index.md"):
        (said,) = re.findall(r"take\s+(\d+)\s+to\s+(\d+)\s+times\s+as\s+long", (ROOT / page).read_text())
        assert said == (f"{least:.0f}", f"{greatest:.0f}"), page
