# SPDX-License-Identifier: Apache-2.0
"""The parts that all rules share: the visited nodes, the network's prediction, the clamp, and the table of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt

from ..ground.checks import check_number
from ..language.axis import Axis, ModelTime
from ..language.schedule import Schedule
from ..language.tableau import ROW, ZERO, Affine, D, Row, Tableau, m1, x
from ..views import RATIONAL, Prediction, View, own_time, unscaled, view
from .spacing import Spacing, SpacingOptions, Steps, axis_of, grid

__all__ = ["Clip", "Node", "Placed", "Plan", "Threshold", "descent", "each", "plan", "split"]

Array: TypeAlias = npt.NDArray[Any]


class Threshold(NamedTuple):
    """Dynamic thresholding, Saharia et al. 2022 (Imagen), section 2.3: give it as a sampler's ``clip``.

        q = the ``ratio`` quantile of |D| over one sample,  s = min(max(q, 1), maximum)
        D' = clamp(D, -s, s) / s  =  clamp(D / s, -1, 1)

    It is a small reduction before the step, which writes 1 / s into the step's row; the kernel stays the same.
    """

    ratio: float = 0.995
    maximum: float = 1.0


Clip: TypeAlias = float | Sequence[float] | Threshold | None
"""Bounds of D: c for (-c, c), or (lo, hi), or dynamic thresholding; None: no bounds."""


def each(function: Callable[..., Any], *columns: Array) -> npt.NDArray[np.float64]:
    """Returns what a function of numbers makes of each row's: math's logarithms and powers are not rounded as NumPy's
    are, and a View takes numbers."""
    return np.fromiter(map(function, *(column.tolist() for column in columns)), np.float64, len(columns[0]))


def squared(column: Array) -> npt.NDArray[np.float64]:
    return np.fromiter(map(pow, column.tolist(), repeat(2)), np.float64, len(column))


def _log_snr(alpha: float, sigma: float) -> float:
    if alpha == 0 or sigma == 0:
        return math.inf if alpha else -math.inf
    return math.log(alpha / sigma)


class Node(NamedTuple):
    """Noise levels, one for each row: x = alpha x0 + sigma z. The model knows the schedule's own x, which is scale * x.

    t is the time by default, told what the model is given, and step the number of the step that a level belongs to.
    """

    alpha: Array
    sigma: Array
    t: Array
    told: Array
    scale: Array
    step: Array

    @property
    def log_snr(self) -> npt.NDArray[np.float64]:
        """lambda = log(alpha / sigma), inf at the end, -inf at zero terminal SNR."""
        return each(_log_snr, self.alpha, self.sigma)

    @property
    def own(self) -> tuple[Array, Array]:
        """Alpha and sigma of the schedule's own x."""
        return self.scale * self.alpha, self.scale * self.sigma

    def at(self, rows: Any) -> Node:
        """Returns these of the levels, an index of arrays."""
        return Node._make([column[rows] for column in self])


class Placed(NamedTuple):
    """Rows, the nodes at which their model outputs are evaluated, and the use of their auxiliary outputs."""

    node: Node
    rows: Row
    push: int
    denoised: int


_UNBOUNDED = (-math.inf, math.inf)
_INSTEAD = "use ddim, which is also Euler (eta = 0) and ancestral Euler (eta = 1)"


def split(here: Node, there: Node, eta: float) -> tuple[Array, Array]:
    """Returns the noise kept from ``here`` and the fresh noise ``there``: keep^2 + fresh^2 = sigma'^2.

        fresh = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2)

    eta = 0: no fresh noise, the probability flow; eta = 1: the standard deviation of q(x' | x, x0), as in DDPM. Song et
    al. 2021 (DDIM), equation 16, for any alpha and sigma. ValueError: eta > 0, and ``there`` is noisier.
    """
    check_number("eta", eta, 0)
    if eta == 0:
        return there.sigma, np.zeros(len(there.sigma))
    check_fall(here, there)
    carried = here.alpha * there.sigma / (there.alpha * here.sigma)
    fresh = eta * there.sigma * np.sqrt(np.maximum(0.0, (1 - carried) * (1 + carried)))
    for i in np.flatnonzero(fresh > there.sigma):
        raise ValueError(f"eta = {eta} asks for more fresh noise, {fresh[i]:.4g}, than there is, {there.sigma[i]:.4g}")
    return np.sqrt((there.sigma - fresh) * (there.sigma + fresh)), fresh


