# SPDX-License-Identifier: Apache-2.0
"""Draws of categories: a token of each row of logits, and what is known of it from the same read of the logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments import arrays
from ..arguments.calls import names_or_array
from ..arguments.types import Array, ArrayT, Like
from ..call.description import FLOAT32, LOSS_CHUNK, POSITIONS, TOKENS, Parts, Race
from ..ground.checks import check_integer, lie_within
from ..ground.libraries import library_of
from ..ground.stored import SetState, make_again
from ..language.levels import INFO, LOGITS
from ..language.noise import PROVISIONAL_VERSION, RACE, Noise, Noises, names_of, refuse_version, whole

TOKEN_DTYPES = ("int64", "int32")
OF_PARTS = ("log_prob", "log_prob_raw")  # what `combine_categories` can tell
LEAST, MOST = 2.0**-64, 2.0**64  # of a temperature other than 0

Info: TypeAlias = Literal["log_prob", "log_prob_raw", "entropy", "margin", "rank"]


class TokenInfo(NamedTuple, Generic[ArrayT]):
    """It tells of the tokens that `categorical` draws: arrays of the rows' shape, or None for what was not asked.

    Attributes:
        log_prob: log of the token's probability in the distribution it was drawn from, float32.
        log_prob_raw: log of its probability in softmax(logits), float32.
        entropy: that of the distribution drawn from, in nats, float32.
        margin: the difference of the two largest probabilities of the distribution drawn from, float32.
        rank: the number of logits before the token's, int32.
    """

    log_prob: ArrayT | Any = None  # Any: who asked for it need not tell a type checker that it is there
    log_prob_raw: ArrayT | Any = None
    entropy: ArrayT | Any = None
    margin: ArrayT | Any = None
    rank: ArrayT | Any = None


@dataclass(frozen=True, slots=True)
class Partial:
    """The result of `categorical` in a part of the vocabulary, for `discrete.combine_categories`. It can be pickled.

    Attributes:
        token: int64, the part's winner; -1 where it has no logit above -inf.
        first: its first token in the vocabulary.
        n: how many tokens it has.
        vocabulary: how many the whole vocabulary has.
        info: the names of the info that the whole's result has.
        temperature: float64, (1,) or (B,).
        noise: the keys that it drew with.
        parts: its scores and sums.
        version: the `PROVISIONAL_VERSION` of its draws.

    Raises:
        TypeError, ValueError: the fields are not those of one part, or of this version. Arrays are taken in C order.
    """

    token: NDArray[np.int64]
    first: int
    n: int
    vocabulary: int
    info: tuple[str, ...]
    temperature: NDArray[np.float64]
    noise: tuple[Noise, ...]
    parts: Parts
    version: int = PROVISIONAL_VERSION

    def __post_init__(self) -> None:
        """Kernels trust a part, and it may come from anywhere."""
        if self.version != PROVISIONAL_VERSION:
            refuse_version(self.version, "PROVISIONAL_VERSION")
        token = arrays.contiguous(arrays.as_array("token", self.token, ("int64",)))
        first, n, whole = (check_integer(name, getattr(self, name)) for name in ("first", "n", "vocabulary"))
        if not (0 <= first < first + n <= whole <= TOKENS) or _cuts_a_chunk(first, n, whole):
            raise ValueError(
                f"first = {first}, n = {n}, vocabulary = {whole}: expected a part of at most 2^20 tokens that begins "
                f"and ends with chunks of {LOSS_CHUNK}"
            )
        if not ((token == -1) | ((token >= first) & (token < first + n))).all():
            raise ValueError(f"token: expected tokens from {first} to {first + n - 1}, or -1")
        batch = token.shape[0] if token.ndim else 1
        heat = arrays.as_numbers("temperature", self.temperature)
        temperature, *_ = _settings(batch, heat.reshape(()) if heat.shape == (1,) else heat, 0, 1.0)
        noise = tuple(names_of(self.noise))
        if len(noise) not in (1, batch):
            raise ValueError(f"noise: expected one Noise or one for each of {batch} samples, got {len(noise)}")
        info = _info(self.info, True)
        parts = _checked(self.parts, token.size, -(-n // LOSS_CHUNK), info)
        if not np.array_equal(parts.score == -np.inf, token.reshape(-1) == -1):
            raise ValueError("parts.score: expected -inf where there is no token, and only there")
        fields = (token, first, n, whole, info, temperature, noise, parts, self.version)
        for name, value in zip(Partial.__slots__, fields, strict=True):
            object.__setattr__(self, name, value)

    __setstate__: ClassVar[SetState] = make_again


@overload
def categorical(
    logits: Like[ArrayT], noise: Noises, *, temperature: ArrayLike = ..., top_k: ArrayLike = ...,
    top_p: ArrayLike = ..., where: Array | None = ..., positions: ArrayLike | None = ..., info: tuple[()] = ...,
    dtype: Any = ..., partial: Literal[False] = ..., out: Like[ArrayT] | None = ...,
) -> ArrayT: ...  # fmt: skip
@overload
def categorical(
    logits: Like[ArrayT], noise: Noises, *, temperature: ArrayLike = ..., top_k: ArrayLike = ...,
    top_p: ArrayLike = ..., where: Array | None = ..., positions: ArrayLike | None = ...,
    info: Info | tuple[Info, *tuple[Info, ...]] | list[Info], dtype: Any = ...,
    partial: Literal[False] = ..., out: Like[ArrayT] | None = ...,
) -> tuple[ArrayT, TokenInfo[ArrayT]]: ...  # fmt: skip
@overload
def categorical(
    logits: Array, noise: Noises, *, temperature: ArrayLike = ..., positions: ArrayLike | None = ...,
    info: Info | Iterable[Info] = ..., partial: Literal[True],
) -> Partial: ...  # fmt: skip
def categorical(
    logits: Array, noise: Noises, *, temperature: ArrayLike = 1.0, top_k: ArrayLike = 0, top_p: ArrayLike = 1.0,
    where: Array | None = None, positions: ArrayLike | None = None, info: Info | Iterable[Info] = (), dtype: Any = None,
    partial: bool = False, out: Array | None = None,
) -> Any:  # fmt: skip
    """Draws a token of each row of logits from softmax(logits / temperature), by the key (sample, position, token).

    The row is read once, and nothing of its size is stored. A token's noise does not depend on the vocabulary's size,
    its padding, on top_k and top_p, or on the batch (docs/noise.md). First the temperature divides the logits, then
    top_k is applied, then top_p.

    Args:
        logits: (B, .., V) float32, float16 or bfloat16, V <= 2^20; (V,) is one row. Axis 0 is the batch; a row's
            position in its sample counts the axes between in C order, up to 2^31. -inf is never drawn; +inf is drawn
            without a race, the lowest token first.
        noise: a Noise, or a list of one for each sample, of stream 0. A window of the sample's shape (.., V) says where
            a part of the sample stands in the whole.
        temperature: a number or (B,). 0: the largest logit, the lowest token among equals.
        top_k: an int or (B,): only the k largest logits, of equals the lowest tokens. 0: all.
        top_p: a number or (B,) in (0, 1]: only the fewest tokens, from the most probable on, that together have this
            probability, at least one.
        where: bool, broadcast to the rows: False rows are not read. Their token is -1, or what `out` holds, and their
            info is 0.
        positions: integers, broadcast to the rows: the positions, if they are not counted from 0.
        info: the names of what else to return: "log_prob", "log_prob_raw", "entropy", "margin" and "rank", as
            `discrete.TokenInfo` describes them. With temperature 0 log_prob is 0, and entropy and margin are those of
            softmax(logits).
        dtype: the dtype of the tokens, int64 or int32.
        partial: True if the logits are a part of the vocabulary. The result is then a `Partial`, for
            `discrete.combine_categories`. A part begins and ends at multiples of 4096 tokens, or at the vocabulary's
            end.
        out: an array of the rows' shape for the tokens.

    Returns:
        The tokens, or with info the pair of them and a `discrete.TokenInfo`; or a `Partial`.

    Raises:
        ValueError: a row has a NaN, or no logit above -inf: such a row is found as it is read, and `out` is then
            unspecified. (On a device it has the token -1.) All other errors come before anything is written.
        TypeError, ValueError, OverflowError: the message says what was given and what was expected.

    Source: Gumbel (1954); Yellott (J. Math. Psychol. 15, 1977). log_prob and entropy are within 2 ulp.

    >>> logits = np.log(np.array([[0.5, 0.25, 0.25, 0.0]], np.float32) + np.float32(1e-9))
    >>> token, info = nf.categorical(logits, nf.Noise(7, sample=3), info=("log_prob",))
    >>> token.tolist(), np.exp(info.log_prob).round(3).tolist()
    ([1], [0.25])
    """
    library = None if type(logits) is np.ndarray else library_of(logits)
    if (library is None or not library.is_traced()) and positions is None and partial is False:
        drawn = backends.fast_categorical(logits, noise, temperature, top_k, top_p, where, info, dtype, out)
        if drawn is not NotImplemented:
            return drawn
    wanted = _info(info, partial)
    if library is not None:
        return library.categorical(
            logits, noise, temperature=temperature, top_k=top_k, top_p=top_p, where=where, positions=positions,
            info=wanted, dtype=dtype, partial=partial, out=out,
        )  # fmt: skip
    return of_rows(logits, noise, temperature, top_k, top_p, where, positions, wanted, dtype, partial, out)


def of_rows(
    logits: Any, noise: Noises, temperature: ArrayLike, top_k: ArrayLike, top_p: ArrayLike, where: Array | None,
    positions: ArrayLike | None = None, wanted: tuple[str, ...] = (), dtype: Any = None, partial: bool = False,
    out: Array | None = None, hidden: int = -1,
) -> Any:  # fmt: skip
    """Returns what `categorical` does of NumPy's logits. hidden: a token whose logits are taken for -inf."""
    x = arrays.as_array("logits", logits, LOGITS)
    rows, on_host = x.shape[:-1], isinstance(x, np.ndarray)
    if not on_host and not arrays.of_triton(x):
        raise NotImplementedError("logits: categorical has no kernel for CuPy's arrays; copy them to host memory first")
    empty = arrays.allocator(x)
    settings, names, first, vocabulary, places, chosen = drawn_from(
        x.shape, noise, temperature, top_k, top_p, where, positions, not partial
    )
    if not on_host and (partial or (settings[2] < 1).any()):
        raise NotImplementedError(
            "top_p, partial: neither has a kernel for CUDA devices; pass logits in host memory, logits.cpu()"
        )
    if partial:
        _check_whole_chunks(first, x.shape[-1], vocabulary, settings, chosen, out)
    kind = np.dtype(np.int64) if partial else token_dtype(dtype, out)
    token = arrays.output("out", empty(rows, kind) if out is None else out, rows, kind)
    arrays.one_place([("logits", x), ("out", token)])
    told = {name: empty(rows, np.dtype(kind)) for name, kind in INFO.items() if name in wanted}
    if chosen is not None:
        for array, value in [*((one, 0) for one in told.values()), *([(token, -1)] if out is None else [])]:
            array.fill(value)
    arrays.check_overlap([("out", token)], [x, places] if chosen is None else [x, places, chosen])
    n, size = x.shape[-1], math.prod(rows)
    parts = _parts(size, -(-n // LOSS_CHUNK), wanted) if partial else None
    flat = arrays.contiguous(x).reshape(size, n)
    _run(rows, n, first, flat, places, chosen, settings, names, token, {} if partial else told, parts, hidden)
    if parts is not None:
        return Partial(token, first, n, vocabulary, wanted, settings[0], names, parts)
    return (token, TokenInfo(**told)) if wanted else token


def combine_categories(partials: Sequence[Partial], *, dtype: Any = None) -> Any:
    """Returns the tokens of the whole vocabulary, from `categorical(.., partial=True)` of its parts, to the bit.

    Args:
        partials: the parts, in any order, which together have each token once.
        dtype: the dtype of the tokens, int64 or int32.

    Returns:
        What `categorical` returns for the whole logits, tokens or (tokens, info), as NumPy arrays.

    Raises:
        TypeError: an entry is no part.
        ValueError: parts do not fit together, or a row has no logit above -inf in any of them.

    >>> logits = np.random.default_rng(0).normal(size=(2, 3, 8192)).astype(np.float32)
    >>> noise, each = nf.Noise(7), []
    >>> for first in (0, 4096):
    ...     part = noise.window((3, 8192), start=(0, first))
    ...     each.append(nf.categorical(logits[..., first : first + 4096], part, partial=True))
    >>> np.array_equal(nf.discrete.combine_categories(each), nf.categorical(logits, noise))
    True
    """
    partials = tuple(partials) if isinstance(partials, Iterable) else (partials,)
    for part in partials:
        if not isinstance(part, Partial):
            raise TypeError(f"partials: expected results of categorical(.., partial=True), got {type(part).__name__}")
    if not partials:
        raise ValueError("partials: expected at least one part, got none")
    group = sorted(partials, key=lambda part: part.first)
    head = group[0]
    next_ = 0
    for part in group:
        if part.first != next_ or part.vocabulary != head.vocabulary:
            raise ValueError(
                f"partials: expected tokens from {next_} on of {head.vocabulary}, got those from {part.first} on of "
                f"{part.vocabulary}; noise.window((.., V), (.., first)) says where a part stands"
            )
        if (
            part.token.shape != head.token.shape
            or part.info != head.info
            or not np.array_equal(part.temperature, head.temperature)
            or part.noise != head.noise
        ):
            raise ValueError("partials: the parts differ in their rows, their info, their temperature or their noise")
        next_ += part.n
    if next_ != head.vocabulary:
        raise ValueError(f"partials: expected {head.vocabulary} tokens, got those before {next_}")
    rows = head.token.shape
    size = head.token.size
    scores = np.stack([part.parts.score for part in group])
    tokens = np.stack([part.token.reshape(-1) for part in group])
    best, at = np.argmax(scores, axis=0), np.arange(size)  # the first of equals has the lowest token
    token = np.ascontiguousarray(tokens[best, at].astype(token_dtype(dtype, None)))
    if (token < 0).any():
        raise ValueError(_bad(rows, int(np.argmax(token < 0)), 2))
    winner = np.stack([part.parts.winner for part in group])[best, at]
    together = Parts(
        scores[best, at], winner, np.concatenate([part.parts.largest for part in group], axis=1),
        _joined([part.parts.plain for part in group]), _joined([part.parts.tempered for part in group]),
    )  # fmt: skip
    together = _checked(together, size, -(-head.vocabulary // LOSS_CHUNK), head.info)
    told = {name: np.zeros(rows, INFO[name]) for name in head.info}
    settings = head.temperature, np.zeros(len(head.temperature), np.int64), np.ones(len(head.temperature))
    places = np.zeros(size, np.int64)
    _run(rows, head.vocabulary, 0, None, places, None, settings, (Noise(0),), None, told, together)
    token = token.reshape(rows)
    return (token, TokenInfo(**told)) if head.info else token


def _checked(parts: Any, rows: int, chunks: int, info: tuple[str, ...]) -> Parts:
    """Returns the scores and sums of this number of rows and chunks as kernels read them."""
    if not isinstance(parts, Parts):
        raise TypeError(f"parts: expected the scores and sums of a part, got {type(parts).__name__}")
    of_chunks = (rows, chunks)
    expected = {"score": (rows,), "winner": (rows,), "largest": of_chunks, "plain": None, "tempered": None}
    expected |= {sums: of_chunks for sums, name in _SUMS if name in info}
    checked: dict[str, Any] = {}
    for name, shape in expected.items():
        value = getattr(parts, name)
        if shape is None and value is None:
            checked[name] = None
            continue
        array = arrays.as_array(f"parts.{name}", value, ("float32" if name in ("winner", "largest") else "float64",))
        if array.shape != shape:
            raise ValueError(f"parts.{name}: expected {f'shape {shape}' if shape else None}, got {array.shape}")
        if not lie_within(array, 0.0 if name in ("plain", "tempered") else -np.inf, np.inf):
            raise ValueError(f"parts.{name}: has a NaN, or a sum below 0")
        checked[name] = arrays.contiguous(array)
    return Parts(**checked)


_SUMS = ("plain", "log_prob_raw"), ("tempered", "log_prob")  # of `Parts`, and the info that needs them


def _joined(parts: list[Any]) -> Any:
    return None if parts[0] is None else np.concatenate(parts, axis=1)


def _run(rows: tuple[int, ...], *call: Any) -> None:
    bad = _read(rows, *call)
    if bad.any():
        row = int(np.argmax(bad != 0))
        raise ValueError(_bad(rows, row, int(bad[row])))


def _read(
    rows: tuple[int, ...], n: int, first: int, x: Any, places: NDArray[np.int64], chosen: Any, settings: Settings,
    names: tuple[Noise, ...], token: Any, info: dict[str, Any], parts: Parts | None, hidden: int = -1,
) -> NDArray[np.uint8]:  # fmt: skip
    """Runs the kernel on rows of logits, or on the sums of their parts. Returns each row's fault, as `_bad` takes it,
    or 0."""
    size, (temperature, top_k, top_p) = math.prod(rows), settings
    bad, token = np.zeros(size, np.uint8), None if token is None else token.reshape(-1)  # a device tells no faults
    sums = (None,) * 5 if parts is None else (parts.score, parts.winner, parts.largest, parts.plain, parts.tempered)
    of_rows = [info[name].reshape(-1) if name in info else None for name in INFO]
    call = Race._make([
        size, math.prod(rows[1:]), n, first, x, places, chosen, temperature, top_p, top_k, names, token, *of_rows,
        *sums, bad, -(-n // LOSS_CHUNK), FLOAT32 if x is None else x.dtype, len(temperature) > 1, len(names) > 1,
        token is not None and token.itemsize == 4, hidden,
    ])  # fmt: skip
    if size:
        backends.of(bad if x is None else x).run(call)
    return bad


def _bad(rows: tuple[int, ...], row: int, kind: int) -> str:
    name = ", ".join(map(str, np.unravel_index(row, rows))) if rows else ""
    what = "a NaN, expected numbers" if kind == 1 else "no logit above -inf, expected a token that can be drawn"
    return f"logits{f'[{name}]' if name else ''}: has {what}"


def drawn_from(
    shape: tuple[int, ...], noise: Any, temperature: Any, top_k: Any, top_p: Any, where: Any, positions: Any,
    whole: bool,
) -> tuple[Settings, tuple[Noise, ...], int, int, NDArray[np.int64], NDArray[np.bool_] | None]:  # fmt: skip
    """Checks the arguments of a draw from logits of this shape. Returns the settings, the names without windows, the
    logits' first token in the vocabulary, its size, the rows' positions, and which rows are read. whole: the logits are
    those of the whole vocabulary."""
    rows, n = _rows(shape), shape[-1]
    settings = settings_of(rows[0] if rows else 1, temperature, top_k, top_p)
    names, first, vocabulary, places = _places(noise, shape, positions)
    if where is not None:
        where = arrays.spread_bools("where", arrays.as_numbers("where", where), rows).reshape(-1)
    if whole and (first, n) != (0, vocabulary):
        raise ValueError(
            f"noise: its window has tokens {first} .. {first + n - 1} of {vocabulary}: a part of the vocabulary needs "
            "partial=True"
        )
    return settings, names, first, vocabulary, places, where


def _info(info: Any, partial: bool) -> tuple[str, ...]:
    allowed = OF_PARTS if partial else tuple(INFO)
    if not isinstance(info, Iterable):
        raise TypeError(f"info: expected names among {', '.join(allowed)}, got {type(info).__name__}")
    names = (info,) if isinstance(info, str) else tuple(info)
    for name in names:
        if name not in allowed:
            of = " with partial=True" if partial else ""
            raise ValueError(f"info: {name!r}: expected names among {', '.join(allowed)}{of}")
    return names


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape:
        raise ValueError("logits: expected the tokens in the last axis, got an array without axes")
    if not 1 <= shape[-1] <= TOKENS:
        kind = OverflowError if shape[-1] else ValueError
        raise kind(f"logits: expected 1 to 2^20 tokens in the last axis, got {shape[-1]}")
    return shape[:-1]


Settings: TypeAlias = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


def settings_of(batch: int, temperature: Any, top_k: Any, top_p: Any) -> Settings:
    """Returns the checked temperature, top_k and top_p, one for all samples or one for each."""
    if type(temperature) is float and type(top_k) is int and type(top_p) is float:
        return _settings_of_numbers(temperature, top_k, top_p)
    return _settings(batch, temperature, top_k, top_p)


@lru_cache(64)  # of numbers it takes a quarter of a small call
def _settings_of_numbers(temperature: float, top_k: int, top_p: float) -> Settings:
    return _settings(1, temperature, top_k, top_p)


def _settings(batch: int, temperature: Any, top_k: Any, top_p: Any) -> Settings:
    heat = _setting("temperature", temperature, "iuf", batch).astype(np.float64)
    if (bad := ~((heat == 0) | ((heat >= LEAST) & (heat <= MOST)))).any():
        raise ValueError(f"temperature = {heat[bad][0]}: expected 0, or a number from 2^-64 to 2^64")
    k = _setting("top_k", top_k, "iu", batch)
    if (bad := (k < 0) | (k > np.iinfo(np.int64).max)).any():
        raise ValueError(f"top_k = {k[bad][0]}: expected an integer >= 0 and below 2^63; 0 keeps all tokens")
    p = _setting("top_p", top_p, "iuf", batch).astype(np.float64)
    if (bad := ~((p > 0) & (p <= 1))).any():
        raise ValueError(f"top_p = {p[bad][0]}: expected a number in (0, 1]")
    if len({len(heat), len(k), len(p)}) > 1:
        heat, k, p = (np.ascontiguousarray(np.broadcast_to(a, batch)) for a in (heat, k, p))
    return heat, k.astype(np.int64), p


def _setting(name: str, value: Any, kinds: str, batch: int) -> NDArray[Any]:
    array = arrays.as_numbers(name, value)
    if array.dtype.kind not in kinds:
        what = "integers" if kinds == "iu" else "numbers"
        raise TypeError(f"{name}: expected {what}, got {array.dtype if array.dtype != object else repr(value)}")
    if array.ndim == 0:
        return array.reshape(1)
    if array.shape != (batch,):
        raise ValueError(f"{name}: expected a number or one for each of {batch} samples, got shape {array.shape}")
    return np.ascontiguousarray(array)


def _places(
    noise: Any, shape: tuple[int, ...], positions: Any
) -> tuple[tuple[Noise, ...], int, int, NDArray[np.int64]]:
    """Returns the names without windows, the first token, the size of the vocabulary, and the position of each row."""
    rows = shape[:-1]
    names_of(noise)
    names, _ = names_or_array(noise, shape, np.dtype(np.float32), bool(rows), RACE)
    windows = {(name.window_shape, name.window_start) for name in names}
    parts = {(full[-1], start[-1]) if full else (shape[-1], 0) for full, start in windows}
    if len(parts) > 1:
        raise ValueError("noise: expected windows with the same part of the vocabulary, got several")
    vocabulary, first = parts.pop() if parts else (shape[-1], 0)
    if vocabulary > TOKENS:
        raise OverflowError(f"noise: its window has a vocabulary of {vocabulary} tokens, expected at most 2^20")
    if positions is None and math.prod(rows) <= _FEW and all(name.window_shape is None for name in names):
        return _whole(names), first, vocabulary, _places_of_few(rows)
    if positions is not None:
        places = arrays.as_numbers("positions", positions)
        if places.dtype.kind not in "iu":
            raise TypeError(f"positions: expected integers, got {places.dtype}")
        places = arrays.spread("positions", places, rows)
    else:
        places = _counted(names, rows, math.prod(rows[1:]))
    if places.size and (int(places.min()) < 0 or int(places.max()) >= POSITIONS):
        bad = places[(places < 0) | (places >= POSITIONS)].flat[0]
        raise OverflowError(f"positions: {bad} is out of range: expected 0 <= position < 2^31")
    return _whole(names), first, vocabulary, np.ascontiguousarray(places, np.int64).reshape(-1)


def _whole(names: tuple[Noise, ...]) -> tuple[Noise, ...]:
    return tuple(whole(name, RACE) for name in names)


_FEW = 256  # rows


@lru_cache(64)  # of few rows they take a quarter of a call
def _places_of_few(rows: tuple[int, ...]) -> NDArray[np.int64]:
    """Returns the position of each row, without windows."""
    return np.resize(np.arange(math.prod(rows[1:]), dtype=np.int64), math.prod(rows))


def _counted(names: tuple[Noise, ...], rows: tuple[int, ...], of_sample: int) -> NDArray[np.int64]:
    """Returns the positions in the order of the rows, or in that of the windows' samples."""
    place = np.arange(of_sample)
    each = []
    for name in names:
        if name.window_shape is None or len(rows) < 2:
            each.append(place)
            continue
        index = np.unravel_index(place, rows[1:])
        moved = tuple(i + start for i, start in zip(index, name.window_start[:-1], strict=True))
        each.append(np.ravel_multi_index(moved, name.window_shape[:-1]))
    return np.broadcast_to(np.stack(each) if each else place, (rows[0] if rows else 1, of_sample)).reshape(rows)


def token_dtype(dtype: Any, out: Any) -> np.dtype[Any]:
    if dtype is not None:
        return arrays.allowed_dtype(dtype, TOKEN_DTYPES)
    kind = out.dtype if arrays.is_array(out) else np.dtype(np.int64)
    if kind not in TOKEN_DTYPES:
        raise TypeError(f"out: dtype {kind}: expected one of {', '.join(TOKEN_DTYPES)}")
    return kind


def _check_whole_chunks(first: int, n: int, vocabulary: int, settings: Any, chosen: Any, out: Any) -> None:
    if _cuts_a_chunk(first, n, vocabulary):
        raise ValueError(
            f"noise: its window has tokens {first} .. {first + n - 1} of {vocabulary}: expected a part of the "
            f"vocabulary that begins and ends with chunks of {LOSS_CHUNK}"
        )
    _, k, p = settings
    if (k != 0).any() or (p != 1).any():
        raise ValueError("top_k, top_p: expected neither with partial=True: they need the whole vocabulary")
    if chosen is not None or out is not None:
        raise ValueError("where, out: expected neither with partial=True")


def _cuts_a_chunk(first: int, n: int, vocabulary: int) -> bool:
    return bool(first % LOSS_CHUNK or (n % LOSS_CHUNK and first + n != vocabulary))


def _parts(size: int, chunks: int, wanted: tuple[str, ...]) -> Parts:
    plain, tempered = (np.zeros((size, chunks)) if name in wanted else None for _, name in _SUMS)
    score, winner = np.zeros(size), np.zeros(size, np.float32)
    return Parts(score, winner, np.zeros((size, chunks), np.float32), plain, tempered)


def log_softmax_at(
    logits: Any, ids: Sequence[Any], temperature: float, read: NDArray[np.bool_], hidden: int = -1
) -> tuple[Any, ...]:
    """Returns the log-probabilities of tokens (B, L), one array for each of ids, and the logarithm of the sum of the
    logits' exponentials: from the kernel's sums, in one pass over the rows that are read. The others, and tokens beyond
    the logits and the hidden one, have -inf, and their logarithm is 0."""
    n, size = logits.shape[-1], read.size
    flat = arrays.contiguous(arrays.as_array("logits", logits, LOGITS)).reshape(size, n)
    parts = _parts(size, -(-n // LOSS_CHUNK), OF_PARTS)
    settings, places = settings_of(1, temperature, 0, 1.0), np.zeros(size, np.int64)
    chosen = arrays.contiguous(read).reshape(-1)
    bad = _read((1, size), n, 0, flat, places, chosen, settings, (Noise(0),), None, {}, parts, hidden)
    most = parts.largest.max(axis=1).astype(np.float64)
    most[bad != 0] = np.nan

    def ln(sums: Any, heat: float) -> Any:
        return np.log((np.exp((parts.largest - most[:, None]) / heat) * sums).sum(axis=1))

    with np.errstate(divide="ignore", invalid="ignore"):
        log_sums, log_tempered = most + ln(parts.plain, 1.0), ln(parts.tempered, temperature)
        tokens = [one.reshape(-1).astype(np.int64) for one in ids]
        x = [flat[np.arange(size), one.clip(0, n - 1)].astype(np.float64) for one in tokens]
        log_probs = [(each - most) / temperature - log_tempered for each in x]
    may_be = [read.reshape(-1) & (one >= 0) & (one < n) & (one != hidden) for one in tokens]
    log_probs = [np.where(inside, each, -np.inf) for inside, each in zip(may_be, log_probs, strict=True)]
    return tuple(one.reshape(read.shape) for one in (*log_probs, np.where(read.reshape(-1), log_sums, 0.0)))
