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

from ...call import description as calls
from ...language.levels import LEVELS, levels_of
from ...language.noise import Noise
from ...language.rows import M1, D
from .. import NEEDS_CUPY, runner
from ..categorical_rows import Scale
from . import kernels, races
from . import loss as losses
from .arrays import empty as empty
from .arrays import uploaded
from .kernels import MOST, block_of

TILE = 512  # the most elements of a loss at a time


def step(call: calls.Step) -> None:
    """Computes the outputs of one pass."""
    if call.by_level or call.draw == "words":
        raise NotImplementedError(NEEDS_CUPY)
    device, double = _device(call), call.arithmetic == calls.FLOAT64
    noise, span, known = _noise(call, device)
    block = block_of(span, MOST // (1 + double))
    tiles, out = -(-span // block), call.outputs[0]
    levels = None if out is None else levels_of(out.dtype)
    (table, n_rows), (index, row, of_row) = _table(call, double, device), _index(call, span, device)
    memory, (names, *name, axes, run) = _memory(call), noise
    _launch(
        kernels.affine, (call.batch * call.size // span * tiles,), device, table, index, *memory[:-3], names, axes,
        *memory[-3:], n_rows, row, of_row, max(1, call.period), *name, run, span, call.size // span, tiles,
        DRAW=call.draw, BY_INDEX=call.step_by_index, BY_PERIOD=call.period > 0, MASKED=call.masked,
        LEVELS=LEVELS[levels] if levels else 0, ACTIVE=call.rows.active, DOUBLE=double, BLOCK=block, **known,
    )  # fmt: skip


def walk(call: calls.Walk) -> None:
    """Computes the kept times of a random walk."""
    first = call.first._replace(segment=call.first.batch * call.first.size)
    device, double = _device(first), first.arithmetic == calls.FLOAT64
    noise, span, known = _noise(first, device)
    block = block_of(span, MOST // (1 + double))
    tiles, (table, _), (x, *_, out, _, _) = -(-span // block), _table(first, double, device), _memory(first)
    _launch(
        kernels.walk, (first.batch * tiles,), device, table, uploaded(call.keep, device), x, out, *noise, span,
        first.batch * span, tiles, len(call.keep), ACTIVE=first.rows.active, DOUBLE=double,
        BLOCK=block, **known,
    )  # fmt: skip


def loss(call: calls.Loss) -> None:
    """Computes losses and their gradient, chunk by chunk; then adds the sums of chunks, and those of samples."""
    residual, chunks = call.residual, call.chunks
    device, double = _device(residual), residual.arithmetic == calls.FLOAT64
    noise, span, known = _noise(residual, device)
    (table, n_rows), index = _table(residual, double, device), _index(residual, span, device)
    sums = None if call.losses is None else empty(device, (call.pieces * chunks,), calls.FLOAT64).tensor
    weights = uploaded(call.weights, device)
    on_host = isinstance(call.upstream, np.ndarray) and not call.upstream.ndim
    block = block_of(span, TILE, calls.ACCUMULATORS)
    _launch(
        losses.chunks, (call.pieces * chunks,), device, table, n_rows, *index, *_memory(residual)[:-2], *noise, span,
        residual.size // span, chunks, sums, weights, None if on_host else uploaded(call.upstream, device),
        int(call.upstream.view(np.int64)) if on_host else 0, call.n, DRAW=residual.draw, EACH=call.upstream.ndim > 0,
        ACTIVE=residual.rows.active, DOUBLE=double, BLOCK=block, num_warps=max(1, block // 128), **known,
    )  # fmt: skip
    if call.losses is None:
        return
    result: Any = call.losses
    direct = result.ndim or residual.batch == 1
    each, last = (result.tensor, call.n) if direct else (empty(device, (residual.batch,), calls.FLOAT64).tensor, 1)
    of_pieces = sums, weights, n_rows, *index, each, call.pieces // residual.batch, chunks, last
    _launch(losses.samples, (residual.batch,), device, *of_pieces, num_warps=1)
    if not direct:
        _launch(losses.total, (1,), device, each, residual.batch, call.n, result.tensor, BLOCK=32, num_warps=1)


def masks(call: calls.Masks) -> None:
    """Masks tokens, or draws them anew."""
    device, size = call.tokens.device.id, call.step.size  # type: ignore[attr-defined]
    noise, _, known = _noise(call.step, device)
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
        kernels.masks, grid, device, *(a.tensor for a in arrays), uploaded(call.where, device), p, count,
        (call.mask ^ 1 << 63) - (1 << 63), call.vocabulary, *noise, size,
        EACH=p is not None and len(p) > call.step.batch, NEW=call.vocabulary > 0, COMPLEMENT=call.complement,
        BLOCK=block, **known,
    )  # fmt: skip


def race(call: calls.Race) -> None:
    """Draws a token of each row of logits."""
    x: Any = call.x
    device = x.device.id
    settings = np.array([_setting(*one) for one in zip(call.temperature, call.top_k, strict=True)])
    info = [call.token, call.log_prob, call.log_prob_raw, call.entropy, call.margin, call.rank]
    _launch(
        races.race, (call.rows,), device, x.tensor, call.n, uploaded(settings, device),
        call.of_sample, int(call.each), uploaded(call.position, device), uploaded(call.where, device), call.hidden,
        *_tensors(info), *_name(call.fields, [0] * len(call.fields), device),
        CUT=bool(settings[:, -1].any()), **_of_rows(call.n),
    )  # fmt: skip


def cross_entropy(call: calls.CrossEntropy) -> None:
    """Computes the weighted losses of rows, or their mean, and the gradient."""
    x: Any = call.x
    loss: Any = call.loss
    device = x.device.id
    of_rows = x.empty((call.rows,), loss.dtype).tensor if loss.ndim == 0 else loss.tensor
    numbers = [uploaded(call.weight, device), call.weight_step, uploaded(call.upstream, device), call.upstream_step]
    _launch(
        races.cross_entropy, (call.rows,), device, x.tensor, call.n, uploaded(call.id, device),
        uploaded(call.masked, device), *numbers, of_rows, *_tensors([call.gradient]), int(call.mean_of),
        **_of_rows(call.n),
    )  # fmt: skip
    if loss.ndim == 0:
        _launch(losses.total, (1,), device, of_rows, call.rows, call.rows, loss.tensor, BLOCK=32, num_warps=1)


def _launch(kernel: Any, grid: tuple[int, ...], device: int, *arguments: Any, num_warps: int = 4, **known: Any) -> None:
    """Launches a kernel on a device, with these constants. Products and sums stay apart."""
    with torch.cuda.device(device):
        kernel[grid](*arguments, num_warps=num_warps, enable_fp_fusion=False, **known)


def _of_rows(n: int) -> dict[str, Any]:
    """Returns the constants of kernels of rows of n logits: C chunks are added up at once. Without its own limit ptxas
    spills a few registers of sm_90, to hold more threads."""
    chunks, limit = 1 << (-(-n // calls.LOSS_CHUNK) - 1).bit_length(), {} if torch.version.hip else {"maxnreg": 255}
    return {"C": min(chunks, 8), "BLOCK": block_of(n, MOST // 2), **limit}


def _setting(temperature: float, k: int) -> tuple[float, ...]:
    """Returns what a kernel takes of a temperature; 0 is -1 there."""
    scale = Scale.of(temperature or 1.0)
    beta = 1 / temperature if temperature else -1.0
    return beta, *map(float, (scale.high, scale.low, scale.rate, scale.reach)), float(min(k, calls.TOKENS))


def _index(call: calls.Step, span: int, device: int) -> tuple[Any, ...]:
    """Returns the rows of segments or the one row of all, and the spans that share a row."""
    index, of_row = call.index, max(1, call.segment // span)
    if isinstance(index, np.ndarray) and index.size == 1 and not call.period:
        return None, int(index[0]), of_row
    return uploaded(index, device), 0, of_row


def _memory(call: calls.Step) -> list[Tensor | None]:
    """Returns inputs and outputs, without D, which is computed."""
    return _tensors([*call.inputs[:D], *call.inputs[D + 1 :], *call.outputs])


def _tensors(arrays: Sequence[Any]) -> list[Tensor | None]:
    return [None if a is None else a.tensor for a in arrays]


def _device(call: calls.Step) -> int:
    arrays: Any = (*call.outputs, call.inputs[M1])  # a loss without a gradient has pred alone
    device: int = next(a.data.device_id for a in arrays if a is not None)
    return device


def _noise(call: calls.Step, device: int) -> tuple[list[Any], int, dict[str, Any]]:
    """Returns the arguments that name the noise; the elements of a span; and constants: the axes of a window, and
    whether spans are whole blocks of the generator."""
    span = min(call.size, call.segment) if not call.period else call.size
    known: dict[str, Any] = {"AXES": 0, "FOURS": True}
    if not call.noise:
        return [None, 0, 0, 0, 0, 0, None, None, None, 1], span, known
    windows = [calls.window_runs(noise, call.sample_shape) for noise in call.noise]
    _, run, lengths, strides = windows[0]
    if any(window[1:] != windows[0][1:] for window in windows):
        raise NotImplementedError(NEEDS_CUPY)
    axes = uploaded(np.array((*lengths, *strides)), device) if lengths else None
    whole = (span == call.size or span % 4 == 0) and not lengths and all(window[0] % 4 == 0 for window in windows)
    whole &= not (call.period and call.step_by_index)  # then elements of a block have steps of their own
    known["AXES"], known["FOURS"] = len(lengths), whole
    return [*_name(call.noise, [window[0] for window in windows], device), axes, run], span, known


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


def _table(call: calls.Step, double: bool, device: int) -> tuple[Tensor, int]:
    """Returns the table, uploaded once and kept with the rows, and their number."""
    kept: dict[Any, Any] = (rows := call.rows).on_devices
    if (key := ("triton", device, double)) not in kept:
        kept[key] = uploaded(rows.table if double else rows.single, device)
    return kept[key], len(rows.table)


run: Any = runner(
    {calls.Step: step, calls.Masks: masks, calls.Race: race, calls.CrossEntropy: cross_entropy, calls.Walk: walk,
     calls.Loss: loss}
)  # fmt: skip