def descent(here: Node, there: Node, eta: float) -> tuple[Array, Array, Array]:
    """Returns sigma_down, to which an ancestral step goes, and ratio, fresh of the way up: x' = ratio x_down + fresh z.

        ratio = alpha' / alpha_down,    fresh^2 = sigma'^2 - (ratio sigma_down)^2

    This is q(x' | x_down). For x / alpha, sigma_down is ``split``'s keep; in a flow it is ComfyUI's,
    sigma' (1 - eta (1 - sigma' / sigma)). Both are sigma'^2 / sigma for eta = 1, and sigma' for eta = 0.
    """
    one = np.ones(len(here.alpha))
    if (here.alpha == 1).all():
        keep, fresh = split(here, there, eta)
        return keep, one, fresh
    check_number("eta", eta, 0)
    if eta == 0:
        return there.sigma, one, 0.0 * one
    check_fall(here, there)
    down = there.sigma * (1 - eta * np.maximum(0.0, 1 - there.sigma / here.sigma))
    for i in np.flatnonzero(down < 0):
        raise ValueError(f"eta = {eta} steps below clean data, from {here.sigma[i]:g} to {there.sigma[i]:g}")
    ratio = there.alpha / (1 - down)
    return down, ratio, np.sqrt(np.maximum(0.0, (there.sigma - ratio * down) * (there.sigma + ratio * down)))


def check_fall(here: Node, there: Node) -> None:
    """Raises ValueError if ``there`` is noisier or without signal, for steps that draw a part of its noise."""
    rises = here.alpha * there.sigma > (1 + 1e-9) * there.alpha * here.sigma  # up to rounding
    for i in np.flatnonzero((there.alpha == 0) | rises):
        raise ValueError(
            f"a step that draws noise goes to a lower level, not from time {here.t[i]:g} to {there.t[i]:g}: "
            "reverse the steps, or take a sampler that draws none, such as ddim, euler, heun or dpmpp_2m"
        )


