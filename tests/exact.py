# SPDX-License-Identifier: Apache-2.0
"""Rows applied in plain float64 NumPy, which every kernel approximates."""

import numpy as np


def apply_exact(row, x, m1=0.0, m2=0.0, past=(), z=0.0):
    """Returns (out, aux1, aux2) of one row. A column whose coefficient is 0 is not read."""
    inputs = {"k": 1.0, "x": x, "m1": m1, "m2": m2, "z": z}
    inputs |= {f"past{slot}": array for slot, array in enumerate(past, 1)}

    def affine(record):
        terms = (record[name] * inputs[name] for name in record.dtype.names if name in inputs and record[name])
        return sum(terms, np.zeros(np.shape(x)))

    clean = row["clean"]
    inputs["d"] = np.clip(affine(clean), clean["lo"], clean["hi"])
    return tuple(affine(row[output]) for output in ("out", "aux1", "aux2"))


def run_exact(tableau, model, x, draw=lambda: 0.0):
    """Applies all rows: model(scale * x, t) with z = draw()."""
    past = []
    for row, t, scale, push in zip(tableau.rows, tableau.timesteps, tableau.scale, tableau.push, strict=True):
        x, *aux = apply_exact(row, x, model(scale * x, t), past=past, z=draw())
        past = [*aux[:push], *past][:4]
    return x
