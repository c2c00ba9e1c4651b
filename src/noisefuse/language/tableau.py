# SPDX-License-Identifier: Apache-2.0
"""A sampler as a table of numbers: every step is one row, applied to every element by one kernel.

A row is a sandwich, affine -> clamp -> affine + noise:

    D    = clamp(k + p_x x + p_1 m1 + p_2 m2, lo, hi)                  the predicted clean sample
    out  = k + a x + b_1 m1 + b_2 m2 + c D + h_1 past1 + .. + h_4 past4 + s z
    aux1 = another linear combination, aux2 = and another              kept for later steps

x is the current sample, m1 and m2 are model outputs, past1 .. past4 remembered arrays (past1 the newest) and
z is standard normal noise. Rules write rows in these symbols::

    from noisefuse.tableau import D, Row, x, z
    Row(clean=(x - sigma * m1) / alpha, out=(keep / sigma) * x + (1 - keep / sigma) * D + fresh * z)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from ..ground import notebook, stored
from ..ground.checks import check_number
from ..ground.constants import Constant
from ..ground.kept import kept_property
from .affine import ZERO, Affine, D, Row, equation, k, m1, m2, past, x, z
from .rows import AFFINE, COLUMNS, HIGH, LOW, NAMES, OUTPUTS, PAST1, PAST_SYMBOLS, PASTS, ROW, SYMBOLS, Rows, layout

__all__ = ["ROW", "ZERO", "Affine", "D", "Row", "Tableau", "k", "m1", "m2", "past", "x", "z"]

Array: TypeAlias = npt.NDArray[np.float64]

# The inputs' names in error messages: users of `update` or `Sampler.step` know its arguments, not the symbols.
ARGUMENTS = {
    "x": "x",
    "m1": "model_output (m1)",
    "m2": "model_output (m2)",
    **{symbol: f"past[{n}]" for n, symbol in enumerate(PAST_SYMBOLS)},
    "z": "noise",
}
INPUTS = tuple(ARGUMENTS)

_ACTIVE = layout(np.bool_)
_BYTES = np.dtype((np.void, ROW.itemsize))
_DIGITS = bytes.maketrans(b"\0\1", b"01")
_PUSHES = {(push, denoised) for push in range(3) for denoised in range(min(push + 2, 3))}
_INTEGERS = partial(np.zeros, dtype=np.int64)
_RUN_COLUMNS: dict[str, Any] = {  # and their defaults
    "timesteps": np.arange, "push": _INTEGERS, "denoised": _INTEGERS, "scale": np.ones, "alpha": np.zeros,
    "sigma": np.zeros,
}  # fmt: skip


@lru_cache(64)
def _defaults(n: int) -> dict[str, Any]:
    """Returns the default columns of n rows, which tables share."""
    return {column: _frozen(default(n)) for column, default in _RUN_COLUMNS.items()}


def _frozen(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values.setflags(write=False)
    return values


def _stacked(rows: Iterable[Row]) -> npt.NDArray[np.void]:
    """Returns rows as (n,) of dtype ROW. An array may have no rows, for an empty batch; a table in code needs some."""
    listed = [*rows] if isinstance(rows, Iterable) else [rows]
    for row in listed:
        if not isinstance(row, Row):
            raise TypeError(f"rows: expected Row objects, or an array of dtype ROW, got {type(row).__name__}")
    if not listed:
        raise ValueError("rows: expected at least one Row")
    return np.concatenate([row.numbers() for row in listed]).view(ROW)[:, 0]


class Tableau(Constant):
    """An immutable table of rows, with the other numbers that a run needs.

    Tables with equal attributes, the name included, are equal and have the same hash.

    Args:
        rows: ``Row`` objects, or (n,) of dtype ``ROW``. A kernel rounds each coefficient once, to the
            arithmetic of the data.
        timesteps: (n,) integers or floats, the model's t in row i. Default: 0 .. n - 1.
        name: a name, which ``print`` shows.
        push: (n,) how many auxiliary outputs (0: none, 1: aux1, 2: both) become the newest past arrays after
            the row, aux1 first; older ones move back by as many slots. Default: zeros.
        denoised: (n,) which auxiliary output, 1 or 2, estimates the clean sample; 0: none does. It is one of the pushed
            outputs, or the next output after them. Default: zeros.
        scale: (n,) factors; the model is given scale[i] * x. Default: ones.
        alpha, sigma: (n,) the noise level at which a row begins, x = alpha x0 + sigma z. Default: zeros, unknown.
        start: the standard deviation of the noise that row 0 expects as x.
        threshold: (ratio, maximum) of dynamic thresholding (``samplers.Threshold``), or None.
        masked: the rows are gradients of a clamp, made by ``transpose``.
        active: 0-d, the layout of ``ROW`` in bools: the coefficients that are multiplied. A kernel does not read an
            input whose coefficients are all inactive, so 0 * inf never makes a NaN. Default: those that are nonzero
            (for bounds: finite) in any row.

    Raises:
        ValueError: a coefficient is NaN or infinite, or lo > hi (the message names row and column); a column has
            another length; ``push`` or ``denoised`` takes an auxiliary output that the row does not compute; a masked
            row reads D or has more than one output. (``Sampler`` refuses rows that read arrays which no row before them
            pushed: callers of ``update`` give the past themselves.)
        TypeError: name is no str, or masked is no bool.

    Attributes:
        The arguments. Arrays are read-only copies.

    >>> table = nf.samplers.euler(nf.Schedule.karras(4), steps=4).tableau
    >>> len(table), table.name
    (4, 'euler')
    """

    rows: npt.NDArray[np.void]
    timesteps: npt.NDArray[Any]
    name: str
    push: npt.NDArray[np.int64]
    denoised: npt.NDArray[np.int64]
    scale: Array
    alpha: Array
    sigma: Array
    start: float
    threshold: tuple[float, float] | None
    masked: bool
    active: npt.NDArray[np.void]
    numbers: Array
    """The rows as a plain (n, 36) float64 array, read-only, without a copy."""
    kept: dict[Any, Any]  # values that other modules compute from the table, by function: a table never changes

    def __init__(
        self, rows: Iterable[Row] | npt.NDArray[np.void], timesteps: npt.ArrayLike | None = None, name: str = "tableau",
        *, push: npt.ArrayLike | None = None, denoised: npt.ArrayLike | None = None, scale: npt.ArrayLike | None = None,
        alpha: npt.ArrayLike | None = None, sigma: npt.ArrayLike | None = None, start: float = 1.0,
        threshold: tuple[float, float] | None = None, masked: bool = False, active: npt.NDArray[np.void] | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(rows, np.ndarray):
            rows = _stacked(rows)
        if rows.dtype != ROW or rows.ndim != 1:
            raise ValueError(f"rows must have dtype ROW and shape (n,), got {rows.dtype} {rows.shape}")
        n = len(rows)
        columns = _defaults(n).copy()
        arguments = timesteps, push, denoised, scale, alpha, sigma
        for column, argument in zip(_RUN_COLUMNS, arguments, strict=True):
            if argument is None:
                continue
            values = np.array(argument, np.float64 if column in ("scale", "alpha", "sigma") else None)
            kind = values.dtype.kind
            if values.shape != (n,) or kind not in "iuf" or (kind == "f" and np.count_nonzero(np.isfinite(values)) < n):
                raise ValueError(f"{column} must be {n} finite numbers, got {values!r}")
            if column in ("push", "denoised") and values.dtype != np.int64:
                if np.any(values % 1):
                    raise ValueError(f"{column} must be {n} integers, got {values!r}")
                with np.errstate(invalid="ignore"):  # numbers beyond int64 are refused below, whatever they become
                    values = values.astype(np.int64)
            columns[column] = _frozen(values)
        if not isinstance(name, str):
            raise TypeError(f"name: expected a str, got {type(name).__name__}")
        if not isinstance(masked, bool | np.bool_):
            raise TypeError(f"masked: expected a bool, got {type(masked).__name__}")
        if threshold is not None:
            if len(threshold) != 2:
                raise ValueError(f"threshold: expected (ratio, maximum), got {threshold!r}")
            threshold = float(threshold[0]), float(threshold[1])
        # Copied as records, rows that are not contiguous would take six times as long.
        copied = (rows if rows.flags.c_contiguous else rows.view(_BYTES)).tobytes()
        self._set(copied, columns, name=name, start=float(start), threshold=threshold, masked=bool(masked))
        self._check()
        if push is not None or denoised is not None:
            self._check_kept()
        self.__dict__["active"] = self._nonzero if active is None else _frozen_mask(active)
        if self.masked:
            self._check_masked()

    def _set(self, rows: bytes, columns: dict[str, Any], **others: Any) -> None:
        """Sets the attributes. Arrays on bytes are read-only. It bypasses __setattr__, which refuses."""
        n = len(columns["push"])
        numbers = np.ndarray((n, COLUMNS), np.float64, rows)
        self.__dict__.update(columns, rows=np.ndarray(n, ROW, rows), numbers=numbers, kept={}, **others)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Tableau is immutable: cannot set {name!r}")

    def __reduce__(self) -> tuple[Callable[[str], Tableau], tuple[str]]:
        return Tableau.from_json, (self.to_json(),)  # unpickled arrays would be writable

    def __setstate__(self, state: object) -> NoReturn:
        stored.refuse_state(self)

    def _check(self) -> None:
        check_number("start", self.start, 0)
        numbers = self.numbers
        fit, lo, hi = np.isfinite(numbers), numbers[:, LOW], numbers[:, HIGH]
        fit[:, LOW] = fit[:, HIGH] = lo <= hi  # which NaN is not
        if np.count_nonzero(fit) < fit.size:
            fit[:, LOW : HIGH + 1] = ~np.isnan(numbers[:, LOW : HIGH + 1])
            for row, column in np.argwhere(~fit):
                raise ValueError(f"row {row} of {self.name!r}: {NAMES[column]} is {numbers[row, column]}")
            for row in np.flatnonzero(lo > hi):
                raise ValueError(f"row {row} of {self.name!r}: lo <= hi must hold, got {lo[row]} > {hi[row]}")
        if self.threshold is not None:
            ratio, maximum = self.threshold
            if not (0 <= ratio <= 1 and maximum >= 1):
                raise ValueError(f"threshold: expected 0 <= ratio <= 1 and maximum >= 1, got {ratio} and {maximum}")

    def _check_kept(self) -> None:
        """Checks that a row computes the auxiliary outputs that it pushes or gives as its estimate."""
        pairs = [*zip(self.push.tolist(), self.denoised.tolist(), strict=True)]
        kinds = {*pairs}
        if wrong := kinds - _PUSHES:
            row = min(map(pairs.index, wrong))
            given = "push {} and denoised {}".format(*pairs[row])
            raise ValueError(f"row {row} of {self.name!r}: there are two auxiliary outputs, got {given}")
        for n, first in enumerate(AFFINE[1 : 1 + max(map(max, kinds), default=0)], 1):
            computed = (self.numbers[:, first : first + len(SYMBOLS)] != 0).any(axis=1)
            if np.count_nonzero(computed) == len(self):
                continue
            for row in (computed < (np.maximum(self.push, self.denoised) >= n)).nonzero()[0].tolist():
                given = f"push {self.push[row]} and denoised {self.denoised[row]} take aux{n}"
                raise ValueError(f"row {row} of {self.name!r}: {given}, which the row does not compute")

    def _check_masked(self) -> None:
        """Checks that a masked row computes nothing but out and aux1, and neither of them from D."""
        read = [f"{output}.d" for output in OUTPUTS[:2] if self.active[output]["d"]]
        read += [f"aux2.{symbol}" for symbol in SYMBOLS if self.active["aux2"][symbol]]
        if read:
            raise ValueError(f"{self.name!r} is masked: expected rows without D and aux2, got {', '.join(read)}")
        for row in np.flatnonzero((self.push > 0) | (self.denoised > 0)):
            given = f"push {self.push[row]} and denoised {self.denoised[row]}"
            raise ValueError(f"row {row} of {self.name!r}: a masked row has one output, got {given}")
        if self.threshold is not None:
            raise ValueError(f"{self.name!r} is masked: expected no threshold, got {self.threshold}")

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tableau):
            return NotImplemented
        return self is other or (self._hash == other._hash and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    @property
    def _key(self) -> tuple[object, ...]:
        """The values by which tables are compared. Timesteps count by value: JSON keeps whether they are integers, but
        not their number of bits."""
        columns = tuple(tuple(getattr(self, name).tolist()) for name in _RUN_COLUMNS)
        run = self.timesteps.dtype.kind == "f", self.name, self.start, self.threshold, self.masked
        return self.rows.tobytes(), self.active.tobytes(), *columns, *run

    @kept_property
    def _hash(self) -> int:
        return hash(self._key)

    @property
    def _nonzero(self) -> npt.NDArray[np.void]:
        """The default of `active`."""
        found = self.numbers != 0
        found[:, LOW : HIGH + 1] = np.isfinite(self.numbers[:, LOW : HIGH + 1])
        return _mask(found.any(axis=0))

    @kept_property
    def as_rows(self) -> Rows:
        """The table as kernels take it."""
        digits = self.active.tobytes()[::-1].translate(_DIGITS)
        return Rows(self.numbers, int(digits, 2))

    @kept_property
    def slots(self) -> int:
        """The number of past arrays that the rows read, which is the deepest slot with a nonzero coefficient."""
        return max((slot - PAST1 + 1 for slot in self.as_rows.reads if slot in PASTS), default=0)

    # ---- new tables from this one --------------------------------------------------------------------------

    def mixed(self, pairs: Sequence[tuple[float, float]]) -> Tableau:
        """Replaces one model output by two, m1 -> p m1 + q m2. Each pair (p, q) gives all rows once.

        Row i of pair j is row j * n + i. This turns guidance into coefficients (``views.guidance``). If the rows read
        an m2 of their own, it stands for the first of the two outputs: in CFG++ this is the unconditional output, and
        m1 the guided one.
        """
        rows = np.tile(self.rows, len(pairs))
        p, q = (np.repeat(np.reshape(pairs, (-1, 2))[:, part], len(self)) for part in (0, 1))
        for group in ("clean", *OUTPUTS):
            own = rows[group]["m2"].copy()
            rows[group]["m2"] = q * rows[group]["m1"]
            rows[group]["m1"] = p * rows[group]["m1"] + own
        return self._with(rows, copies=len(pairs))

    def unfolded(self) -> Tableau:
        """Returns the same steps with D written out in x, m1 and m2.

        Raises:
            ValueError: D is clamped.
        """
        if self.clamps or self.threshold:
            raise ValueError(f"{self.name!r} bounds D, so D cannot be written out")
        rows = self.rows.copy()
        for output in OUTPUTS:
            weight = rows[output]["d"]
            for symbol in SYMBOLS[:4]:
                rows[output][symbol] += weight * rows["clean"][symbol]
            rows[output]["d"] = 0
        for symbol in SYMBOLS[:4]:
            rows["clean"][symbol] = 0
        return self._with(rows)

    def _with(self, rows: npt.NDArray[np.void], copies: int = 1) -> Tableau:
        """Returns this table with other rows, its columns repeated."""
        columns: dict[str, Any] = {name: np.tile(getattr(self, name), copies) for name in _RUN_COLUMNS}
        return Tableau(rows, name=self.name, start=self.start, threshold=self.threshold, **columns)

    @property
    def clamps(self) -> bool:
        """Tells whether any row bounds D."""
        active = self.active["clean"]
        return bool(active["lo"] or active["hi"])

    def transpose(self, outputs: int = 1) -> dict[str, Tableau]:
        """Returns backward rows: for each input that is read, the table that computes its gradient.

        With g_o the gradient of output o (the first ``outputs`` of out, aux1, aux2), a_o and c_o the
        coefficients of q and D in it, p that of q in D, and v the value of D before its clamp:

            grad_q = sum_o a_o g_o + [lo <= v <= hi] p sum_o c_o g_o

        The gradients are the past arrays of the backward call: g_out is past1, g_aux1 past2, g_aux2 past3. A table that
        does not clamp is folded, a_o + p c_o, and reads nothing but gradients. One that clamps is ``masked``: its
        "clean" is the forward row's and reads the forward x, m1, m2, and a kernel writes

            grad_q = out + (aux1 if lo <= v <= hi else 0)

        with both bounds inside, and 0 if v is NaN (the convention of torch.clamp). A masked table is linear in its
        gradients and, almost everywhere, constant in x, m1, m2, so its transposes are masked tables again.

        Returns:
            A dict of tables by input, x, m1, past1, .., without inputs that no output depends on.

        Raises:
            ValueError: dynamic thresholding makes the rows depend on the data.
        """
        if self.threshold:
            raise ValueError(f"the rows of {self.name!r} depend on the data (dynamic thresholding)")
        if not 1 <= outputs <= len(OUTPUTS):
            raise ValueError(f"outputs must be 1, 2 or 3, got {outputs}")
        if self.masked:
            return self._transpose_masked()
        forward = self if self.clamps else self.unfolded()
        tables = {}
        for symbol in INPUTS[:-1]:
            rows = np.zeros(len(self), ROW)
            rows["clean"] = forward.rows["clean"]
            for slot, output in enumerate(OUTPUTS[:outputs], 1):
                rows["out"][f"past{slot}"] = forward.rows[output][symbol]
                if symbol in INPUTS[:3]:
                    through_d = forward.rows[output]["d"] * forward.rows["clean"][symbol]
                    rows["aux1"][f"past{slot}"] = through_d
            if any(np.any(rows[o][f"past{s}"]) for o in ("out", "aux1") for s in (1, 2, 3)):
                name = f"{self.name}: gradient of {symbol}"
                tables[symbol] = Tableau(rows, self.timesteps, name, masked=self.clamps)
        return tables

    def _transpose_masked(self) -> dict[str, Tableau]:
        tables = {}
        for symbol in INPUTS[3:6]:
            rows = np.zeros(len(self), ROW)
            rows["clean"] = self.rows["clean"]
            for part in ("out", "aux1"):
                rows[part]["past1"] = self.rows[part][symbol]
            if np.any(rows["out"]["past1"]) or np.any(rows["aux1"]["past1"]):
                tables[symbol] = Tableau(rows, self.timesteps, f"{self.name}: gradient of {symbol}", masked=True)
        return tables

    @classmethod
    def trace(
        cls, step: Callable[..., Any], timesteps: npt.ArrayLike, *, inputs: Sequence[str] = ("x", "m1", "z"),
        tolerance: float = 1e-5, name: str = "trace",
    ) -> Tableau:  # fmt: skip
        """Returns the table of another implementation's step, found by probing it.

        Each input is set to 1 while the others are 0, and once all are 0: the answers are the coefficients. A second
        call with random numbers, from small to large ones, must then agree, so a step that is not affine is refused.

        Args:
            step: step(i, x=.., m1=.., ..) -> out, or a tuple of out, aux1, aux2. The ``inputs`` are float64 arrays of
                one shape (number of probes,). It must act element by element and remember nothing: remembered arrays
                come in as past1 .. past4.
            timesteps: (n,); row i is step(i, ..).
            inputs: some of x, m1, m2, past1 .. past4, z.
            tolerance: the largest error in the random check, relative to the sum of |coefficient * input|.

        Raises:
            ValueError: the step is not affine, not finite, or not the same for every element; the message names the
                row.
        """
        return cls(_probed(step, len(np.asarray(timesteps)), inputs, tolerance, name), np.asarray(timesteps), name)

    # ---- text ----------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Returns plain JSON, with infinite numbers as the strings inf and -inf. ``from_json`` restores every bit."""
        import json

        numbers = [[c if math.isfinite(c) else str(c) for c in row] for row in self.numbers.tolist()]
        return json.dumps(
            {
                "noisefuse tableau": 1,
                "name": self.name,
                "start": self.start,
                "threshold": self.threshold and [c if math.isfinite(c) else str(c) for c in self.threshold],
                "masked": self.masked,
                **{name: getattr(self, name).tolist() for name in _RUN_COLUMNS},
                **({} if self.active == self._nonzero else {"active": self.active.tolist()}),
                "columns": NAMES,
                "rows": numbers,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Tableau:
        """Reads the JSON of ``to_json``.

        Args:
            text: JSON.

        Returns:
            A `Tableau` equal to the one that was written.

        Raises:
            ValueError: the text is not a tableau, or one of another version.
        """
        return stored.read("tableau", text, cls._of_stored)

    @classmethod
    def _of_stored(cls, fields: dict[str, Any]) -> Tableau:
        if fields.pop("columns", None) != list(NAMES):
            raise ValueError("the columns of this tableau are not those of ROW")
        rows = [stored.numbers("rows", row) for row in stored.entries("rows", fields.pop("rows"))]
        for row in rows:
            if len(row) != COLUMNS:
                raise ValueError(f"rows: expected {COLUMNS} numbers in each, got {len(row)}")
        for name in {*_RUN_COLUMNS} & {*fields}:
            fields[name] = stored.numbers(name, fields[name])
        if "start" in fields:
            fields["start"] = stored.number("start", fields["start"])
        if fields.get("threshold") is not None:
            fields["threshold"] = stored.numbers("threshold", fields["threshold"])
        if "active" in fields:
            flags = [tuple(stored.entries("active", group)) for group in stored.entries("active", fields["active"])]
            if any(type(flag) is not bool for group in flags for flag in group):
                raise TypeError(f"active: expected true or false, got {flags!r:.60}")
            fields["active"] = np.array(tuple(flags), _ACTIVE)
        return cls(np.array(rows, np.float64).reshape(-1, COLUMNS).view(ROW)[:, 0], **fields)

    def __repr__(self) -> str:
        n, shown = len(self), 3
        steps = [self.equations(range(min(n, shown)))] if n else []
        steps += [f"  .. {n - 2 * shown} more .."] if n > 2 * shown else []
        steps += [self.equations(range(max(shown, n - shown), n))] if n > shown else []
        return "\n".join([f"Tableau({self.name}, {n} rows)", *steps])

    def _repr_html_(self) -> str:
        """The rows of the repr as a table, for notebooks."""
        return notebook.equations(repr(self))

    def equations(self, rows: Iterable[int] | None = None) -> str:
        """Returns the rows as equations, a line for each; ``repr`` shows the first and last three of them.

        x is the sample, m1 and m2 are model outputs, D is the clean sample (left out if nothing reads it), past1 ..
        past4 are arrays that earlier rows kept, z is noise, and x' is the next sample. Coefficients have six digits.

        Args:
            rows: the rows to write. None: all.

        Raises:
            IndexError: there is no such row.

        Example: ``print(sampler.tableau.equations(range(10, 20)))``.
        """
        return "\n".join(map(self._step, range(len(self)) if rows is None else rows))

    def _step(self, i: int) -> str:
        row = self.rows[i]
        clean, out, *aux = (equation(_coefficients(row[group])) for group in ROW.names or ())
        lo, hi = row["clean"]["lo"], row["clean"]["hi"]
        if self.masked:
            equations = [f"v = {clean}", f"x' = {out} + [{lo:g} <= v <= {hi:g}] ({aux[0]})"]
        else:
            bounded = math.isfinite(lo) or math.isfinite(hi)
            read = any(row[output]["d"] for output in OUTPUTS)
            equations = [f"D = clamp({clean}, {lo:g}, {hi:g})" if bounded else f"D = {clean}"] if read else []
            equations += [f"x' = {out}"]
            equations += [f"keep {kept}" for kept in aux[: self.push[i]]]
        return f"  {i}: t = {self.timesteps[i]:g};  " + ";  ".join(equations)


def noising(alpha: Array, sigma: Array) -> Tableau:
    """Returns rows alpha x + sigma z, of finite numbers."""
    of_x, of_z = (AFFINE[0] + SYMBOLS.index(symbol) for symbol in "xz")
    numbers, active = np.zeros((len(alpha), COLUMNS)), np.zeros(COLUMNS, np.bool_)
    numbers[:, LOW], numbers[:, HIGH], numbers[:, of_x], numbers[:, of_z] = -math.inf, math.inf, alpha, sigma
    active[of_x], active[of_z] = np.count_nonzero(alpha), np.count_nonzero(sigma)
    table = object.__new__(Tableau)
    run = {"name": "tableau", "start": 1.0, "threshold": None, "masked": False, "active": _mask(active)}
    table._set(numbers.tobytes(), _defaults(len(numbers)), **run)
    return table


def _mask(active: npt.NDArray[np.bool_]) -> npt.NDArray[np.void]:
    return np.ndarray((), _ACTIVE, active.tobytes())[()]


def _frozen_mask(active: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    if active.dtype != _ACTIVE or active.shape != ():
        raise ValueError(f"active must be 0-d, the layout of ROW in bools, got {active.dtype} {active.shape}")
    return np.frombuffer(active.tobytes(), _ACTIVE)[0]


def _probed(
    step: Callable[..., Any], count: int, inputs: Sequence[str], tolerance: float, name: str
) -> npt.NDArray[np.void]:
    """Returns the rows of ``Tableau.trace``."""
    unknown = set(inputs) - set(INPUTS)
    if unknown:
        raise ValueError(f"inputs must be among {', '.join(INPUTS)}, got {', '.join(sorted(unknown))}")
    rows = np.zeros(count, ROW)
    rows["clean"]["lo"], rows["clean"]["hi"] = -np.inf, np.inf
    probes = np.eye(len(inputs), 16)  # the last probes are 0
    drawn = np.random.default_rng(0).normal(scale=np.geomspace(0.1, 100, 16), size=probes.shape)

    def answers(i: int, values: Array) -> list[Array]:
        answer = step(i, **dict(zip(inputs, values.copy(), strict=True)))
        outputs = [np.asarray(a, np.float64) for a in (answer if isinstance(answer, tuple) else (answer,))]
        shapes = [a.shape for a in outputs]
        if len(outputs) > len(OUTPUTS) or any(shape != (16,) for shape in shapes):
            expected = "out, or a tuple of up to three outputs, each of shape (16,) as the inputs"
            raise ValueError(f"row {i} of {name!r}: expected {expected}, got {shapes}")
        return outputs

    for i in range(len(rows)):
        for output, answer, check in zip(OUTPUTS, answers(i, probes), answers(i, drawn), strict=False):
            if not np.all(np.isfinite([answer, check])):
                raise ValueError(f"row {i} of {name!r}: {output} is not finite, though {', '.join(inputs)} are")
            constant, weights = answer[-1], answer[: len(inputs)] - answer[-1]
            error = np.abs(constant + weights @ drawn - check)
            if not np.all(error <= tolerance * (abs(constant) + np.abs(weights) @ np.abs(drawn) + 1e-30)):
                raise ValueError(f"row {i} of {name!r}: {output} is not affine in {', '.join(inputs)}")
            rows[output]["k"][i] = constant
            for symbol, weight in zip(inputs, weights, strict=True):
                rows[output][symbol][i] = weight
    return rows


def _coefficients(record: np.void) -> dict[str, float]:
    return {name: float(record[name]) for name in record.dtype.names or () if name in SYMBOLS}


def of_rows(rows: Rows, name: str) -> Tableau:
    """Returns a table of rows without a clamp."""
    table = rows.table.view(ROW)[:, 0].copy()
    table["clean"]["lo"], table["clean"]["hi"] = -math.inf, math.inf
    return Tableau(table, name=name, active=rows.mask)
