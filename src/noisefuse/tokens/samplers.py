# SPDX-License-Identifier: Apache-2.0
"""Samplers of tokens: from a schedule of one column to rows of probabilities. docs/discrete.md shows how they run.

In the papers' symbols alpha_t = 1 - p(t) is the probability that a token is still clean at time t, s is the time that a
step ends at, and K or V the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, Literal, ParamSpec, TypeAlias, Unpack, get_args

import numpy as np

from ..ground.checks import check_choice, check_integer, check_number
from ..ground.docstrings import Shared, built
from .sampler import DiscreteSampler
from .schedule import MaskSchedule, linear, log_linear
from .table import CutOptions, DrawOptions, Final, Order, TokenRow, TokenTable

__all__ = ["d3pm", "discrete_flow", "dream", "entropy_bound", "llada", "mdlm", "remdm", "sedd", "uniform_ddim"]

P = ParamSpec("P")
Steps: TypeAlias = int | Sequence[float]

MOST_STEPS = 1 << 20
Network: TypeAlias = Literal["leave_one_out", "denoiser"]

_LINEAR, _LOG_LINEAR = linear(), log_linear()
_SHARED = Shared(
    args={
        "steps": """\
    steps: the number of model calls, on times that fall evenly from 1, or the times themselves. The last step ends
        at 0.""",
        "mask_id": "    mask_id: the token that stands for the mask.",
        "vocabulary": "    vocabulary: the number of tokens V, from which a token is drawn anew.",
        "schedule": "    schedule: the probability of the mask, or of a token drawn anew, a `discrete.MaskSchedule`.",
        "temperature": "    temperature: divides the logits; 0 takes the largest.",
        "top_k": "    top_k, top_p: as in `categorical`.",
        "top_p": "    top_k, top_p: as in `categorical`.",
        "final": """\
    final: "argmax": the last step takes the network's most probable token instead of a drawn one, as the codes of MDLM,
        ReMDM and Duo end.""",
        "mask_logit": """\
    mask_logit: a mask is not drawn, whatever logit the network has for it; with "keep" it is drawn as any other token,
        and may stay.""",
    },
    returns="    A `DiscreteSampler`.",
    raises="    TypeError, ValueError: the message says what was given and what was expected.",
)


def _sampler(
    offered: type[CutOptions] = DrawOptions,
) -> Callable[[Callable[P, TokenTable]], Callable[P, DiscreteSampler]]:
    """Returns a decorator. It turns a rule into a function that returns the `DiscreteSampler` of the rule's table.

    The function has the rule's arguments and, in place of ``**options``, those offered, with the table's defaults.
    """

    def decorate(rule: Callable[P, TokenTable]) -> Callable[P, DiscreteSampler]:
        own = signature(rule)
        arguments = [argument for name, argument in own.parameters.items() if name != "options"]
        if "options" in own.parameters:
            names = [name for name in _FIELDS if name in offered.__annotations__]
            arguments += [_FIELDS[name].replace(kind=Parameter.KEYWORD_ONLY) for name in names]
        vars(rule)["__signature__"] = own.replace(parameters=arguments, return_annotation="DiscreteSampler")
        return built(DiscreteSampler, rule, _SHARED)

    return decorate


_FIELDS = signature(TokenTable).parameters


def _spans(steps: Steps, schedule: MaskSchedule) -> Iterator[tuple[float, float]]:
    """Yields the times (t, s) at which a step begins and ends. ValueError: one begins where no token is masked."""
    for t, s in pairwise(_times(steps)):
        if not _hidden(schedule, t) > 0:
            raise ValueError(f"schedule: p({t:g}) = 0 where a step begins: expected more; leave that time out of steps")
        yield t, s


def _times(steps: Any) -> list[float]:
    if steps.ndim if isinstance(steps, np.ndarray) else isinstance(steps, Sequence) and not isinstance(steps, str):
        times = [check_number("steps", t) for t in steps]
        if not times or not all(a > b for a, b in pairwise([*times, 0.0])) or times[0] > 1:
            raise ValueError(f"steps: expected times that fall from at most 1 to above 0, got {list(steps)}")
    else:
        n = check_integer("steps", steps, 1, MOST_STEPS)
        times = [1 - i / n for i in range(n)]
    return [*times, 0.0]


def _hidden(schedule: MaskSchedule, t: float) -> float:
    """Returns p(t). At 0 a run has ended, whatever the schedule says."""
    if not isinstance(schedule, MaskSchedule):
        raise TypeError(f"schedule: expected a discrete.MaskSchedule, got {type(schedule).__name__}")
    return float(schedule(t)) if t > 0 else 0.0


def _unmasking(steps: Steps, schedule: MaskSchedule) -> tuple[TokenRow, ...]:
    """A mask becomes its drawn token with probability 1 - p(s) / p(t)."""
    spans = _spans(steps, schedule)
    return tuple(TokenRow(time=t, reveal=1 - _hidden(schedule, s) / _hidden(schedule, t)) for t, s in spans)


def _one_of(mask_id: int | None, vocabulary: int | None) -> None:
    if (mask_id is None) == (vocabulary is None):
        raise TypeError("expected either mask_id, for masks, or vocabulary, for tokens drawn anew")


@_sampler()
def mdlm(
    steps: Steps, *, mask_id: int, schedule: MaskSchedule = _LINEAR, **options: Unpack[DrawOptions]
) -> TokenTable:  # fmt: skip
    """Ancestral sampling of masked diffusion: a mask becomes its drawn token with probability (alpha_s - alpha_t) / (1
    - alpha_t), and a token stays (Sahoo et al. 2024, "Simple and effective masked diffusion language models", equation
    7).

    >>> print(nf.samplers.mdlm(steps=2, mask_id=9))
    DiscreteSampler(mdlm, 2 rows)
      0: t = 1;  mask -> c with probability 0.5
      1: t = 0.5;  mask -> c with probability 1
    """
    return TokenTable("mdlm", _unmasking(steps, schedule), mask_id, **options)


@_sampler()
def remdm(
    steps: Steps, *, mask_id: int, schedule: MaskSchedule = _LINEAR, eta: float = 0.1,
    variant: Literal["cap", "rescale"] = "cap", t_on: float = 1.0, t_off: float = 0.0, loop: float | None = None,
    **options: Unpack[DrawOptions],
) -> TokenTable:  # fmt: skip
    """Masked diffusion that masks tokens again: a token becomes the mask with probability sigma, and a mask its drawn
    token with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), so that the marginals stay (Wang et al.
    2025, "Remasking discrete diffusion models with inference-time scaling", equations 6 and 7, section 4).

    Args:
        eta: from 0, which is `mdlm`, to 1: how many tokens become masks again.
        variant: chooses sigma by its greatest, min(1, (1 - alpha_s) / alpha_t): "cap": min(eta, greatest), "rescale":
            eta greatest.
        t_on, t_off: masks are set again from time t_on until t_off, at t_on >= t > t_off: equation 10, the paper's
            ReMDM-switch.
        top_k, top_p: as in `categorical`, but top_p leaves out the token with which the sum of probabilities exceeds
            it, unless it is the first, as the paper's code does.
        loop: alpha stays at this number from t_on until t_off, and takes the schedule's course before and after, in the
            time that is left: ReMDM-loop. The paper has 0.9 from 0.55 to 0.05 with eta = 0.02.

    >>> print(nf.samplers.remdm(steps=2, mask_id=9, eta=0.5))
    DiscreteSampler(remdm, 2 rows)
      0: t = 1;  mask -> c with probability 0.5;  x -> mask with probability 0.5
      1: t = 0.5;  mask -> c with probability 1
    """
    check_choice("variant", variant, ("cap", "rescale"))
    eta, t_on, t_off = (check_number(n, p, 0, 1) for n, p in (("eta", eta), ("t_on", t_on), ("t_off", t_off)))
    if not t_off < t_on:
        raise ValueError(f"t_on = {t_on}, t_off = {t_off}: expected t_off < t_on, as time goes down")
    if loop is not None:
        loop = check_number("loop", loop, above=0, below=1)
        if not (t_off > 0 and t_on < 1):
            raise ValueError(f"loop = {loop}: expected 0 < t_off < t_on < 1 with it, got {t_off} and {t_on}")

    def alpha(t: float) -> float:
        if loop is None:
            return 1 - _hidden(schedule, t)
        if t > t_on:
            return loop * (1 - _hidden(schedule, (t - t_on) / (1 - t_on)))
        return loop if t > t_off else 1 - (1 - loop) * _hidden(schedule, t / t_off)

    rows = []
    for t, s in _spans(steps, schedule):
        alpha_t, alpha_s = alpha(t), alpha(s)
        most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
        sigma = (min(eta, most) if variant == "cap" else eta * most) if s > 0 and t_on >= t > t_off else 0.0
        reveal = min(1.0, (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t))
        rows.append(TokenRow(time=t, reveal=reveal, remask=sigma))
    return TokenTable("remdm", tuple(rows), mask_id, crossing=False, **options)


@_sampler()
def d3pm(
    steps: Steps, *, mask_id: int | None = None, vocabulary: int | None = None, network: Network | None = None,
    schedule: MaskSchedule = _LINEAR, **options: Unpack[DrawOptions],
) -> TokenTable:  # fmt: skip
    """The reverse process of D3PM, for masks or uniform tokens: p_theta(x_s | x_t) is the sum over c of q(x_s | x_t, c)
    p(c | x_t) (Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces", equations 3 and
    4). A step draws c, to which temperature, top_k and top_p apply, and then x_s.

    With mask_id it is the same as `mdlm`. With K = vocabulary, a = alpha_t / alpha_s and b = alpha_s, x_s is c, x_t or
    any token with the weights b (1 - a) / K + a b [c = x_t], a (1 - b) / K and (1 - a) (1 - b) / K.

    Args:
        network: with vocabulary, what the network predicts; with mask_id there is no difference. "leave_one_out": p(c),
            the clean token given all other tokens of x_t, which the losses of D3PM, UDLM and Duo train. Then p(c | x_t)
            is in proportion to q(x_t | c) p(c): ln(1 + K alpha_t / (1 - alpha_t)) is added to the logit of x_t.
            (D3PM's code takes the largest p(c) in its last step.) "denoiser": p(c | x_t) itself, which cross entropy
            trains, as in diffusers' ``DiscreteDDIMScheduler``.

    >>> print(nf.samplers.d3pm(steps=2, vocabulary=10, network="leave_one_out"))
    DiscreteSampler(d3pm, 2 rows)
      0: t = 1;  x -> c with probability 0.5;  x -> any with probability 0.5
      1: t = 0.5;  logit of x + 2.3979;  x -> c with probability 1
    """
    _one_of(mask_id, vocabulary)
    if network not in (None, *get_args(Network)) or (network is None and mask_id is None):
        kinds = "'leave_one_out', as D3PM, UDLM and Duo train it, or 'denoiser', as cross entropy trains it"
        raise ValueError(f"network = {network!r}: expected what the network of these tokens predicts, {kinds}")
    if vocabulary is None:
        return TokenTable("d3pm", _unmasking(steps, schedule), mask_id, **options)
    k, rows = check_integer("vocabulary", vocabulary, 1), []
    for t, s in _spans(steps, schedule):
        b = 1 - _hidden(schedule, s)
        a = (1 - _hidden(schedule, t)) / b if b > 0 else 0.0
        differ, same = (1 - a * b) / k, a * b + (1 - a * b) / k
        noise = (1 - a) * (1 - b) / k
        own = math.log1p(k * a * b / (1 - a * b)) if network == "leave_one_out" else 0.0
        rows.append(TokenRow(time=t, change=b * (1 - a) / k / differ, renoise=(noise / differ, noise / same), own=own))
    return TokenTable("d3pm", tuple(rows), None, k, "uniform", **options)


@_sampler()
def uniform_ddim(
    steps: Steps, *, vocabulary: int, schedule: MaskSchedule = _LINEAR, eta: float = 0.0, temperature: float = 1.0,
    top_k: int = 0, top_p: float = 1.0, final: Final = "draw",
) -> TokenTable:  # fmt: skip
    """DDIM for uniform tokens: q(x_s | x_t, c) = Cat(sigma x_t + (alpha_s - sigma alpha_t) c + ((1 - alpha_s) - (1 -
    alpha_t) sigma) / K) (Song et al. 2021, "Denoising diffusion implicit models", appendix A, equations 18 and 19).

    sigma = (1 - eta) (1 - alpha_s) / (1 - alpha_t). The network's distribution is that of the clean token given all of
    x_t, the "denoiser" of `d3pm`, which cross entropy trains. (diffusers' ``DiscreteDDIMScheduler`` is `d3pm` of
    uniform tokens.)

    Args:
        eta: with 0 no token is drawn anew; with 1 x_s depends on x_t through c alone.

    >>> print(nf.samplers.uniform_ddim(steps=2, vocabulary=10))
    DiscreteSampler(uniform_ddim, 2 rows)
      0: t = 1;  x -> c with probability 0.5
      1: t = 0.5;  x -> c with probability 1
    """
    eta, rows = check_number("eta", eta, 0, 1), []
    for t, s in _spans(steps, schedule):
        alpha_t, alpha_s = 1 - _hidden(schedule, t), 1 - _hidden(schedule, s)
        sigma = (1 - eta) * (1 - alpha_s) / (1 - alpha_t)
        noise = max(0.0, (1 - alpha_s) - (1 - alpha_t) * sigma)
        rows.append(TokenRow(time=t, change=alpha_s - sigma * alpha_t, renoise=(noise, noise)))
    return TokenTable(
        "uniform_ddim", tuple(rows), None, check_integer("vocabulary", vocabulary, 1), "uniform",
        temperature=temperature, top_k=top_k, top_p=top_p, final=final,
    )  # fmt: skip


@_sampler()
def discrete_flow(
    steps: Steps, *, mask_id: int | None = None, vocabulary: int | None = None, schedule: MaskSchedule = _LINEAR,
    jump: Literal["euler", "exponential"] = "euler", **options: Unpack[DrawOptions],
) -> TokenTable:  # fmt: skip
    """Euler's method for the mixture path of discrete flow matching: x becomes the drawn token with probability h
    kappa' / (1 - kappa), kappa = 1 - p (Gat et al. 2024, "Discrete flow matching", equations 9 and 24, algorithm 1).

    The last step takes the drawn token. The source is the mask, or uniform tokens. The network's distribution is that
    of the clean token given all of x_t, the "denoiser" of `d3pm`, which cross entropy trains.

    Args:
        jump: "euler", or "exponential": 1 - exp(-h kappa' / (1 - kappa)), as in Meta's flow_matching.

    >>> print(nf.samplers.discrete_flow(steps=2, mask_id=9))
    DiscreteSampler(discrete_flow, 2 rows)
      0: t = 1;  mask -> c with probability 0.5;  x -> c with probability 0.5
      1: t = 0.5;  mask -> c with probability 1;  x -> c with probability 1
    """
    _one_of(mask_id, vocabulary)
    check_choice("jump", jump, ("euler", "exponential"))
    rows = []
    for t, s in _spans(steps, schedule):
        p = _hidden(schedule, t)
        rate = (t - s) * float(schedule.slope(np.array(t))) / p
        chance = min(1.0, rate) if jump == "euler" else -math.expm1(-rate)
        chance = chance if s > 0 else 1.0
        rows.append(TokenRow(time=t, reveal=0.0 if mask_id is None else chance, change=chance))
    source: Literal["mask", "uniform"] = "uniform" if mask_id is None else "mask"
    return TokenTable("discrete_flow", tuple(rows), mask_id, vocabulary, source, **options)


@_sampler()
def sedd(
    steps: int, *, mask_id: int, schedule: MaskSchedule = _LOG_LINEAR, last: float = 1e-5,
    **options: Unpack[DrawOptions],
) -> TokenTable:  # fmt: skip
    """Tau-leaping for scores of masked tokens: a mask becomes y with probability h sigma'(t) s(y), s the network's
    ratios and sigma = -ln(1 - p) (Lou et al. 2024, "Discrete diffusion modeling by estimating the ratios of the data
    distribution", equation 17). The logits are log s.

    Args:
        steps: how many steps. One more model call, the last, reveals what is left.
        last: the time of the last call.

    >>> print(nf.samplers.sedd(steps=2, mask_id=9, last=0.5))
    DiscreteSampler(sedd, 3 rows)
      0: t = 1;  mask -> c with probability min(1, 249.75 S)
      1: t = 0.75;  mask -> c with probability min(1, 0.996012 S)
      2: t = 0.5;  mask -> c with probability 1
    """
    n, rows = check_integer("steps", steps, 1, MOST_STEPS), []
    last = check_number("last", last, above=0, below=1)
    h = (1 - last) / n
    for i in range(n):
        t = 1 - i * h
        p = _hidden(schedule, t)
        if p >= 1:
            raise ValueError(f"schedule: p({t:g}) = 1, where sigma is infinite; expected less, as log_linear has")
        rows.append(TokenRow(time=t, rate=h * float(schedule.slope(np.array(t))) / (1 - p)))
    rows.append(TokenRow(time=last, reveal=1.0))
    return TokenTable("sedd", tuple(rows), mask_id, **options)


@_sampler(CutOptions)
def llada(
    steps: int, *, mask_id: int, length: int | None = None, block_length: int | None = None,
    remask: Literal["low_confidence", "random"] = "low_confidence", cfg_scale: float = 0.0, temperature: float = 0.0,
    threshold: float | None = None, factor: float | None = None, **options: Unpack[CutOptions],
) -> TokenTable:  # fmt: skip
    """LLaDA's ``generate``: each step draws all masks, and reveals its share of them, the most certain ones first (Nie
    et al. 2025, "Large language diffusion models", section 2.4 and algorithm 5; its ``low_confidence`` remasking).

    Args:
        steps: how many model calls, a multiple of the number of blocks.
        length: how many tokens are generated, at the end of x after its prompt. None: all, in one block.
        block_length: the generated tokens of a block, which is finished before the next one begins. None: length.
        remask: "low_confidence" reveals by the token's probability in the softmax of the logits, "random" in an order
            drawn from stream 16.
        cfg_scale: with a number other than 0 the network gives a pair (u, c), and the logits are u + (1 + cfg_scale)
            (c - u). A token that has -inf in u or in c is never drawn.
        threshold: each step reveals all masks whose token has at least this probability in the softmax of the logits,
            at least one of each sample, and the last step of a block what is left: Fast-dLLM's parallel decoding (Wu et
            al. 2025, "Fast-dLLM: training-free acceleration of diffusion LLM by enabling KV cache and parallel
            decoding", algorithm 1). `sample` asks the network until a block is full, at most steps / blocks times; with
            steps = length, the tokens are those of its code. (SGLang's ``LowConfidence`` reveals above the threshold,
            not at it. dInfer's, where none reaches it, also reveals those within 1e-5 of the most certain one.)
        factor: Fast-dLLM's factor rule in place of a threshold, see `TokenRow`.

    >>> print(nf.samplers.llada(steps=4, mask_id=9, length=8, block_length=4))
    DiscreteSampler(llada, 4 rows)
      0: t = 1;  1/2 of the masks -> c, but for the last 4
      1: t = 0.75;  1/1 of the masks -> c, but for the last 4
      2: t = 0.5;  1/2 of the masks -> c
      3: t = 0.25;  1/1 of the masks -> c
    """
    n = check_integer("steps", steps, 1, MOST_STEPS)
    check_choice("remask", remask, ("low_confidence", "random"))
    blocks, block = 1, 0
    if length is not None:
        length = check_integer("length", length, 1)
    if block_length is not None:
        if length is None:
            raise ValueError(f"block_length = {block_length}: expected length= with it")
        block = check_integer("block_length", block_length, 1)
        if length % block:
            raise ValueError(f"block_length = {block}: expected one that divides length = {length}")
        blocks = length // block
        if n % blocks:
            raise ValueError(f"steps = {n}: expected a multiple of the {blocks} blocks")
    each, sure = n // blocks, TokenRow(time=1.0, threshold=threshold, factor=factor)
    rows = []
    for i in range(n):
        left, time, end = each - i % each, 1 - i / n, (blocks - 1 - i // each) * block
        by_rank = sure.by_rank and left > 1
        rows.append(replace(sure, time=time, end=end) if by_rank else TokenRow(time=time, left=left, end=end))
    order: Literal["confidence", "random"] = "random" if remask == "random" else "confidence"
    guidance = check_number("cfg_scale", cfg_scale)
    return TokenTable("llada", tuple(rows), mask_id, order=order, guidance=guidance, temperature=temperature, **options)


@_sampler(CutOptions)
def dream(
    steps: int, *, mask_id: int, alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = "origin",
    alg_temp: float = 0.0, eps: float = 1e-3, temperature: float = 0.0, **options: Unpack[CutOptions],
) -> TokenTable:  # fmt: skip
    """Dream's ``diffusion_generate`` (Ye et al. 2025, "Dream 7B: diffusion large language models"): a step from time t
    to s reveals each mask with probability 1 - s / t, or this share of a sample's masks, rounded down, in an order.

    The times fall evenly from 1 to eps, and the last step reveals what is left. (In a batch, Dream's code reveals the
    share of its mean number of masks in each sample; here a sample does not depend on the batch.) Dream's logits at
    position l are those of token l + 1: the sampler takes ``logits[:, [0, *range(L - 1)]]``.

    Args:
        alg: "origin": by chance. "maskgit_plus": first the masks with the most probable drawn tokens, "topk_margin":
            with the largest difference of the two largest probabilities, "entropy": with the least entropy, all of the
            distribution that the token was drawn from.
        alg_temp: with a number above 0, these positions are drawn one after another, with probabilities in proportion
            to exp(confidence / alg_temp).
        eps: the time of the last step's end.
        top_k, top_p: as in `categorical`. At temperature 0 an order with them is none of Dream's, and refused.

    >>> print(nf.samplers.dream(steps=2, mask_id=9, alg="entropy"))
    DiscreteSampler(dream, 2 rows)
      0: t = 1;  0.4995 of the masks -> c
      1: t = 0.5005;  1 of the masks -> c
    """
    n, eps = check_integer("steps", steps, 1, MOST_STEPS), check_number("eps", eps, 0, below=1)
    check_choice("alg", alg, ("origin", *_ORDERS))
    table = TokenTable("dream", (TokenRow(time=1.0),), mask_id, temperature=temperature, **options)
    if temperature == 0 and alg != "origin" and (table.top_k or table.top_p < 1):
        raise ValueError(f"temperature = 0: expected no top_k and top_p with alg={alg!r}, or a number above 0")
    times, rows = np.linspace(1, eps, n + 1).astype(np.float32), []
    for i in range(n):
        part, time = float(1 - times[i + 1] / times[i]) if i < n - 1 else 1.0, float(times[i])
        rows.append(TokenRow(time=time, reveal=part) if alg == "origin" else TokenRow(time=time, share=part))
    return replace(table, rows=tuple(rows), order=_ORDERS.get(alg, "confidence"), order_temperature=alg_temp)


_ORDERS: dict[str, Order] = {"maskgit_plus": "log_prob", "topk_margin": "margin", "entropy": "entropy"}


@_sampler(CutOptions)
def entropy_bound(
    steps: int, *, bound: float = 0.1, mask_id: int | None = None, vocabulary: int | None = None, t_max: float = 0.8,
    t_min: float = 0.4, **options: Unpack[CutOptions],
) -> TokenTable:  # fmt: skip
    """Takes, in each step, the drawn tokens of the positions of least entropy whose entropies, without the largest, add
    up to at most `bound` (Ben-Hamu et al. 2025, "Accelerated sampling from masked diffusion models via entropy bounded
    unmasking"). With vocabulary the others are drawn anew, as in diffusers' ``EntropyBoundScheduler``;
    with mask_id they stay masks, and some may be left after the last step.

    Args:
        steps: how many model calls.
        bound: in nats.
        t_max, t_min: the temperature of step i is t_min + (t_max - t_min) (steps - i) / steps.

    >>> print(nf.samplers.entropy_bound(steps=2, vocabulary=10))
    DiscreteSampler(entropy_bound, 2 rows)
      0: t = 1;  x -> c where entropies add up to 0.1, else anew;  temperature 0.8
      1: t = 0.5;  x -> c where entropies add up to 0.1, else anew;  temperature 0.6
    """
    _one_of(mask_id, vocabulary)
    n = check_integer("steps", steps, 1, MOST_STEPS)
    bound = check_number("bound", bound, 0, finite=False)
    t_max, t_min = check_number("t_max", t_max), check_number("t_min", t_min)
    heat = [t_min + (t_max - t_min) * (n - i) / n for i in range(n)]
    rows = [TokenRow(time=1 - i / n, bound=bound, temperature=heat[i]) for i in range(n)]
    source: Literal["mask", "uniform"] = "uniform" if mask_id is None else "mask"
    return TokenTable("entropy_bound", tuple(rows), mask_id, vocabulary, source, **options)
