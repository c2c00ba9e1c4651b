# SPDX-License-Identifier: Apache-2.0
"""Teaches a flow model of handwritten digits by a reward, with GRPO, to draw the requested digit.

    python examples/rl_digits.py              two minutes; draws rl_digits.png
    python examples/rl_digits.py --state run.pt         stop it whenever you like, and it goes on where it was

A network learns the velocity of scikit-learn's digits (as in `train_digits.py`) from labels of which half are random,
so it often draws another digit. Then its sampler is a policy, `flow_sde`: a step is an action, and `sampler.sample(..,
log_probs=True)` gives the log-density of each step. The samples for one digit are a group. A classifier's probability
of that digit is the reward, and its deviation from the group's rewards is the advantage. The network learns from the
clipped ratio of log-densities (Flow-GRPO, Liu et al. 2025), while `sampler.kl` keeps it close to its start.

All noise has a key, (seed, request, iteration). So a stopped run goes on with the same bits, and samples have the same
bits on one process or on four, which share the groups.

Needs matplotlib, scikit-learn and torch: pip install '.[demo,torch]'.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import noisefuse as nf
from train_digits import DIGITS, SIDE, Denoiser, batches, load

SCHEDULE = nf.Schedule.flow(1000)
ROWS, GROUP = 10, 16  # steps of a run; samples of one digit, whose rewards are compared
POLICY = nf.samplers.flow_sde(SCHEDULE, ROWS, noise_level=0.7)
BEFORE = 1 << 20  # the first step of the noise before the iterations

Model: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class Reward:
    """Returns the probability of a digit for images (B, 64), from the training set, blurred.

    It is low near an image of another digit, or of none. Noise that fools networks does not fool distances.
    """

    def __init__(self, blur: float = 1.0) -> None:
        self.images, labels = load()
        self.blur, self.are = blur, nn.functional.one_hot(labels, DIGITS).float()

    def __call__(self, images: Tensor, digits: Tensor) -> Tensor:
        near = torch.softmax(-(torch.cdist(images, self.images) ** 2) / (2 * self.blur**2), 1)
        return (near @ self.are).gather(1, digits[:, None])[:, 0]


# ---- before: a flow model ----------------------------------------------------------------------------------


class Flow(Denoiser):
    """Returns the velocity z - x0 from x_t (B, 64), the time t (B,), 0 to 1, and the digits (B,)."""

    def __init__(self) -> None:
        super().__init__(width=128)

    def forward(self, x: Tensor, t: Tensor, digits: Tensor) -> Tensor:
        return super().forward(x, 1000 * t, digits)


def pretrain(steps: int, *, seed: int, batch: int = 128) -> Flow:
    """Trains a network that draws digits, on labels that are random half of the time. Its weights are averaged over the
    steps."""
    torch.manual_seed(seed)
    images, labels = load()
    learned, sigma = Flow(), torch.from_numpy(SCHEDULE.sigma.astype(np.float32))
    average = copy.deepcopy(learned).requires_grad_(False)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step, (epoch, ids) in zip(range(steps), batches(len(images), batch, seed), strict=False):
        noise = nf.Noise(seed, sample=ids.numpy(), step=BEFORE + epoch)
        t = torch.from_numpy((len(SCHEDULE) * nf.uniform(batch, noise)).astype(np.int64))
        x0, told = images[ids], torch.where(torch.rand(batch) < 0.5, torch.randint(DIGITS, (batch,)), labels[ids])
        answer = learned(nf.q_sample(x0, t, SCHEDULE, noise), sigma[t], told)
        loss = nf.mse_loss(answer, x0, t, SCHEDULE, noise, target="flow")

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        rate.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(learned.parameters()), max(0.005, 1 / (step + 1)))
    return average.requires_grad_(True)


# ---- an iteration, first half: samples and their log-densities ---------------------------------------------


class Run(NamedTuple):
    """One request's path: x, the next x and the log-density of each row."""

    x: Tensor  # (B, ROWS + 1, 64)
    log_prob: Tensor  # (B, ROWS), float64


