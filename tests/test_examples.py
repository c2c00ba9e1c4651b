# SPDX-License-Identifier: Apache-2.0
"""The examples run, and what they show is true."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import noisefuse as nf

pytest.importorskip("sklearn", reason="the examples need scikit-learn")

SPEC = importlib.util.spec_from_file_location(
    "ideal_denoiser", Path(__file__).parents[1] / "examples" / "ideal_denoiser.py"
)
ideal = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ideal)

DIGITS = ideal.Digits.load()
NEAR = 0.02  # root mean square; pixels go from -1 to 1. lcm leaves the noise of the last level, 0.01


def farthest(name):
    """How far the farthest sample is from its nearest image."""
    return DIGITS.nearest(ideal.run(name, DIGITS, nf.Noise(142), batch=4).samples)[0].max()


@pytest.mark.parametrize("name", ideal.NAMES)
def test_samples_are_digits_of_the_set(name):
    assert farthest(name) < NEAR


@pytest.mark.parametrize("name", [name for name in ideal.NAMES if ideal.FAMILY.get(name) != "edm"])  # alpha is 1 there
def test_they_are_not_with_a_wrong_alpha(name, monkeypatch):
    right = ideal.families

    def wrong(steps):
        return {key: family._replace(columns=wrong_alpha(family.columns)) for key, family in right(steps).items()}

    def wrong_alpha(columns):
        return lambda t: (0.95 * columns(t)[0], columns(t)[1])

    monkeypatch.setattr(ideal, "families", wrong)
    assert farthest(name) > NEAR


@pytest.mark.parametrize("name", ideal.NAMES)
def test_they_are_not_with_a_wrong_coefficient(name, monkeypatch):
    right = getattr(nf.samplers, name)

    def wrong(*arguments, **options):
        table = right(*arguments, **options).tableau
        rows = table.rows.copy()
        for group in ("clean", "out"):
            rows[group]["x"] *= 1.05
        return nf.sampler.Sampler(table._with(rows))

    monkeypatch.setattr(nf.samplers, name, wrong)
    assert farthest(name) > NEAR


def test_deterministic_samplers_find_the_same_images():
    first, *others = (ideal.run(name, DIGITS, nf.Noise(142), batch=4).samples for name in ideal.DETERMINISTIC)
    for other in others:
        np.testing.assert_allclose(other, first, atol=NEAR)


def test_the_program_draws_and_prints(tmp_path, capsys):
    out = tmp_path / "few.png"
    ideal.main(["--out", str(out), "--steps", "12", "--samples", "2"])
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ideal.NAMES)
    assert "wrote" in printed


def test_the_custom_kernels(capsys):
    """It asserts that points are q_sample's, rotated, and that a walk in two parts is the walk."""
    pytest.importorskip("numba")
    spec = importlib.util.spec_from_file_location(
        "custom_kernel", SPEC.origin.replace("ideal_denoiser", "custom_kernel")
    )
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    kernels.cloud()
    kernels.box()
    assert "between walls" in capsys.readouterr().out
