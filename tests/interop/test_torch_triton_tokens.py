# SPDX-License-Identifier: Apache-2.0
"""Tokens on a CUDA device by Triton's kernels, without a device: cuda_kernels/triton_door.py.

Seen to fail: words of the place without the window's start, one p on the device read for each sample, p of a sample's
first token for all of them, the further digits of stream 14.
"""

import numpy as np
import pytest

import noisefuse as nf
from conftest import first_and_slow

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
import triton

from cuda_kernels.triton_door import opened as on_triton
from noisefuse.backends.triton import tokens
from test_torch import N, numpy

pytestmark = pytest.mark.skipif(
    isinstance(tokens.masks, triton.JITFunction), reason="needs Triton's interpreter, from 3.9 on (TRITON_INTERPRET=1)"
)
KEYS = [nf.Noise(77, sample=5, step=9), nf.Noise(1, sample=1, step=1)]
KEYS += [nf.Noise(2**63 + 5, sample=2**40 + 3, step=2**31 + 7), nf.Noise(2**64 - 1, sample=2**56 - 3, step=2**32 - 1)]
DTYPES = (torch.int64, torch.int32, torch.uint8, torch.uint16)


def ids_of(*shape, dtype=torch.int64, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(50, size=shape)).to(dtype)


def on_host(x):
    return x.numpy() if isinstance(x, torch.Tensor) else x


def alike(results, expected):
    results, expected = (r if isinstance(r, tuple) else (r,) for r in (results, expected))
    return all(
        numpy(a).dtype == b.dtype and np.array_equal(numpy(a), b) for a, b in zip(results, expected, strict=True)
    )


def check(call, *tensors, launches=1, **options):
    """The bits of tensors on a device are those of NumPy's arrays."""
    known = call(*map(on_host, tensors), **{name: on_host(x) for name, x in options.items()})
    with on_triton() as made:
        found = call(*tensors, **options)
        assert len(made) == launches
    assert alike(found, known)
    return found


# ---- masks -------------------------------------------------------------------------------------------------


def mask(ids, noise=N, p=0.5, **options):
    return nf.q_mask(ids, p, noise, 99, **options)


def anew(ids, noise=N, p=0.5, **options):
    return nf.q_uniform(ids, p, noise, 50, **options)


@pytest.mark.parametrize("dtype", first_and_slow(DTYPES), ids=str)
@pytest.mark.parametrize("call", [mask, anew])
def test_masks(call, dtype):
    for shape in ((3, 8), (2, 3, 5), (2, 1)):
        ids, b = ids_of(*shape, dtype=dtype), shape[0]
        check(call, ids)
        check(call, ids, p=torch.rand(shape, dtype=torch.float64))
        check(call, ids, p=torch.linspace(0, 1, b))
        check(call, ids, p=torch.tensor([0.3]).expand(b))
        with on_triton():
            assert alike(call(ids, p=torch.tensor(0.3).double()), call(numpy(ids), p=float(torch.tensor(0.3))))
        for out in (torch.empty_like(ids), ids.clone()):
            with on_triton():
                x_t, changed = call(out if out.data_ptr() else ids, out=out)
                assert x_t is out
                assert changed.dtype == torch.bool
    check(call, ids_of(1, 4100, dtype=dtype))


@pytest.mark.parametrize("noise", KEYS, ids=str)
@pytest.mark.parametrize("call", [mask, anew])
def test_names_of_masks(call, noise):
    ids, rows = ids_of(2, 5, 7), range(2)
    names = [noise, noise.at(sample=[noise.sample + 1, 4]), [noise.at(step=b) for b in rows]]
    names += [noise.window((9, 40), (3, 5)), [noise.window((99, 7), (b + 3, 0)) for b in rows]]
    for each in names:
        check(call, ids, each)
    check(call, ids_of(1, 4, 8), noise.window((2**31, 8), (2**31 - 4, 0)))  # the last elements


