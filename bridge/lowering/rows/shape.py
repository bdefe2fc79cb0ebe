"""Shapes: views, slices, joins and permutations of what is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bridge.core.errors import LoweringError
from bridge.lowering.promotion import category, result_type
from bridge.lowering.rows.indexing import picked


def reshape(self: jax.Array, size: Sequence[int]) -> jax.Array:
    """The input in another shape; -1 is the size that is left over."""
    return self.reshape(tuple(size))


def view_dtype(self: jax.Array, dtype: Any) -> jax.Array:
    """The bits of the input read as another dtype, its last axis longer or shorter by their sizes."""
    if 3 in (category(self.dtype), category(dtype)):
        raise LoweringError(
            f"JAX does not read the bits of {self.dtype} as {dtype}; type torch.view_as_real(x) or"
            f" torch.view_as_complex(x) in the torch model"
        )
    if not category(self.dtype):
        self = self.astype(jnp.uint8)
    ratio = np.dtype(dtype).itemsize // self.dtype.itemsize
    if ratio > 1:
        self = self.reshape(*self.shape[:-1], self.shape[-1] // ratio, ratio)
    bits = lax.bitcast_convert_type(self, dtype if category(dtype) else jnp.uint8)
    if bits.ndim > self.ndim:
        bits = bits.reshape(*self.shape[:-1], -1)
    return bits.astype(dtype)


def expand(self: jax.Array, size: Sequence[int], implicit: bool = False) -> jax.Array:
    """The input repeated along axes of size 1 and new leading ones; -1 keeps a size."""
    kept = (1,) * (len(size) - self.ndim) + self.shape
    return jnp.broadcast_to(
        self, tuple(old if new == -1 else new for old, new in zip(kept, size, strict=True))
    )


def permute(self: jax.Array, dims: Sequence[int]) -> jax.Array:
    """The input with its axes in another order."""
    return jnp.transpose(self, tuple(dims))


def squeeze(self: jax.Array, dim: int | Sequence[int] | None = None) -> jax.Array:
    """The input without these axes, of those of them that have size 1."""
    dims = range(self.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    if self.ndim == 0:
        return self
    return lax.squeeze(self, tuple({axis % self.ndim for axis in dims if self.shape[axis] == 1}))


def unsqueeze(self: jax.Array, dim: int) -> jax.Array:
    """The input with a new axis of size 1."""
    return lax.expand_dims(self, (dim,))


def select(self: jax.Array, dim: int, index: Any) -> jax.Array:
    """One place along an axis, without the axis."""
    if isinstance(index, int):
        return lax.index_in_dim(self, index, dim, keepdims=False)
    return picked(self, (index,), dim, wrap=True)


def bounds(dim: int, size: int, start: Any, end: Any, step: int) -> tuple[int, int, int]:
    """Where a slice of an axis starts and stops, and its step.

    Raises:
        LoweringError: A bound is a value that the program computes.
    """
    if not all(bound is None or isinstance(bound, int) for bound in (start, end)):
        raise LoweringError(
            f"A slice of axis {dim} has bounds that the program computes, and JAX needs its length"
            f" beforehand; type x.index_select({dim}, start + torch.arange(length)) in the torch model"
        )
    first, last, step = slice(start, end, step).indices(size)
    return first, max(first, last), step


def sliced(
    self: jax.Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> jax.Array:
    """The places from `start` to before `end` along an axis."""
    start, end, step = bounds(dim, self.shape[dim], start, end, step)
    if (start, end, step) == (0, self.shape[dim], 1):
        return self
    return lax.slice_in_dim(self, start, end, step, dim)


def narrow(self: jax.Array, dim: int, start: int, length: int) -> jax.Array:
    """So many places along an axis, from `start`."""
    start = start % self.shape[dim] if start < 0 else start
    return sliced(self, dim, start, start + length)


def split_with_sizes(self: jax.Array, split_sizes: Sequence[int], dim: int = 0) -> list[jax.Array]:
    """The pieces of these sizes along an axis."""
    return list(lax.split(self, tuple(split_sizes), dim % self.ndim))


def unbind(self: jax.Array, dim: int = 0) -> list[jax.Array]:
    """All places along an axis, each without the axis."""
    return [select(self, dim, index) for index in range(self.shape[dim])]


def cat(tensors: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    """The inputs joined along an axis, in the dtype of them all."""
    dtype = result_type(*tensors)
    # torch.cat's docs: an empty tensor of one axis joins tensors of any shape
    joined = [tensor for tensor in tensors if tensor.shape != (0,)] or tensors[:1]
    return lax.concatenate([tensor.astype(dtype) for tensor in joined], dim % joined[0].ndim)


def flip(self: jax.Array, dims: Sequence[int]) -> jax.Array:
    """The input with these axes backwards."""
    return jnp.flip(self, tuple(dims))


def roll(self: jax.Array, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> jax.Array:
    """The input moved along axes, around the end; as one long axis where none is given."""
    shifts = [shifts] if isinstance(shifts, int) else shifts
    dims = [dims] if isinstance(dims, int) else dims
    if not dims:
        return roll(self.reshape(-1), shifts, 0).reshape(self.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = self.shape[dim]
        cut = -shift % size if size else 0
        if cut:
            pieces = [
                lax.slice_in_dim(self, cut, size, axis=dim),
                lax.slice_in_dim(self, 0, cut, axis=dim),
            ]
            self = lax.concatenate(pieces, dim % self.ndim)
    return self


def repeat(self: jax.Array, repeats: Sequence[int]) -> jax.Array:
    """The input so many times along each axis, new leading ones among them."""
    return jnp.tile(self, tuple(repeats))


def diagonal_places(rows: int, columns: int, offset: int) -> slice:
    """Where a diagonal of a matrix lies in its elements, row by row."""
    start = offset if offset >= 0 else -offset * columns
    count = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    return slice(start, start + max(0, count - 1) * (columns + 1) + min(count, 1), columns + 1)


def diagonal(self: jax.Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> jax.Array:
    """The diagonals over two axes, as a new last axis."""
    matrices = jnp.moveaxis(self, (dim1, dim2), (-2, -1))
    rows, columns = matrices.shape[-2:]
    places = diagonal_places(rows, columns, offset)
    if places.start >= places.stop:
        return jnp.zeros((*matrices.shape[:-2], 0), self.dtype)
    elements = matrices.reshape(*matrices.shape[:-2], rows * columns)
    return lax.slice_in_dim(elements, places.start, places.stop, places.step, -1)


def strided_places(
    size: Sequence[int], stride: Sequence[int], storage_offset: int | None
) -> np.ndarray:
    """The number of the element at each place of a strided view, in the shape `size`."""
    places = np.asarray(storage_offset or 0)
    for axis, (count, step) in enumerate(zip(size, stride, strict=True)):
        places = places + np.arange(count).reshape(-1, *[1] * (len(size) - axis - 1)) * step
    return np.broadcast_to(places, tuple(size))


def as_strided(
    self: jax.Array, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> jax.Array:
    """A strided view of the elements; the strides are those of the input in its contiguous layout."""
    places, elements = strided_places(size, stride, storage_offset), self.reshape(-1)
    count, start = places.size, storage_offset or 0
    if np.array_equal(places.reshape(-1), np.arange(start, start + count)):
        return lax.slice(elements, (start,), (start + count,)).reshape(tuple(size))
    return elements.at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)


def sym_size(self: jax.Array, dim: int) -> int:
    """The size of an axis, a Python int."""
    return self.shape[dim]


def sym_numel(self: jax.Array) -> int:
    """The number of elements, a Python int."""
    return math.prod(self.shape)


ROWS: Mapping[str, Callable] = {
    "aten.view.default": reshape,
    "aten.view_copy.default": reshape,
    "aten._unsafe_view.default": reshape,
    "aten.reshape.default": reshape,
    "aten.view.dtype": view_dtype,
    "aten.expand.default": expand,
    "aten.permute.default": permute,
    "aten.permute_copy.default": permute,
    "aten.squeeze.default": squeeze,
    "aten.squeeze.dim": squeeze,
    "aten.squeeze.dims": squeeze,
    "aten.unsqueeze.default": unsqueeze,
    "aten.select.int": select,
    "aten.slice.Tensor": sliced,
    "aten.narrow_copy.default": narrow,
    "aten.split_with_sizes.default": split_with_sizes,
    "aten.unbind.int": unbind,
    "aten.unbind_copy.int": unbind,
    "aten.cat.default": cat,
    "aten.flip.default": flip,
    "aten.roll.default": roll,
    "aten.repeat.default": repeat,
    "aten.diagonal.default": diagonal,
    "aten.as_strided.default": as_strided,
    "aten.as_strided_copy.default": as_strided,
    "aten.sym_size.int": sym_size,
    "aten.sym_numel.default": sym_numel,
}
