# SPDX-License-Identifier: Apache-2.0
"""Known answers: Random123's for the generator, and hashes that freeze the contract (known/README.md)."""

import hashlib
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

import noisefuse as nf
from conftest import DTYPES, first_and_slow, read_known, using
from noisefuse.backends.reference import SPEC
from noisefuse.tableau import ROW, m1, z
from noisefuse.tableau import x as symbol_x

KNOWN = Path(__file__).parent / "known"
TARGETS = ("flow", "epsilon", "sample", "v", "v", "flow")
SCHEDULE = nf.Schedule((15 - np.arange(8)) / 16, (1 + np.arange(8)) / 8)


def word(i):
    return (2654435761 * np.asarray(i, np.uint64) & 0xFFFFFFFF).astype(np.uint32)


def data(shape, dtype, first=0):
    words = word(first + np.arange(np.prod(shape))).reshape(shape)
    if dtype == np.uint8:
        return (words >> 24).astype(np.uint8)
    if dtype == np.uint16:
        return (words >> 16).astype(np.uint16)
    return ((words >> 8) / 2.0**23 - 1).astype(np.float32).astype(dtype)


def times(*shape):
    return ((5 * np.arange(np.prod(shape)) + 2) % 8).reshape(shape)


def cases(any_stream):
    """Yields (shape, t, noise, batched)."""
    stream = (lambda n: n) if any_stream else (lambda n: 0)
    yield (5, 1003), times(5), nf.Noise(0), True
    yield (37, 3), times(37), nf.Noise(0x0123456789ABCDEF, sample=2**32 - 3, step=7, stream=stream(64)), True
    last = nf.Noise(2**64 - 1, sample=2**56 - 5, step=2**32 - 8, stream=stream(127))
    yield (5, 7, 9), times(5, 7), last, True
    yield (3, 43693), 3, nf.Noise(3, sample=[2**40 + 3, 0, 2**56 - 1], step=1), True
    yield (11, 13), 5, nf.Noise(4, sample=9), False
    yield (4, 50), times(4), [nf.Noise(b << 32, sample=100 - b, step=b) for b in range(4)], True


def philox(_):
    i = 6 * np.arange(1000)[:, None]
    yield nf.philox4x32(word(i + np.arange(4)), word(i + np.arange(4, 6)))


def random(draw):
    def outputs(dtype):
        for shape, _, noise, batched in cases(any_stream=True):
            yield draw(shape, noise, dtype=dtype, batched=batched)
        for n in range(128):
            yield draw((2, 6), nf.Noise(5, sample=n << 32, step=n, stream=n), dtype=dtype)

    return outputs


def q_sample(dtype):
    for shape, t, noise, batched in cases(any_stream=True):
        yield nf.q_sample(data(shape, dtype), t, SCHEDULE, noise, batched=batched)


def q_sample_target(dtype):
    for target, (shape, t, noise, batched) in zip(TARGETS, cases(any_stream=True), strict=True):
        yield from nf.q_sample(data(shape, dtype), t, SCHEDULE, noise, batched=batched, target=target)


def q_sample_levels(levels):
    def outputs(dtype):
        for target, (shape, t, noise, batched) in zip(TARGETS, cases(any_stream=True), strict=True):
            x0, options = data(shape, dtype), {"batched": batched, "target": target}
            yield from nf.q_sample(x0, t, SCHEDULE, noise, dtype=levels, **options)

    return outputs


def q_step(dtype):
    for shape, t, noise, batched in cases(any_stream=False):
        yield nf.q_step(data(shape, dtype), t, SCHEDULE, noise, batched=batched)


def q_walk(dtype):
    for shape, _, noise, batched in cases(any_stream=False):
        yield nf.q_walk(data(shape, dtype), SCHEDULE, noise, keep=[0, 3, 7], batched=batched)