@dataclass(frozen=True)
class Plan:
    """A schedule's visited nodes (n + 1, in order), and how the network's output gives x0 there."""

    axis: Axis
    nodes: Node
    view: View
    bounds: tuple[float, float]
    threshold: Threshold | None
    model_time: ModelTime | None

    @property
    def n(self) -> int:
        """The number of steps."""
        return len(self.nodes.t) - 1

    @property
    def steps(self) -> tuple[Node, Node]:
        """The nodes where the steps begin, and those where they end."""
        here = self.nodes.at(slice(-1))
        return here, self.nodes.at(slice(1, None))._replace(step=here.step)

    @property
    def to_clean(self) -> bool:
        """True if the last step goes to clean data."""
        return bool(self.nodes.sigma[-1] == 0)

    @property
    def noisy(self) -> slice:
        """The steps before one to clean data."""
        return slice(self.n - self.to_clean)

    @property
    def clean_end(self) -> slice:
        """The step to clean data, if there is one."""
        return slice(self.n - self.to_clean, self.n)

    @property
    def start(self) -> float:
        """The standard deviation of x at the first node, for data of variance 1.

        If alpha = 1 everywhere it is sigma, as in Karras et al. 2022 and k-diffusion: such a schedule does not give the
        data's variance.
        """
        alpha, sigma = self.nodes.alpha[0].item(), self.nodes.sigma[0].item()
        return sigma if self.axis.family == "exploding" else math.hypot(alpha, sigma)

    def check_signal(self, name: str, instead: str = _INSTEAD, nodes: slice = slice(None)) -> None:
        """Raises ValueError if x is pure noise at one of the nodes, for formulas that divide by alpha there."""
        if np.count_nonzero(alpha := self.nodes.alpha[nodes]) == len(alpha):
            return
        for i in (alpha == 0).nonzero()[0]:
            instead += ", or flow_euler" if self.axis.family == "flow" else ""
            raise ValueError(
                f"{name} divides by alpha, which is 0 at time {self.nodes.t[nodes][i]:g} (zero terminal SNR, or "
                f'sigma = 1 of a flow): {instead}, or leave that time out, by spacing="leading", or a list of times '
                "as steps"
            )

    def check_flow(self, name: str, other: str) -> None:
        """Raises ValueError unless alpha + sigma = 1, for samplers of rectified flow."""
        if self.axis.family != "flow":
            raise ValueError(f"{name} needs a schedule with alpha + sigma = 1 (Schedule.flow); {other} takes others")

    def exploding(self) -> Plan:
        """Returns the same nodes for x / alpha: alpha = 1, and sigma is sigma / alpha, as in k-diffusion."""
        self.check_signal("a sampler of x / alpha")
        alpha, sigma = self.nodes[:2]
        # the scale so far is ones
        nodes = self.nodes._replace(alpha=self.nodes.scale, sigma=sigma / alpha, scale=alpha)
        return replace(self, nodes=nodes)

    def flow_or_exploding(self) -> Plan:
        """Returns the plan itself in a flow, whose dx / dsigma is e - D, or else that of x / alpha, where it is e."""
        return self if self.axis.family == "flow" else self.exploding()

    def between(self, sigma: Array, here: Node, *, of_flow: bool = False) -> Node:
        """Returns nodes between the visited ones, in the steps of ``here``: of the exploding frame or of a flow's own.
        Where sigma is 0 they are those of ``here``."""
        some = (sigma > 0).nonzero()[0]
        if not len(some):
            return here
        inner = sigma[some]
        place = self.axis.at_level(inner / (1 + inner) if self.axis.family == "flow" and not of_flow else inner)
        t = self.axis.times(place)
        told = t if self.model_time is None else self.axis.times(place, self.model_time)
        one = np.ones(len(some))
        alpha, scale = (place.alpha, one) if of_flow else (one, place.alpha)
        made = Node(alpha, inner, t, told, scale, here.step[some])
        if len(some) == len(sigma):
            return made
        filled = (np.result_type(new, old) for new, old in zip(made, here, strict=True))
        whole = Node(*(old.astype(kind) for old, kind in zip(here, filled, strict=True)))
        for column, new in zip(whole, made, strict=True):
            column[some] = new
        return whole

    def clean(self, node: Node) -> Affine:
        """Returns D before its clamp, in x and m1."""
        p_x, p_m = self._factors(self.view.clean, node)
        return node.scale * p_x * x + p_m * m1

    def predicted_noise(self, node: Node) -> Affine:
        """Returns the noise that the network predicts in x, in x and m1."""
        e_x, e_m = self._factors(self.view.noise, node)
        return node.scale * e_x * x + e_m * m1

    def _factors(self, function: Callable[..., tuple[Any, Any]], node: Node) -> tuple[Any, Any]:
        if self.view in RATIONAL:
            return function(*node.own)
        pairs = map(function, *(column.tolist() for column in node.own))
        of_x, of_m = np.fromiter(chain.from_iterable(pairs), np.float64, 2 * len(node.t)).reshape(-1, 2).T
        return of_x, of_m

    def noise(self, node: Node) -> Affine:
        """Returns e with alpha D + sigma e = x: the predicted noise or, if D is clamped, x's remainder beside D."""
        if self.threshold is None and self.bounds == _UNBOUNDED:
            return self.predicted_noise(node)
        e: Affine = (x - node.alpha * D) / node.sigma
        return e

    def row(
        self, node: Node, out: Affine, *, keep: Sequence[Affine] = (), denoised: Affine = D, at: Any = None
    ) -> Placed:
        """Returns the rows whose model outputs are evaluated at these nodes; ``keep``: up to two expressions to
        remember; ``at``: the rows that are wanted, an index of arrays, by default all."""
        aux = [*keep] if any(kept is denoised for kept in keep) else [*keep, denoised]
        given = [out, *aux, ZERO][:3]
        if at is not None:
            at = at.nonzero()[0] if getattr(at, "dtype", None) == np.bool_ else at
            node, given = node.at(at), [one.at(at) for one in given]
        row = Row(given[0], self.clean(node), given[1], given[2], *self.bounds)
        return Placed(node, row, len(keep), next(n for n, kept in enumerate(aux, 1) if kept is denoised))

    def table(self, name: str, *placed: Placed, start: float | None = None) -> Tableau:
        """Makes a table of rows, step after step, and those of a step in this order. start: the plan's by default."""
        some = [one for one in placed if len(one.node.step)]
        node, rows = some[0].node, some[0].rows.numbers()
        which = np.zeros(len(rows), np.int64)  # of them a row is
        if len(some) > 1:
            node = Node(*map(np.concatenate, zip(*(one.node for one in some), strict=True)))
            order = node.step.argsort(kind="stable")
            node, which = node.at(order), np.repeat(np.arange(len(some)), [len(one.node.step) for one in some])[order]
            rows = np.concatenate([rows, *(one.rows.numbers() for one in some[1:])]).take(order, axis=0)
        push, denoised = (np.array(column)[which] for column in [*zip(*some, strict=True)][2:])
        times = node.told if self.view.time is own_time else each(self.view.time, *node.own, node.told)
        if self.view.time is own_time and self.axis.kind(self.model_time) == "index" and times[times.argmin()] < 0:
            raise ValueError(f"{name}: expected times from the first index on, got one at index {times.min():g}")
        return Tableau(
            rows.view(ROW)[:, 0],
            timesteps=times,
            name=name,
            push=push,
            denoised=denoised,
            scale=node.scale if self.view.scale is unscaled else node.scale * each(self.view.scale, *node.own),
            alpha=node.alpha,
            sigma=node.sigma,
            start=self.start if start is None else start,
            threshold=self.threshold,
        )


