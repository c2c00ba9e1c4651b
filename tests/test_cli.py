# SPDX-License-Identifier: Apache-2.0
"""The command line: noisefuse demo | info | bench."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import noisefuse as nf
from noisefuse.cli import main


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "photograph.png"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("rich", [True, False])
def test_info_names_what_runs_here(
    rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["info"]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # the lines of a narrow terminal, joined
    for expected in (
        nf.__version__,
        *nf.info()["isas"],
        *(f"{name}: {state}" for name, state in nf.info()["backends"].items()),
    ):
        assert expected in shown
    assert "in use" in shown


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_demo_draws_a_picture_and_prints_a_table(
    schedule: str, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    out = tmp_path / "picture.png"
    assert main(["demo", str(photograph), "--out", str(out), "--schedule", schedule]) == 0
    with Image.open(out) as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 10  # not blank
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("q_sample", "q_walk", "np.copyto", "picture.png"))


def test_demo_noise_is_standard_whichever_way_it_came() -> None:
    from noisefuse._demo import SHOWN, _noise

    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    noised = _noise(image, nf.Schedule.linear(1000), nf.Noise(0), 3)
    for noise in (noised.walk_noise, noised.closed_noise):
        assert noise.shape == (len(SHOWN), *image.shape)
        assert np.abs(noise.mean((1, 2, 3))).max() < 5 / np.sqrt(image.size)
        assert np.abs(noise.std((1, 2, 3)) - 1).max() < 5 / np.sqrt(2 * image.size)


def test_demo_of_a_bad_file_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("not a photograph")
    for path in (bad, tmp_path / "absent.png"):
        assert main(["demo", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert f"noisefuse demo: cannot read {path}" in captured.err


def test_demo_that_cannot_write_says_so(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "picture.unknown"
    assert main(["demo", str(photograph), "--out", str(out)]) == 2
    assert f"cannot write {out}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "module", "distribution"),
    [
        ("demo", "matplotlib", "matplotlib"),
        ("demo", "rich", "rich"),
        ("demo", "skimage", "scikit-image"),
        ("bench", "rich", "rich"),
    ],
)
def test_what_is_not_installed_is_named(
    command: str,
    module: str,
    distribution: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([command]) == 2
    expected = f"noisefuse {command}: needs {distribution}: pip install 'noisefuse[{command}]'\n"
    assert capsys.readouterr().err == expected


def test_bench_prints_and_writes_its_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.json"
    arguments = ["--quick", "--sizes", "2x8", "--dtypes", "float32", "uint8", "--threads", "1"]
    assert main(["bench", *arguments, "--json", str(path)]) == 0
    assert "noisefuse" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert report["machine"]["cpu"] == nf.info()["cpu"]
    assert {result["operation"] for result in report["results"]} == {"randn", "q_sample", "q_step", "q_walk"}
    for result in report["results"]:
        assert {"noisefuse", "naive"} <= result["ns_per_element"].keys()
        for times in result["ns_per_element"].values():
            low, high = times["quartiles"]
            assert 0 < low <= times["median"] <= high


@pytest.mark.parametrize(
    "arguments",
    [["bench", "--sizes", "3x-1"], ["bench", "--threads", "0"], ["demo", "--seed", "-1"], ["unknown"], []],
)
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2


def test_importing_the_package_imports_none_of_this() -> None:
    code = "import sys, noisefuse; print(*(name for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    commands = {f"noisefuse.{name}" for name in ("cli", "naive", "_demo", "_info", "_bench", "_contenders")}
    assert not ({"rich", "matplotlib", "PIL", "skimage", "torch", "argparse"} | commands) & set(loaded)


def test_the_package_ships_the_baseline_of_the_benchmarks() -> None:
    from noisefuse import naive

    assert naive.__file__ is not None
    original = Path(__file__).parents[1] / "benchmarks" / "naive.py"
    assert Path(naive.__file__).read_text() == original.read_text()