def window(dtype):
    noise = nf.Noise(6, sample=2**33, step=8)
    for shape, whole, start in (
        ((4, 11, 7), (19, 23), (5, 13)),
        ((2, 5, 4, 6), (9, 4, 6), (3, 0, 0)),
        ((3, 1001), (2**34,), (2**34 - 1001,)),
    ):
        yield nf.q_sample(data(shape, dtype), times(shape[0]), SCHEDULE, noise.window(whole, start))


def update(dtype):
    coefficients = ((5 * np.arange(8)[:, None] + 3 * np.arange(36)) % 16 - 8) / 8
    rows = coefficients.view(ROW)[:, 0]
    rows["clean"]["lo"], rows["clean"]["hi"] = -0.75, 0.5
    table = nf.Tableau(rows)
    for shape, t, noise, _ in cases(any_stream=False):
        x, m1, m2, *past = (data(shape, dtype, 1000003 * n) for n in range(7))
        aux = [np.empty(shape, dtype) for _ in range(2)]
        yield nf.update(table, t, x, (m1, m2), past=past, noise=noise, aux_out=aux)
        yield from aux


def mse_loss(dtype):
    row = (1 + np.arange(8)) / 8
    for target, (shape, t, noise, batched) in zip(TARGETS, cases(any_stream=True), strict=True):
        x0, pred = data(shape, dtype), data(shape, np.float32 if dtype.kind == "u" else dtype, 1000003)
        given, options = (pred, x0, t, SCHEDULE, noise), {"target": target, "weight": row, "batched": batched}
        yield nf.mse_loss(*given, **options, reduction="none")
        yield from nf.mse_loss_and_grad(*given, **options, out=pred)


def ends(dtype):
    for n in range(1, 640, 64):
        yield nf.q_sample(data((2, n), dtype), times(2), SCHEDULE, nf.Noise(7))


def augment(dtype):
    for shape, _, noise, batched in cases(any_stream=True):
        x = data(shape, dtype)
        yield nf.augment.multiplicative(x, 0.125, noise, batched=batched)
        yield nf.augment.sensor(x, 0.5, 0.25, noise, batched=batched)


def levels(dtype):
    level = np.arange(256.0)
    for shape, _, noise, batched in cases(any_stream=True):
        x = data(shape, np.dtype(np.uint8))
        yield nf.augment.by_level(x, 255 - level, level / 16, noise, dtype=dtype, batched=batched)


def transition(dtype):
    level, to = np.ogrid[:256, :256]
    bits = level % 8
    matrix = np.where(level >> bits == to >> bits, 0.5**bits, 0.0)
    for shape, _, noise, batched in cases(any_stream=True):
        yield nf.augment.transition(data(shape, dtype), matrix, noise, batched=batched)


def impulse(dtype):
    values = (3, 250) if dtype.kind == "u" else (-0.25, 1.75)
    for shape, _, noise, batched in cases(any_stream=True):
        for random in (False, True):
            options = {"salt": 0.25, "values": values, "random": random, "batched": batched}
            yield nf.augment.impulse(data(shape, dtype), 0.375, noise, **options)


def rician(dtype):
    for shape, _, noise, batched in cases(any_stream=True):
        yield nf.augment.rician(data(shape, dtype), 0.5, noise, coils=2, batched=batched)


def poisson(dtype):
    for shape, _, noise, batched in cases(any_stream=True):
        for peak, gamma in ((3.0, 2.25), (300.0, 1.0)):
            yield nf.augment.poisson(data(shape, dtype), peak, noise, gamma=gamma, batched=batched)


def interval(dtype):
    grid = np.cumsum(np.arange(6)) / 16
    for k, (shape, _, noise, batched) in enumerate(cases(any_stream=False)):
        t0, t1 = (word([2 * k + 1, 2 * k + 2]) >> 8) / 2.0**24
        for times in ({"t0": t0, "t1": t1}, {"t0": grid[5], "t1": grid[1], "grid": grid}):
            many = isinstance(noise, list)
            each = [n.at(step=n.step % 128).interval(**times) for n in (noise if many else [noise])]
            yield nf.randn(shape, each if many else each[0], dtype=dtype, batched=batched)


