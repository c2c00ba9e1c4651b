# SPDX-License-Identifier: Apache-2.0
"""The losses of processes in which tokens jump: divergences of rates, and their gradient, in one read of a row."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import backends
from ..arguments.options import fast_path
from ..arguments.types import Array, ArrayT, Like, Reduction
from ..ground.libraries import library_of
from .cross_entropy import checked


@overload
def rate_loss(
    logits: NDArray[Any], ids: ArrayLike, x_t: ArrayLike, p: ArrayLike | None, weight: ArrayLike | None = ..., *,
    where: ArrayLike | None = ..., reduction: Literal["mean"] = ...,
) -> float: ...  # fmt: skip
@overload
def rate_loss(
    logits: Like[ArrayT], ids: Array, x_t: Array, p: Array | None, weight: Array | None = ..., *,
    where: Array | None = ..., reduction: Reduction = ...,
) -> ArrayT: ...  # fmt: skip
def rate_loss(
    logits: Array, ids: Array, x_t: Array, p: Array | None, weight: Array | None = None, *, where: Array | None = None,
    reduction: Reduction = "mean",
) -> Any:  # fmt: skip
    """Returns the mean of w D over all rows, where D is the divergence of the rates at which tokens jump from x_t: the
    sum over y other than x_t of r'(y) - r(y) + r(y) ln(r(y) / r'(y)), of the network's rates r' and the right ones r.

    With p, tokens are drawn anew, and rates are those of the reverse process, q_y / (V q_(x_t)) with q_y = V (1 - p)
    softmax(logits)_y + p: the loss of UDLM and Duo, for networks that predict the clean token given all other tokens.
    Without p, they are those of discrete flow matching, softmax(logits)_y, from tokens or masks: the generalised KL of
    Meta's flow_matching. In r all probability is at the clean token.

    Args:
        logits: (B, .., V) float32, float16 or bfloat16, V <= 2^20.
        ids: (B, ..) integers, the clean tokens.
        x_t: (B, ..) integers, the tokens that the network saw.
        p: the probability that a token was drawn anew, from 2^-32 to 1: a number, (B,) or (B, 1) for each sample, or an
            array with the rows' axes that broadcasts to them. None: of a flow.
        weight: w >= 0, as p: ``schedule.weight(t, "uniform")`` with p, and ``schedule.weight(t, "elbo")`` of a flow.
            None: 1.
        where: (B, ..) bool, or a shape that broadcasts to it: the rows that count. None: all.
        reduction: "mean" over all rows, or "none": w D of each row.

    Returns:
        The loss, a float, or float64 (B, ..). The bits are the same on every backend and for any number of threads.
        Tensors and JAX's arrays give float32, differentiable (once) through the logits. A row with a NaN, or no finite
        largest logit, makes the loss NaN.

    Raises:
        IndexError: an id or x_t that counts lies outside the vocabulary; nothing is written.
        TypeError, ValueError, OverflowError: the message says what was given and what was expected.

    Source: Schiff et al. (2025), "Simple guidance mechanisms for discrete diffusion models", the bound in continuous
    time; Sahoo et al. (2025), "The diffusion duality"; Shaul et al. (2025), "Flow matching with general discrete paths:
    a kinetic-optimal perspective", the bound of mixture paths.

    >>> logits, ids, x_t = np.zeros((1, 2, 4), np.float32), np.array([[0, 1]]), np.array([[0, 3]])
    >>> nf.rate_loss(logits, ids, x_t, None, reduction="none").round(4).tolist()  # 1 - 1/4, ln 4 - 1/4
    [[0.75, 1.1363]]
    >>> nf.rate_loss(logits, ids, x_t, 0.5, reduction="none").round(4).tolist()
    [[0.3586, 1.0118]]
    """
    return _of_rates(logits, ids, x_t, p, weight, where, reduction, None, {})


@overload
def rate_loss_and_grad(
    logits: NDArray[Any], ids: ArrayLike, x_t: ArrayLike, p: ArrayLike | None, weight: ArrayLike | None = ..., *,
    where: ArrayLike | None = ..., reduction: Literal["mean"] = ..., upstream: ArrayLike = ...,
    out: NDArray[Any] | None = ...,
) -> tuple[float, NDArray[Any]]: ...  # fmt: skip
@overload
def rate_loss_and_grad(
    logits: Like[ArrayT], ids: Array, x_t: Array, p: Array | None, weight: Array | None = ..., *,
    where: Array | None = ..., reduction: Reduction = ..., upstream: ArrayLike | Array = ...,
    out: Like[ArrayT] | None = ...,
) -> tuple[ArrayT, ArrayT]: ...  # fmt: skip
def rate_loss_and_grad(
    logits: Array, ids: Array, x_t: Array, p: Array | None, weight: Array | None = None, *, where: Array | None = None,
    reduction: Reduction = "mean", upstream: ArrayLike | Array = 1.0, out: Array | None = None,
) -> Any:  # fmt: skip
    """Returns `rate_loss`, and its gradient with respect to the logits, which is computed while a row is in the caches.

    Args:
        logits, ids, x_t, p, weight, where, reduction: as in `rate_loss`.
        upstream: the gradient with respect to the loss, a number, or with the reduction "none" as the weight.
        out: an array for the gradient; C-contiguous, of the logits' shape and dtype. It may be the logits themselves.

    Returns:
        The pair (loss, gradient). A tensor that autograd watches is refused, as `rate_loss` is differentiable.

    Raises:
        IndexError, TypeError, ValueError, OverflowError: as in `rate_loss`; nothing is written then.

    >>> logits, ids, x_t = np.zeros((1, 1, 4), np.float32), np.array([[1]]), np.array([[3]])
    >>> loss, gradient = nf.rate_loss_and_grad(logits, ids, x_t, None)
    >>> round(loss, 4), gradient.tolist()
    (1.1363, [[[0.3125, -0.6875, 0.3125, 0.0625]]])
    """
    return _of_rates(
        logits, ids, x_t, p, weight, where, reduction, True if out is None else out, {"upstream": upstream, "out": out}
    )


def _of_rates(
    logits: Any, ids: Any, x_t: Any, p: Any, weight: Any, where: Any, reduction: Any, grad: Any, back: dict[str, Any]
) -> Any:
    """Returns the loss, or, with an array for it or True, the pair with its gradient; back: what only that takes."""
    if x_t is None:
        raise TypeError("x_t: expected integers, got None")
    other = None if type(logits) is np.ndarray else library_of(logits)
    fast = backends.fast_cross_entropy if other is None else fast_path(other, "fast_cross_entropy")
    upstream = back.get("upstream", 1.0)
    if fast is not None and reduction in ("mean", "none"):
        given = 1.0 if weight is None else weight
        done = fast(logits, ids, where, given, reduction == "none", upstream, grad, x_t, p)
        if done is not NotImplemented:
            return done
    if other is not None:
        call = other.rate_loss_and_grad if back else other.rate_loss
        return call(logits, ids, x_t, p, weight, where=where, reduction=reduction, **back)
    both = checked(logits, ids, where, weight, reduction, upstream, grad, x_t, p)
    return both if back else both[0]
