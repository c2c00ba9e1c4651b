# SPDX-License-Identifier: Apache-2.0
"""The uses of JAX beyond its public interface, and of names that differ between its versions."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec


def varying_axes(x: Any) -> frozenset[Any]:
    """Returns the mesh axes along which devices hold different values of x, inside `jax.shard_map`."""
    kind = jax.typeof(x)
    return _of_type(kind)


def _of_type(kind: Any) -> frozenset[Any]:
    manual = getattr(kind, "mat", None)
    axes: frozenset[Any] = getattr(kind, "vma", frozenset()) if manual is None else manual.varying
    return axes


def varying(x: Any, axes: frozenset[Any]) -> Any:
    """Returns x as a value that may differ along these axes."""
    missing = tuple(axes - varying_axes(x))
    if not missing:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, missing, to="varying")
    return jax.lax.pvary(x, missing)


def result_type(operand: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Returns the type of a result that varies along the same axes as this operand's type."""
    if not _of_type(operand):
        return jax.core.ShapedArray(shape, dtype)
    sharding = operand.sharding.update(spec=PartitionSpec(*[None] * len(shape)))
    return operand.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)


def is_for_several(context: Any) -> bool:
    """Tells whether a program is lowered for several devices, which share it."""
    devices = getattr(context.module_context.axis_context, "device_assignment", None)
    return devices is not None and len(devices) > 1


def check_devices(primitive: Any) -> bool:
    """Asks JAX to give the devices when the primitive is lowered. False: this JAX cannot be asked."""
    try:
        from jax._src.dispatch import prim_requires_devices_during_lowering
    except ImportError:
        return False
    prim_requires_devices_during_lowering.add(primitive)
    return True
