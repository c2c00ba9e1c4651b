# SPDX-License-Identifier: Apache-2.0
"""Uses an array type of your own in every operation, in and out, by an adapter of two methods.

    python examples/own_arrays.py

The type here is a field on a grid with a unit. noisefuse does not know it, and it does not know NumPy's protocols.
"""

from dataclasses import dataclass

import numpy as np

import noisefuse as nf


@dataclass
class Field:
    values: np.ndarray
    unit: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype


class Fields(nf.interop.ThroughNumPy):
    is_written = True  # to_numpy returns a view, so `out=` may be a Field

    def to_numpy(self, x: Field) -> np.ndarray:
        return x.values

    def from_numpy(self, array: np.ndarray, like: Field) -> Field:
        return Field(array, like.unit)


nf.interop.register(Field, Fields("grids"))


def main() -> None:
    schedule, noise = nf.Schedule.flow(), nf.Noise(7)
    x0 = Field(np.ones((2, 64, 64), np.float32), "K")
    x_t, target = nf.q_sample(x0, [0.25, 0.75], schedule, noise, target="velocity")
    sampler = nf.samplers.flow_euler(nf.Schedule.flow(1000), steps=4)
    ended = sampler.sample(lambda x, t: Field(x.values - 1, x.unit), x_t, noise)
    nf.augment.gaussian(x0, 0.5, noise, out=x0)
    for name, field in (("x_t", x_t), ("target", target), ("ended", ended), ("augmented", x0)):
        print(f"{name}: {type(field).__name__} {field.shape} in {field.unit}, mean {field.values.mean():.3f}")
    same = np.array_equal(x_t.values, nf.q_sample(np.ones((2, 64, 64), np.float32), [0.25, 0.75], schedule, noise))
    print("the bits of NumPy's arrays:", same)


if __name__ == "__main__":
    main()
