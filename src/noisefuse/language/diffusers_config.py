# SPDX-License-Identifier: Apache-2.0
"""The noise schedule in a diffusers scheduler's configuration, as a family of `Schedule`.

Only the configuration is read, so diffusers need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

# the classmethod of Schedule, its arguments, and whether it is rescaled to zero terminal SNR
Family: TypeAlias = tuple[str, dict[str, Any], bool]

_BETAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "linear": ("linear", ("beta_start", "beta_end")),
    "scaled_linear": ("scaled_linear", ("beta_start", "beta_end")),
    "sigmoid": ("sigmoid", ("beta_start", "beta_end")),
    "squaredcos_cap_v2": ("cosine", ()),
    "laplace": ("laplace", ()),
}
_RAMPS = {"karras": ("sigma_min", "sigma_max", "rho"), "exponential": ("sigma_min", "sigma_max")}
# Noise levels that depend on the image, or that run another way: no schedule describes them.
_REFUSED: dict[str, Callable[[Any], bool]] = {
    "use_dynamic_shifting": bool,
    "shift_terminal": lambda value: value is not None,
    "invert_sigmas": bool,
    "stages": lambda value: value is not None,
    "snr_shift_scale": lambda value: value != 1,
}


def family(scheduler: Any) -> Family:
    """Returns the family that the scheduler, or its configuration, asks for: see ``Schedule.from_diffusers``."""
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        expected = "a scheduler of diffusers, with a .config, or a configuration as a mapping"
        raise TypeError(f"scheduler: expected {expected}, got {type(scheduler).__name__}")
    for key, is_other in _REFUSED.items():
        if key in config and is_other(config[key]):
            raise ValueError(f"scheduler: {key}={config[key]!r} is not supported")
    if "num_train_timesteps" not in config:
        raise ValueError("scheduler: expected a configuration with num_train_timesteps")
    steps = {"steps": config["num_train_timesteps"]}
    is_flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if is_flow or ("shift" in config and "beta_schedule" not in config):
        return "flow", steps | {"shift": config.get("flow_shift", config.get("shift", 1.0))}, False
    if config.get("sigma_min") is not None and config.get("sigma_max") is not None:
        return _exploding(config, steps)
    return _of_betas(config, steps)


def _exploding(config: Mapping[str, Any], steps: dict[str, Any]) -> Family:
    if "sigma_schedule" in config:  # EDM
        ramp = config["sigma_schedule"]
    elif config.get("use_karras_sigmas") or "rho" in config:  # Euler with noise levels of its own; consistency models
        ramp = "karras"
    elif config.get("use_exponential_sigmas") or "correct_steps" in config:  # the same; the VE SDE
        ramp = "exponential"
    else:
        raise ValueError(
            "scheduler: sigma_min and sigma_max are supported with sigma_schedule, use_karras_sigmas or "
            "use_exponential_sigmas"
        )
    if ramp not in _RAMPS:
        raise ValueError(f"scheduler: sigma_schedule={ramp!r} is not supported, expected one of {', '.join(_RAMPS)}")
    return ramp, steps | {key: config[key] for key in _RAMPS[ramp] if key in config}, False


def _of_betas(config: Mapping[str, Any], steps: dict[str, Any]) -> Family:
    rescaled = bool(config.get("rescale_betas_zero_snr"))
    if config.get("trained_betas") is not None:
        return "from_betas", {"betas": config["trained_betas"]}, rescaled
    name = config.get("beta_schedule")
    if name not in _BETAS:
        raise ValueError(f"scheduler: beta_schedule={name!r} is not supported, expected one of {', '.join(_BETAS)}")
    kind, keys = _BETAS[name]
    if missing := [key for key in keys if key not in config]:
        raise ValueError(f"scheduler: beta_schedule={name!r} needs {' and '.join(missing)}")
    return kind, steps | {key: config[key] for key in keys}, rescaled
