# SPDX-License-Identifier: Apache-2.0
"""The parts that all rules share: the visited nodes, the network's prediction, the clamp, and the table of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, Unpack

import numpy as np

from ..ground.checks import check_number
from ..language.axis import Axis, ModelTime
from ..language.schedule import Schedule
from ..language.tableau import ZERO, Affine, D, Row, Tableau, m1, x
from ..views import Prediction, View, own_time, view
from .spacing import Spacing, SpacingOptions, Steps, axis_of, grid

__all__ = ["Clip", "Node", "Placed", "Plan", "Threshold", "descent", "plan", "split"]


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


class Node(NamedTuple):
    """One noise level: x = alpha x0 + sigma z. The model knows the schedule's own x, which is scale * x.

    t is the time by default, and told what the model is given, None where that is t.
    """

    alpha: float
    sigma: float
    t: float
    told: float | None = None
    scale: float = 1.0

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), inf at the end, -inf at zero terminal SNR."""
        if self.alpha == 0 or self.sigma == 0:
            return math.inf if self.alpha else -math.inf
        return math.log(self.alpha / self.sigma)


class Placed(NamedTuple):
    """A row, the node at which its model output is evaluated, and the use of its auxiliary outputs."""

    node: Node
    row: Row
    push: int
    denoised: int


_UNBOUNDED = (-math.inf, math.inf)
_INSTEAD = "use ddim, which is also Euler (eta = 0) and ancestral Euler (eta = 1)"


def split(here: Node, there: Node, eta: float) -> tuple[float, float]:
    """Returns the noise kept from ``here`` and the fresh noise ``there``: keep^2 + fresh^2 = sigma'^2.

        fresh = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2)

    eta = 0: no fresh noise, the probability flow; eta = 1: the standard deviation of q(x' | x, x0), as in DDPM. Song et
    al. 2021 (DDIM), equation 16, for any alpha and sigma. ValueError: eta > 0, and ``there`` is noisier.
    """
    check_number("eta", eta, 0)
    if eta == 0:
        return there.sigma, 0.0
    need_fall(here, there)
    carried = here.alpha * there.sigma / (there.alpha * here.sigma)
    fresh = eta * there.sigma * math.sqrt(max(0.0, (1 - carried) * (1 + carried)))
    if fresh > there.sigma:
        raise ValueError(f"eta = {eta} asks for more fresh noise, {fresh:.4g}, than there is, {there.sigma:.4g}")
    return math.sqrt((there.sigma - fresh) * (there.sigma + fresh)), fresh


def descent(here: Node, there: Node, eta: float) -> tuple[float, float, float]:
    """Returns sigma_down, to which an ancestral step goes, and ratio, fresh of the way up: x' = ratio x_down + fresh z.

        ratio = alpha' / alpha_down,    fresh^2 = sigma'^2 - (ratio sigma_down)^2

    This is q(x' | x_down). For x / alpha, sigma_down is ``split``'s keep; in a flow it is ComfyUI's,
    sigma' (1 - eta (1 - sigma' / sigma)). Both are sigma'^2 / sigma for eta = 1, and sigma' for eta = 0.
    """
    if here.alpha == 1:
        keep, fresh = split(here, there, eta)
        return keep, 1.0, fresh
    check_number("eta", eta, 0)
    if eta == 0:
        return there.sigma, 1.0, 0.0
    need_fall(here, there)
    down = there.sigma * (1 - eta * max(0.0, 1 - there.sigma / here.sigma))
    if down < 0:
        raise ValueError(f"eta = {eta} steps below clean data, from {here.sigma:g} to {there.sigma:g}")
    ratio = there.alpha / (1 - down)
    return down, ratio, math.sqrt(max(0.0, (there.sigma - ratio * down) * (there.sigma + ratio * down)))


def need_fall(here: Node, there: Node) -> None:
    """Raises ValueError if ``there`` is noisier or without signal, for steps that draw a part of its noise."""
    if not there.alpha or here.alpha * there.sigma > (1 + 1e-9) * there.alpha * here.sigma:  # up to rounding
        raise ValueError(
            f"a step that draws noise goes to a lower level, not from time {here.t:g} to {there.t:g}: "
            "reverse the steps, or take a sampler that draws none, such as ddim, euler, heun or dpmpp_2m"
        )


