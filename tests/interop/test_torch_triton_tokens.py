# SPDX-License-Identifier: Apache-2.0
"""Tokens on a CUDA device by Triton's kernels, without a device: cuda_kernels/triton_door.py.

Seen to fail: words of the place without the window's start, one p on the device read for each sample, p of a sample's
first token for all of them, the further digits of stream 14; the noise's own seed from position 2^14 on, one tie
less in the k largest; losses without weights, the gradient at the id as at other tokens.
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
from noisefuse.backends.triton import kernels
from test_torch import N, numpy

pytestmark = pytest.mark.skipif(
    isinstance(kernels.masks, triton.JITFunction), reason="needs Triton's interpreter, from 3.9 on (TRITON_INTERPRET=1)"
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


# ---- categories --------------------------------------------------------------------------------------------


INFO = ("log_prob", "log_prob_raw", "entropy", "margin", "rank")


def logits_of(*shape, dtype=torch.float32, seed=0, ties=False):
    x = np.random.default_rng(seed).normal(size=shape) * 4
    return torch.from_numpy(x.round() if ties else x).to(dtype)


def check_draw(x, noise=N, launches=1, **options):
    """Tokens of logits on a device, and their info, have the bits of the CPU, whose tensors and arrays share the fast
    path."""
    on_cpu = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    known = nf.categorical(x.clone(), noise, **on_cpu)
    with on_triton() as made:
        found = nf.categorical(x, noise, **options)
        assert len(made) == launches
    known, found = (one if isinstance(one, tuple) else (one, ()) for one in (known, found))
    assert torch.equal(found[0], known[0])
    assert found[0].dtype == known[0].dtype
    for name, a, b in zip(INFO, found[1], known[1], strict=False):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name
    return found


@pytest.mark.parametrize("dtype", first_and_slow([torch.float32, torch.float16, torch.bfloat16]), ids=str)
def test_categories(dtype):
    for v in (1, 50, 200):
        x = logits_of(2, 3, v, dtype=dtype)
        check_draw(x, info=INFO, temperature=0.7)
    check_draw(x, dtype=torch.int32)
    with on_triton():
        out = torch.empty(2, 3, dtype=torch.int32)
        assert nf.categorical(x, N, out=out) is out
    assert torch.equal(out, nf.categorical(x, N, dtype=torch.int32))


def test_settings_of_categories():
    x = logits_of(3, 40, ties=True)
    heat, k = torch.tensor([0.0, 2.5, 1e-9], dtype=torch.float64), torch.tensor([0, 7, 100])
    check_draw(x, info=INFO, temperature=heat)
    check_draw(x, info=INFO, temperature=heat, top_k=k)
    for k in (1, 3, 39, 40):
        check_draw(x, info=INFO, top_k=k)
    check_draw(logits_of(3, 40, seed=3), info=INFO, top_k=9, temperature=3.0)
    check_draw(torch.zeros(2, 70), info=INFO, top_k=5)  # ties alone
    check_draw(x[0], info="log_prob")
    check_draw(x, info="margin", where=torch.tensor([True, False, True]))
    out = torch.full((3,), 7)
    check_draw(x, where=torch.tensor([True, False, True]), out=out)


@pytest.mark.parametrize("noise", KEYS, ids=str)
def test_names_of_categories(noise):
    x = logits_of(2, 3, 9)
    names = [noise, noise.at(sample=[noise.sample + 1, 4]), [noise.at(step=b) for b in range(2)]]
    for each in [*names, noise.window((2**31, 9), (2**31 - 3, 0)), noise.window((2**15, 9), (2**14 - 1, 0))]:
        check_draw(x, each)
    check_draw(x, noise, positions=torch.tensor([0, 2**14, 2**31 - 1]))


def test_several_chunks():
    x = logits_of(2, 2 * 4096 + 70)
    x[1, :4096] = -torch.inf
    check_draw(x, info=INFO, temperature=0.9)
    check_draw(x, info=INFO, top_k=5)


def test_infinite_logits():
    x = logits_of(5, 30)
    x[0, 3:] = -torch.inf
    x[1, [7, 9]] = torch.inf
    x[2] = -torch.inf
    x[2, 29] = -3e38
    x[3] *= 1e30
    x[4] = 3e38
    check_draw(x, info=INFO)
    check_draw(x, info=INFO, top_k=2, temperature=1e-3)


def test_rows_that_have_no_token():
    """Nothing is read back, so they are no errors on a device."""
    x = logits_of(3, 30)
    x[0, 4], x[1] = torch.nan, -torch.inf
    with on_triton():
        token, known = nf.categorical(x, N, info=INFO)
    expected = nf.categorical(x[2:], N.at(sample=N.sample + 2))
    assert token.tolist() == [-1, -1, expected.item()]
    assert known.log_prob.isnan().tolist() == known.entropy.isnan().tolist() == [True, True, False]


def test_strides_of_logits():
    x = logits_of(6, 8)
    for view in (x.t(), x[:, ::2], x[1:, 2:], x[:1].expand(4, 8)):
        check_draw(view)
    with on_triton() as launches:
        assert nf.categorical(x[:0], N).shape == (0,)
        assert not launches


def test_errors_of_categories():
    """Nothing is launched then."""
    x, here, out = logits_of(3, 8), logits_of(3, 8), torch.zeros(3, dtype=torch.int64)
    of_part = N.window((8192,), (0,))
    calls = [
        (NotImplementedError, r"top_p, partial: .* host memory, logits.cpu", lambda: nf.categorical(x, N, top_p=0.9)),
        (NotImplementedError, "top_p, partial", lambda: nf.categorical(logits_of(1, 4096), of_part, partial=True)),
        (ValueError, "out lies in host memory, logits on CUDA device 1", lambda: nf.categorical(x, N, out=out)),
        (ValueError, "out lies on CUDA device 1, logits in host", lambda: nf.categorical(here, N, out=x[:, 0].long())),
        (ValueError, "out overlaps an input", lambda: nf.categorical(x, N, out=x.view(torch.int32)[0, :3])),
        (TypeError, "out: dtype torch.float32", lambda: nf.categorical(x, N, out=x[:, 0])),
        (TypeError, "where: expected bool", lambda: nf.categorical(x, N, where=x[:, 0])),
        (ValueError, "temperature = -1.0", lambda: nf.categorical(x, N, temperature=-1.0)),
        (TypeError, "logits: dtype float64 is not", lambda: nf.categorical(x.double(), N)),
        (OverflowError, "1 to 2.20 tokens", lambda: nf.categorical(torch.zeros(1).expand(1, 2**20 + 1), N)),
    ]
    for kind, message, call in calls:
        with on_triton(here, out) as launches:
            with pytest.raises(kind, match=message):
                call()
            assert not launches


# ---- cross entropies ---------------------------------------------------------------------------------------


def rows_of(*shape, dtype=torch.float32):
    """Returns logits, clean tokens, and which rows count."""
    x, v = logits_of(*shape, dtype=dtype), shape[-1]
    rng = np.random.default_rng(4)
    return x, torch.from_numpy(rng.integers(v, size=shape[:-1])), torch.from_numpy(rng.random(shape[:-1]) < 0.7)


def check_loss(x, ids, *rest, **options):
    """The loss, the pair, and the gradient by autograd have the bits of the CPU."""
    upstream = options.pop("upstream", 1.0)

    def run():
        watched = x.clone().requires_grad_()
        loss = nf.masked_cross_entropy(watched, ids, *rest, **options)
        (loss * upstream).sum().backward()
        return *nf.masked_cross_entropy_and_grad(x, ids, *rest, upstream=upstream, **options), loss, watched.grad

    known = run()
    with on_triton() as made:
        found = run()
    for a, b in zip(found, known, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))
        assert torch.equal(a.isnan(), b.isnan())
    assert made
    return found


@pytest.mark.parametrize("dtype", first_and_slow([torch.float32, torch.float16, torch.bfloat16]), ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cross_entropies(dtype, reduction):
    x, ids, masked = rows_of(2, 5, 70, dtype=dtype)
    check_loss(x, ids, reduction=reduction)
    check_loss(x, ids, masked, torch.tensor([2.0, 0.3]), reduction=reduction)
    upstream = torch.rand(2, 5) if reduction == "none" else torch.tensor(1.7)
    check_loss(x, ids.int(), masked[:1], torch.rand(2, 5), reduction=reduction, upstream=upstream)
    check_loss(x, torch.where(masked, ids, -100), None, 0.3, reduction=reduction, ignore_index=-100)


def test_cross_entropies_of_several_chunks_and_many_rows():
    x, ids, masked = rows_of(2, 4096 + 300)
    x[1, :4096] = -torch.inf
    check_loss(x, ids, masked, reduction="none")
    check_loss(*rows_of(67, 9), 0.7)  # the mean adds in order


def test_cross_entropies_of_infinite_logits():
    x, ids, _ = rows_of(5, 20)
    x[0, 3], x[1, 4], x[2], x[3, :15] = torch.nan, torch.inf, -torch.inf, -torch.inf
    x[4] *= 1e20
    found = check_loss(x, ids, torch.tensor([True, True, True, True, True]), reduction="none")
    assert found[0].isnan().tolist() == [True, True, True, False, False]
    check_loss(x, ids, torch.tensor([False, False, False, True, True]))


def test_gradients_replace_the_logits():
    x, ids, masked = rows_of(3, 50)
    known = nf.masked_cross_entropy_and_grad(x, ids, masked)[1]
    with on_triton():
        assert nf.masked_cross_entropy_and_grad(x, ids, masked, out=x)[1] is x
        wide = rows_of(50, 3)[0].t()
        assert nf.masked_cross_entropy(wide, ids) == nf.masked_cross_entropy(wide.contiguous(), ids)
        assert nf.masked_cross_entropy(x[:0], ids[:0]).isnan()
    assert torch.equal(x, known)


def test_ids_of_the_device_are_not_looked_at():
    x, ids, _ = rows_of(4, 20)
    ids[1], ids[2] = 20, -1
    with on_triton():
        loss, gradient = nf.masked_cross_entropy_and_grad(x, ids, reduction="none")
        assert loss.isnan().tolist() == gradient.isnan().any(1).tolist() == [False, True, True, False]
        assert nf.masked_cross_entropy(x, ids, ids == ids[0], torch.tensor(-1.0)) < 0  # nor are weights


def test_errors_of_cross_entropies():
    """Nothing is launched then."""
    (x, ids, masked), out = rows_of(3, 8), torch.zeros(3, 8)
    calls = [
        (ValueError, "out lies on cpu, the other tensors on cuda:1", {"out": out}),
        (ValueError, "out overlaps the logits in part", {"x": torch.zeros(4, 8)[1:], "overlaps": True}),
        (TypeError, "masked: expected bool", {"masked": ids}),
        (ValueError, "masked: expected a shape that broadcasts", {"masked": masked[:2]}),
        (ValueError, "ids: expected shape", {"ids": ids[:2]}),
        (TypeError, "ids: expected integers", {"ids": x[:, 0]}),
        (ValueError, "weight: expected numbers >= 0, got -1.0", {"weight": torch.tensor(-1.0), "here": "weight"}),
        (IndexError, "ids: 8 is out of range", {"ids": torch.tensor([8, 0, 1]), "here": "ids"}),
    ]
    for kind, message, given in calls:
        here = given.get(given.pop("here", None), out)
        with on_triton(out, here) as launches:
            logits = given.pop("x", x)
            if given.pop("overlaps", False):
                given["out"] = torch.as_strided(logits, (3, 8), (8, 1), 0)
            named = {"ids": ids, "masked": masked} | given
            with pytest.raises(kind, match=message):
                nf.masked_cross_entropy_and_grad(logits, **named)
            assert not launches
    with on_triton() as launches:
        with pytest.raises(NotImplementedError, match="rate_loss has no kernel for cuda:1"):
            nf.rate_loss(x, ids, ids, None)
        assert not launches
