"""Comparisons, logic, bits, choices between two values and bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce, wraps
from typing import Any

import jax
import jax.numpy as jnp

from bridge.lowering.promotion import promoted

Slope = tuple[jax.Array, jax.Array]
"""A value and its tangent."""


def of_promoted(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A row that calls the function with its operands in their common dtype."""

    @wraps(function)
    def row(*operands: Any) -> jax.Array:
        return function(*promoted(*operands))

    return row


def where(condition: jax.Array, self: Any, other: Any) -> jax.Array:
    """`self` where the condition holds, `other` elsewhere."""
    return jnp.where(condition, *promoted(self, other))


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _within(x: jax.Array, low: float | None, high: float | None) -> jax.Array:
    above = x if low is None else jnp.maximum(x, jnp.asarray(low, x.dtype))
    return above if high is None else jnp.minimum(above, jnp.asarray(high, x.dtype))


@_within.defjvp
def _within_jvp(low: float | None, high: float | None, primals: tuple, tangents: tuple) -> Slope:
    """At a bound the gradient is whole: derivatives.yaml, clamp."""
    (x,), (tangent,) = primals, tangents
    reached = [] if low is None else [x >= jnp.asarray(low, x.dtype)]
    reached += [] if high is None else [x <= jnp.asarray(high, x.dtype)]
    return _within(x, low, high), jnp.where(reduce(jnp.logical_and, reached), tangent, 0.0)


@jax.custom_jvp
def _between(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    return jnp.minimum(jnp.maximum(x, low), high)


@_between.defjvp
def _between_jvp(primals: tuple, tangents: tuple) -> Slope:
    """At a bound the input has the gradient, beyond it the bound: derivatives.yaml, clamp.Tensor."""
    (x, low, high), (dx, dlow, dhigh) = primals, tangents
    below = jnp.where(low < high, dlow, 0.0)
    return _between(*primals), jnp.where(
        (x > high) | (low > high), dhigh, jnp.where(x < low, below, dx)
    )


@jax.custom_jvp
def _at_least(x: jax.Array, low: jax.Array) -> jax.Array:
    return jnp.maximum(x, low)


@_at_least.defjvp
def _at_least_jvp(primals: tuple, tangents: tuple) -> Slope:
    return _at_least(*primals), jnp.where(primals[0] < primals[1], tangents[1], tangents[0])


@jax.custom_jvp
def _at_most(x: jax.Array, high: jax.Array) -> jax.Array:
    return jnp.minimum(x, high)


@_at_most.defjvp
def _at_most_jvp(primals: tuple, tangents: tuple) -> Slope:
    return _at_most(*primals), jnp.where(primals[0] > primals[1], tangents[1], tangents[0])


def clamp(self: jax.Array, min: Any = None, max: Any = None) -> jax.Array:
    """The input within its bounds; the upper one where they contradict each other."""
    bounds = [bound for bound in (min, max) if bound is not None]
    if not any(hasattr(bound, "dtype") for bound in bounds):
        return _within(promoted(self, *bounds)[0], min, max)
    if min is None:
        return _at_most(*promoted(self, max))
    if max is None:
        return _at_least(*promoted(self, min))
    return _between(*promoted(self, min, max))


def clamp_max(self: jax.Array, max: Any) -> jax.Array:
    """The input, no more than a bound."""
    return clamp(self, max=max)


@of_promoted
def larger_number(self: jax.Array, other: jax.Array) -> jax.Array:
    """The larger one, or the one that is a number; equal ones give `self`, with the gradient."""
    return jnp.where((self >= other) | jnp.isnan(other), self, other)


@of_promoted
def smaller_number(self: jax.Array, other: jax.Array) -> jax.Array:
    """The smaller one, or the one that is a number; equal ones give `self`, with the gradient."""
    return jnp.where((self <= other) | jnp.isnan(other), self, other)


_OPERATORS: Mapping[str, Callable[..., jax.Array]] = {
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    "bitwise_left_shift": jnp.left_shift,
    "bitwise_right_shift": jnp.right_shift,
    "__lshift__": jnp.left_shift,
    "__rshift__": jnp.right_shift,
}

ROWS: Mapping[str, Callable] = {
    **{
        f"aten.{name}.{overload}": of_promoted(function)
        for name, function in _OPERATORS.items()
        for overload in ("Tensor", "Scalar", "Tensor_Scalar", "Scalar_Tensor")
    },
    "aten.bitwise_not.default": jnp.bitwise_not,
    "aten.logical_and.default": jnp.logical_and,
    "aten.logical_or.default": jnp.logical_or,
    "aten.logical_xor.default": jnp.logical_xor,
    "aten.logical_not.default": jnp.logical_not,
    "aten.isnan.default": jnp.isnan,
    "aten.isinf.default": jnp.isinf,
    "aten.where.self": where,
    "aten.clamp.default": clamp,
    "aten.clamp.Tensor": clamp,
    "aten.clamp_min.default": clamp,
    "aten.clamp_min.Tensor": clamp,
    "aten.clamp_max.default": clamp_max,
    "aten.clamp_max.Tensor": clamp_max,
    "aten.maximum.default": of_promoted(jnp.maximum),
    "aten.minimum.default": of_promoted(jnp.minimum),
    "aten.fmax.default": larger_number,
    "aten.fmin.default": smaller_number,
}
