# SPDX-License-Identifier: Apache-2.0
"""The engine of samplers of tokens: it runs the rows of a `TokenTable`, one for each model call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments.arrays import allowed_dtype, as_numbers, check_overlap, host_view, is_array, output
from ..arguments.options import fast_path, lengths
from ..ground import notebook
from ..ground.checks import check_integer, check_number, first_of
from ..ground.libraries import library, library_for, library_of
from ..language.levels import LOGITS
from ..language.noise import MASKS, START, Noise, Noises, each
from ..sampling.arrays import asked, bar
from .categorical import TokenInfo, log_softmax_at, settings_of
from .cross_entropy import masked_cross_entropy_and_grad
from .draws import Clean, draw, of_clean
from .forward import DTYPES, allowed_of, check_within, names_for, scaled_words, token_of, tokens_of, vocabulary_of
from .partial_steps import PartialStep
from .steps import Drawn, Law, certain, fast_row, law, next_tokens, positions, wanted_info
from .table import TokenRow, TokenTable

__all__ = ["DiscreteSampler", "TokenState"]

Array = Any


class TokenState:
    """The memory of a run from step to step: `DiscreteSampler.state` makes it.

    Attributes:
        calls: how many steps were taken: the network's calls in `DiscreteSampler.sample`.
        drawn: the tokens that the last step drew, int64 of x's shape, and x where none was drawn: the network's view of
            the clean sample.
        taken: bool, the positions that took their drawn token in the last step.
        info: the `TokenInfo` of the last step, arrays of x's shape: what `categorical` was asked to tell.
        log_prob: the log-probability of all steps so far that were asked for theirs, (B,), or None.
    """

    __slots__ = ("asked", "calls", "drawn", "info", "log_prob", "taken")

    def __init__(self, asked: tuple[str, ...] = ()) -> None:
        self.asked: tuple[str, ...] = asked
        self.calls: int = 0
        self.drawn: Any = None
        self.taken: Any = None
        self.log_prob: Any = None
        self.info: TokenInfo[Any] = TokenInfo()

    def __repr__(self) -> str:
        return f"TokenState({'nothing is remembered' if self.drawn is None else 'the last drawn tokens'})"


class DiscreteSampler:
    """Runs a table of rows on tokens. It is immutable and safe to share between threads.

    Args:
        table: the rows; see `samplers` for functions that make them, such as `samplers.mdlm`.

    Row i is the i-th model call: ``len(sampler)`` counts model calls. At step i the noise of a run is drawn at step
    ``noise.step + i``, from stream 13 the tokens of the network's distribution (`categorical`), from 14 what becomes of
    each position, from 15 tokens of the whole vocabulary, from 16 an order of positions (docs/noise.md).

    >>> sampler = nf.samplers.mdlm(steps=4, mask_id=9)
    >>> len(sampler), sampler.times.round(4).tolist()
    (4, [1.0, 0.75, 0.5, 0.25])
    """

    __slots__ = ("_plain", "table")

    table: TokenTable
    _plain: tuple[Any, ...]

    def __init__(self, table: TokenTable) -> None:
        if not isinstance(table, TokenTable):
            raise TypeError(f"table: expected a TokenTable, got {type(table).__name__}")
        if table.mask_id is not None:
            check_integer("mask_id", table.mask_id)
        if table.vocabulary is not None:
            vocabulary_of(table.vocabulary, np.dtype(np.int64))
        check_number("guidance", table.guidance)
        temperature, top_p = check_number("temperature", table.temperature), check_number("top_p", table.top_p)
        heat = [temperature, *{temperature * row.temperature for row in table.rows}]
        settings_of(len(heat), heat, check_integer("top_k", table.top_k), top_p)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "_plain", tuple(fast_row(table, row) for row in table.rows))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a DiscreteSampler is frozen: make another one")

    def __len__(self) -> int:
        return len(self.table.rows)

    def __eq__(self, other: object) -> bool:
        return self.table == other.table if isinstance(other, DiscreteSampler) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.table)

    def __repr__(self) -> str:
        plural = "" if len(self) == 1 else "s"
        return f"DiscreteSampler({self.table.name}, {len(self)} row{plural})\n{self.table.equations(6)}"

    def _repr_html_(self) -> str:
        """The rows of the repr as a table, for notebooks."""
        return notebook.equations(repr(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return DiscreteSampler, (self.table,)

    @property
    def times(self) -> NDArray[np.float64]:
        """The time of each row, which the network is told."""
        return np.array([row.time for row in self.table.rows])

    def state(self, *info: str) -> TokenState:
        """Returns an empty state, for one run. It also keeps the info of `categorical` with these names, such as
        "log_prob_raw"."""
        return TokenState(info)

    def start(self, shape: Sequence[int], noise: Noises | None = None, *, dtype: Any = "int64") -> NDArray[Any]:
        """Returns the x (B, L) that a run begins with: masks, or tokens of the whole vocabulary, floor(u V / 2^64) of
        the words of stream 2.

        >>> nf.samplers.mdlm(steps=4, mask_id=9).start((1, 3)).tolist()
        [[9, 9, 9]]
        """
        full, kind = lengths(shape), allowed_dtype(dtype, DTYPES)
        if len(full) < 2:
            raise ValueError(f"shape: expected (B, L), got {full}")
        if self.table.source == "mask":
            return np.full(full, token_of("mask_id", self.table.mask_id, kind), kind)
        if noise is None:
            raise TypeError(f"noise: {self.table.name} begins with random tokens; expected a Noise, got none")
        vocabulary = self.table.vocabulary
        assert vocabulary is not None
        tokens: NDArray[Any] = scaled_words(full, names_for(noise, full, START), vocabulary).astype(kind)
        return tokens

    def step(
        self, i: int, x: Array, logits: Array | tuple[Array, Array], noise: Noises, state: TokenState | None = None, *,
        where: Any = None, lengths: Any = None, log_prob: bool = False, partial: bool = False, out: Array | None = None,
    ) -> Any:  # fmt: skip
        """Returns the next x, from row i, the tokens x and the network's logits for them.

        Args:
            i: the row.
            x: the tokens (B, L), or (B, ..): int64, int32, uint8 or uint16, of NumPy or torch.
            logits: the logits of the clean tokens, or log-scores for `samplers.sedd`; of x's shape and an axis of V
                more, float32, float16 or bfloat16. That of the mask is ignored, if there is one. Or a pair (u, c) for
                guidance.
            noise: the noise of the whole run, not of this step: a Noise, or a list of one for each sample. With
                ``noise.window((L,), (start,))`` x and the logits are a part of each sample, such as a block, and the
                draws are those of that part of the whole. Rows by rank rank the part's positions alone: that is the
                whole's step if all masks that the row may reveal lie in the part, as those of a block of
                `samplers.llada` do. Other parts, such as a rank's shard of a sequence, need `partial`.
            state: keeps what the step drew.
            where: bool, of a shape that broadcasts to x's: the tokens that may change. None: all.
            lengths: integers (B,): only the first tokens of a sample may change, so many.
            log_prob: also return log p(x' | x), (B,), in float64; see `log_prob`.
            partial: True if other parts of the samples have masks that the row may reveal, too. The result is then a
                `discrete.PartialStep`, for `discrete.combine_steps`.
            out: an array of x's shape and dtype to write to; it may be x itself.

        Returns:
            The next x, of x's kind, shape and dtype, or with log_prob the pair of it and (B,); or a
            `discrete.PartialStep`.

        Raises:
            TypeError, ValueError, IndexError: the message says what was given and what was expected.

        >>> sampler = nf.samplers.mdlm(steps=2, mask_id=4)
        >>> x, logits = sampler.start((1, 6)), np.zeros((1, 6, 4), np.float32)
        >>> x = sampler.step(0, x, logits, nf.Noise(7))
        >>> int((x == 4).sum())
        3
        """
        if lengths is not None:
            where = _allowed(where, lengths, x)
        library = None if type(x) is np.ndarray else library_of(x)
        fast = backends.fast_token_step if library is None else fast_path(library, "fast_token_step")
        plain = self._plain[i] if type(i) is int and 0 <= i < len(self._plain) and fast is not None else None
        in_short = not (log_prob or partial) and (state is None or (type(state) is TokenState and not state.asked))
        if plain is not None and in_short:
            result_and_memory = fast(plain, i, x, logits, noise, where, out)
            if result_and_memory is not NotImplemented:
                x_next, *memory = result_and_memory
                if state is not None:
                    (state.drawn, state.taken), state.info, state.calls = memory, TokenInfo(), state.calls + 1
                return x_next
        row = self._row(i)
        self._check_state(state)
        if library is not None:
            options: dict[str, Any] = {"where": where, "log_prob": log_prob, "partial": partial, "out": out}
            return library.through(self.step, i, x, logits, noise, state, **options)
        if partial and (state is not None or log_prob or out is not None):
            raise ValueError("state, log_prob, out: expected none with partial=True: they are of the whole step")
        tokens = tokens_of("x", x)
        result = output("out", out, tokens.shape, tokens.dtype)
        check_overlap([("out", result)], [tokens])
        flat, may = self._may(row, tokens, where, noise)
        clean_logits = of_clean(self.table, row, flat, self._logits(logits, flat.shape), may)
        name = each(noise, lambda name: name.at(step=name.step + int(i)))
        info = wanted_info(self.table, row, log_prob, () if state is None else state.asked)
        drawn = draw(self.table, row, clean_logits, name, may, info)
        _check_room(drawn.token, tokens.dtype)
        if partial:
            return PartialStep.of(self.table, row, flat, drawn, name, may)
        x_next_flat, taken = next_tokens(self.table, row, flat, drawn, name, may)
        log_probs = self._likely(row, flat, x_next_flat, clean_logits, may, drawn, taken) if log_prob else None
        result[...] = x_next_flat.reshape(tokens.shape)
        if state is not None:
            state.drawn = np.where(may, drawn.token, flat).reshape(tokens.shape)
            state.taken, state.calls = taken.reshape(tokens.shape), state.calls + 1
            asked = {one: getattr(drawn.info, one).reshape(tokens.shape) for one in state.asked}
            state.info = TokenInfo(**asked)
            if log_probs is not None:
                state.log_prob = log_probs if state.log_prob is None else state.log_prob + log_probs
        return result if log_probs is None else (result, log_probs)

    def log_prob(
        self, i: int, x: Array, logits: Array | tuple[Array, Array], x_next: Array, *, where: Any = None,
        lengths: Any = None,
    ) -> Any:  # fmt: skip
        """Returns log p(x' | x) of row i, (B,) in float64: a sum over positions. The drawn tokens are summed out.

        Tokens x' that cannot be drawn, such as those beyond the vocabulary, have -inf.

        For rows by rank it is the log-probability of the tokens, given the positions that take them. `samplers.llada`,
        and `samplers.entropy_bound` with masks, show these positions in x'. `entropy_bound` of a vocabulary finds them
        by the logits' entropies, and each of its other positions has the probability 1 / V. For tensors it has a
        gradient with respect to the logits, weights times (one-hot - softmax).

        Raises:
            ValueError: the sampler has top_k or top_p. Then only ``step(.., log_prob=True)`` knows the probability, for
                samplers of masks alone.

        >>> sampler = nf.samplers.mdlm(steps=1, mask_id=4)
        >>> x, logits = sampler.start((1, 6)), np.zeros((1, 6, 4), np.float32)
        >>> sampler.log_prob(0, x, logits, np.zeros((1, 6), np.int64)).round(4).tolist()  # 6 ln(1/4)
        [-8.3178]
        """
        where = _allowed(where, lengths, x)
        if type(x) is not np.ndarray and (library := library_of(x)) is not None:
            return library.token_log_prob(self, i, x, logits, x_next, where)
        return self.log_prob_parts(i, x, logits, x_next, where)[0].sum(axis=1)

    def log_prob_parts(
        self, i: int, x: Array, logits: Array | tuple[Array, Array], x_next: Array, where: Any = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Returns log p(x' | x) of each position, and its derivatives by the network's log-probabilities of the tokens
        x' and x, each (B, L) in float64."""
        row, tokens, to = self._row(i), tokens_of("x", x), tokens_of("x_next", x_next)
        if to.shape != tokens.shape:
            raise ValueError(f"x_next: expected shape {tokens.shape}, got {to.shape}")
        (flat, may), after = self._may(row, tokens, where), _by_sample(to)
        clean_logits = of_clean(self.table, row, flat, self._logits(logits, flat.shape), may)
        return tuple(self._law(row, flat, after, clean_logits, may))  # type: ignore[return-value]

    def log_prob_grad(
        self, i: int, x: Array, logits: Array, x_next: Array, upstream: ArrayLike = 1.0, *, where: Any = None,
        lengths: Any = None,
    ) -> NDArray[Any]:  # fmt: skip
        """Returns the gradient of ``(upstream * log_prob(i, x, logits, x_next)).sum()`` with respect to the logits.

        At each position it is (a (e_x' - p) + b (e_x - p)) / temperature, where p is the softmax and e a one-hot
        vector. a and b are the derivatives of the position's log-probability; for masks that are revealed a is 1, and b
        0. For each of the two it takes one pass over the logits.

        Args:
            upstream: a number or (B,).

        Returns:
            An array of the logits' shape and dtype.

        >>> sampler = nf.samplers.mdlm(steps=1, mask_id=2)
        >>> gradient = sampler.log_prob_grad(0, np.array([[2]]), np.zeros((1, 1, 2), np.float32), np.array([[1]]))
        >>> gradient.tolist()
        [[[-0.5, 0.5]]]
        """
        if isinstance(logits, tuple):
            raise TypeError("logits: expected one array, the guided logits, got a pair")
        where = _allowed(where, lengths, x)
        x, logits, x_next = host_view("x", x), host_view("logits", logits), host_view("x_next", x_next)
        return self.pulled(i, x, logits, x_next, upstream, *self.log_prob_parts(i, x, logits, x_next, where)[1:])

    def pulled(
        self, i: int, x: Array, logits: Array, x_next: Array, upstream: ArrayLike, by_next: Any, by_own: Any
    ) -> NDArray[Any]:
        """Returns `log_prob_grad` from what `log_prob_parts` found."""
        row, shape = self._row(i), by_next.shape
        temperature = self._temperature(row)
        above = as_numbers("upstream", upstream)
        if above.dtype.kind not in "iuf" or above.shape not in ((), shape[:1]):
            raise ValueError(f"upstream: expected a number or {shape[:1]} of them, got {above.dtype} {above.shape}")
        factor = np.broadcast_to(above.astype(np.float64), shape[:1])[:, None] / temperature
        ids = x_next.reshape(shape), x.reshape(shape)
        values, hidden = of_clean(
            self.table, row, ids[1], logits.reshape(*shape, logits.shape[-1]), (by_next != 0) | (by_own != 0)
        )
        if hidden >= 0:
            values = values.copy()
            values[..., hidden] = -math.inf
        if temperature != 1 or by_own.any():
            values = values.astype(np.float32) / np.float32(temperature)
        gradient: Any = None
        for one, by in zip(ids, (by_next, by_own) if by_own.any() else (by_next,), strict=False):
            back: dict[str, Any] = {"reduction": "none", "upstream": -by * factor}
            # of the loss, so -by
            part = masked_cross_entropy_and_grad(values, one.astype(np.int64), by != 0, **back)[1]
            gradient = part if gradient is None else np.add(gradient, part, out=gradient)
        typed: NDArray[Any] = gradient.reshape(logits.shape).astype(logits.dtype, copy=False)
        return typed

    def sample(
        self, model: Callable[[Any, Any], Any], x_or_shape: Any, noise: Noises, *, start: int = 0, where: Any = None,
        lengths: Any = None, dtype: Any = "int64", device: Any = None, progress: bool = False,
        callback: Callable[[int, Any, Any], object] | None = None, log_probs: bool = False,
        state: TokenState | None = None,
    ) -> Any:  # fmt: skip
        """Runs the rows from ``start`` to the end, but for those that find no mask that they may reveal, and can change
        no token: the network is not asked for them.

        Args:
            model: model(x, t) -> logits, or a pair (u, c) of them; t is the row's time, a float, or float32 (B,) for
                tensors.
            x_or_shape: the shape (B, L) of a new sample, or the tokens x at row ``start``, which are not changed: a
                prompt and masks after it, say.
            noise: a Noise, or a list of one for each sample; with a window x is a part of each sample, as in ``step``.
            start: the first row. A run that was interrupted after row i goes on with ``start=i + 1`` to the same bits.
            where, lengths: the tokens that may change, as in ``step``. Without `where`, samplers that change tokens
                change a prompt.
            dtype: the dtype of a new sample, NumPy's or, with ``device``, torch's.
            device: a device of torch, for a new sample of tensors: a network in torch needs it.
            progress: show a bar (needs tqdm).
            callback: callback(i, x, drawn) after each row that ran; drawn are the tokens drawn from the network's
                distribution.
            log_probs: also return log p(x' | x) of each row.
            state: keeps what the last row drew, and counts the network's calls, `state.calls`.

        Returns:
            The tokens, or with log_probs the pair of them and a list of (B,), one for each row.

        >>> def model(x, t):
        ...     return np.zeros((*x.shape, 9), np.float32)
        >>> x = nf.samplers.mdlm(steps=4, mask_id=9).sample(model, (2, 5), nf.Noise(7))
        >>> x.shape, bool((x < 9).all())
        ((2, 5), True)
        """
        if not 0 <= check_integer("start", start) < len(self):
            raise IndexError(f"start = {start}: expected a row, 0 .. {len(self) - 1}")
        if not callable(model):
            raise TypeError(f"model: expected a function, or a network, of (x, t), got {type(model).__name__}")
        x = self._begun(x_or_shape, noise, start, dtype, device)
        log_probs_of_rows, is_new = [], isinstance(x_or_shape, list | tuple) and device is None
        self._check_state(state)
        where = _allowed(where, lengths, x)
        state = self.state() if state is None else state
        for i in bar(range(start, len(self)), progress):
            if self._is_done(i, x, where, noise):
                if log_probs:
                    log_probs_of_rows.append(library_for(x).moved(np.zeros(len(x)), x))
                continue
            logits = asked(model, x, self._time(i, x), _HINT) if i == 0 and is_new else model(x, self._time(i, x))
            stepped = self.step(i, x, logits, noise, state, where=where, log_prob=log_probs)
            if log_probs:
                x, row_log_prob = stepped
                log_probs_of_rows.append(row_log_prob)
            else:
                x = stepped
            if callback is not None:
                callback(i, x, state.drawn if isinstance(x, np.ndarray) else library_for(x).moved(state.drawn, x))
        return (x, log_probs_of_rows) if log_probs else x

    # ---- parts of a step -----------------------------------------------------------------------------------

    def _row(self, i: int) -> TokenRow:
        number = check_integer("i", i)
        if not 0 <= number < len(self):
            raise IndexError(f"i = {i} is out of range: {self.table.name} has {len(self)} rows")
        return self.table.rows[number]

    def _check_state(self, state: Any) -> None:
        if not isinstance(state, TokenState | None):
            own = f"{self.table.name}'s own, sampler.state(), one per run"
            raise TypeError(f"state: expected {own}, got {type(state).__name__}")

    def _may(
        self, row: TokenRow, tokens: Array, where: Any, noise: Noises | None = None
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Returns the tokens (B, L), and which of them may take a drawn one."""
        flat, allowed = self._flat(tokens), allowed_of(where, None, tokens.shape)
        names = () if noise is None else names_for(noise, flat.shape, MASKS)
        return flat, positions(self.table, row, flat, None if allowed is None else allowed.reshape(flat.shape), names)

    def _is_done(self, i: int, x: Any, where: Any, noise: Noises) -> bool:
        """Tells whether row i changes no token, whatever the network says."""
        row = self.table.rows[i]
        if row.touches_tokens or self.table.mask_id is None:
            return False
        return not self._may(row, tokens_of("x", library_for(x).to_numpy(x)), where, noise)[1].any()

    def _flat(self, x: Array) -> Array:
        """Returns x (B, L). ValueError: a token lies beyond the vocabulary that all tokens are drawn from.
        OverflowError: x's dtype does not hold the mask."""
        if self.table.mask_id is None and self.table.vocabulary is not None:
            check_within("x", x, self.table.vocabulary)
        if self.table.mask_id is not None:
            token_of("mask_id", self.table.mask_id, x.dtype)
        return _by_sample(x)

    def _temperature(self, row: TokenRow) -> float:
        return self.table.temperature * row.temperature

    def _time(self, i: int, x: Any) -> Any:
        t = self.table.rows[i].time
        library = library_for(x)
        return library.times(x, np.float64(t), "float32") if library.time == "batch" else t

    def _begun(self, x_or_shape: Any, noise: Any, start: int, dtype: Any, device: Any) -> Any:
        if not isinstance(x_or_shape, list | tuple):
            if device is not None:
                raise TypeError("device: expected None where x is given, which lies somewhere already")
            if not is_array(x_or_shape) and library_of(x_or_shape) is None:
                kind = type(x_or_shape).__name__
                raise TypeError(f"x_or_shape: expected a shape (B, L), or tokens of that shape, got {kind}")
            return host_view("x", x_or_shape)
        if start:
            raise TypeError(f"a new sample begins at row 0; for start={start} give the tokens x of that row")
        if device is None:
            return self.start(x_or_shape, noise, dtype=dtype)
        named = dtype if library_of(dtype) is None else str(dtype).removeprefix("torch.")
        return library("torch").on_device(self.start(x_or_shape, noise, dtype=named), device)

    def _logits(self, logits: Any, shape: tuple[int, ...]) -> Any:
        """Returns the logits (B, L, V) as an array, those of a pair guided."""
        if isinstance(logits, tuple):
            if len(logits) != 2:
                raise ValueError(f"logits: expected an array or a pair (u, c), got {len(logits)} of them")
            u, c = (self._array(one, shape).astype(np.float32) for one in logits)
            if u.shape != c.shape:
                raise ValueError(f"logits: expected a pair (u, c) of one shape, got {u.shape} and {c.shape}")
            return self.guided(u, c, np.where)
        if self.table.guidance:
            raise TypeError(f"logits: expected a pair (u, c), as guidance is {self.table.guidance:g}, got one array")
        return self._array(logits, shape)

    def guided(self, u: Any, c: Any, where: Callable[..., Any]) -> Any:
        """Returns u + (1 + guidance) (c - u), and -inf where u or c is -inf: what either forbids stays forbidden."""
        with np.errstate(invalid="ignore"):
            mixed = u + (c - u) * (1 + self.table.guidance)
        return where((u == -math.inf) | (c == -math.inf), -math.inf, mixed)

    def _array(self, logits: Any, shape: tuple[int, ...]) -> Any:
        array = host_view("logits", logits)
        if not isinstance(array, np.ndarray):
            kind = type(logits).__name__
            if library_of(logits) is not None:
                hint = f"for a network in torch give device= or x as a {kind}"
                raise TypeError(f"logits: expected a NumPy array, as x is one, got {kind}; {hint}")
            raise TypeError(f"logits: expected an array of x's kind, got {kind}")
        if array.dtype.name not in LOGITS:
            raise TypeError(f"logits: dtype {array.dtype} is not supported, expected one of {', '.join(LOGITS)}")
        length = math.prod(array.shape[1:-1]) if array.ndim > 1 else 0
        if array.ndim < 3 or (len(array), length) != shape:
            raise ValueError(f"logits: expected x's shape {shape} and an axis of V, got {array.shape}")
        if self.table.vocabulary is not None and array.shape[-1] < self.table.vocabulary:
            tokens = f"at least the {self.table.vocabulary} tokens of the vocabulary"
            raise ValueError(f"logits: expected {tokens} in the last axis, got {array.shape[-1]}")
        return array.reshape(*shape, array.shape[-1])

    def _likely(
        self, row: TokenRow, x: Any, to: Any, clean: Clean, may: NDArray[np.bool_], drawn: Drawn,
        taken: NDArray[np.bool_],
    ) -> NDArray[np.float64]:  # fmt: skip
        if row.touches_tokens or self.table.mask_logit == "keep":
            return np.asarray(self._law(row, x, to, clean, may).log_prob.sum(axis=1))
        of_next, of_own = np.where(taken, drawn.info.log_prob, -np.inf), np.zeros(x.shape)
        return np.asarray(law(self.table, row, x, to, may, of_next, of_own, drawn.total, taken).log_prob.sum(axis=1))

    def _law(self, row: TokenRow, x: Any, to: Any, clean: Clean, may: NDArray[np.bool_]) -> Law:
        if self.table.top_k or self.table.top_p < 1:
            raise ValueError(f"log_prob: expected no top_k and top_p, got {self.table.top_k} and {self.table.top_p}")
        temperature = self._temperature(row)
        if temperature == 0:
            raise ValueError("log_prob: expected a temperature above 0, as it has no density at 0")
        of_next, of_own, total = log_softmax_at(clean.logits, (to, x), temperature, may, clean.hidden)
        taken = None
        if row.bound is not None and self.table.mask_id is None:  # as step finds them, from the same bits
            taken = certain(row.bound, draw(self.table, row, clean, Noise(0), may, ("entropy",)).info.entropy, may)
        return law(self.table, row, x, to, may, of_next, of_own, total, taken)


def _check_room(drawn: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
    """Raises OverflowError, with the place, if ids of this dtype do not hold a drawn token."""
    most = np.iinfo(dtype).max
    if (beyond := drawn > most).any():
        first = first_of("drawn", beyond, drawn)
        raise OverflowError(f"logits: {first}, which ids of {dtype} do not hold: expected at most {most}")


def _by_sample(tokens: Any) -> Any:
    return tokens.reshape(len(tokens), math.prod(tokens.shape[1:]))


_HINT = 'for a network in torch give device="cpu"'


def _allowed(where: Any, lengths: Any, x: Any) -> Any:
    """Returns the tokens that may change, or `where` itself without lengths."""
    return where if lengths is None else allowed_of(where, lengths, np.shape(x))
