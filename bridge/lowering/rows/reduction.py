"""Sums, means, products, extremes, variances and norms along axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bridge.lowering.promotion import category, floating, in_float32, narrowed, promoted
from bridge.lowering.rows.elementary import absolute


def axes(self: jax.Array, dim: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """The axes of a reduction: an empty list is all, and an array without axes has none."""
    if dim is None or not self.ndim:
        return None
    return (dim,) if isinstance(dim, int) else tuple(dim) or None


def total_dtype(self: jax.Array, dtype: Any) -> Any:
    """The dtype of a sum or product: integers and bools add up to int64."""
    if dtype is not None:
        return dtype
    return narrowed("int64") if category(self.dtype) < 2 else self.dtype


def _added_up(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A row for a sum, product or mean."""

    def row(self: jax.Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> jax.Array:
        """What the function gives along the axes; 16-bit floats are added up in float32."""
        dtype = total_dtype(self, dtype)
        # JAX rounds only once where it is not told a dtype, and widens small integers
        told = None if category(dtype) > 1 else dtype
        return function(self.astype(dtype), axes(self, dim), dtype=told, keepdims=keepdim)

    return row


total, product, mean = (_added_up(function) for function in (jnp.sum, jnp.prod, jnp.mean))


def largest(self: jax.Array, dim: Any = None, keepdim: bool = False) -> jax.Array:
    """The largest along the axes; equal ones share the gradient."""
    return jnp.max(self, axes(self, dim), keepdims=keepdim)


def smallest(self: jax.Array, dim: Any = None, keepdim: bool = False) -> jax.Array:
    """The smallest along the axes; equal ones share the gradient."""
    return jnp.min(self, axes(self, dim), keepdims=keepdim)


def whether_any(self: jax.Array, dim: Any = None, keepdim: bool = False) -> jax.Array:
    """Whether anything along the axes is not zero: a bool, for uint8 a uint8."""
    return _truth(self, jnp.any(self, axes(self, dim), keepdims=keepdim))


def whether_all(self: jax.Array, dim: Any = None, keepdim: bool = False) -> jax.Array:
    """Whether nothing along the axes is zero: a bool, for uint8 a uint8."""
    return _truth(self, jnp.all(self, axes(self, dim), keepdims=keepdim))


def _truth(self: jax.Array, result: jax.Array) -> jax.Array:
    return result.astype(self.dtype) if self.dtype == jnp.uint8 else result


def _place(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A row for the place of an extreme, as int64."""

    def row(self: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
        return function(self, dim if self.ndim else None, keepdims=keepdim).astype(narrowed("int64"))

    return row


def _with_place(
    extreme: Callable[..., jax.Array], place: Callable[..., jax.Array]
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """A row for an extreme along an axis and its place, which has the whole gradient."""

    @partial(jax.custom_jvp, nondiff_argnums=(1, 2))
    def both(self: jax.Array, dim: int, keepdim: bool) -> tuple[jax.Array, jax.Array]:
        where = place(self, dim, keepdims=keepdim).astype(narrowed("int64"))
        return extreme(self, dim, keepdims=keepdim), where

    @both.defjvp
    def _(dim: int, keepdim: bool, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        value, where = both(*primals, dim, keepdim)
        index = where if keepdim else jnp.expand_dims(where, dim)
        taken = jnp.take_along_axis(tangents[0], index, dim)
        slope = taken if keepdim else jnp.squeeze(taken, dim)
        return (value, where), (slope, jnp.zeros(where.shape, jax.dtypes.float0))

    def row(self: jax.Array, dim: int, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
        if not self.ndim:
            return self, jnp.zeros((), narrowed("int64"))
        return both(self, dim, keepdim)

    return row


@jax.custom_jvp
def root(square: jax.Array) -> jax.Array:
    """The square root of a sum of squares; where it is zero, so is its gradient, as in PyTorch."""
    return jnp.sqrt(square)


@root.defjvp
def _root_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    result = root(primals[0])
    flat = result == 0
    return result, jnp.where(flat, 0, tangents[0] / (2 * jnp.where(flat, 1, result)))


def moments(
    self: jax.Array, dim: Any = None, correction: float | None = None, keepdim: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The variance and the mean along the axes; `correction`, 1 by default, is taken off the count."""
    dims = axes(self, dim)
    center = jnp.mean(self, dims, keepdims=True)
    distance = self - center
    square = jnp.real(distance * jnp.conj(distance)) if jnp.iscomplexobj(self) else jnp.square(distance)
    count = math.prod(self.shape[axis] for axis in (range(self.ndim) if dims is None else dims))
    freedom = count - (1 if correction is None else correction)
    variance = jnp.sum(square, dims, keepdims=keepdim) / max(freedom, 0)
    return variance, center if keepdim else jnp.squeeze(center, dims)


def _of_moments(function: Callable[[jax.Array, jax.Array], Any]) -> Callable[..., Any]:
    """A row of the variance and the mean, which 16-bit floats compute in float32."""

    def row(
        self: jax.Array, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
    ) -> Any:
        wide = self.astype(jnp.float32) if self.dtype.itemsize == 2 else self
        result = function(*moments(wide, dim, correction, keepdim))
        if wide is self:
            return result
        return jax.tree.map(lambda one: one.astype(self.dtype), result)

    return row


def vector_norm(
    self: jax.Array, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> jax.Array:
    """The norm along the axes; its gradient at zero is zero."""
    if dtype is not None:
        self = self.astype(dtype)
    reduced: dict[str, Any] = {"axis": axes(self, dim), "keepdims": keepdim}
    if jnp.iscomplexobj(self):
        self = absolute(self)
    return in_float32(partial(_norm, ord=ord, **reduced))(self)


def _norm(x: jax.Array, ord: float, **reduced: Any) -> jax.Array:
    if ord == 0:
        return jnp.sum((x != 0).astype(x.dtype), **reduced)
    if ord == 2:
        return root(jnp.sum(jnp.square(x), **reduced))
    size = absolute(x)
    if ord in _EXTREMES:
        return _EXTREMES[ord](size, **reduced)
    if ord == 1:
        return jnp.sum(size, **reduced)
    # powers of nothing but ones at zeros, whose gradients would not be finite
    zero = size == 0
    powers = jnp.where(zero, 0 if ord > 0 else jnp.inf, jnp.where(zero, 1, size) ** ord)
    result = jnp.sum(powers, **reduced)
    flat = (result == 0) | jnp.isinf(result)
    return jnp.where(flat, result ** (1 / ord), jnp.where(flat, 1, result) ** (1 / ord))


_EXTREMES: Mapping[float, Callable[..., jax.Array]] = {float("inf"): jnp.max, float("-inf"): jnp.min}


def distance(self: jax.Array, other: jax.Array, p: float = 2) -> jax.Array:
    """The norm of the difference."""
    return vector_norm(jnp.subtract(*promoted(self, other)), p)


def log_sum_exp(self: jax.Array, dim: Any, keepdim: bool = False) -> jax.Array:
    """The logarithm of the sum of the exponentials along the axes."""
    (x,) = floating(self)
    return in_float32(partial(logsumexp, axis=axes(x, dim), keepdims=keepdim))(x)


ROWS: Mapping[str, Callable] = {
    "aten.sum.default": total,
    "aten.sum.dim_IntList": total,
    "aten.prod.default": product,
    "aten.prod.dim_int": product,
    "aten.mean.default": mean,
    "aten.mean.dim": mean,
    "aten.amax.default": largest,
    "aten.amin.default": smallest,
    "aten.max.default": largest,
    "aten.min.default": smallest,
    "aten.max.dim": _with_place(jnp.max, jnp.argmax),
    "aten.min.dim": _with_place(jnp.min, jnp.argmin),
    "aten.argmax.default": _place(jnp.argmax),
    "aten.argmin.default": _place(jnp.argmin),
    "aten.any.default": whether_any,
    "aten.any.dim": whether_any,
    "aten.any.dims": whether_any,
    "aten.all.default": whether_all,
    "aten.all.dim": whether_all,
    "aten.all.dims": whether_all,
    "aten.var.correction": _of_moments(lambda variance, _: variance),
    "aten.std.correction": _of_moments(lambda variance, _: root(variance)),
    "aten.var_mean.correction": _of_moments(lambda variance, center: (variance, center)),
    "aten.std_mean.correction": _of_moments(lambda variance, center: (root(variance), center)),
    "aten.linalg_vector_norm.default": vector_norm,
    "aten.dist.default": distance,
    "aten.logsumexp.default": log_sum_exp,
}
