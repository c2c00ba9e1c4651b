# SPDX-License-Identifier: Apache-2.0
"""Regions of images: masks, or boxes that become masks, and the choice between two images by a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arguments.arrays import batch_shape, host_floats, host_numbers, on_device
from ..arguments.types import Array
from ..ground.libraries import library_for, library_of
from .numbers import Layout

_CHANNELS = 1, 3, 4


def mask_of(name: str, region: Any, x: Array, layout: Layout | None, batched: bool) -> Array:
    """Returns a mask of NumPy's or of x's library, which broadcasts with x."""
    own = library_of(region) is library_of(x) and hasattr(region, "reshape") and on_device(region) == on_device(x)
    if own and _is_bool(region):
        return region.reshape(_place(name, region, tuple(x.shape), layout, batched))
    return _on_host(name, region, tuple(x.shape), layout, batched)


def chosen(mask: Array, noisy: Array, x: Array) -> Array:
    """Returns what is noisy where the mask is true, and x elsewhere; in the memory of `noisy`, where it can be."""
    if library_for(x).in_memory(x):
        return _on_views(x, _put_back, noisy, mask, x)
    if library_of(mask) is None and not on_device(mask):
        mask = np.asarray(mask, like=x) if on_device(x) else library_for(x).moved(mask.copy(), x)
    made: Array = library_for(x).where(mask, noisy, x)
    return made


def copied(x: Array) -> Array:
    if library_for(x).in_memory(x):
        return _on_views(x, np.copy, x)
    return x.clone() if hasattr(x, "clone") else x.copy()


def _on_views(x: Array, function: Callable[..., Array], *arrays: Array) -> Array:
    return function(*arrays) if isinstance(x, np.ndarray) else library_for(x).through(function, *arrays)


def _put_back(noisy: Array, mask: Array, x: Array) -> Array:
    """Writes x's bits where the mask is false. (np.where takes ten times as long for bytes.)"""
    kind = f"u{noisy.itemsize}"
    shape = np.broadcast_shapes(mask.shape, x.shape[1:])
    taken = np.negative(np.broadcast_to(mask, shape).astype(kind))  # all bits, or none
    bits, before = noisy.view(kind), x.view(kind)
    bits ^= before
    bits &= taken
    bits ^= before
    return noisy


def of_each(region: Any, n: int) -> list[tuple[str, Any]]:
    """Returns the names and the regions of images of a list."""
    if isinstance(region, list | tuple):
        if len(region) != n:
            raise ValueError(f"region: expected one for each of {n} images, got {len(region)}")
        return [(f"region[{b}]", one) for b, one in enumerate(region)]
    return [("region", region)] * n


def _is_bool(region: Any) -> bool:
    return str(region.dtype) in ("bool", "torch.bool")


def _on_host(name: str, region: Any, shape: tuple[int, ...], layout: Layout | None, batched: bool) -> Array:
    batch, sample = batch_shape(shape, batched)
    of_samples = isinstance(region, list | tuple) and any(getattr(one, "ndim", np.ndim(one)) > 1 for one in region)
    if not of_samples:
        given = host_numbers(name, region)
        if _is_bool(given):
            return given.reshape(_place(name, given, shape, layout, batched))
        if given.size == 0 or (given.ndim == 2 and given.shape[1] == 4):
            return _of_boxes(name, host_floats(name, given).reshape(-1, 4), sample, layout)
        if given.ndim != 3 or given.shape[2] != 4:
            raise _wrong(name, given, shape)
    if not batched or len(region) != batch:
        raise ValueError(f"{name}: expected one for each of {batch} samples, got {len(region)}")
    masks = [_on_host(f"{name}[{b}]", one, sample, layout, False) for b, one in enumerate(region)]
    return np.stack([np.broadcast_to(mask, sample) for mask in masks])


def _of_boxes(name: str, boxes: Array, sample: tuple[int, ...], layout: Layout | None) -> Array:
    """Returns the mask of a sample, whose axes of height and width `layout` tells, or the number of channels."""
    first, last = (len(sample) > 2 and sample[axis] in _CHANNELS for axis in (0, -1))
    if len(sample) < 2 or (layout is None and first and last):
        hint = "pass layout='CHW' or 'HWC', or a mask" if len(sample) > 1 else "boxes are of images; pass a mask"
        raise ValueError(f"{name}: samples of shape {sample} do not tell where height and width are: {hint}")
    bad = ~(boxes[:, :2] <= boxes[:, 2:]).all(axis=1) | ~np.isfinite(boxes).all(axis=1)
    if bad.any():
        raise ValueError(f"{name}: expected finite x0 <= x1 and y0 <= y1, got the box {boxes[bad][0].tolist()}")
    at = slice(-3, -1) if len(sample) > 2 and (layout == "HWC" or (layout is None and last)) else slice(-2, None)
    mask = np.zeros(sample[at], np.bool_)
    for x0, y0, x1, y1 in np.ceil(boxes.clip(0, max(sample))).astype(np.int64).tolist():
        mask[y0:y1, x0:x1] = True
    return mask[..., None] if at.stop else mask


def _place(name: str, mask: Array, shape: tuple[int, ...], layout: Layout | None, batched: bool) -> tuple[int, ...]:
    """Returns the shape in which a mask is broadcast with x."""
    given = tuple(mask.shape)
    lead, sample = (shape[:1], shape[1:]) if batched else ((), shape)
    places = {sample: sample}
    if len(sample) > 2:
        places |= {sample[:-1]: (*sample[:-1], 1)} if layout != "CHW" else {}
        places |= {sample[1:]: (1, *sample[1:])} if layout != "HWC" else {}
    ones = (1,) * len(lead)
    found = {(*ones, *full) for short, full in places.items() if given == short}
    found |= {(*lead, *full) for short, full in places.items() if given == (*lead, *short)}
    if len(given) == len(shape) and all(n in (1, length) for n, length in zip(given, shape, strict=True)):
        found = {given}
    if len(found) > 1:
        which = " or ".join(map(str, sorted(found)))
        raise ValueError(f"{name}: shape {given} may stand for {which}, as x has shape {shape}: reshape it to one")
    if not found:
        raise _wrong(name, mask, shape)
    return found.pop()


def _wrong(name: str, given: Array, shape: tuple[int, ...]) -> Exception:
    what = "bool of shape (H, W), (B, H, W), a sample's or x's, or boxes (N, 4)"
    return ValueError(
        f"{name}: expected {what}, got {given.dtype} of shape {tuple(given.shape)} for x of shape {shape}"
    )
