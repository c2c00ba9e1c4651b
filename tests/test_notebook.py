# SPDX-License-Identifier: Apache-2.0
"""What notebooks show of objects: HTML that is well formed, escaped and complete."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import noisefuse as nf
from noisefuse.ground import notebook

SCHEDULES = {
    "cosine": nf.Schedule.cosine(1000),
    "flow": nf.Schedule.flow(1000),
    "exploding": nf.Schedule.karras(20),
    "one step": nf.Schedule([0.6], [0.8]),
}


def shown(thing):
    """The element of the HTML, which is XML too, and the text of its rows."""
    element = ElementTree.fromstring(thing._repr_html_())
    return element, [[cell.text for cell in row] for row in element.iter("tr")]


def curves(element):
    lines = element.iter("{http://www.w3.org/2000/svg}polyline")
    return [np.array([point.split(",") for point in line.get("points").split()], float) for line in lines]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_shows_its_curves_without_matplotlib(name, monkeypatch):
    """Seen to fail: sigma upside down, a curve of its own scale for each column."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    schedule = SCHEDULES[name]
    element, rows = shown(schedule)
    assert [element.find("b").text, *(row[0] for row in rows)] == [line.strip() for line in repr(schedule).splitlines()]
    columns = [np.log(schedule.sigma)] if name == "exploding" else [schedule.alpha, schedule.sigma]
    drawn, ends = curves(element), np.array([column[[0, -1]] for column in columns]).ravel()
    assert len(drawn) == len(columns)
    y = np.array([curve[[0, -1], 1] for curve in drawn]).ravel()
    low, high = min(map(np.min, columns)), max(map(np.max, columns))
    np.testing.assert_allclose((y - 5) / 112, (high - ends) / (high - low or 1), atol=1e-3)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "ddpm"])
def test_samplers_and_tableaus_show_their_equations(name):
    """Each equation has a cell. Seen to fail: the equations of a step in one cell."""
    sampler = getattr(nf.samplers, name)(nf.Schedule.cosine(1000), steps=20)
    for thing in (sampler, sampler.tableau):
        element, rows = shown(thing)
        title, *lines = repr(thing).splitlines()
        assert element.find("b").text == title
        assert [" ".join(row) for row in rows] == [
            line.strip().replace(";  ", " ").replace(": t", " t", 1).removesuffix(" ..") for line in lines
        ]
        assert rows[0][:2] == ["0", f"t = {sampler.timesteps[0]:g}"]
        assert rows[0][-2 if name == "dpmpp_2m" else -1].startswith("x' = ")
        assert len(curves(element)) == 2 * (thing is sampler)


def test_a_sampler_of_tokens_shows_its_rows():
    """Seen to fail: without a table."""
    sampler = nf.samplers.mdlm(20, mask_id=5)
    element, rows = shown(sampler)
    title, *lines = repr(sampler).splitlines()
    assert element.find("b").text == title
    assert len(rows) == len(lines) > 5
    assert rows[0] == ["0", "t = 1", "mask -> c with probability 0.05"]
    assert rows[-1][0] == "19"


def test_a_noise_shows_its_parts():
    noise = nf.Noise(7, sample=[3, 5], step=2).window((8,), (4,))
    _, rows = shown(noise)
    assert dict(rows) == {
        "seed": "7", "sample": "[3, 5]", "step": "2", "stream": "0", "window": "(8,), start=(4,)",
    }  # fmt: skip


def test_names_are_escaped():
    """Seen to fail: a name that is a script."""
    name = "<script>alert('&')</script>"
    schedule = nf.Schedule.cosine(10).with_name(name)
    assert "<script" not in schedule._repr_html_()
    assert name in shown(schedule)[0].find("b").text
    row = nf.Row(out=nf.tableau.x)
    table = nf.Tableau([row], name=name)
    assert name in shown(table)[0].find("b").text
    assert name in shown(nf.Sampler(table))[0].find("b").text
    assert "<on" not in notebook.table("", [["<on a device>"]])
