# SPDX-License-Identifier: Apache-2.0
"""What test_types.py has checked: a user's script, with the types that a user expects."""

from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import noisefuse as nf

S = nf.Schedule.linear(10)
N = nf.Noise(3)
x = np.zeros((2, 3), np.float32)
y = torch.zeros(2, 3)
t = torch.tensor([1, 2])
assert_type(nf.q_sample(x, 3, S, N), NDArray[Any])
assert_type(nf.q_sample(x, [1, 2], S, N, target="v", dtype=np.float64), tuple[NDArray[Any], NDArray[Any]])
assert_type(nf.q_sample(y, t, S, N), torch.Tensor)
assert_type(nf.q_sample(y, t, S, N, target="flow", dtype=torch.float16), tuple[torch.Tensor, torch.Tensor])
assert_type(nf.q_step(y, 3, S, N), torch.Tensor)
assert_type(nf.q_walk(x, S, N, keep=[3]), NDArray[Any])
assert_type(nf.mse_loss(x, x, 3, S, N, target="v"), float)
assert_type(nf.mse_loss(y, y, t, S, N, target="v", weight=y), torch.Tensor)
losses_and_gradient = nf.mse_loss(x, x, 3, S, N, target="v", reduction="none", grad_out=True)
assert_type(losses_and_gradient, tuple[NDArray[np.float64], NDArray[Any]])
assert_type(nf.update(nf.samplers.ddim(S, 3).tableau, 0, y, y), torch.Tensor)
assert_type(nf.update(nf.samplers.ddim(S, 3).tableau, 0, y, y, aux_out=1), tuple[torch.Tensor, ...])
assert_type(nf.randn_like(x, N), NDArray[Any])
assert_type(nf.randn_like(y, N, dtype=torch.float16), torch.Tensor)
nf.samplers.ddim(S, 3).sample(lambda x, t: x, y, [y, y, None], time="tensor")  # error
nf.q_sample(x, 3, S, N, target="eps")  # error
nf.q_sample(x, 3, S, N, reduction="mean")  # error
