# SPDX-License-Identifier: Apache-2.0
"""Public functions on a CUDA device, each beside torch's shortest eager code there (peers_of_calls.py):

    python benchmarks/peers_on_device.py [FUNCTION ..]

Times are those of the device's clock, in turn. At the end stand the functions that want tensors in host memory.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import partial
from typing import Any, TypeAlias

import cliffs
from noisefuse.commands.bench.contenders import Call
from noisefuse.commands.bench.cuda import by_events
from noisefuse.commands.bench.timing import interleaved
from peers_of_calls import arguments, peers

SHAPE, LOGITS = (64, 64, 64, 64), (4096, 32768)  # beyond the caches
Pairs: TypeAlias = dict[str, tuple[Call, Call]]


def pairs(
    torch: Any, names: Collection[str] = (), shape: tuple[int, ...] = SHAPE, logits: tuple[int, ...] = LOGITS,
    device: str = "cuda",
) -> tuple[Pairs, list[str]]:  # fmt: skip
    """Returns our call and torch's for each function that a device serves, and the names of the others."""
    makes, found, others = peers(torch, device=device), {}, []
    for name, function in cliffs.functions().items():
        if name not in makes or (names and name not in names):
            continue
        of_rows = name.startswith(("categorical", "masked", "rate_loss"))
        options = {"dtype": torch.float32, "device": device}
        given = arguments(name, logits if of_rows else shape, lambda x: torch.from_numpy(x).to(device), **options)
        calls = partial(function, **given), partial(makes[name], **given)
        try:
            calls[0]()
            found[name] = calls
        except (NotImplementedError, TypeError):  # rms takes arrays alone
            others.append(name)
    return found, others


def main() -> None:
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device")
    print(torch.cuda.get_device_name(), f"\n{'':36}{'ours':>10}{'torch':>10}  us")
    found, others = pairs(torch, sys.argv[1:])
    for name, (ours, other) in found.items():
        timed = interleaved({"ours": ours, "torch": other}, clock=partial(by_events, torch))
        a, b = (timed[who].median for who in ("ours", "torch"))
        print(f"{name:36}{1e6 * a:10.1f}{1e6 * b:10.1f}  {b / a:.1f} times")
    print("in host memory alone:", ", ".join(others))


if __name__ == "__main__":
    main()
