"""Roots, exponentials, logarithms, trigonometry and rounding, element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp

from bridge.lowering.promotion import category, floating, in_float32, promoted
from bridge.lowering.rows.comparison import clamp, of_promoted


def of_floats(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A row that calls the function with floating operands of one dtype: float32 for integers."""

    @wraps(function)
    def row(*operands: Any) -> jax.Array:
        return function(*floating(*operands))

    return row


def of_fractions(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A row that gives integers back as they are: there is nothing to round."""

    @wraps(function)
    def row(self: jax.Array) -> jax.Array:
        return function(self) if category(self.dtype) > 1 else self

    return row


def signbit(self: jax.Array) -> jax.Array:
    """Whether the sign is minus, that of a zero as well."""
    return jnp.signbit(self) if category(self.dtype) == 2 else self < 0


def round_decimals(self: jax.Array, decimals: int) -> jax.Array:
    """The input rounded to this many decimals, halves to even."""
    if category(self.dtype) < 2:
        return self
    scale = 10.0 ** abs(decimals)
    # by scaling, not by jnp.round: it is what PyTorch's kernel does with a half that scaling makes
    return jnp.round(self * scale) / scale if decimals > 0 else jnp.round(self / scale) * scale


@jax.custom_jvp
def absolute(self: jax.Array) -> jax.Array:
    """The size of each number; its gradient at zero is zero, as in PyTorch."""
    return jnp.abs(self)


@absolute.defjvp
def _absolute_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    slope = jnp.conj(jnp.sign(x)) * tangent
    return absolute(x), jnp.real(slope)


def sign(self: jax.Array) -> jax.Array:
    """-1, 0 or 1; 0 for what is no number, as in PyTorch."""
    if category(self.dtype) == 0:
        return self
    direction = jnp.sign(self)
    return jnp.where(jnp.isnan(self), 0, direction) if category(self.dtype) == 2 else direction


def log2(self: jax.Array) -> jax.Array:
    """The logarithm to base 2, exact for powers of two, which XLA's quotient of logarithms is not."""
    quotient = jnp.log2(self)
    mantissa, exponent = jnp.frexp(jax.lax.stop_gradient(self))
    exact = jnp.where(mantissa == 0.5, exponent - 1 - quotient, 0).astype(quotient.dtype)
    return quotient + jax.lax.stop_gradient(exact)


def exp2(self: jax.Array) -> jax.Array:
    """Two to the power of the input, exact for whole numbers, which XLA's exponential is not."""
    return jnp.power(jnp.asarray(2, self.dtype), self)


@jax.custom_jvp
def arctan2(self: jax.Array, other: jax.Array) -> jax.Array:
    """The angle of the point (other, self); its gradient at the origin is zero."""
    return jnp.arctan2(self, other)


@arctan2.defjvp
def _arctan2_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (y, x), (dy, dx) = primals, tangents
    square = x * x + y * y
    return arctan2(y, x), (x * dy - y * dx) / jnp.where(square == 0, 1, square)


@jax.custom_jvp
def hypotenuse(self: jax.Array, other: jax.Array) -> jax.Array:
    """The distance of the point from the origin, where its gradient is no number, as in PyTorch."""
    return jnp.hypot(self, other)


@hypotenuse.defjvp
def _hypotenuse_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, y), (dx, dy) = primals, tangents
    result = hypotenuse(x, y)
    return result, dx * (x / result) + dy * (y / result)


def copysign(self: jax.Array, other: jax.Array) -> jax.Array:
    """The size of `self` with the sign of `other`; its gradient where `self` is zero is zero."""
    size = absolute(self)
    return jnp.where(jnp.signbit(other), -size, size)


def logit(self: jax.Array, eps: float | None = None) -> jax.Array:
    """The logarithm of the odds, of the input between `eps` and `1 - eps`."""
    (x,) = floating(self)
    return jax.scipy.special.logit(x if eps is None else clamp(x, eps, 1 - eps))


@jax.custom_jvp
def _mantissa(self: jax.Array) -> jax.Array:
    return jnp.frexp(self)[0]


@_mantissa.defjvp
def _mantissa_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    mantissa, exponent = jnp.frexp(primals[0])
    return mantissa, tangents[0] / jnp.exp2(exponent.astype(mantissa.dtype))


@jax.custom_jvp
def next_after(self: jax.Array, other: jax.Array) -> jax.Array:
    """The next number from `self` towards `other`; it moves with `self`."""
    return jnp.nextafter(self, other)


@next_after.defjvp
def _next_after_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return next_after(*primals), jnp.where(primals[0] == primals[1], tangents[1], tangents[0])


def mantissa_exponent(self: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The number between 0.5 and 1, and the power of two, whose product is the input."""
    return _mantissa(self), jnp.frexp(jax.lax.stop_gradient(self))[1].astype(jnp.int32)


def times_power_of_two(self: jax.Array, other: jax.Array) -> jax.Array:
    """The input times two to the power of the other."""
    (factor,) = floating(other)
    return jnp.multiply(*promoted(*floating(self), exp2(factor)))


_FLOATS: Mapping[str, Callable[..., jax.Array]] = {
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "exp": jnp.exp,
    "exp2": exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log2": log2,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "tanh": jnp.tanh,
    "asinh": jnp.arcsinh,
    "acosh": jnp.arccosh,
    "atanh": jnp.arctanh,
    "atan2": arctan2,
    "sigmoid": jax.nn.sigmoid,
}

ROWS: Mapping[str, Callable] = {
    **{f"aten.{name}.default": of_floats(function) for name, function in _FLOATS.items()},
    "aten.floor.default": of_fractions(jnp.floor),
    "aten.ceil.default": of_fractions(jnp.ceil),
    "aten.trunc.default": of_fractions(jnp.trunc),
    "aten.round.default": of_fractions(jnp.round),
    "aten.round.decimals": round_decimals,
    "aten.sign.default": sign,
    "aten.abs.default": absolute,
    "aten.logit.default": logit,
    "aten.frexp.Tensor": mantissa_exponent,
    "aten.ldexp.Tensor": times_power_of_two,
    "aten.signbit.default": signbit,
    "aten.nextafter.default": of_floats(next_after),
    "aten.gcd.default": of_promoted(jnp.gcd),
    "aten.lcm.default": of_promoted(jnp.lcm),
    "aten.hypot.default": of_promoted(in_float32(hypotenuse)),
    "aten.copysign.Tensor": of_floats(copysign),
    "aten.copysign.Scalar": of_floats(copysign),
}
