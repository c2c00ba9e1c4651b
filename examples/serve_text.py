# SPDX-License-Identifier: Apache-2.0
"""Serves a masked diffusion model of text: requests with seeds of their own enter and leave a running batch.

    python examples/serve_text.py           about a minute on two idle cores

A small transformer learns the words of this repository's pages. A server then decodes by confidence, as Fast-dLLM does,
in the slots of one batch: a request enters where a slot is free, and leaves when its text is full. Its draws have the
key of its own seed, so its text depends on no neighbour. The program proves that: it writes each text again, alone,
and compares all tokens.

A matrix product may round a row's logits otherwise in another batch, and then a draw may differ, whoever draws. So for
the proof the network answers each sample by itself (`one_by_one`); the table is measured with one call for the batch.

The table has the server beside the loop that torch programs write: it adds noise to all logits in float64, and a batch
begins together and ends together.

Needs torch: pip install '.[torch]'.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import noisefuse as nf

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
LENGTH, BLOCK = 48, 16  # words of a text, and of a block, which is finished before the next one begins
THRESHOLD, TEMPERATURE = 0.6, 0.8
SCHEDULE = nf.discrete.llada()

Network = Callable[[Tensor], Tensor]


class Text(NamedTuple):
    """Words as numbers; the mask is the number after the last one."""

    ids: np.ndarray
    words: list[str]

    @property
    def mask_id(self) -> int:
        return len(self.words)

    def show(self, ids: Sequence[int]) -> str:
        return " ".join([*self.words, "_"][i] for i in ids)


def load(pages: Sequence[Path] = PAGES) -> Text:
    found = [word for page in pages for word in re.findall(r"\w+|[^\w\s]", page.read_text())]
    words, ids = np.unique(found, return_inverse=True)
    return Text(ids, words.tolist())


# ---- the network -------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Returns logits (B, L, V) from words and masks (B, L)."""

    def __init__(self, words: int, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(words + 1, width)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.leave = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.leave(self.layers(self.token(x) + self.place))
        return out


def train(text: Text, steps: int, *, seed: int = 0, batch: int = 32, rate: float = 3e-3) -> tuple[Network, list[float]]:
    torch.manual_seed(seed)
    network, losses = Transformer(len(text.words)), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    for step in range(steps):
        noise = nf.Noise(seed, step=step)
        begin = ((len(text.ids) - LENGTH) * nf.uniform(batch, noise)).astype(int)
        ids = torch.from_numpy(text.ids[begin[:, None] + np.arange(LENGTH)])
        p = SCHEDULE(nf.discrete.times(batch, noise))
        x_t, masked = nf.q_mask(ids, p, noise, text.mask_id)
        loss = nf.masked_cross_entropy(network(x_t), ids, masked, torch.from_numpy(1 / p))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {steps}, loss {np.mean(losses[-50:]):.3f}", flush=True)
    return network.eval(), losses


def one_by_one(network: Network) -> Network:
    """Returns a network whose logits of a sample do not depend on its batch, to the bit."""
    return lambda x: torch.cat([network(one[None]) for one in x])


# ---- the server --------------------------------------------------------------------------------------------


class Request(NamedTuple):
    name: int
    seed: int
    prompt: Sequence[int]
    arrives: int = 0  # after this many calls of the network


class Running(NamedTuple):
    """A slot knows its request, its noise, and the row of the sampler that comes next."""

    request: Request
    noise: nf.Noise
    row: int = 0


class Result(NamedTuple):
    """The texts, and the time that they took: `network` and `whole` in seconds."""

    texts: dict[int, Tensor]
    calls: int
    network: float
    whole: float


def sampler_of(text: Text) -> nf.DiscreteSampler:
    """A step reveals the words of the block with at least this confidence, and one in any case."""
    return nf.samplers.llada(
        LENGTH, length=LENGTH, block_length=BLOCK, mask_id=text.mask_id, threshold=THRESHOLD, temperature=TEMPERATURE
    )


def start(text: Text, request: Request) -> Tensor:
    x = torch.full((LENGTH,), text.mask_id)
    x[: len(request.prompt)] = torch.as_tensor(request.prompt)
    return x


@torch.inference_mode()
def serve(network: Network, text: Text, requests: Sequence[Request], slots: int) -> Result:
    """Decodes all requests. The batch (slots, LENGTH) is the same in each call; free slots have masks."""
    sampler, waiting = sampler_of(text), sorted(requests, key=lambda request: request.arrives)
    x = torch.full((slots, LENGTH), text.mask_id)
    running: dict[int, Running] = {}
    texts, calls, in_network, began = {}, 0, 0.0, time.perf_counter()
    while waiting or running:
        for slot in range(slots):
            if slot not in running and waiting and waiting[0].arrives <= calls:
                request = waiting.pop(0)
                running[slot] = Running(request, nf.Noise(request.seed))
                x[slot] = start(text, request)
        called = time.perf_counter()
        logits = network(x)
        in_network += time.perf_counter() - called
        calls += 1
        for slot, (request, noise, row) in [*running.items()]:
            own = x[slot : slot + 1]
            row = next_row(sampler, row, own)
            sampler.step(row, own, logits[slot : slot + 1], noise, out=own)
            running[slot] = Running(request, noise, row + 1)
            if not (own == text.mask_id).any():
                texts[request.name] = own[0].clone()
                del running[slot]
    return Result(texts, calls, in_network, time.perf_counter() - began)


def next_row(sampler: nf.DiscreteSampler, row: int, x: Tensor) -> int:
    """Returns the first row from this one on that has masks to reveal: a full block's other rows are left out."""
    masks = x[0] == sampler.table.mask_id
    while not masks[: len(masks) - sampler.table.rows[row].end].any():
        row += 1
    return row


# ---- the loop to compare with ------------------------------------------------------------------------------


@torch.inference_mode()
def naive(network: Network, text: Text, requests: Sequence[Request], slots: int) -> Result:
    """The same decoding in plain torch: Gumbel's noise and a softmax in float64, for batches that end together."""
    texts, calls, in_network, began = {}, 0, 0.0, time.perf_counter()
    for first in range(0, len(requests), slots):
        batch = requests[first : first + slots]
        x = torch.stack([start(text, request) for request in batch])
        for end in range(BLOCK, LENGTH + 1, BLOCK):
            while (masks := (x[:, :end] == text.mask_id)).any():
                called = time.perf_counter()
                logits = network(x)[:, :end].double()
                in_network += time.perf_counter() - called
                calls += 1
                gumbel = -torch.log(-torch.log(torch.rand_like(logits)))
                drawn = (logits / TEMPERATURE + gumbel).argmax(-1)
                sure = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0].masked_fill(~masks, -1)
                taken = masks & ((sure >= THRESHOLD) | (sure == sure.max(-1, keepdim=True).values))
                x[:, :end] = torch.where(taken, drawn, x[:, :end])
        texts |= {request.name: one for request, one in zip(batch, x, strict=True)}
    return Result(texts, calls, in_network, time.perf_counter() - began)


