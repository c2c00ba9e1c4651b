# SPDX-License-Identifier: Apache-2.0
"""Augmentation of dask's arrays: the axes of numbers, and the order in which the noise counts a block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

import noisefuse as nf

from .blocks import Axes, Call, Shape, check_none, check_whole, known_chunks, mapped, same, without_window


def augmented(function: Callable[..., Any], x: Any, noise: Any, *, out: Any = None, **options: Any) -> Any:
    """Runs a function of `augment` on each block."""
    check_none(out=out)
    name, batched = function.__name__.strip("_"), options.get("batched", True)
    if name == "apply":
        numbers = options.pop("numbers")
    elif name in ("snr", "coloured"):
        check_whole(f"{'at_snr' if name == 'snr' else name}: samples", x, 1 if batched else 0)
        numbers = {"snr": options.pop("snr")}
    elif of_samples := {"poisson": "peak", "impulse": "amount", "rician": "std"}.get(name):
        numbers = {of_samples: options.pop(of_samples)}
    elif name in ("levels", "transition"):
        numbers = {}
    else:
        raise NotImplementedError(f"augment: {name} does not take dask arrays")
    axes = _axes(numbers, known_chunks("x", x), options)
    options |= {"function": function, "numbers_of": tuple(numbers)}
    return mapped(Call("augment", _augmented, options, counted=_counted_by(noise, options)), x, numbers, noise, axes)


def _axes(numbers: dict[str, Any], chunks: tuple[Shape, ...], options: dict[str, Any]) -> Axes:
    """Returns the axes of x for numbers per sample or channel. The layout is found once, because parts of images may
    fit others."""
    shape, first = tuple(map(sum, chunks)), 1 if options.get("batched", True) else 0
    axes: dict[str, Shape] = {}
    for name, value in numbers.items():
        ndim = np.ndim(value)
        if ndim > first + 1 or ndim > len(shape):
            raise ValueError(
                f"{name}: expected a number, or one for each sample or channel, got shape {np.shape(value)}"
            )
        if ndim == first + 1:
            layout = nf.augment.find_layout(
                options.get("layout"), shape[first:], np.shape(value)[-1], " and ".join(numbers)
            )
            options["layout"] = layout
            axes[name] = (*range(first), first if layout == "CHW" else len(shape) - 1)
        elif ndim:
            axes[name] = (0,)
    return axes


def _counted_by(noise: Any, options: dict[str, Any]) -> Callable[[Shape], Shape]:
    """Returns how the noise counts if all channels of a pixel share a number, or pixels count in another layout."""
    layout, shared, order = options.get("layout"), options.get("shared", False), options.get("order")
    if not shared and order in (None, layout):
        return same
    if hasattr(noise, "shape"):
        raise TypeError("noise: expected a Noise with shared= or order=, got an array")
    for name, given in ("layout", layout), ("order", order or "CHW"):
        if given not in ("CHW", "HWC"):
            raise ValueError(f"{name} = {given!r}: expected 'CHW' or 'HWC' with shared= or order=")
    return partial(_counted, first=layout == "CHW", to_first=order == "CHW", shared=shared)


def _counted(lengths: Shape, *, first: bool, to_first: bool, shared: bool) -> Shape:
    channels, pixels = (lengths[0], lengths[1:]) if first else (lengths[-1], lengths[:-1])
    if shared:
        return pixels
    return (channels, *pixels) if to_first else (*pixels, channels)


def _augmented(x: Any, noise: Any, *, function: Any, numbers_of: tuple[str, ...], **options: Any) -> Any:
    numbers = {name: options.pop(name) for name in numbers_of}
    if not x.size:  # no noise is stored: an axis that is empty here may not be empty there
        options = {key: value for key, value in options.items() if key not in ("shared", "order")}
        noise = without_window(noise)
    return function(x, noise, **({"numbers": numbers} if "model" in options else numbers), **options)


# ---- prepare -----------------------------------------------------------------------------------------------


def prepare(images: Any, noise: Any, *, noise_std: Any, t: Any, out: Any, **options: Any) -> Any:
    """Runs `augment.prepare`. Its result has the images' channels first, so the chunks of other axes move on by one."""
    check_none(out=out)
    shape, first = tuple(map(sum, known_chunks("images", images))), 1 if options["batched"] else 0
    check_whole("prepare: channels", images, -1)
    numbers = {"noise_std": noise_std} | ({} if t is None else {"t": t})
    axes = {name: (0,) for name, value in numbers.items() if np.ndim(value)}

    def moved(axes: Shape) -> Shape:
        return *axes[:first], axes[-1], *axes[first:-1]

    call = Call(
        "prepare", _prepared, options, counted=_channels_first, result=moved, empty=partial(_without_lines, first)
    )
    result = mapped(call, images, numbers, noise, axes)
    if t is None:
        return result
    if isinstance(t, da.Array) and t.ndim:
        return result, t
    batch, rows = (shape[:1], images.chunks[:1]) if first else ((1,), 1)
    return result, da.broadcast_to(t, batch, rows) if np.ndim(t) == 0 else da.from_array(np.asarray(t), rows)


def _channels_first(lengths: Shape) -> Shape:
    return lengths[-1], *lengths[:-1]


def _without_lines(first: int, shape: Shape) -> Shape:
    return *shape[:first], 0, *shape[first + 1 :]


def _prepared(images: Any, noise: Any, **options: Any) -> Any:
    result = nf.augment.prepare(images, noise=noise, **options)
    return result[0] if "t" in options else result
