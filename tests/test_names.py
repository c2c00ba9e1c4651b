# SPDX-License-Identifier: Apache-2.0
"""Names that changed before the first release, and have no second spelling."""

import pytest

import noisefuse as nf

GONE = [
    (nf, "combine", nf.density, "combine"),
    (nf.discrete, "combine", nf.discrete, "combine_categories"),
    (nf.Schedule, "named", nf.Schedule, "with_name"),
    (nf.density, "update", nf.density, "update_with_log_prob"),
    (nf.Noise, "samples", nf.Noise, "at"),
]


@pytest.mark.parametrize(("place", "name", "other", "now"), GONE, ids=lambda value: getattr(value, "__name__", value))
def test_each_has_one_name(place, name, other, now):
    assert not hasattr(place, name)
    assert callable(getattr(other, now))


@pytest.mark.parametrize("module", [nf.augment, nf.density, nf.discrete, nf.fields, nf.legacy, nf.paths, nf.weights])
def test_completion_shows_public_names_alone(module):
    """Seen to fail: without `show_public`."""
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in dir(module))
    assert {"ddim", "mdlm", "interpolants", "Threshold"} < {*dir(nf.samplers)}
