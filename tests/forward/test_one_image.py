# SPDX-License-Identifier: Apache-2.0
"""One image without `batched=False` would be a batch of rows: each kind of array refuses it or warns.

Seen to fail: before the rule, the rows of image 15 had the noise of image 16's; each part of the rule left out, in
Python and in C++.
"""

import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest

import noisefuse as nf
from conftest import Bare
from noisefuse.arguments import calls
from noisefuse.augment import rows
from noisefuse.operations import loss

S, N = nf.Schedule.linear(50), nf.Noise(5, sample=9)
LEVELS = np.arange(256.0)
OF_BYTES = {
    "by_level": lambda x, **o: nf.augment.by_level(x, LEVELS, LEVELS / 10, N, **o),
    "poisson": lambda x, **o: nf.augment.poisson(x, 100.0, N, **o),
    "transition": lambda x, **o: nf.augment.transition(x, np.full((256, 256), 1 / 256), N, **o),
}
AUGMENT = {
    "gaussian": lambda x, **o: nf.augment.gaussian(x, 10.0, N, **o),
    "gaussian of each": lambda x, **o: nf.augment.gaussian(
        x, [10.0] * len(x) if o.get("batched", True) else 10.0, N, **o
    ),
    "multiplicative": lambda x, **o: nf.augment.multiplicative(x, 0.1, N, **o),
    "sensor": lambda x, **o: nf.augment.sensor(x, 0.5, 1.0, N, **o),
}
OTHERS = {
    "q_sample": lambda x, **o: nf.q_sample(x, 20, S, N, **o),
    "target": lambda x, **o: nf.q_sample(x, 20, S, N, target="v", dtype="float64", **o)[1],
    "q_step": lambda x, **o: nf.q_step(x, 20, S, N, **o),
    "q_walk": lambda x, **o: nf.q_walk(x, S, N, keep=[3], **o),
    "randn_like": lambda x, **o: nf.randn_like(x, N, **o),
}
SUMS = {
    "mse_loss": lambda x, **o: nf.mse_loss(floats_like(x), x, 20, S, N, target="v", **o),
    "mse_loss of each": lambda x, **o: nf.mse_loss(floats_like(x), x, 20, S, N, target="v", reduction="none", **o),
    "mse_loss_grad": lambda x, **o: nf.mse_loss_grad(floats_like(x), x, 20, S, N, target="v", **o),
}
ALONE = {"nearest_of": lambda x, **o: nf.fields.nearest_of(2, x, N, **o)[0].step}
CALLS = AUGMENT | OTHERS | SUMS | ALONE
REFUSED = r"x0?: (torch\.)?uint8 of shape \(16, 17, 3\) may be one image.*batched=False for one image.*batched=True"


def floats_like(x):
    return nf.randn_like(x, nf.Noise(1), batched=True)


