"""Embeddings: rows of a table, one by one or in bags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bridge.lowering.rows.indexing import gather, picked

SUM, MEAN, MAX = range(3)  # torch.nn.functional.embedding_bag hands its modes down so


@jax.custom_jvp
def _sloped(value: jax.Array, slope: jax.Array) -> jax.Array:
    """The value itself, whose gradient is `slope` times as large."""
    return value


@_sloped.defjvp
def _sloped_slope(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    value, slope = primals
    return value, tangents[0] * slope


def embedding(
    weight: jax.Array,
    indices: jax.Array,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> jax.Array:
    """The rows of a table; that of `padding_idx` gets no gradient from here.

    Raises:
        LoweringError: A known index is out of range. A traced one reads NaN.
    """
    rows = picked(weight, (indices,), wrap=False)
    behind = (1,) * (weight.ndim - 1)
    if padding_idx >= 0:
        padding = (indices == padding_idx).reshape(*indices.shape, *behind)
        rows = jnp.where(padding, jax.lax.stop_gradient(rows), rows)
    if scale_grad_by_freq:
        uses = jnp.zeros(weight.shape[0], weight.dtype).at[indices].add(1)
        rows = _sloped(rows, 1 / uses[indices].reshape(*indices.shape, *behind))
    return rows


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def embedding_renorm(
    self: jax.Array, indices: jax.Array, max_norm: float, norm_type: float
) -> jax.Array:
    """The table, its rows of these indices scaled down to `max_norm` where they are longer.

    PyTorch does so in place and without a gradient: that of the result is that of the table.
    """
    indices = indices.reshape(-1)
    rows = picked(self, (indices,), wrap=False)
    norms = jnp.linalg.norm(rows.astype(jnp.float32), norm_type, axis=1, keepdims=True)
    # ATen's embedding_renorm_: the norm of 1e-7 more divides
    scales = jnp.where(norms > max_norm, max_norm / (norms + 1e-7), 1)
    return self.at[indices].set((rows * scales).astype(self.dtype), mode="drop")


@embedding_renorm.defjvp
def _embedding_renorm_slope(
    max_norm: float, norm_type: float, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    return embedding_renorm(*primals, max_norm, norm_type), tangents[0]


def embedding_bag(
    weight: jax.Array,
    indices: jax.Array,
    offsets: jax.Array,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    sparse: bool = False,
    per_sample_weights: jax.Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[jax.Array | None, ...]:
    """The sum, mean or maximum of the rows of each bag, as (bags features); zeros of an empty bag.

    `offsets` says where in `indices` each bag begins. Rows of `padding_idx` do not count.
    """
    bags = offsets.shape[0] - include_last_offset
    count = indices.shape[0]
    begins = jnp.zeros(count, jnp.int32).at[offsets].add(1, mode="drop")
    bag = jnp.cumsum(begins) - 1
    kept = indices != padding_idx
    rows = embedding(weight, indices, -1, scale_grad_by_freq)
    if mode == MAX:
        return _greatest(rows, jnp.where(kept, bag, bags), bags), None, None, None
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    rows = jnp.where(kept[:, None], rows, 0)
    result = jax.ops.segment_sum(rows, bag, bags)
    if mode == MEAN:
        used = jax.ops.segment_sum(kept.astype(rows.dtype), bag, bags)
        result = result / jnp.maximum(used, 1)[:, None]
    return result, None, None, None


def _greatest(rows: jax.Array, bag: jax.Array, bags: int) -> jax.Array:
    """The greatest of each feature in each bag; the first of equal ones gets the gradient."""
    count = rows.shape[0]
    known = jax.lax.stop_gradient(rows)
    most = jax.ops.segment_max(known, bag, bags + 1)
    places = jnp.arange(count, dtype=jnp.int32)[:, None]
    places = jnp.where(known == most[bag], places, count)
    first = jax.ops.segment_min(places, bag, bags + 1)[:bags]
    filled = jax.ops.segment_sum(jnp.ones(count, jnp.int32), bag, bags + 1)[:bags, None] > 0
    return jnp.where(filled, gather(rows, 0, jnp.where(filled, first, 0)), 0)


ROWS: Mapping[str, Callable] = {
    "aten.embedding.default": embedding,
    "aten.embedding_renorm.default": embedding_renorm,
    "aten._embedding_bag.default": embedding_bag,
    "aten._embedding_bag_forward_only.default": embedding_bag,
}
