"""Sorting and what rests on it: places, ranks, medians, modes, bins and running extremes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from bridge.core.errors import LoweringError
from bridge.lowering.promotion import category, narrowed, promoted
from bridge.lowering.rows.activation import in_float32
from bridge.lowering.rows.creation import constant
from bridge.lowering.rows.reduction import total_dtype

Pair = tuple[jax.Array, jax.Array]


def sort(self: jax.Array, dim: int = -1, descending: bool = False) -> Pair:
    """The values in order along the axis, and their places; equal ones keep their order."""
    if not self.ndim:
        return self, jnp.zeros((), narrowed("int64"))
    axis = dim % self.ndim
    places = jax.lax.broadcasted_iota(narrowed("int64"), self.shape, axis)
    operands = (self, places)
    if descending:  # backwards before and after: equal ones keep their order this way
        operands = tuple(jnp.flip(operand, axis) for operand in operands)
    values, places = jax.lax.sort(operands, dimension=axis, is_stable=True, num_keys=1)
    return (jnp.flip(values, axis), jnp.flip(places, axis)) if descending else (values, places)


def sort_stable(
    self: jax.Array, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Pair:
    """The values in order along the axis, and their places."""
    return sort(self, dim, descending)


def largest_k(
    self: jax.Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Pair:
    """The k largest, or smallest, along the axis, in order, and their places."""
    if not self.ndim:
        return self, jnp.zeros((), narrowed("int64"))
    if category(self.dtype) < 2:
        values, places = sort(self, dim, largest)
        return tuple(jax.lax.slice_in_dim(one, 0, k, axis=dim % self.ndim) for one in (values, places))  # type: ignore[return-value]
    last = jnp.moveaxis(self, dim, -1)
    values, places = jax.lax.top_k(last if largest else -last, k)
    values = values if largest else -values
    return jnp.moveaxis(values, -1, dim), jnp.moveaxis(places, -1, dim).astype(narrowed("int64"))


def _at_rank(self: jax.Array, rank: jax.Array | int, dim: int, keepdim: bool) -> Pair:
    """The value of this rank along the axis, and its place."""
    values, places = sort(self, dim)
    if not self.ndim:
        return values, places
    if isinstance(rank, int):
        taken = tuple(
            jax.lax.slice_in_dim(one, rank, rank + 1, axis=dim % self.ndim) for one in (values, places)
        )
    else:
        taken = tuple(jnp.take_along_axis(one, rank, dim) for one in (values, places))
    return taken if keepdim else tuple(jnp.squeeze(one, dim) for one in taken)  # type: ignore[return-value]


def kth_value(self: jax.Array, k: int, dim: int = -1, keepdim: bool = False) -> Pair:
    """The k-th smallest along the axis, counted from one, and its place."""
    return _at_rank(self, k - 1, dim, keepdim)


def _size(self: jax.Array, dim: int) -> int:
    return self.shape[dim] if self.ndim else 1


def median_along(self: jax.Array, dim: int, keepdim: bool = False) -> Pair:
    """The lower median along the axis, and its place; what is no number where there is any."""
    rank: Any = (_size(self, dim) - 1) // 2
    if category(self.dtype) == 2 and self.ndim:
        count = jnp.sum(jnp.isnan(self), dim, keepdims=True)
        rank = jnp.where(count > 0, _size(self, dim) - count, rank)  # the first of them, sorted last
    return _at_rank(self, rank, dim, keepdim)


def nan_median_along(self: jax.Array, dim: int, keepdim: bool = False) -> Pair:
    """The lower median of the numbers along the axis, and its place."""
    if category(self.dtype) != 2 or not self.ndim:
        return median_along(self, dim, keepdim)
    count = jnp.sum(~jnp.isnan(self), dim, keepdims=True)
    return _at_rank(self, jnp.maximum(count - 1, 0) // 2, dim, keepdim)


def _of_all(along: Callable[..., Pair]) -> Callable[[jax.Array], jax.Array]:
    """A row for the median of everything; equal ones share its gradient: derivatives.yaml, median."""

    @jax.custom_jvp
    def row(self: jax.Array) -> jax.Array:
        return along(self.reshape(-1), 0)[0]

    @row.defjvp
    def _(primals: tuple, tangents: tuple) -> Pair:
        (x,), (tangent,) = primals, tangents
        value = row(x)
        same = (x == value) | (jnp.isnan(x) & jnp.isnan(value))
        return value, jnp.sum(jnp.where(same, tangent, 0)) / jnp.sum(same).astype(x.dtype)

    return row


def mode(self: jax.Array, dim: int = -1, keepdim: bool = False) -> Pair:
    """The most frequent value along the axis, the smallest of several, and its last place."""
    if not self.ndim:
        return self, jnp.zeros((), narrowed("int64"))
    axis = dim % self.ndim
    values, _ = sort(self, dim)
    steps = jax.lax.broadcasted_iota(narrowed("int64"), self.shape, axis)
    starts = jnp.where((values != jnp.roll(values, 1, axis)) | (steps == 0), steps, 0)
    run = steps - jax.lax.cummax(starts, axis)
    return _at_rank(self, jnp.argmax(run, axis, keepdims=True), dim, keepdim)


def search(
    sorted_sequence: jax.Array,
    self: Any,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: jax.Array | None = None,
) -> jax.Array:
    """Where each value would be put into the sorted last axis."""
    if sorter is not None:
        sorted_sequence = jnp.take_along_axis(sorted_sequence, sorter, -1)
    sequence, values = promoted(sorted_sequence, self)
    side = side or ("right" if right else "left")

    def find(row: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.searchsorted(row, value, side=side)

    if sequence.ndim > 1:
        for _ in sequence.shape[:-1]:
            find = jax.vmap(find)
    return find(sequence, values).astype(jnp.int32 if out_int32 else narrowed("int64"))


def bucketize(
    self: Any, boundaries: jax.Array, out_int32: bool = False, right: bool = False
) -> jax.Array:
    """The number of the bucket of each value."""
    return search(boundaries, self, out_int32, right)


def histogram(self: jax.Array, bins: int = 100, min: float = 0, max: float = 0) -> jax.Array:
    """How many elements lie in each of the equal bins; equal bounds stand for the data's."""
    low, high = (constant(bound, self.dtype) for bound in (min, max))
    if min == max:
        low, high = (jnp.min(self), jnp.max(self)) if self.size else (low, high)
        low, high = jnp.where(low == high, low - 1, low), jnp.where(low == high, high + 1, high)
    place = jnp.floor((self - low) * bins / (high - low)).astype(jnp.int32)
    place = jnp.where(self == high, bins - 1, place)
    inside = (self >= low) & (self <= high)
    return jnp.zeros(bins, self.dtype).at[jnp.where(inside, place, bins)].add(1, mode="drop")


