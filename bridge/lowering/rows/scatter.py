"""Writing at an index along one axis: scatter and its reductions, and the index_* ops.

PyTorch raises where an index is out of range. A compiled program cannot, so a traced index out of range
writes NaN (of integers an extreme number) wherever it writes: nothing is lost unseen. One that is known
raises.
Of several values for one place any may stay, as in PyTorch, and each gets the place's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bridge.lowering.promotion import category
from bridge.lowering.rows.indexing import check, gather


def outside(index: jax.Array, size: int) -> jax.Array:
    """Where an index is out of range."""
    return (index < 0) | (index >= size)


def marked(values: jax.Array, wrong: jax.Array) -> jax.Array:
    """The values to write; where any index is wrong all of them are NaN, or an extreme integer."""
    if category(values.dtype) > 1:
        mark = np.nan
    elif category(values.dtype):
        limits = np.iinfo(values.dtype)
        mark = limits.min or limits.max
    else:
        mark = False
    return jnp.where(wrong.any(), jnp.asarray(mark, values.dtype), values)


def written(
    op: Callable[..., jax.Array], self: jax.Array, dim: int, index: jax.Array, src: Any
) -> jax.Array:
    """The input with `op` done, for each place of the index, at that index along one axis.

    The index may be smaller than the input on other axes, and than the source: torch.scatter's docs.
    """
    if self.ndim == 0:
        return written(op, self.reshape(1), 0, index.reshape(-1), jnp.reshape(src, (-1,))).reshape(())
    index = index.reshape(-1) if index.ndim == 0 else index
    dim = dim % self.ndim
    check(index, self.shape[dim], dim, wrap=False)
    src = jnp.asarray(src, self.dtype)
    src = (
        lax.slice(src, [0] * src.ndim, index.shape) if src.ndim else jnp.broadcast_to(src, index.shape)
    )
    wrong = outside(index, self.shape[dim])
    index, src = jnp.where(wrong, 0, index), marked(src, wrong)
    others = tuple(axis for axis in range(self.ndim) if axis != dim)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(dim,),
        scatter_dims_to_operand_dims=(dim,),
        operand_batching_dims=others,
        scatter_indices_batching_dims=others,
    )
    limits = [size if axis == dim else index.shape[axis] for axis, size in enumerate(self.shape)]
    corner = lax.slice(self, [0] * self.ndim, limits)
    corner = op(corner, index[..., None], src, numbers, mode="promise_in_bounds")
    if corner.shape == self.shape:
        return corner
    return lax.dynamic_update_slice(self, corner, (0,) * self.ndim)


SET = partial(lax.scatter, unique_indices=True)


def scatter(self: jax.Array, dim: int, index: jax.Array, src: Any) -> jax.Array:
    """The input with the source's values, or one number, at the index along one axis."""
    return written(SET, self, dim, index, src)


def scatter_add(self: jax.Array, dim: int, index: jax.Array, src: Any) -> jax.Array:
    """The input with the source added at the index along one axis."""
    return written(lax.scatter_add, self, dim, index, src)


def scatter_with(self: jax.Array, dim: int, index: jax.Array, src: Any, reduce: str) -> jax.Array:
    """The input with the source added to it, or multiplied with it, at the index along one axis."""
    return scatter_reduce(self, dim, index, src, {"add": "sum", "multiply": "prod"}[reduce])


def _sum(self: jax.Array, dim: int, index: jax.Array, src: jax.Array, include_self: bool) -> jax.Array:
    return scatter_add(self if include_self else scatter(self, dim, index, 0), dim, index, src)


def _mean(self: jax.Array, dim: int, index: jax.Array, src: jax.Array, include_self: bool) -> jax.Array:
    total = _sum(self, dim, index, src, include_self)
    count = jnp.full(self.shape, int(include_self), self.dtype)
    count = jnp.maximum(scatter_add(count, dim, index, 1), 1)
    return total / count if category(self.dtype) > 1 else total // count


