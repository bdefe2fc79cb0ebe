"""Writing into a part of an array: slices, diagonals, strided views, masks, several indices at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bridge.core.errors import LoweringError
from bridge.lowering.rows.indexing import check, is_mask
from bridge.lowering.rows.scatter import marked, outside
from bridge.lowering.rows.shape import bounds, diagonal_places, strided_places


def select_scatter(self: jax.Array, src: jax.Array, dim: int, index: Any) -> jax.Array:
    """The input with the source at one place along an axis."""
    dim, src = dim % self.ndim, jnp.expand_dims(src.astype(self.dtype), dim)
    if isinstance(index, int):
        return lax.dynamic_update_slice_in_dim(self, src, index % self.shape[dim], dim)
    return index_put(self, [*[None] * dim, index.reshape(1)], src)


def slice_scatter(
    self: jax.Array,
    src: jax.Array,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> jax.Array:
    """The input with the source at a slice of an axis."""
    dim = dim % self.ndim
    start, end, step = bounds(dim, self.shape[dim], start, end, step)
    src = src.astype(self.dtype)
    if src.shape == self.shape:
        return src
    if step == 1:
        return lax.dynamic_update_slice_in_dim(self, src, start, dim)
    return self.at[(*[slice(None)] * dim, slice(start, end, step))].set(src)


def diagonal_scatter(
    self: jax.Array, src: jax.Array, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> jax.Array:
    """The input with the source as the diagonals over two axes."""
    matrices = jnp.moveaxis(self, (dim1, dim2), (-2, -1))
    rows, columns = matrices.shape[-2:]
    elements = matrices.reshape(*matrices.shape[:-2], rows * columns)
    elements = elements.at[..., diagonal_places(rows, columns, offset)].set(src.astype(self.dtype))
    return jnp.moveaxis(elements.reshape(matrices.shape), (-2, -1), (dim1, dim2))


def as_strided_scatter(
    self: jax.Array,
    src: jax.Array,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> jax.Array:
    """The input with the source at a strided view of its elements, in its contiguous layout."""
    places = strided_places(size, stride, storage_offset)
    written = (
        self.reshape(-1)
        .at[places]
        .set(
            src.astype(self.dtype),
            mode="promise_in_bounds",
            unique_indices=True,
            wrap_negative_indices=False,
        )
    )
    return written.reshape(self.shape)


def index_put(
    self: jax.Array, indices: Sequence[jax.Array | None], values: jax.Array, accumulate: bool = False
) -> jax.Array:
    """The input with the values at these indices, or with the values added there.

    There is an array of indices for each axis, or None for a whole one.

    Raises:
        LoweringError: A mask comes with other indices, or with a value for each element it selects.
    """
    values = values.astype(self.dtype)
    if any(is_mask(index) for index in indices):
        return _masked_put(self, indices, values, accumulate)
    given = {axis: index for axis, index in enumerate(indices) if index is not None}
    if not given:
        return self + values if accumulate else jnp.broadcast_to(values, self.shape)
    wrong = jnp.zeros((), bool)
    for axis, index in given.items():
        check(index, self.shape[axis], axis, wrap=True)
        given[axis] = jnp.where(index < 0, index + self.shape[axis], index)
        wrong |= outside(given[axis], self.shape[axis]).any()
    place: list[Any] = [slice(None)] * len(indices)
    for axis, index in given.items():
        place[axis] = jnp.where(wrong, 0, index)
    values = marked(values, wrong)
    options = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
    if accumulate:
        return self.at[tuple(place)].add(values, **options)
    return self.at[tuple(place)].set(values, unique_indices=True, **options)


def _masked_put(
    self: jax.Array, indices: Sequence[jax.Array | None], values: jax.Array, accumulate: bool
) -> jax.Array:
    """The input with the same values at each place of a mask."""
    (axis, mask), *more = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    behind = self.ndim - axis - mask.ndim
    each = values.ndim > behind and values.shape[values.ndim - behind - 1] != 1
    if more or each:
        raise LoweringError(
            "x[mask] = y is lowered for a y that is the same for all that the mask selects, which this"
            " one is not; type torch.where(mask, y, x), or x.masked_scatter(mask, y) in the torch model"
        )
    if values.ndim > behind:  # the axis of what the mask selects stands for all axes of the mask
        at = values.ndim - behind - 1
        values = values.reshape(*values.shape[:at], *[1] * mask.ndim, *values.shape[at + 1 :])
    mask = mask.astype(bool).reshape(*mask.shape, *[1] * behind)
    return jnp.where(mask, self + values if accumulate else values, self)


def put(self: jax.Array, index: jax.Array, source: jax.Array, accumulate: bool = False) -> jax.Array:
    """The input with the source at these places of its elements, or with the source added there."""
    elements = index_put(self.reshape(-1), [index], source.reshape(index.shape), accumulate)
    return elements.reshape(self.shape)


def masked_scatter(self: jax.Array, mask: jax.Array, source: jax.Array) -> jax.Array:
    """The input with the source's values where the mask is, in their order; NaN where they run out."""
    shape = jnp.broadcast_shapes(self.shape, mask.shape)
    mask = jnp.broadcast_to(mask, shape)
    places = jnp.cumsum(mask.reshape(-1)) - 1
    values = source.reshape(-1).at[places].get(mode="fill", wrap_negative_indices=False)
    return jnp.where(mask, values.reshape(shape), jnp.broadcast_to(self, shape))


ROWS: Mapping[str, Callable] = {
    "aten.select_scatter.default": select_scatter,
    "aten.slice_scatter.default": slice_scatter,
    "aten.diagonal_scatter.default": diagonal_scatter,
    "aten.as_strided_scatter.default": as_strided_scatter,
    "aten.index_put.default": index_put,
    "aten.put.default": put,
    "aten.masked_scatter.default": masked_scatter,
}
