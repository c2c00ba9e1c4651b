# SPDX-License-Identifier: Apache-2.0
"""The list of the mutation campaign is well formed: each error can be planted."""

import pytest

from mutation import ROOT, read_mutations


@pytest.mark.parametrize("mutation", read_mutations(), ids=str)
def test_it_can_be_planted_in_one_way(mutation):
    """Seen to fail: a text that occurs in two places, and one that is gone."""
    assert (ROOT / mutation.path).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new