@torch.no_grad()
def rollout(model: Model, digits: Tensor, requests: Sequence[int], iteration: int, seed: int) -> Run:
    """Makes the runs of one batch, with one model call for each row. A request's noise does not depend on the rest of
    the batch."""
    noise = nf.Noise(seed, sample=np.asarray(requests), step=iteration * ROWS)
    seen: list[Tensor] = []

    def answer(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return model(x, t, digits)

    shape, kind = (len(digits), SIDE**2), torch.float32
    last, found = POLICY.sample(answer, shape, noise, dtype=kind, log_probs=True)
    return Run(torch.stack([*seen, last], 1), torch.stack(found, 1))


def share(model: Model, groups: Iterable[int], iteration: int, seed: int) -> list[Run]:
    """Runs the groups of one process, one after the other. A group's result depends on no other group, in torch
    either."""
    torch.set_num_threads(1)  # the same number in all processes: a sum on two threads may have another last bit
    with nf.set_num_threads(1):
        return [rollout(model, asked(g + 1)[g], range(g * GROUP, (g + 1) * GROUP), iteration, seed) for g in groups]


def asked(groups: int) -> Tensor:
    """Returns the digit of each request, (groups, GROUP)."""
    return (torch.arange(groups) % DIGITS)[:, None].expand(groups, GROUP)


Share: TypeAlias = Callable[[Model, int, int, int], list[Run]]


@contextmanager
def on_processes(n: int) -> Iterator[Share]:
    """Yields a function (model, groups, iteration, seed) that makes the runs of all groups, on n processes."""
    if n == 1:
        yield lambda model, groups, iteration, seed: share(model, range(groups), iteration, seed)
        return
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:

        def shared(model: Model, groups: int, iteration: int, seed: int) -> list[Run]:
            parts = [range(groups)[rank * groups // n : (rank + 1) * groups // n] for rank in range(n)]
            one = partial(share, model, iteration=iteration, seed=seed)
            return [run for part in pool.map(one, parts) for run in part]

        yield shared


# ---- an iteration, second half: what the network learns from them ------------------------------------------


@dataclass
class State:
    """Everything that the next iteration depends on, except the seed."""

    network: nn.Module
    reference: nn.Module
    optimizer: torch.optim.Optimizer
    rewards: list[list[float]] = field(default_factory=list)  # for each iteration, by group
    kl: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, network: nn.Module, rate: float = 3e-4) -> State:
        reference = copy.deepcopy(network).requires_grad_(False)
        return cls(network, reference, torch.optim.AdamW(network.parameters(), rate, weight_decay=0.0))

    def save(self, path: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("network", "reference", "optimizer")}
        new = path.with_suffix(".new")
        torch.save(parts | {"rewards": self.rewards, "kl": self.kl}, new)
        new.replace(path)  # the file is the old one or the new one, at any stop

    def load(self, path: Path) -> None:
        for name, value in torch.load(path).items():
            if isinstance(value, list):
                setattr(self, name, value)
            else:
                getattr(self, name).load_state_dict(value)


def advantages(rewards: Tensor) -> Tensor:
    """Returns (groups, GROUP): the deviation of each reward from its group's mean, in standard deviations."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def learn(
    state: State, runs: Sequence[Run], gain: Tensor, order: Tensor, *, parts: int = 4, clip: float = 0.2,
    beta: float = 0.01,
) -> float:  # fmt: skip
    """Makes one pass over all rows of all runs, in a few optimiser steps; returns the divergence from the reference."""
    x, old = (torch.cat(field) for field in zip(*runs, strict=True))
    digits = asked(len(runs)).reshape(-1)
    times, kls = torch.from_numpy(POLICY.timesteps.astype(np.float32)), []
    for chosen in order.chunk(parts):
        b, i = chosen // ROWS, chosen % ROWS
        rows = i.numpy()
        here = x[b, i]
        answer = state.network(here, times[i], digits[b])
        with torch.no_grad():
            before = state.reference(here, times[i], digits[b])
        ratio = torch.exp(POLICY.log_prob(rows, here, answer, x[b, i + 1]) - old[b, i])
        kl = POLICY.kl(rows, answer, before).mean()
        loss = beta * kl - torch.minimum(ratio * gain[b], ratio.clamp(1 - clip, 1 + clip) * gain[b]).mean()

        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
        state.optimizer.step()
        kls.append(kl.item())
    return float(np.mean(kls))


def finetune(
    state: State,
    reward: Callable[[Tensor, Tensor], Tensor],
    iterations: int,
    *,
    groups: int = 20,
    seed: int = 0,
    runs_of: Share = lambda model, groups, iteration, seed: share(model, range(groups), iteration, seed),
    tell: Callable[[State], None] = lambda state: None,
    **options: Any,
) -> None:
    """Continues until `iterations` are done. The state is complete whenever `tell` is called, after each."""
    for iteration in range(len(state.rewards), iterations):
        runs = runs_of(state.network, groups, iteration, seed)
        rewards = torch.stack([reward(run.x[:, -1], digits) for run, digits in zip(runs, asked(groups), strict=True)])
        order = torch.randperm(rewards.numel() * ROWS, generator=torch.Generator().manual_seed(seed + iteration))
        state.kl.append(learn(state, runs, advantages(rewards).reshape(-1), order, **options))
        state.rewards.append(rewards.mean(1).tolist())
        tell(state)


# ---- the picture and the program ---------------------------------------------------------------------------


@torch.no_grad()
def draw(model: Model, columns: int, seed: int, *, steps: int = 40) -> Tensor:
    """Samples each digit, (10 columns, 64), along the flow, with the same noise for any model."""
    digits = torch.arange(DIGITS).repeat_interleave(columns)
    sampler, noise = nf.samplers.flow_heun(SCHEDULE, steps), nf.Noise(seed, step=2 * BEFORE)
    return sampler.sample(lambda x, t: model(x, t, digits), (len(digits), SIDE**2), noise, dtype=torch.float32)


def picture(state: State, reward: Reward, before: Tensor, after: Tensor) -> Figure:
    """Draws the rewards over the iterations; and, for the same noise, the model's digits before and now."""
    figure = Figure(figsize=(12, 4.9), layout="constrained")
    left, *right = figure.subplots(1, 3, width_ratios=[1, 1, 1])
    rewards = np.array(state.rewards)
    left.plot(rewards, color="#c9d2e0", linewidth=0.6)
    left.plot(rewards.mean(1), color="#1f2430")
    left.set(xlabel="iteration", ylabel="probability of the digit that was asked for", ylim=(0, 1))
    left.spines[["top", "right"]].set_visible(False)
    for ax, samples, title in zip(right, (before, after), ("before", "after, of the same noise"), strict=True):
        columns = len(samples) // DIGITS
        canvas = np.full((DIGITS, SIDE + 1, columns, SIDE + 1), -1.0)
        canvas[:, :SIDE, :, :SIDE] = samples.reshape(DIGITS, columns, SIDE, SIDE).numpy().transpose(0, 2, 1, 3)
        ax.imshow(canvas.reshape(DIGITS * (SIDE + 1), -1), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set_axis_off()
        found = reward(samples, torch.arange(DIGITS).repeat_interleave(columns)).mean()
        ax.set_title(f"{title}: {found:.2f}", fontsize=11, color="#1f2430")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a flow model of handwritten digits towards a reward.")
    parser.add_argument("--out", type=Path, default=Path("rl_digits.png"), help="default: %(default)s")
    parser.add_argument("--state", type=Path, help="where to keep the run, and to go on from")
    parser.add_argument("--pretrain", type=int, default=2000, help="training steps before (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=40, help="of sampling and learning (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=20, help=f"of {GROUP} samples (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="that share the groups (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.pretrain, arguments.iterations, arguments.groups = 50, 2, 10

    began, reward = time.perf_counter(), Reward()
    with nf.set_num_threads(1):
        torch.set_num_threads(1)  # the network is small; and its sums are the same anywhere
        if arguments.state and arguments.state.exists():
            state = State.of(Flow())
            state.load(arguments.state)
            print(f"iteration {len(state.rewards)}: from {arguments.state}", flush=True)
        else:
            state = State.of(pretrain(arguments.pretrain, seed=arguments.seed))
            print(f"a flow model of digits, {time.perf_counter() - began:.0f} s", flush=True)

        def tell(state: State) -> None:
            if arguments.state:
                state.save(arguments.state)
            done = len(state.rewards)
            if done % 10 == 0 or done == arguments.iterations:
                print(f"iteration {done}: reward {np.mean(state.rewards[-1]):.3f}, KL {state.kl[-1]:.2f}", flush=True)

        with on_processes(arguments.processes) as runs_of:
            options = {"groups": arguments.groups, "seed": arguments.seed, "runs_of": runs_of, "tell": tell}
            finetune(state, reward, arguments.iterations, **options)
        before, after = (draw(model, 10, arguments.seed) for model in (state.reference, state.network))
    picture(state, reward, before, after).savefig(arguments.out, dpi=120)
    print(f"{time.perf_counter() - began:.0f} s; wrote {arguments.out}")


if __name__ == "__main__":
    main()