def test_some_tokens_are_masked():
    ids, may, p = ids_of(3, 10), torch.rand(3, 10) < 0.5, torch.rand(3, 4)
    for where in (may, may[:, :1], may[0], numpy(may)):
        check(mask, ids, where=where)
        check(mask, ids, where=where, complement=True, lengths=torch.tensor([0, 10, 4]))
        check(anew, ids, where=where, lengths=np.array([0, 10, 4]))
    check(mask, ids, p=p, block=3)
    check(mask, ids, p=p[:, :2], block=5)
    check(anew, ids, p=numpy(p), block=3)
    check(mask, ids[0], batched=False, where=may[0])
    check(anew, ids[0], batched=False, p=torch.rand(10))
    check(lambda x: nf.q_mask(x, 0.5, N, -7), ids)
    check(lambda x: nf.q_mask(x, 0.5, N, -(2**63)), ids)
    for q in (nf.discrete.absorbing(0.5, 99), nf.discrete.uniform(0.5, 50)):
        check(lambda x, q=q: nf.q_transition(x, q, N), ids)
    for v in (1, 2**31 - 1, 2**31):
        check(lambda x, v=v: nf.q_uniform(x, 0.5, N, v), ids_of(3, 100).clamp(max=v - 1))


def test_strides_of_tokens():
    ids = ids_of(6, 8)
    for view in (ids.t(), ids[:, ::2], ids[1:, 2:], ids[:1].expand(4, 8)):
        check(mask, view)
        check(mask, view, where=ids_of(16, 20)[: 2 * len(view) : 2, : view.shape[1]] < 25)
    with on_triton() as launches:
        assert nf.q_mask(ids[:0], 0.5, N, 99)[0].shape == (0, 8)
        assert not launches


def test_numbers_of_the_device_are_not_looked_at():
    ids = ids_of(4, 8)
    with on_triton():
        _, masked = mask(ids, p=torch.tensor([2.0, -1.0, float("nan"), 1.0]))
        assert masked.all(1).tolist() == [True, False, False, True]
        assert masked.any(1).tolist() == [True, False, False, True]
        x_t, changed = nf.q_uniform(ids + 100, 0.5, N, 50)
        assert torch.equal(x_t[~changed], (ids + 100)[~changed])
        assert x_t[changed].max() < 50


def test_errors_of_masks():
    """Nothing is launched then."""
    ids, here = ids_of(3, 8), ids_of(3, 8)
    calls = [
        (ValueError, "out lies in host memory, ids on CUDA device 1", lambda: mask(ids, out=here)),
        (ValueError, "out lies on CUDA device 1, ids in host memory", lambda: mask(here, out=ids)),
        (TypeError, "out: expected an array of torch, got ndarray", lambda: mask(ids, out=numpy(here))),
        (ValueError, r"p\[1\] = 1.5: expected a probability", lambda: mask(ids, p=[0.5, 1.5, 0.5])),
        (ValueError, "p: expected a number or a prefix", lambda: mask(ids, p=torch.rand(2))),
        (TypeError, "where: expected bool", lambda: mask(ids, where=ids)),
        (ValueError, "where: expected a shape that broadcasts", lambda: mask(ids, where=torch.ones(4, 8) > 0)),
        (OverflowError, "mask_id = 300", lambda: nf.q_mask(ids.to(torch.uint8), 0.5, N, 300)),
        (ValueError, "C-contiguous", lambda: mask(ids[:, ::2], out=ids_of(3, 8)[:, :4])),
        (ValueError, "out overlaps an input in part", lambda: mask(ids[:2], out=ids[1:])),
        (TypeError, "ids: dtype float32 is not supported", lambda: mask(ids.float())),
        (NotImplementedError, "expected a tensor on the CPU or a CUDA", lambda: nf.q_mask(ids.to("meta"), 0.5, N, 99)),
    ]
    for kind, message, call in calls:
        with on_triton(here) as launches:
            with pytest.raises(kind, match=message):
                call()
            assert not launches


def test_what_lies_elsewhere_is_read():
    """ids in host memory, p and what may be masked on a device."""
    ids, p, may = ids_of(3, 8), torch.rand(3), torch.rand(3, 8) < 0.5
    known = nf.q_mask(numpy(ids), numpy(p), N, 99, where=numpy(may))
    with on_triton(ids) as launches:
        assert alike(nf.q_mask(ids, p, N, 99, where=may), known)
        assert not launches