@dataclass(frozen=True)
class Plan:
    """A schedule's visited nodes (n + 1, in order), and how the network's output gives x0 there."""

    axis: Axis
    nodes: tuple[Node, ...]
    view: View
    bounds: tuple[float, float]
    threshold: Threshold | None
    model_time: ModelTime | None

    @property
    def pairs(self) -> Iterable[tuple[Node, Node]]:
        """Returns (here, there) for each step."""
        return zip(self.nodes[:-1], self.nodes[1:], strict=True)

    @property
    def start(self) -> float:
        """The standard deviation of x at the first node, for data of variance 1.

        If alpha = 1 everywhere it is sigma, as in Karras et al. 2022 and k-diffusion: such a schedule does not give the
        data's variance.
        """
        alpha, sigma = self.nodes[0][:2]
        return sigma if self.axis.family == "exploding" else math.hypot(alpha, sigma)

    def need_signal(self, name: str, instead: str = _INSTEAD, nodes: slice = slice(None)) -> None:
        """Raises ValueError if x is pure noise at one of the nodes, for formulas that divide by alpha there."""
        for node in self.nodes[nodes]:
            if node.alpha == 0:
                instead += ", or flow_euler" if self.axis.family == "flow" else ""
                raise ValueError(
                    f"{name} divides by alpha, which is 0 at time {node.t:g} (zero terminal SNR, or sigma = 1 of a "
                    f'flow): {instead}, or leave that time out, by spacing="leading", or a list of times as steps'
                )

    def need_flow(self, name: str, other: str) -> None:
        """Raises ValueError unless alpha + sigma = 1, for samplers of rectified flow."""
        if self.axis.family != "flow":
            raise ValueError(f"{name} needs a schedule with alpha + sigma = 1 (Schedule.flow); {other} takes others")

    def exploding(self) -> Plan:
        """Returns the same nodes for x / alpha: alpha = 1, and sigma is sigma / alpha, as in k-diffusion."""
        self.need_signal("a sampler of x / alpha")
        nodes = (Node(1.0, node.sigma / node.alpha, node.t, node.told, node.alpha) for node in self.nodes)
        return replace(self, nodes=tuple(nodes))

    def flow_or_exploding(self) -> Plan:
        """Returns the plan itself in a flow, whose dx / dsigma is e - D, or else that of x / alpha, where it is e."""
        return self if self.axis.family == "flow" else self.exploding()

    def node(self, sigma: float, *, of_flow: bool = False) -> Node:
        """Returns a node between the visited ones, of the exploding frame or of a flow's own."""
        level = sigma / (1 + sigma) if self.axis.family == "flow" and not of_flow else sigma
        place = self.axis.at_level(np.array([level]))
        alpha = place.alpha.item()
        t, told = (self.axis.times(place, kind).item() for kind in (None, self.model_time))
        return Node(alpha, sigma, t, told) if of_flow else Node(1.0, sigma, t, told, alpha)

    def clean(self, node: Node) -> Affine:
        """Returns D before its clamp, in x and m1."""
        p_x, p_m = self.view.clean(node.scale * node.alpha, node.scale * node.sigma)
        return node.scale * p_x * x + p_m * m1

    def predicted_noise(self, node: Node) -> Affine:
        """Returns the noise that the network predicts in x, in x and m1."""
        e_x, e_m = self.view.noise(node.scale * node.alpha, node.scale * node.sigma)
        return node.scale * e_x * x + e_m * m1

    def noise(self, node: Node) -> Affine:
        """Returns e with alpha D + sigma e = x: the predicted noise or, if D is clamped, x's remainder beside D."""
        if self.threshold is None and self.bounds == _UNBOUNDED:
            return self.predicted_noise(node)
        return (x - node.alpha * D) / node.sigma

    def row(self, node: Node, out: Affine, *, keep: Sequence[Affine] = (), denoised: Affine = D) -> Placed:
        """Returns a row whose model output is evaluated at a node; ``keep``: up to two expressions to remember."""
        aux = [*keep] if denoised in keep else [*keep, denoised]
        aux1, aux2 = [*aux, ZERO][:2]
        lo, hi = self.bounds
        row = Row(out, self.clean(node), aux1, aux2, lo, hi)
        return Placed(node, row, len(keep), aux.index(denoised) + 1)

    def table(self, name: str, placed: Sequence[Placed], start: float | None = None) -> Tableau:
        """Makes a table from rows. start: the plan's by default."""
        nodes, rows, push, denoised = zip(*placed, strict=True)
        own = [(node.scale * node.alpha, node.scale * node.sigma) for node in nodes]
        told = (node.t if node.told is None else node.told for node in nodes)
        times = np.array([self.view.time(*c, t) for c, t in zip(own, told, strict=True)])
        if self.view.time is own_time and self.axis.kind(self.model_time) == "index" and times.min() < 0:
            raise ValueError(f"{name}: expected times from the first index on, got one at index {times.min():g}")
        return Tableau(
            rows,
            timesteps=times,
            name=name,
            push=np.array(push),
            denoised=np.array(denoised),
            scale=np.array([node.scale * self.view.scale(*c) for c, node in zip(own, nodes, strict=True)]),
            alpha=np.array([node.alpha for node in nodes]),
            sigma=np.array([node.sigma for node in nodes]),
            start=self.start if start is None else start,
            threshold=self.threshold,
        )


class PlanOptions(SpacingOptions, total=False):
    """Options that samplers accept beside ``steps`` and their own: these and those of `SpacingOptions`.

    Each sampler's help has their values and its defaults. `lcm` and `tcd` take no spacing, and `pndm` no clip.

    Attributes:
        prediction: what the network predicts. Default: "epsilon", of a few samplers "flow" or "edm".
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
    nodes = map(Node, *(column.tolist() for column in levels))
    threshold = clip if isinstance(clip, Threshold) else None
    own, model_time = view(prediction, schedule), options.get("model_time")
    if model_time is not None and own.time is not own_time:
        raise ValueError(f'model_time: expected none, as a prediction of "{own.name}" has a time of its own')
    run = Plan(axis, tuple(nodes), own, _bounds(clip), threshold, model_time)
    if prediction == "epsilon":
        instead = 'say what the network predicts, prediction="flow", "v" or "sample"'
        run.need_signal('prediction "epsilon"', instead, slice(-1))  # no model is called at the last node
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
