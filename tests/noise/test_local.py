# SPDX-License-Identifier: Apache-2.0
"""Noise.local: the ranks' draws are parts of the whole."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import noisefuse as nf

torch = pytest.importorskip("torch")

NOISE = nf.Noise(7, sample=40, step=3)


def placed(shape, mesh, ranks, *placements):
    """The part of a DTensor that is read."""
    kinds = [
        SimpleNamespace(dim=p, is_shard=lambda p=p: p is not None, is_replicate=lambda p=p: p is None)
        for p in placements
    ]
    return SimpleNamespace(
        shape=shape, placements=kinds, device_mesh=SimpleNamespace(shape=mesh, get_coordinate=lambda: ranks)
    )


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_parts_are_those_that_torch_chunk_makes(shape, splits, batched, ids):
    """Seen to fail: lengths rounded down, a second split of an axis that counts from the start of the whole."""
    splits = [(world, axis % len(shape)) for world, axis in splits]
    noise = NOISE.at(sample=np.arange(shape[0]) * 3) if ids and batched else NOISE
    whole = torch.from_numpy(nf.randn(shape, noise, batched=batched))
    for ranks in np.ndindex(*(world for world, _ in splits)):
        part = whole
        for rank, (world, axis) in zip(ranks, splits, strict=True):
            parts = part.chunk(world, axis)
            part = parts[rank] if rank < len(parts) else part.narrow(axis, part.shape[axis], 0)
        given_splits = [(rank, *split) for rank, split in zip(ranks, splits, strict=True)]
        local = noise.local(shape, *given_splits, batched=batched)
        assert np.array_equal(nf.randn(part.shape, local, batched=batched), part.numpy())
        spec = placed(shape, [w for w, _ in splits], list(ranks), *[axis for _, axis in splits])
        assert noise.local(spec, batched=batched) == local


def test_integers_of_whatever_kind_name_the_same_part():
    """Seen to fail: a NumPy integer that is not converted, and then returned for 1."""
    for one in (np.int64(1), np.uint8(1), torch.tensor(1), 1):
        local = NOISE.local((8, 4), (one, 4, np.int8(0)))
        assert local == NOISE.at(sample=42)
        assert hash(local) == hash(NOISE.at(sample=42))
        assert type(local.sample) is int
    last = nf.Noise(7, sample=2**56 - 1)
    assert last.local((1, 4), (1, 2, 0)) == last  # it has no rows


def test_replicas_have_the_same_noise():
    assert NOISE.local(placed((4, 6), (2, 2), [1, 0], None, None)) == NOISE
    assert NOISE.local(placed((4, 6), (2, 2), [1, 1], None, 0)) == NOISE.at(sample=42)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: NOISE.local((4, 6), (2, 2, 0)), "rank 2 of 2"),
        (lambda: NOISE.local((4, 6), (0, 2, 2)), "axis 2 of an array of 2 axes"),
        (lambda: NOISE.local((4, -6), (0, 2, 0)), "lengths of at least 0"),
        (lambda: NOISE.local((4, 6), (0.0, 2, 0)), "three integers"),
        (lambda: NOISE.local((4, 6), (0, 2)), "three integers"),
        (lambda: NOISE.local((4, 6), (0, 2, 1)).local((4, 6)), "expected a noise without a window"),
        (lambda: NOISE.at(sample=[1, 2]).local((4, 6), (0, 2, 0)), "has 2 sample ids"),
        (lambda: NOISE.local(placed((4, 6), (2,), None, 0)), "not in the mesh"),
        (lambda: NOISE.local(placed((4, 6), (2,), [0], 0), (0, 2, 0)), "has its own, got"),
        (
            lambda: NOISE.local(
                SimpleNamespace(
                    shape=(4, 6),
                    mesh=SimpleNamespace(shape=(2,), get_coordinate=lambda: [0]),
                    placements=[SimpleNamespace(is_shard=lambda: False, is_replicate=lambda: False)],
                )
            ),
            "expected Shard and Replicate",
        ),
    ],
)
def test_what_has_no_part_is_refused(call, error):
    with pytest.raises((IndexError, TypeError, ValueError), match=error):
        call()