def density(dtype):
    table = nf.Tableau([nf.Row(out=0.75 * symbol_x - 0.5 * m1 + 0.25 * z)])
    for shape, _, noise, _ in cases(any_stream=False):
        x, m = data(shape, dtype), data(shape, dtype, 1000003)
        x_next, minus_sums = nf.density.update_with_log_prob(table, 0, x, m, noise, density="squared")
        yield from (x_next, -minus_sums)


def categorical(dtype, far=False):
    """Logits are dyadic numbers; rows of 61, 4,099 and 13 tokens, all kinds of settings. far: at positions to 2^31."""
    info = ("log_prob", "log_prob_raw", "entropy", "margin", "rank")
    for k, (_, _, noise, _) in enumerate(cases(any_stream=False)):
        logits = 8 * data((3, 4, (61, 4099, 13)[k % 3]), np.dtype(np.float32), 7 * k)
        rows = len(noise) if isinstance(noise, list) else 3
        logits = np.resize(logits, (rows, *logits.shape[1:])).astype(dtype)
        settings = {"temperature": (1.0, 0.75, 0.0)[k // 2], "top_k": (0, 9)[k % 2], "top_p": (1.0, 0.875)[k // 3]}
        places = (word(12 * k + np.arange(4 * rows)) >> 1).reshape(rows, 4) if far else None
        token, known = nf.categorical(logits, noise, positions=places, info=info, **settings)
        yield from (token, *known)


def pyramid_like(dtype):
    noise = nf.Noise(5, sample=9, step=2)
    yield nf.fields.pyramid_like(np.zeros((3, 2, 5, 700), dtype), 0.5, noise, levels=4)


def masked_cross_entropy(dtype):
    for k, n in enumerate((61, 4099, 13)):
        logits = (8 * data((3, 4, n), np.dtype(np.float32), 7 * k)).astype(dtype)
        ids, masked = word(np.arange(12)).reshape(3, 4) % n, np.arange(12).reshape(3, 4) % 3 != k
        weight, upstream = (1 + np.arange(3))[:, None] / 4, np.arange(12.0).reshape(3, 4) / 8
        yield from nf.masked_cross_entropy_and_grad(logits, ids, masked, weight, upstream=0.75)
        options = {"reduction": "none", "upstream": upstream}
        yield from nf.masked_cross_entropy_and_grad(logits, ids, masked, weight, **options)


SINGLE = {name: DTYPES[name] for name in ("float32", "float16", "bfloat16")}
TOKENS = {name: np.dtype(name) for name in ("int64", "int32", "uint8", "uint16")}
ALL = DTYPES | {"uint8": np.dtype(np.uint8), "uint16": np.dtype(np.uint16)}


def of_tokens(dtype):
    """Yields (tokens, p, noise) of the cases of `update`."""
    for shape, t, noise, _ in cases(any_stream=False):
        yield (word(np.arange(np.prod(shape))) >> 24).astype(dtype).reshape(shape), (np.asarray(t) + 1) / 8, noise


def q_mask(dtype):
    for ids, p, noise in of_tokens(dtype):
        yield from nf.q_mask(ids, p, noise, 127)


def q_uniform(dtype):
    for ids, p, noise in of_tokens(dtype):
        yield nf.q_uniform(ids, p, noise, 50257)[0]


OPERATIONS = {
    "philox": (philox, {"uint32": np.dtype(np.uint32)}),
    "randn": (random(nf.randn), DTYPES),
    "uniform": (random(nf.uniform), {name: DTYPES[name] for name in ("float32", "float64")}),
    "q_sample": (q_sample, ALL),
    "q_sample_target": (q_sample_target, ALL),
    "q_sample_bytes": (q_sample_levels("uint8"), ALL),
    "q_sample_uint16": (q_sample_levels("uint16"), ALL),
    "q_step": (q_step, DTYPES),
    "q_walk": (q_walk, DTYPES),
    "window": (window, DTYPES),
    "update": (update, DTYPES),
    "mse_loss": (mse_loss, ALL),
    "ends": (ends, DTYPES),
    "augment": (augment, ALL),
    "levels": (levels, DTYPES | {"uint8": np.dtype(np.uint8)}),
    "transition": (transition, {"uint8": np.dtype(np.uint8)}),
    "density": (density, DTYPES),
    "interval": (interval, DTYPES),
    # from here on provisional
    "impulse": (impulse, ALL),
    "rician": (rician, ALL),
    "poisson": (poisson, DTYPES | {"uint16": np.dtype(np.uint16)}),
    "q_mask": (q_mask, TOKENS),
    "q_uniform": (q_uniform, {"int64": TOKENS["int64"]}),
    "categorical": (categorical, SINGLE),
    "positions": (partial(categorical, far=True), SINGLE),
    "masked_cross_entropy": (masked_cross_entropy, SINGLE),
    "pyramid_like": (pyramid_like, {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}),
}
LINES = [(operation, name) for operation, (_, dtypes) in OPERATIONS.items() for name in dtypes]
# The SHA-256 of the first lines of hashes.txt, by their number.
FROZEN = {77: "35092279f334e61a3ba4cd80d87a4675ce79da01ee5d874e31fa62df214e8234"}
STABLE = LINES.index(("impulse", "float32"))


@cache  # in pure Python a second for all of them; equal bytes are hashed once
def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def hash_of(operation, name):
    outputs, dtypes = OPERATIONS[operation]
    return fnv1a(b"".join(np.ascontiguousarray(out).tobytes() for out in outputs(dtypes[name])))


@pytest.mark.parametrize("line", read_known("philox4x32.txt"), ids=["zeros", "ones", "pi"])
def test_random123(backend, line):
    numbers = np.array([int(text, 16) for text in line], np.uint32)
    assert nf.philox4x32(numbers[:4], numbers[4:6]).tolist() == numbers[6:].tolist()


def test_normals_of_known_words(csrc_constants):
    """Seen to fail: one unit in the last place of any coefficient but the last of sin, in normal.h and in spec.py."""
    known = read_known("normal64.txt")
    assert [numbers for name, *numbers in csrc_constants if name == "normal64"] == [line[2:] for line in known]
    words = np.array([[int(word, 16) for word in line] for line in known], np.uint64).T
    u, v, *z = words
    found = SPEC.normal_pair64(*(part.astype(np.uint32) for a in (u, v) for part in (a >> 32, a & 0xFFFFFFFF)))
    assert [a.view(np.uint64).tolist() for a in found] == [a.tolist() for a in z]


def wrong_hashes():
    """Returns a line (expected, found) for each difference."""
    known = {(operation, name): value for operation, name, value in read_known("hashes.txt")}
    assert list(known) == LINES
    return {line: (value, found) for line, value in known.items() if (found := hash_of(*line)) != value}


def test_the_stable_part_is_frozen():
    """Its lines never change; lines that become stable come after them, with a digest of their own. Seen to fail: a
    changed digit, two lines in another order, a line between them."""
    text = (KNOWN / "hashes.txt").read_text()
    lines, provisional = (part.split("\n", 1)[1] for part in text.split("# ")[1:])
    assert lines.count("\n") == STABLE
    assert provisional.count("\n") == len(LINES) - STABLE
    for count, digest in FROZEN.items():
        first = "".join(lines.splitlines(keepends=True)[:count])
        assert hashlib.sha256(first.encode()).hexdigest() == digest, "a bit of the stable part may never change"


@pytest.mark.parametrize("threads", first_and_slow([5, 1, 2]), indirect=True)
def test_hashes_compiled(compiled, threads):
    assert wrong_hashes() == {}


@pytest.mark.release  # other tests compare the reference with backends that have these hashes
def test_hashes_reference():
    with using("reference"):
        assert wrong_hashes() == {}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_known.py --write")
    lines = [f"{operation} {name} {hash_of(operation, name)}\n" for operation, name in LINES]
    parts = ["# stable: operation dtype hash, as README.md says\n", *lines[:STABLE], "# provisional\n", *lines[STABLE:]]
    (KNOWN / "hashes.txt").write_text("".join(parts))
