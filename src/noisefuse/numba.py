# SPDX-License-Identifier: Apache-2.0
"""The library's noise inside your own Numba kernels: functions of numbers, to be called element by element.

    import noisefuse.numba as nfn

    @njit
    def kernel(out, seed):
        for i in range(out.size):
            out[i] = nfn.normal(seed, 0, 0, i)

They work in `@njit` (with `parallel=True` too), `@vectorize`, `@guvectorize` and `numba.cuda.jit`; loops over them
vectorise. The bits are those of `noisefuse.randn`, everywhere, as long as your own kernel asks for no `fastmath`.

All arguments are integers: seed in [0, 2^64), sample in [0, 2^56), step in [0, 2^32), element in [0, 2^34), block =
element // 4 in [0, 2^32), stream in [0, 128), as in docs/noise.md. Pass `numpy.uint64(noise.seed)` if the seed may be
2^63 or more. Nothing is checked here: an argument out of range gives the noise of another element, sample, step or
stream.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from numpy import float32, float64, inf, int64, uint32, uint64
from numpy.typing import DTypeLike, NDArray

if find_spec("numba") is None:
    raise ImportError("Numba is not installed: pip install 'noisefuse[numba]'")
from .arguments.arrays import float_dtype
from .arguments.options import check_tableau
from .backends.numba.device import USER, fma, mul, pasted, select
from .ground.docstrings import ARGS_OF_ELEMENT, Shared, documented
from .ground.lazy import show_public
from .language.rows import AFFINE, BOUNDS, CLEAN, HIGH, LOW, M1, M2, PAST1, D, X, Z
from .language.tableau import Tableau

__all__ = [
    "apply_row",
    "categorical",
    "category_score",
    "fma",
    "masked",
    "mul",
    "normal",
    "normal4",
    "normal64",
    "philox4x32",
    "rows",
    "uniform",
    "uniform64",
    "words",
]

show_public(__name__)

_philox, _counter, _clamp = USER.philox4x32, USER.counter, USER.clamp
_normal_pair32, _normal_pair64 = USER.normal_pair32, USER.normal_pair64
_uniform32, _uniform64 = USER.uniform32, USER.uniform64
_race_key, _race_element, _race_score = USER.race_key, USER.race_element, USER.race_score
_SHARED = Shared(
    args=ARGS_OF_ELEMENT
    | {
        "position": "    position: in [0, 2^31), of the token in its sample.",
        "temperature": "    temperature: 0, or from 2^-64 to 2^64.",
    }
)


@pasted
@documented(_SHARED)
def philox4x32(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Philox4x32-10 (Salmon et al. 2011): the raw words of the generator.

    Args:
        c0, c1, c2, c3: the counter, uint32.
        k0, k1: the key, uint32.

    Returns:
        Four uint32, in Random123's order.

    >>> import noisefuse.numba as nfn
    >>> [hex(word) for word in nfn.philox4x32(0, 0, 0, 0, 0, 0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    return _philox(uint32(c0), uint32(c1), uint32(c2), uint32(c3), uint32(k0), uint32(k1))


@pasted
def _words(seed: Any, sample: Any, step: Any, element: Any, stream: Any, low: Any) -> Any:
    """Returns the four words of the block that holds this element."""
    key = uint64(seed)
    c0, c1, c2, c3 = _counter(element, step, sample, stream, low)
    return _philox(c0, c1, c2, c3, uint32(key), uint32(key >> uint64(32)))


@pasted
@documented(_SHARED)
def words(seed: Any, sample: Any, step: Any, element: Any, stream: Any = 0) -> Any:
    """The four words of the generator's block that has this element, for draws of your own.

    Returns:
        Four uint32, those of `noisefuse.philox4x32`. The element's own word is the one of number element & 3.

    >>> import noisefuse.numba as nfn
    >>> [hex(word) for word in nfn.words(0, 0, 0, 3)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    return _words(seed, sample, step, element, stream, 0)


@pasted
@documented(_SHARED)
def normal4(seed: Any, sample: Any, step: Any, block: Any, stream: Any = 0) -> Any:
    """The standard normals of elements 4 block .. 4 block + 3, from one call of the generator.

    Box & Muller (1958); radius within 2.5 ulp, cos and sin within 2^-22, never 0, |z| <= 6.77.

    Args:
        block: element // 4, in [0, 2^32).

    Returns:
        Four float32.

    >>> import noisefuse.numba as nfn
    >>> list(nfn.normal4(7, 0, 0, 1)) == nf.randn((1, 8), nf.Noise(7))[0, 4:].tolist()
    True
    """
    w0, w1, w2, w3 = _words(seed, sample, step, uint64(block) << uint64(2), stream, 0)
    z0, z1 = _normal_pair32(w0, w1)
    z2, z3 = _normal_pair32(w2, w3)
    return z0, z1, z2, z3


@pasted
@documented(_SHARED)
def normal(seed: Any, sample: Any, step: Any, element: Any, stream: Any = 0) -> Any:
    """The standard normal of one element. (`normal4` computes four at the same cost, and says how exact they are.)

    Returns:
        A float32, that of `noisefuse.randn`.

    >>> import noisefuse.numba as nfn
    >>> nfn.normal(7, 0, 0, 5) == nf.randn((1, 8), nf.Noise(7))[0, 5].item()
    True
    """
    w0, w1, w2, w3 = _words(seed, sample, step, element, stream, 0)
    upper = uint64(element) & uint64(2) != uint64(0)
    z0, z1 = _normal_pair32(select(upper, w2, w0), select(upper, w3, w1))
    return select(uint64(element) & uint64(1) != uint64(0), z1, z0)


@pasted
@documented(_SHARED)
def normal64(seed: Any, sample: Any, step: Any, element: Any, stream: Any = 0) -> Any:
    """The field of `normal` with more digits; |z| <= 9.5.

    Returns:
        A float64, that of `noisefuse.randn` with dtype="float64".

    >>> import noisefuse.numba as nfn
    >>> nfn.normal64(7, 0, 0, 5) == nf.randn((1, 8), nf.Noise(7), dtype="float64")[0, 5].item()
    True
    """
    w0, w1, w2, w3 = _words(seed, sample, step, element, stream, 0)
    v0, v1, v2, v3 = _words(seed, sample, step, element, stream, 1)
    upper = uint64(element) & uint64(2) != uint64(0)
    radius, angle = (select(upper, w2, w0), select(upper, v2, v0)), (select(upper, w3, w1), select(upper, v3, v1))
    z0, z1 = _normal_pair64(radius[0], radius[1], angle[0], angle[1])
    return select(uint64(element) & uint64(1) != uint64(0), z1, z0)


@pasted
def _chosen(element: Any, w0: Any, w1: Any, w2: Any, w3: Any) -> Any:
    """Returns the element's own word of its block."""
    odd, upper = uint64(element) & uint64(1) != uint64(0), uint64(element) & uint64(2) != uint64(0)
    return select(upper, select(odd, w3, w2), select(odd, w1, w0))


@pasted
@documented(_SHARED)
def uniform(seed: Any, sample: Any, step: Any, element: Any, stream: Any = 7) -> Any:
    """A uniform number in (0, 1), never 0 or 1.

    Returns:
        A float32, that of `noisefuse.uniform`, whose stream is 7.

    >>> import noisefuse.numba as nfn
    >>> nfn.uniform(7, 0, 0, 5) == nf.uniform((1, 8), nf.Noise(7))[0, 5].item()
    True
    """
    w0, w1, w2, w3 = _words(seed, sample, step, element, stream, 0)
    return _uniform32(_chosen(element, w0, w1, w2, w3))


@pasted
@documented(_SHARED)
def uniform64(seed: Any, sample: Any, step: Any, element: Any, stream: Any = 7) -> Any:
    """The field of `uniform` with 52 bits.

    Returns:
        A float64, that of `noisefuse.uniform` with dtype="float64".

    >>> import noisefuse.numba as nfn
    >>> nfn.uniform64(7, 0, 0, 5) == nf.uniform((1, 8), nf.Noise(7), dtype="float64")[0, 5].item()
    True
    """
    w0, w1, w2, w3 = _words(seed, sample, step, element, stream, 0)
    v0, v1, v2, v3 = _words(seed, sample, step, element, stream, 1)
    return _uniform64(_chosen(element, w0, w1, w2, w3), _chosen(element, v0, v1, v2, v3))


# ---- tokens ------------------------------------------------------------------------------------------------


@pasted
@documented(_SHARED)
def masked(seed: Any, sample: Any, step: Any, position: Any, p: Any) -> Any:
    """Tells whether `noisefuse.q_mask` masks the token at this position: with probability p, by its word of stream 14.

    Args:
        p: the probability, rounded to a multiple of 2^-32.

    Returns:
        A bool.

    >>> import noisefuse.numba as nfn
    >>> _, masked = nf.q_mask(np.ones((1, 4), int), 0.5, nf.Noise(7), mask_id=0)
    >>> [nfn.masked(7, 0, 0, i, 0.5) for i in range(4)] == masked[0].tolist()
    True
    """
    w0, w1, w2, w3 = _words(seed, sample, step, position, 14, 0)
    return float64(_chosen(position, w0, w1, w2, w3)) < (mul(float64(p), 2.0**32) + 2.0**52) - 2.0**52


@pasted
@documented(_SHARED)
def category_score(
    seed: Any, sample: Any, step: Any, position: Any, token: Any, logit: Any, temperature: Any = 1.0
) -> Any:  # fmt: skip
    """The score of a token in the race of `noisefuse.categorical`, logit / temperature - ln(-2 ln U), and at
    temperature 0 the logit: the token of a position's greatest score is drawn, of equals the lowest (Gumbel 1954).

    Args:
        token: in [0, 2^20).
        logit: float32. With -inf the token is not drawn.

    Returns:
        A float64.

    >>> import noisefuse.numba as nfn
    >>> logits = np.float32([0.5, 2.0, 1.0])
    >>> scores = [nfn.category_score(7, 0, 0, 0, token, logits[token]) for token in range(3)]
    >>> int(np.argmax(scores)) == int(nf.categorical(logits, nf.Noise(7)))
    True
    """
    key, heat = uint64(seed), float64(temperature)
    k0, k1 = _race_key(position, uint32(key), uint32(key >> uint64(32)))
    element = _race_element(position, token)
    c0, c1, c2, c3 = _counter(element, step, sample, 13, 0)
    w0, w1, w2, w3 = _philox(c0, c1, c2, c3, k0, k1)
    v0, v1, v2, v3 = _philox(c0, c1, c2, uint32(c3 | uint32(1 << 31)), k0, k1)
    beta = 1.0 / select(heat > 0.0, heat, 1.0)
    score = _race_score(float32(logit), beta, _chosen(element, w0, w1, w2, w3), _chosen(element, v0, v1, v2, v3))
    return select(heat > 0.0, score, float64(logit))


@pasted
@documented(_SHARED)
def categorical(seed: Any, sample: Any, step: Any, position: Any, logits: Any, temperature: Any = 1.0) -> Any:
    """The token that `noisefuse.categorical` draws from one row of logits.

    Args:
        logits: an array of float32 (V,), V <= 2^20, without NaN.

    Returns:
        The token, or -1 if all logits are -inf.

    >>> import noisefuse.numba as nfn
    >>> logits = np.float32([0.5, 2.0, 1.0])
    >>> nfn.categorical(7, 0, 0, 0, logits) == int(nf.categorical(logits, nf.Noise(7)))
    True
    """
    winner, best = int64(-1), -float64(inf)
    for token in range(len(logits)):
        score = category_score(seed, sample, step, position, token, logits[token], temperature)
        if score > best:
            winner, best = int64(token), score
    return winner


# ---- rows --------------------------------------------------------------------------------------------------


def rows(table: Tableau, dtype: DTypeLike | None = float32) -> tuple[NDArray[Any], int]:
    """The rows of a tableau for `apply_row`, for instance a sampler's, and the columns that count.

    Args:
        table: the tableau.
        dtype: float32 for all data but float64.

    Returns:
        (n, 36) coefficients, each rounded once, and an int whose bit c is set where column c counts.

    Raises:
        TypeError: table is no tableau, or the dtype is another one.
        ValueError: the rows are gradients of a clamp.

    >>> import noisefuse.numba as nfn
    >>> row, active = nfn.rows(nf.samplers.ddim(nf.Schedule.linear(1000), steps=10).tableau)
    >>> row.shape, row.dtype
    ((10, 36), dtype('float32'))
    """
    check_tableau("table", table)
    kind = float_dtype(dtype, ("float32", "float64"))
    if table.masked:
        raise ValueError("table: expected one of forward rows, got the gradients of a clamp")
    found = table.as_rows
    return found.table.astype(kind), found.active


@pasted
def _term(total: Any, started: Any, row: Any, active: Any, column: Any, value: Any) -> Any:
    """Adds one term if its column counts. The first term is a rounded product, each later one an fma."""
    here = active >> column & 1 != 0
    more = select(started, fma(row[column], value, total), mul(row[column], value))
    return select(here, more, total), started | here


@pasted
def _combination(row: Any, active: Any, first: Any, d: Any, z: Any, values: Any) -> Any:
    """Returns k + the terms in the contract's order, z first and x last. No term is added to nothing, as -0 + 0 would
    be +0."""
    x, m1, m2, past1, past2, past3, past4 = values
    started = active >> first & 1 != 0
    total = select(started, row[first], row[first] - row[first])
    total, started = _term(total, started, row, active, first + 1 + Z, z)
    total, started = _term(total, started, row, active, first + 1 + D, d)
    total, started = _term(total, started, row, active, first + 4 + PAST1, past4)
    total, started = _term(total, started, row, active, first + 3 + PAST1, past3)
    total, started = _term(total, started, row, active, first + 2 + PAST1, past2)
    total, started = _term(total, started, row, active, first + 1 + PAST1, past1)
    total, started = _term(total, started, row, active, first + 1 + M2, m2)
    total, started = _term(total, started, row, active, first + 1 + M1, m1)
    total, started = _term(total, started, row, active, first + 1 + X, x)
    return total


@pasted
def _clean(row: Any, active: Any, x: Any, m1: Any, m2: Any) -> Any:
    """Returns D: clamp(k + x x + m1 m1 + m2 m2, low, high)."""
    started = active >> CLEAN & 1 != 0
    total = select(started, row[CLEAN], row[CLEAN] - row[CLEAN])
    total, started = _term(total, started, row, active, CLEAN + 1 + M2, m2)
    total, started = _term(total, started, row, active, CLEAN + 1 + M1, m1)
    total, started = _term(total, started, row, active, CLEAN + 1 + X, x)
    return select(active & BOUNDS != 0, _clamp(total, row[LOW], row[HIGH]), total)


@pasted
def apply_row(row: Any, active: Any, values: Any, z: Any) -> Any:
    """Applies one row of a tableau to one element, as `noisefuse.update` does for each element.

    Args:
        row, active: from `rows`; row has 36 numbers.
        values: (x, m1, m2, past1, past2, past3, past4) of the element, all of the row's type; 0 for those that are
            missing.
        z: its noise, `normal(seed, sample, step + i, element, 3)` for row i, of that type; 0 for no noise.

    Returns:
        (out, aux1, aux2). LLVM leaves out those that you do not use.

    >>> import noisefuse.numba as nfn
    >>> table = nf.samplers.ddim(nf.Schedule.linear(1000), steps=10).tableau
    >>> row, active = nfn.rows(table)
    >>> x, m, none = np.float32(1), np.float32(0.5), np.float32(0)
    >>> out, _, _ = nfn.apply_row(row[0], active, (x, m, none, none, none, none, none), none)
    >>> out == nf.update(table, 0, np.full((1, 1), x), np.full((1, 1), m)).item()
    True
    """
    d = _clean(row, active, values[0], values[1], values[2])
    return (
        _combination(row, active, AFFINE[0], d, z, values),
        _combination(row, active, AFFINE[1], d, z, values),
        _combination(row, active, AFFINE[2], d, z, values),
    )
