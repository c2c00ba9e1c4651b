# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: it hands checked calls on torch's tensors of a device to its kernels.

Kernels run where the arrays lie, on torch's current stream there; nothing is read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...call.description import (
    ACCUMULATORS,
    FLOAT64,
    LOSS_CHUNK,
    TOKENS,
    CrossEntropy,
    Loss,
    Masks,
    Race,
    Step,
    Walk,
    window_runs,
)
from ...language.levels import LEVELS, levels_of
from ...language.noise import Noise
from ...language.rows import M1, D, Rows
from .. import NEEDS_CUPY, runner
from ..categorical_rows import Scale
from . import kernels, races, tokens
from . import loss as losses
from .arrays import empty as empty
from .arrays import uploaded
from .kernels import MOST, block_of

TILE = 512  # the most elements of a loss at a time


def step(call: Step) -> None:
    """Computes the outputs of one pass."""
    if call.by_level or call.draw == "words":
        raise NotImplementedError(NEEDS_CUPY)
    device, double = _device(call), call.arithmetic == FLOAT64
    noise, span, fours, axes = _noise(call, device)
    block = block_of(span, MOST // (1 + double))
    tiles, out = -(-span // block), call.outputs[0]
    levels = None if out is None else levels_of(out.dtype)
    _launch(
        kernels.affine, (call.batch * call.size // span * tiles,), device, _table(call.rows, double, device),
        *_index(call, span, device), max(1, call.period), *_memory(call), *noise, span, call.size // span, tiles,
        ACTIVE=call.rows.active, DRAW=call.draw, DOUBLE=double, BY_INDEX=call.step_by_index,
        BY_PERIOD=call.period > 0, MASKED=call.masked, LEVELS=LEVELS[levels] if levels else 0,
        AXES=axes, FOURS=fours, BLOCK=block,
    )  # fmt: skip


def walk(call: Walk) -> None:
    """Computes the kept times of a random walk."""
    first = call.first._replace(segment=call.first.batch * call.first.size)
    device, double = _device(first), first.arithmetic == FLOAT64
    noise, span, fours, axes = _noise(first, device)
    block = block_of(span, MOST // (1 + double))
    tiles = -(-span // block)
    x, *_, out, _, _ = _memory(first)
    _launch(
        kernels.walk, (first.batch * tiles,), device, _table(first.rows, double, device), uploaded(call.keep, device),
        x, out, *noise, span, first.batch * span, tiles, len(call.keep),
        ACTIVE=first.rows.active, DOUBLE=double, AXES=axes, FOURS=fours, BLOCK=block,
    )  # fmt: skip


def loss(call: Loss) -> None:
    """Computes losses and their gradient, chunk by chunk; then adds the sums of chunks, and those of samples."""
    residual, chunks = call.residual, call.chunks
    device, double = _device(residual), residual.arithmetic == FLOAT64
    noise, span, fours, axes = _noise(residual, device)
    index = _index(residual, span, device)
    sums = None if call.losses is None else empty(device, (call.pieces * chunks,), FLOAT64).tensor
    weights = uploaded(call.weights, device)
    on_host = isinstance(call.upstream, np.ndarray) and not call.upstream.ndim
    block = block_of(span, TILE, ACCUMULATORS)
    _launch(
        losses.chunks, (call.pieces * chunks,), device, _table(residual.rows, double, device), *index,
        *_memory(residual)[:-2], *noise, span, residual.size // span, chunks, sums, weights,
        None if on_host else uploaded(call.upstream, device), int(call.upstream.view(np.int64)) if on_host else 0,
        call.n, ACTIVE=residual.rows.active, DRAW=residual.draw, DOUBLE=double, AXES=axes, FOURS=fours,
        EACH=call.upstream.ndim > 0, BLOCK=block, num_warps=max(1, block // 128),
    )  # fmt: skip
    if call.losses is None:
        return
    result: Any = call.losses
    direct = result.ndim or residual.batch == 1
    each, last = (result.tensor, call.n) if direct else (empty(device, (residual.batch,), FLOAT64).tensor, 1)
    of_pieces = sums, weights, *index, each, call.pieces // residual.batch, chunks, last
    _launch(losses.samples, (residual.batch,), device, *of_pieces, num_warps=1)
    if not direct:
        of_samples = each, None, 0, None, 0, 1, result.tensor, 1, residual.batch, call.n
        _launch(losses.samples, (1,), device, *of_samples, num_warps=1)


def masks(call: Masks) -> None:
    """Masks tokens, or draws them anew."""
    device, size = call.tokens.device.id, call.step.size  # type: ignore[attr-defined]
    noise, _, fours, axes = _noise(call.step, device)
    p = None if isinstance(call.p, np.ndarray) and call.p.size == 1 else uploaded(call.p, device)
    if p is not None and 1 < call.segment < size:
        p = p.repeat_interleave(call.segment)
    elif p is not None and len(p) == 1:
        p = p.expand(call.step.batch).contiguous()
    block = block_of(size)
    tiles = -(-size // block)
    grid = call.step.batch, min(tiles, 1 << 15), -(-tiles >> 15)  # CUDA's later axes have less than 2^16
    arrays: tuple[Any, ...] = call.tokens, call.out, call.masked
    count = 0 if p is not None else int(np.rint(call.p[0] * 2.0**32))
    _launch(
        tokens.masks, grid, device, *(a.tensor for a in arrays), uploaded(call.where, device), p, count,
        (call.mask ^ 1 << 63) - (1 << 63), call.vocabulary, *noise, size,
        EACH=p is not None and len(p) > call.step.batch, NEW=call.vocabulary > 0, COMPLEMENT=call.complement,
        AXES=axes, FOURS=fours, BLOCK=block,
    )  # fmt: skip


def race(call: Race) -> None:
    """Draws a token of each row of logits."""
    x: Any = call.x
    device = x.device.id
    settings = np.array([_setting(*one) for one in zip(call.temperature, call.top_k, strict=True)])
    info = [call.token, call.log_prob, call.log_prob_raw, call.entropy, call.margin, call.rank]
    _launch(
        races.race, (call.rows,), device, x.tensor, call.n, uploaded(settings, device),
        uploaded(np.array(_setting(1.0, 0)), device), call.of_sample, int(call.each), uploaded(call.position, device),
        uploaded(call.where, device), call.hidden, *_tensors(info), *_name(call.fields, [0] * len(call.fields), device),
        CUT=bool(settings[:, -1].any()), **_of_rows(call.n),
    )  # fmt: skip


def cross_entropy(call: CrossEntropy) -> None:
    """Computes the weighted losses of rows, or their mean, and the gradient."""
    x: Any = call.x
    loss: Any = call.loss
    device = x.device.id
    unit = uploaded(np.array([*_setting(1.0, 0)[:-1], call.mean_of]), device)
    of_rows = x.empty((call.rows,), loss.dtype).tensor if loss.ndim == 0 else loss.tensor
    numbers = [uploaded(call.weight, device), call.weight_step, uploaded(call.upstream, device), call.upstream_step]
    _launch(
        races.cross_entropy, (call.rows,), device, x.tensor, call.n, unit, uploaded(call.id, device),
        uploaded(call.masked, device), *numbers, of_rows, *_tensors([call.gradient]), **_of_rows(call.n),
    )  # fmt: skip
    if loss.ndim == 0:
        _launch(races.mean, (1,), device, of_rows, call.rows, loss.tensor, BLOCK=32, num_warps=1)


def _launch(kernel: Any, grid: tuple[int, ...], device: int, *arguments: Any, num_warps: int = 4, **of: Any) -> None:
    """Launches a kernel on a device, with these constants. Products and sums stay apart."""
    with torch.cuda.device(device):
        kernel[grid](*arguments, num_warps=num_warps, enable_fp_fusion=False, **of)


def _of_rows(n: int) -> dict[str, Any]:
    """Returns the constants of kernels of rows of n logits: C chunks are added up at once. Without its own limit ptxas
    spills a few registers of sm_90, to hold more threads."""
    chunks, limit = 1 << (-(-n // LOSS_CHUNK) - 1).bit_length(), {} if torch.version.hip else {"maxnreg": 255}
    return {"C": min(chunks, 8), "BLOCK": block_of(n, MOST // 2), **limit}


def _setting(temperature: float, k: int) -> tuple[float, ...]:
    """Returns what a kernel takes of a temperature; 0 is -1 there."""
    scale = Scale.of(temperature or 1.0)
    beta = 1 / temperature if temperature else -1.0
    return beta, *map(float, (scale.high, scale.low, scale.rate, scale.reach)), float(min(k, TOKENS))


def _index(call: Step, span: int, device: int) -> tuple[Any, ...]:
    """Returns the number of rows, the rows of segments or the one row of all, and the spans that share a row."""
    rows, index, of_row = len(call.rows.table), call.index, max(1, call.segment // span)
    if isinstance(index, np.ndarray) and index.size == 1 and not call.period:
        return rows, None, int(index[0]), of_row
    return rows, uploaded(index, device), 0, of_row


def _memory(call: Step) -> list[Tensor | None]:
    """Returns inputs and outputs, without D, which is computed."""
    return _tensors([*call.inputs[:D], *call.inputs[D + 1 :], *call.outputs])


def _tensors(arrays: Sequence[Any]) -> list[Tensor | None]:
    return [None if a is None else a.tensor for a in arrays]


def _device(call: Step) -> int:
    arrays: Any = (*call.outputs, call.inputs[M1])  # a loss without a gradient has pred alone
    device: int = next(a.data.device_id for a in arrays if a is not None)
    return device


def _noise(call: Step, device: int) -> tuple[list[Any], int, bool, int]:
    """Returns the arguments that name the noise; the elements of a span; whether spans are whole blocks of the
    generator; and the axes of a window."""
    span = min(call.size, call.segment) if not call.period else call.size
    if not call.noise:
        return [None, 0, 0, 0, 0, 0, None, None, None, 1], span, True, 0
    windows = [window_runs(noise, call.sample_shape) for noise in call.noise]
    _, run, lengths, strides = windows[0]
    if any(window[1:] != windows[0][1:] for window in windows):
        raise NotImplementedError(NEEDS_CUPY)
    axes = uploaded(np.array((*lengths, *strides)), device) if lengths else None
    whole = (span == call.size or span % 4 == 0) and not lengths and all(window[0] % 4 == 0 for window in windows)
    whole &= not (call.period and call.step_by_index)  # then elements of a block have steps of their own
    return [*_name(call.noise, [window[0] for window in windows], device), axes, run], span, whole, len(lengths)


def _name(noises: Sequence[Noise], starts: Sequence[int], device: int) -> list[Any]:
    """Returns the arguments that name entries: numbers, and arrays where entries differ."""
    first, *others = noises
    if others:
        named = [_numbers(noise, start) for noise, start in zip(noises, starts, strict=True)]
        return [uploaded(np.array(named, np.uint64).view(np.int64), device), 0, 0, 0, 0, 0, None, None]
    samples = None if isinstance(first.sample, int) else uploaded(first.sample.view(np.int64), device)
    counter = None if isinstance(first.step, int) else uploaded(first.step, device)
    return [None, *_numbers(first, starts[0]), samples, counter]


def _numbers(noise: Noise, start: int) -> tuple[int, ...]:
    """Returns the numbers of a name. Those that are arrays count as 0."""
    sample = noise.sample if isinstance(noise.sample, int) else 0 if len(noise.sample) > 1 else int(noise.sample[0])
    return noise.seed, sample, noise.step if isinstance(noise.step, int) else 0, noise.stream, start


def _table(rows: Rows, double: bool, device: int) -> Tensor:
    """Returns the table, uploaded once and kept with the rows."""
    kept: dict[Any, Any] = rows.on_devices
    if (key := ("triton", device, double)) not in kept:
        kept[key] = uploaded(rows.table if double else rows.single, device)
    found: Tensor = kept[key]
    return found


run: Any = runner({Step: step, Masks: masks, Race: race, CrossEntropy: cross_entropy, Walk: walk, Loss: loss})