def _prod(self: jax.Array, dim: int, index: jax.Array, src: Any, include_self: bool) -> jax.Array:
    src = jnp.broadcast_to(
        jnp.asarray(src, self.dtype), index.shape if jnp.ndim(src) == 0 else src.shape
    )
    if not self.ndim:
        return _prod(self.reshape(1), 0, index.reshape(-1), src.reshape(-1), include_self).reshape(())
    index = index.reshape(-1) if index.ndim == 0 else index
    self = self if include_self else scatter(self, dim, index, 1)
    return _product(dim, self, index, lax.slice(src, [0] * src.ndim, index.shape))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(dim: int, self: jax.Array, index: jax.Array, src: jax.Array) -> jax.Array:
    return written(lax.scatter_mul, self, dim, index, src)


@_product.defjvp
def _product_slope(dim: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """Each factor's slope is the product of the others, at zeros too, and so is the slope of that."""
    (self, index, src), (self_dot, _, src_dot) = primals, tangents
    zero, src_zero = self == 0, src == 0
    factor, src_factor = jnp.where(zero, 1, self), jnp.where(src_zero, 1, src)
    result = _product(dim, self, index, src)
    zeros = scatter_add(zero.astype(self.dtype), dim, index, src_zero)
    rest = _product(dim, factor, index, src_factor)
    # the zeros' own sum is zero, but has a slope: of two zeros each is the other's factor
    total = scatter_add(jnp.where(zero, self, 0), dim, index, jnp.where(src_zero, src, 0))

    def others(own: Any, zero: Any, factor: Any, result: Any, zeros: Any, rest: Any, total: Any) -> Any:
        at_zero = jnp.where(zeros == 1, rest, jnp.where(zeros == 2, rest * (total - own), 0))
        return jnp.where(zero, at_zero, result / factor)

    each = (result, zeros, rest, total)
    slope = others(self, zero, factor, *each)
    src_slope = others(src, src_zero, src_factor, *(gather(one, dim, index) for one in each))
    return result, scatter_add(slope * self_dot, dim, index, src_slope * src_dot)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _extreme(
    greatest: bool, dim: int, include_self: bool, self: jax.Array, index: jax.Array, src: jax.Array
) -> jax.Array:
    if not include_self:
        least = -np.inf if category(self.dtype) > 1 else np.iinfo(self.dtype).min
        most = np.inf if category(self.dtype) > 1 else np.iinfo(self.dtype).max
        self = scatter(self, dim, index, least if greatest else most)
    return written(lax.scatter_max if greatest else lax.scatter_min, self, dim, index, src)


@_extreme.defjvp
def _extreme_slope(
    greatest: bool, dim: int, include_self: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """What equals the result shares its slope evenly.

    PyTorch counts the input among the sharers even where it does not include it.
    """
    (self, index, src), (self_dot, _, src_dot) = primals, tangents
    result = _extreme(greatest, dim, include_self, self, index, src)
    own = (self == result).astype(self.dtype)
    corner = tuple(slice(size) for size in index.shape)
    chosen = (src[corner] == gather(result, dim, index)).astype(self.dtype)
    share = scatter_add(own, dim, index, chosen)
    own_dot = own * self_dot
    if not include_self:
        own_dot = scatter(own_dot, dim, index, 0)
    return result, scatter_add(own_dot, dim, index, chosen * src_dot[corner]) / jnp.maximum(share, 1)


def _extreme_row(greatest: bool) -> Callable[..., jax.Array]:
    def row(
        self: jax.Array, dim: int, index: jax.Array, src: jax.Array, include_self: bool
    ) -> jax.Array:
        if not self.ndim:
            return row(self.reshape(1), 0, index.reshape(-1), src.reshape(-1), include_self).reshape(())
        return _extreme(greatest, dim, include_self, self, jnp.atleast_1d(index), jnp.atleast_1d(src))

    return row


REDUCTIONS: Mapping[str, Callable[..., jax.Array]] = {
    "sum": _sum,
    "prod": _prod,
    "mean": _mean,
    "amax": _extreme_row(greatest=True),
    "amin": _extreme_row(greatest=False),
}


def scatter_reduce(
    self: jax.Array, dim: int, index: jax.Array, src: Any, reduce: str, include_self: bool = True
) -> jax.Array:
    """The input and all values for a place, reduced; or those values alone, where there are any."""
    return REDUCTIONS[reduce](self, dim, index, src, include_self)


def index_reduce(
    self: jax.Array,
    dim: int,
    index: jax.Array,
    source: jax.Array,
    reduce: str,
    include_self: bool = True,
) -> jax.Array:
    """The input and all slices of the source for a place of an axis, reduced."""
    if self.ndim == 0:
        return scatter_reduce(self, 0, index, source, reduce, include_self)
    dim = dim % self.ndim
    places = jnp.broadcast_to(
        index.reshape(-1, *[1] * (self.ndim - dim - 1)), source.shape if source.ndim else (1,)
    )
    return scatter_reduce(self, dim, places, source.reshape(places.shape), reduce, include_self)


def _slices(
    method: str, self: jax.Array, dim: int, index: jax.Array, source: jax.Array, unique: bool
) -> jax.Array:
    """The input with slices of the source written at one index along an axis."""
    if self.ndim == 0:
        return _slices(method, self.reshape(1), 0, index, source.reshape(-1), unique).reshape(())
    dim = dim % self.ndim
    index = index.reshape(-1)
    check(index, self.shape[dim], dim, wrap=False)
    wrong = outside(index, self.shape[dim])
    place = (*[slice(None)] * dim, jnp.where(wrong, 0, index))
    shape = (*self.shape[:dim], index.size, *self.shape[dim + 1 :])
    return getattr(self.at[place], method)(
        marked(source.astype(self.dtype).reshape(shape), wrong),
        mode="promise_in_bounds",
        unique_indices=unique,
        wrap_negative_indices=False,
    )


def index_add(
    self: jax.Array, dim: int, index: jax.Array, source: jax.Array, alpha: Any = 1
) -> jax.Array:
    """The input with slices of the source added at one index along an axis, times `alpha`."""
    source = source if isinstance(alpha, int) and alpha == 1 else source * alpha
    return _slices("add", self, dim, index, source, unique=False)


def index_copy(self: jax.Array, dim: int, index: jax.Array, source: jax.Array) -> jax.Array:
    """The input with slices of the source at one index along an axis."""
    return _slices("set", self, dim, index, source, unique=True)


def index_fill(self: jax.Array, dim: int, index: jax.Array, value: Any) -> jax.Array:
    """The input with one value at one index along an axis; a place named twice counts once."""
    if self.ndim == 0:
        return index_fill(self.reshape(1), 0, index, value).reshape(())
    dim, size, index = dim % self.ndim, self.shape[dim], index.reshape(-1)
    check(index, size, dim, wrap=False)
    wrong = outside(index, size)
    filled = jnp.zeros(size, bool).at[jnp.where(wrong, 0, index)].set(True)
    value = marked(jnp.asarray(value, self.dtype), wrong)
    return jnp.where(filled.reshape(-1, *[1] * (self.ndim - dim - 1)), value, self)


ROWS: Mapping[str, Callable] = {
    "aten.scatter.src": scatter,
    "aten.scatter.value": scatter,
    "aten.scatter.reduce": scatter_with,
    "aten.scatter.value_reduce": scatter_with,
    "aten.scatter_add.default": scatter_add,
    "aten.scatter_reduce.two": scatter_reduce,
    "aten.index_reduce.default": index_reduce,
    "aten.index_add.default": index_add,
    "aten.index_copy.default": index_copy,
    "aten.index_fill.int_Scalar": index_fill,
    "aten.index_fill.int_Tensor": index_fill,
}