class PlanOptions(SpacingOptions, total=False):
    """Options that samplers accept beside ``steps`` and their own: these and those of `SpacingOptions`.

    Each sampler's help has their values and its defaults. `lcm` and `tcd` take no spacing, and `pndm` no clip.

    Attributes:
        prediction: what the network predicts. Default: "epsilon", of a few samplers "flow" or "edm"; of a flow's
            schedule none.
        clip: bounds of D. Default: None.
        spacing: how a number of steps becomes times. Default: "leading", "linspace" or "karras".
    """

    prediction: Prediction
    clip: Clip
    spacing: Spacing


def plan(
    schedule: Schedule, steps: Steps, *, prediction: Prediction, clip: Clip = None, spacing: Spacing,
    whole: bool = True, drop_last: bool = False, **options: Unpack[SpacingOptions],
) -> Plan:  # fmt: skip
    """Returns the plan of a run in the schedule's own frame; see ``spacing.grid`` for the arguments and errors."""
    axis = axis_of(schedule)
    levels = grid(axis, steps, spacing, whole=whole, drop_last=drop_last, **options)
    n = len(levels.alpha)
    nodes = Node(*levels, np.ones(n), np.arange(n))
    threshold = clip if isinstance(clip, Threshold) else None
    own, model_time = view(prediction, schedule), options.get("model_time")
    if model_time is not None and own.time is not own_time:
        raise ValueError(f'model_time: expected none, as a prediction of "{own.name}" has a time of its own')
    run = Plan(axis, nodes, own, _bounds(clip), threshold, model_time)
    if prediction == "epsilon":
        instead = 'say what the network predicts, prediction="flow", "v" or "sample"'
        run.check_signal('prediction "epsilon"', instead, slice(-1))  # no model is called at the last node
    return run


def _bounds(clip: Clip) -> tuple[float, float]:
    """Returns (lo, hi) of D. Dynamic thresholding writes its own bounds at run time."""
    if clip is None or isinstance(clip, Threshold):
        return _UNBOUNDED
    try:
        if isinstance(clip, bool):
            raise TypeError("a bool is no bound")
        lo, hi = clip if np.iterable(clip) else (-clip, clip)
        lo, hi = float(lo), float(hi)
    except (TypeError, ValueError) as error:
        raise TypeError(f"clip must be a number, a pair (lo, hi), a Threshold or None, got {clip!r}") from error
    if not lo < hi:
        raise ValueError(f"clip must be positive or a pair lo < hi, got {clip!r}")
    return lo, hi
