"""Distances between all pairs of vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST_DIRECT = 25
"""Beyond so many vectors PyTorch multiplies matrices for distances of order 2: torch.cdist's docs."""


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _norm(difference: jax.Array, p: float) -> jax.Array:
    """The norm over the last axis, its gradient zero at zero."""
    size = jnp.abs(difference)
    if p == 0:
        return jnp.sum(difference != 0, -1).astype(difference.dtype)
    if p == np.inf:
        return jnp.max(size, -1, initial=0)
    if p == 1:
        return jnp.sum(size, -1)
    if p == 2:
        return jnp.sqrt(jnp.sum(difference * difference, -1))
    return jnp.sum(size**p, -1) ** (1 / p)


@_norm.defjvp
def _norm_slope(p: float, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    (difference,), (difference_dot,) = primals, tangents
    norm = _norm(difference, p)
    return norm, jnp.sum(_slope(difference, norm[..., None], p) * difference_dot, -1)


def _slope(difference: jax.Array, norm: jax.Array, p: float) -> jax.Array:
    """The gradient of the norm, as in DistanceOpsKernel.cpp: all of the greatest get theirs."""
    size, sign = jnp.abs(difference), jnp.sign(difference)
    if p == 0:
        return jnp.zeros_like(difference)
    if p == 1:
        return sign
    if p == np.inf:
        return sign * (size == norm)
    zero = norm == 0
    norm = jnp.where(zero, 1, norm)
    if p == 2:
        return jnp.where(zero, 0, difference / norm)
    zero |= difference == 0
    return jnp.where(zero, 0, sign * (jnp.where(zero, 1, size) / norm) ** (p - 1))


def cdist_forward(x1: jax.Array, x2: jax.Array, p: float, compute_mode: int | None) -> jax.Array:
    """The distances (batch first second) of (batch first features) to (batch second features)."""
    if p == 2 and (
        compute_mode == 1 or (compute_mode != 2 and max(x1.shape[-2], x2.shape[-2]) > MOST_DIRECT)
    ):
        return euclidean(x1, x2)
    return _norm(x1[..., :, None, :] - x2[..., None, :, :], p)


def cdist(x1: jax.Array, x2: jax.Array, p: float = 2.0, compute_mode: int | None = None) -> jax.Array:
    """The distances between all vectors of the one and all of the other."""
    return cdist_forward(x1, x2, p, compute_mode)


def euclidean(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """The distances of order 2 by one product of matrices, with a zero gradient at zero."""
    product = jnp.matmul(x1, jnp.swapaxes(x2, -2, -1), precision="highest")
    first, second = jnp.sum(x1 * x1, -1)[..., :, None], jnp.sum(x2 * x2, -1)[..., None, :]
    square = first + second - 2 * product
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


def pdist_forward(self: jax.Array, p: float = 2.0) -> jax.Array:
    """The distances between each vector and all after it, in one row."""
    first, second = np.triu_indices(self.shape[0], 1)
    return _norm(self[first] - self[second], p)


ROWS: Mapping[str, Callable] = {
    "aten.cdist.default": cdist,
    "aten._cdist_forward.default": cdist_forward,
    "aten._euclidean_dist.default": euclidean,
    "aten._pdist_forward.default": pdist_forward,
}