def _running(better: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, int], Pair]:
    """A row for the extreme so far along the axis and its place, the last one of equal ones."""

    def combine(left: Pair, right: Pair) -> Pair:
        take = better(right[0], left[0]) | jnp.isnan(right[0])
        return jnp.where(take, right[0], left[0]), jnp.where(take, right[1], left[1])

    def row(self: jax.Array, dim: int) -> Pair:
        if not self.ndim:
            return self, jnp.zeros((), narrowed("int64"))
        axis = dim % self.ndim
        places = jax.lax.broadcasted_iota(narrowed("int64"), self.shape, axis)
        _, places = jax.lax.associative_scan(combine, (jax.lax.stop_gradient(self), places), axis=axis)
        return jnp.take_along_axis(self, places, axis), places

    return row


def _cumulative(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A row for a sum or product so far along the axis."""

    def row(self: jax.Array, dim: int, dtype: Any = None) -> jax.Array:
        self = self.astype(total_dtype(self, dtype))
        return in_float32(function)(self, dim % self.ndim) if self.ndim else self

    return row


def log_sum_exp_so_far(self: jax.Array, dim: int) -> jax.Array:
    """The logarithm of the sum of the exponentials so far along the axis."""
    return in_float32(jax.lax.cumlogsumexp)(self, axis=dim % self.ndim) if self.ndim else self


def _without_known_size(*_arguments: Any, **_named: Any) -> NoReturn:
    raise LoweringError(
        "its result has a size that depends on values, and JAX compiles for sizes alone. "
        "Compute it before the model, and pass it in"
    )


ROWS: Mapping[str, Callable] = {
    "aten.sort.default": sort,
    "aten.sort.stable": sort_stable,
    "aten.topk.default": largest_k,
    "aten.kthvalue.default": kth_value,
    "aten.median.default": _of_all(median_along),
    "aten.median.dim": median_along,
    "aten.nanmedian.default": _of_all(nan_median_along),
    "aten.nanmedian.dim": nan_median_along,
    "aten.mode.default": mode,
    "aten.searchsorted.Tensor": search,
    "aten.searchsorted.Scalar": search,
    "aten.bucketize.Tensor": bucketize,
    "aten.bucketize.Scalar": bucketize,
    "aten.histc.default": histogram,
    "aten.cumsum.default": _cumulative(jax.lax.cumsum),
    "aten.cumprod.default": _cumulative(jax.lax.cumprod),
    "aten.cummax.default": _running(jnp.greater_equal),
    "aten.cummin.default": _running(jnp.less_equal),
    "aten.logcumsumexp.default": log_sum_exp_so_far,
    **dict.fromkeys(
        [
            "aten._unique2.default",
            "aten.unique_dim.default",
            "aten.unique_consecutive.default",
            "aten.unique_dim_consecutive.default",
            "aten.bincount.default",
        ],
        _without_known_size,
    ),
}