def image(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


@pytest.fixture(autouse=True)
def _nothing_was_warned_of(monkeypatch):
    monkeypatch.setattr(calls, "WARNED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def equal(a, b):
    return all(
        np.array_equal(np.asarray(p), np.asarray(q)) for p, q in zip(np.atleast_1d(a), np.atleast_1d(b), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "dtype"), [*itertools.product(CALLS, ("uint8", "uint16")), *itertools.product(OF_BYTES, ("uint8",))]
)
def test_one_image_is_refused_where_nobody_says_what_it_is(name, dtype):
    call = (CALLS | OF_BYTES)[name]
    for shape in ((16, 16, 1), (16, 17, 3), (40, 16, 4)):
        x = image(*shape, dtype=dtype)
        for said in ({}, {"batched": None}):
            with pytest.raises(ValueError, match=r"may be one image.*batched=False for one image.*batched=True"):
                call(x, **said)
        if name != "nearest_of":
            assert not equal(call(x, batched=True), call(x, batched=False))
        call(x, batched=True)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "x",
    [
        image(2, 16, 17, 3),
        image(15, 16, 3),
        image(16, 15, 3),
        image(16, 16, 2),
        image(16, 16, 5),
        image(16, 16),
        image(1, 16, 16),
        image(2, 16, 16),
        image(3, 15, 16),
        image(16, 17, 3, dtype=np.float32),
        image(3, 16, 17, dtype=np.float32),
    ],
    ids=lambda x: f"{x.dtype} {x.shape}",
)
def test_all_else_is_a_batch(name, x):
    call = CALLS[name]
    assert equal(call(x), call(x, batched=True))


def test_a_batch_of_one_is_the_one():
    """So integers (1, H, W) and a clip (1, n) pass without a warning."""
    for name, call in AUGMENT.items():
        if name != "gaussian of each":
            assert np.array_equal(call(image(1, 16, 16)), call(image(1, 16, 16), batched=False))
    clip = image(1, 2000, dtype=np.float32)
    assert np.array_equal(nf.augment.at_snr(clip, 3.0, N), nf.augment.at_snr(clip, 3.0, N, batched=False))


@pytest.mark.parametrize(
    "shape", [(1, 16, 16), (2, 16, 17), (3, 15, 20), (2, 16, 17, 3), (15, 16, 3), (16, 16, 2)], ids=str
)
def test_what_is_no_single_image_takes_the_fast_path(native, monkeypatch, shape):
    """Seen to fail: images of one channel first, which the fast path declined."""

    def fail(*arguments):
        pytest.fail("the checked path")

    for module in (calls, loss, rows):
        monkeypatch.setattr(module, "is_batch", fail)
    for name in ("gaussian", "multiplicative", "sensor", "q_sample", "q_step"):
        CALLS[name](image(*shape))
    pred = np.zeros(shape, np.float32)
    nf.mse_loss(pred, image(*shape), 20, S, N, target="v")
    nf.mse_loss_grad(pred, image(*shape), 20, S, N, target="v")


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", [*CALLS, *OF_BYTES])
def test_an_image_with_channels_first_is_warned_of_once(name, channels):
    """Seen to fail: operations but those of `augment` took it for a batch in silence."""
    call, x = (CALLS | OF_BYTES)[name], image(channels, 16, 17)
    call(x, batched=True)
    if name != "nearest_of":
        call(x, batched=False)
    said = rf"uint8 of shape \({channels}, 16, 17\) is taken for a batch of {channels}; pass"
    with pytest.warns(UserWarning, match=said) as seen:
        found = call(x)
    assert [each.filename for each in seen] == [__file__]
    assert equal(found, call(x, batched=True))
    call(image(3, 20, 20))


def test_prepare_warns_once_of_channels_first():
    """Seen to fail: the columns were taken for channels in silence."""
    x = image(2, 3, 16, 17)
    nf.augment.prepare(np.moveaxis(x, 1, -1))
    nf.augment.prepare(image(2, 3, 5, 17))  # a strip of few rows
    said = r"images: shape \(2, 3, 16, 17\) is taken for images of 17 channels, which are last; move yours"
    with pytest.warns(UserWarning, match=said) as seen:
        nf.augment.prepare(x)
    assert [each.filename for each in seen] == [__file__]
    nf.augment.prepare(x)
    with pytest.raises(ValueError, match="one for each of 17 channels, which are last, got"):
        nf.augment.prepare(x, scale_mean=[0.5, 0.5, 0.5])


def test_a_clip_in_stereo_is_warned_of_once():
    clip, short = (image(2, n, dtype=np.float32) for n in (1000, 999))
    nf.augment.at_snr(short, 3.0, N)
    for said in (True, False):
        nf.augment.at_snr(clip, 3.0, N, batched=said)
    with pytest.warns(
        UserWarning, match=r"shape \(2, 1000\) is taken for a batch of two clips; pass batched=False"
    ) as seen:
        found = nf.augment.at_snr(clip, 3.0, N)
    assert [each.filename for each in seen] == [__file__]
    assert np.array_equal(found, nf.augment.at_snr(clip, 3.0, N, batched=True))


def test_torch_follows():
    torch = pytest.importorskip("torch")
    for name, call in (CALLS | OF_BYTES).items():
        for dtype in (torch.uint8,) if name in OF_BYTES else (torch.uint8, torch.uint16):
            x = torch.from_numpy(image(16, 17, 3)).to(dtype)
            with pytest.raises(ValueError, match="may be one image"):
                call(x)
            for said in (True, False):
                np.testing.assert_allclose(call(x, batched=said), call(x.numpy(), batched=said), rtol=1e-6)
        call(torch.from_numpy(image(2, 16, 17, 3)))
    for name in ("gaussian", "q_sample", "mse_loss"):
        calls.WARNED.clear()
        with pytest.warns(UserWarning, match=r"torch.uint8 of shape \(3, 16, 17\)"):
            CALLS[name](torch.from_numpy(image(3, 16, 17)))


def test_torch_compile_follows():
    torch = pytest.importorskip("torch")
    compiled = torch.compile(lambda x: nf.q_sample(x, 20, S, N), backend="eager")
    with pytest.raises(ValueError, match="may be one image"):
        compiled(torch.from_numpy(image(16, 17, 3)))
    whole = torch.compile(lambda x: nf.q_sample(x, 20, S, N, batched=False), backend="eager", fullgraph=True)
    found = whole(torch.from_numpy(image(16, 17, 3)))
    assert np.array_equal(found, OTHERS["q_sample"](image(16, 17, 3), batched=False))
    plain = torch.compile(lambda x: nf.q_sample(x, 20, S, N), backend="eager", fullgraph=True)
    assert np.array_equal(plain(torch.from_numpy(image(2, 16, 17))), OTHERS["q_sample"](image(2, 16, 17)))
    plain(torch.from_numpy(image(3, 16, 17)))  # no graph can have a warning, and this one is whole


def test_jax_follows():
    jax = pytest.importorskip("jax")
    for name in ("gaussian", "q_sample", "q_step", "randn_like", "mse_loss", "poisson"):
        call = (CALLS | OF_BYTES)[name]
        for run in (call, jax.jit(call, static_argnames="batched")):
            x = jax.numpy.asarray(image(16, 17, 3))
            with pytest.raises(ValueError, match="may be one image"):
                run(x)
            for said in (True, False):
                np.testing.assert_allclose(run(x, batched=said), call(np.asarray(x), batched=said), rtol=1e-6)
                with pytest.raises(ValueError, match="may be one image"):  # also after one that is kept
                    run(x)
        calls.WARNED.clear()
        with pytest.warns(UserWarning, match=r"uint8 of shape \(3, 16, 17\)"):
            call(jax.numpy.asarray(image(3, 16, 17)))
        several = jax.numpy.asarray(image(2, 16, 17))
        assert equal(call(several), call(several, batched=True))


def test_dask_follows():
    da = pytest.importorskip("dask.array")
    for name in ("gaussian", "by_level", "poisson", "q_sample", "q_step", "q_walk", "randn_like"):
        call, x = (CALLS | OF_BYTES)[name], da.from_array(image(32, 32, 3), chunks=(16, 16, 3))
        with pytest.raises(ValueError, match="may be one image"):
            call(x)
        for said in (True, False):
            assert np.array_equal(call(x, batched=said).compute(), call(image(32, 32, 3), batched=said))


def test_any_array_that_speaks_dlpack_follows():
    with pytest.raises(ValueError, match=REFUSED):
        OTHERS["q_sample"](Bare(image(16, 17, 3)))


def test_batches_whose_samples_have_names_are_batches():
    """The batch has 16 grey images of 16 x 4."""
    images, ids = image(16, 16, 4), np.arange(16)
    noisy = nf.interop.columns.NoisyColumns(S, nf.Noise(7))
    assert noisy({"id": ids, "image": images})["x_t"].shape == images.shape
    torch = pytest.importorskip("torch")
    x_t, _, _ = nf.interop.torch_data.NoisyBatch(S, nf.Noise(7))(torch.from_numpy(ids), torch.from_numpy(images))
    assert x_t.shape == images.shape


def test_the_reference_follows():
    with nf.use_backend("reference"):
        for call in CALLS.values():
            with pytest.raises(ValueError, match="may be one image"):
                call(image(16, 17, 3))
            call(image(2, 3, 16))


def test_a_warning_comes_once_in_a_process():
    """It warns whatever the warnings filters are."""
    program = (
        "import warnings, numpy as np, noisefuse as nf\n"
        "warnings.simplefilter('always')\n"
        "for n in range(3):\n"
        "    nf.augment.gaussian(np.zeros((3, 16 + n, 16), np.uint8), 1.0, nf.Noise(n))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("UserWarning") == 1
