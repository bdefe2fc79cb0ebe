"""Arithmetic, element by element: sums, products, quotients, powers and remainders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from bridge.lowering.promotion import category, constant, float_type, floating, promoted, result_type


def rounded_once(function: Callable[..., jax.Array], *values: Any, dtype: Any = None) -> jax.Array:
    """The function of the values as `dtype`; where 16 bits are too few for a number, by way of float32.

    PyTorch's kernels keep a Python number on the right at float32 beside a 16-bit tensor: the scale of
    an attention must not lose its digits before it is used. One on the left they round first.
    """
    dtype = result_type(*values) if dtype is None else dtype
    wide = np.dtype("float32") if any(_too_fine(value, dtype) for value in values[1:]) else dtype
    return function(*(constant(value, wide) for value in values)).astype(dtype)


def _too_fine(value: Any, dtype: np.dtype) -> bool:
    """Whether this Python number changes when it is rounded to the 16-bit dtype."""
    if not isinstance(value, int | float) or category(dtype) != 2 or dtype.itemsize > 2:
        return False
    with np.errstate(over="ignore"):
        return float(np.asarray(value, dtype)) != value


def add(self: Any, other: Any, alpha: Any = 1) -> jax.Array:
    """The sum, of `alpha` times the other."""
    if _one(alpha):
        return rounded_once(jnp.add, self, other)
    return rounded_once(lambda a, b, c: a + b * c, self, other, alpha, dtype=result_type(self, other))


def subtract(self: Any, other: Any, alpha: Any = 1) -> jax.Array:
    """The difference, of `alpha` times the other."""
    if _one(alpha):
        return rounded_once(jnp.subtract, self, other)
    return rounded_once(lambda a, b, c: a - b * c, self, other, alpha, dtype=result_type(self, other))


def _one(alpha: Any) -> bool:
    return isinstance(alpha, int | float) and alpha == 1


def multiply(self: Any, other: Any) -> jax.Array:
    """The product."""
    return rounded_once(jnp.multiply, self, other)


def divide(self: Any, other: Any, rounding_mode: str | None = None) -> jax.Array:
    """The quotient: floating, or rounded towards zero (`"trunc"`) or down (`"floor"`)."""
    if rounding_mode is None:
        return rounded_once(jnp.true_divide, self, other, dtype=float_type(result_type(self, other)))
    function = _ROUNDED[rounding_mode, category(result_type(self, other)) == 2]
    # a rounded quotient has no gradient: derivatives.yaml, div.Tensor_mode
    return jax.lax.stop_gradient(rounded_once(function, self, other))


def _floor(a: jax.Array, b: jax.Array) -> jax.Array:
    """The quotient rounded down, by c10::div_floor_floating: exact also where `a / b` rounds up."""
    a, b = jnp.broadcast_arrays(a, b)
    rest = jax.lax.rem(a, b)
    quotient = (a - rest) / b - ((rest != 0) & ((b < 0) != (rest < 0)))
    return jnp.where(b == 0, a / b, jnp.copysign(jnp.round(quotient), a / b))


_ROUNDED: Mapping[tuple[str, bool], Callable[[jax.Array, jax.Array], jax.Array]] = {
    ("trunc", True): lambda a, b: jnp.trunc(a / b),
    ("trunc", False): lambda a, b: jax.lax.div(*jnp.broadcast_arrays(a, b)),
    ("floor", True): _floor,
    ("floor", False): jnp.floor_divide,
}


def floor_divide(self: Any, other: Any) -> jax.Array:
    """The quotient rounded down."""
    return divide(self, other, rounding_mode="floor")


def power(self: Any, exponent: Any) -> jax.Array:
    """The power, by multiplications where the exponent is a small whole number."""
    dtype = result_type(self, exponent)
    if isinstance(exponent, int | float) and not isinstance(exponent, bool):
        base = constant(self, dtype)
        if exponent in _POWERS and (category(dtype) > 1 or exponent >= 0):
            return _POWERS[exponent](base)
        return rounded_once(jnp.power, self, exponent)
    return _power(*promoted(self, exponent))


@jax.custom_jvp
def _power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    return jnp.power(base, exponent)


def _power_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
    """Finite where PyTorch's is: derivatives.yaml, pow_backward_self and pow_backward_exponent."""
    (base, exponent), (dbase, dexponent) = primals, tangents
    result, tangent = _power(base, exponent), jnp.zeros_like(base)
    if not isinstance(dbase, SymbolicZero):
        slope = exponent * _power(base, jnp.where(exponent == 0, 1, exponent - 1))
        tangent = tangent + dbase * jnp.where(exponent == 0, 0, slope)
    if not isinstance(dexponent, SymbolicZero):
        flat = (base == 0) & (exponent >= 0)
        tangent = tangent + dexponent * result * jnp.log(jnp.where(flat, 1, base))
    return result, tangent


# which operand has a gradient must be known: the logarithm of a negative base is no number
_power.defjvp(_power_jvp, symbolic_zeros=True)


_POWERS: Mapping[Any, Callable[[jax.Array], jax.Array]] = {
    0: jnp.ones_like,
    1: lambda base: base,
    2: jnp.square,
    3: lambda base: jax.lax.integer_pow(base, 3),
    4: lambda base: jax.lax.integer_pow(base, 4),
    0.5: jnp.sqrt,
    -0.5: jax.lax.rsqrt,
    -1: jnp.reciprocal,
}


def remainder_of_truncation(self: Any, other: Any) -> jax.Array:
    """What is left of a division that rounds towards zero: it has the sign of the dividend."""
    return jax.lax.rem(*jnp.broadcast_arrays(*promoted(self, other)))


def remainder_of_floor(self: Any, other: Any) -> jax.Array:
    """What is left of a division that rounds down: it has the sign of the divisor."""
    return jnp.remainder(*promoted(self, other))


def reciprocal(self: jax.Array) -> jax.Array:
    """One over the input, floating."""
    return jnp.reciprocal(*floating(self))


ROWS: Mapping[str, Callable] = {
    "aten.add.Tensor": add,
    "aten.add.Scalar": add,
    "aten.sub.Tensor": subtract,
    "aten.sub.Scalar": subtract,
    "aten.mul.Tensor": multiply,
    "aten.mul.Scalar": multiply,
    "aten.div.Tensor": divide,
    "aten.div.Scalar": divide,
    "aten.div.Tensor_mode": divide,
    "aten.div.Scalar_mode": divide,
    "aten.floor_divide.default": floor_divide,
    "aten.floor_divide.Scalar": floor_divide,
    "aten.pow.Tensor_Tensor": power,
    "aten.pow.Tensor_Scalar": power,
    "aten.pow.Scalar": power,
    "aten.fmod.Tensor": remainder_of_truncation,
    "aten.fmod.Scalar": remainder_of_truncation,
    "aten.remainder.Tensor": remainder_of_floor,
    "aten.remainder.Scalar": remainder_of_floor,
    "aten.remainder.Scalar_Tensor": remainder_of_floor,
    "aten.neg.default": jnp.negative,
    "aten.reciprocal.default": reciprocal,
}