# ---- the program -------------------------------------------------------------------------------------------


def some_requests(text: Text, n: int, seed: int) -> list[Request]:
    """Requests of other seeds and prompts, that arrive one after another."""
    noise = nf.Noise(seed, step=1)
    begin = ((len(text.ids) - LENGTH) * nf.uniform(n, noise)).astype(int)
    return [Request(k, seed + k, text.ids[b : b + 2 + k % 9].tolist(), 2 * k) for k, b in enumerate(begin)]


def are_alone(network: Network, text: Text, requests: Sequence[Request], slots: int) -> int:
    """Returns how many texts of a full server are, in all words, those of their request alone."""
    apart = one_by_one(network)
    together = serve(apart, text, requests, slots).texts
    alone = [serve(apart, text, [request._replace(arrives=0)], 1).texts for request in requests]
    return sum(torch.equal(together[name], x) for one in alone for name, x in one.items())


def table(runs: dict[str, Result]) -> str:
    lines = [f"{'':<12}{'calls':>8}{'steps / s':>12}{'words / s':>12}{'beside the network':>22}"]
    for name, run in runs.items():
        words, share = len(run.texts) * LENGTH, 1 - run.network / run.whole
        lines.append(f"{name:<12}{run.calls:>8}{run.calls / run.whole:>12.1f}{words / run.whole:>12.0f}{share:>22.1%}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a masked diffusion model on words, and serve texts of it.")
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--slots", type=int, default=8, help="texts in the batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=nf.info()["threads"], help="default: as many as cores")
    arguments = parser.parse_args(argv)

    torch.set_num_threads(arguments.threads)
    with nf.set_num_threads(arguments.threads):
        text = load()
        print(f"{len(text.ids)} words, {len(text.words)} different ones", flush=True)
        network, _ = train(text, arguments.steps, seed=arguments.seed)
        requests = some_requests(text, arguments.requests, arguments.seed)
        runs = {"server": serve(network, text, requests, arguments.slots)}
        runs["plain torch"] = naive(network, text, requests, arguments.slots)
        for request in requests[:3]:
            print(f"seed {request.seed}: {text.show(runs['server'].texts[request.name].tolist())}")
        print(table(runs))
        equal = are_alone(network, text, requests, arguments.slots)
        print(f"{equal} of {len(requests)} texts are those of the request alone")


if __name__ == "__main__":
    main()
