"""Complex numbers: put together, taken apart, conjugated.

A conjugate is an array of its own here; PyTorch's lazy conjugate and negative views need nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bridge.lowering.promotion import floating


def cartesian(real: jax.Array, imag: jax.Array) -> jax.Array:
    """The complex array of these parts."""
    return lax.complex(*jnp.broadcast_arrays(real, imag))


def polar(absolute: jax.Array, angle: jax.Array) -> jax.Array:
    """The complex array of these absolute values and angles."""
    return cartesian(absolute * jnp.cos(angle), absolute * jnp.sin(angle))


def as_real(x: jax.Array) -> jax.Array:
    """Real and imaginary part on a last axis of two."""
    return jnp.stack((jnp.real(x), jnp.imag(x)), axis=-1)


def as_complex(x: jax.Array) -> jax.Array:
    """The complex array whose parts are on the last axis."""
    return lax.complex(x[..., 0], x[..., 1])


@jax.custom_jvp
def _phase(x: jax.Array) -> jax.Array:
    return jnp.angle(x)


@_phase.defjvp
def _phase_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The gradient at zero is zero, not that of atan2: angle_backward in PyTorch's FunctionsManual.cpp
    (x,), (dx,) = primals, tangents
    square = jnp.square(x.real) + jnp.square(x.imag)
    return _phase(x), jnp.imag(jnp.conj(x) * dx) / jnp.where(square == 0, 1, square)


def angle(x: jax.Array) -> jax.Array:
    """The angle in radians; of real numbers 0, pi or NaN."""
    (x,) = floating(x)
    if jnp.iscomplexobj(x):
        return _phase(x)
    x = lax.stop_gradient(x)
    return jnp.where(jnp.isnan(x), x, jnp.where(x < 0, jnp.asarray(jnp.pi, x.dtype), 0))


def sgn(x: jax.Array) -> jax.Array:
    """Each number over its absolute value, 0 for 0."""
    if not jnp.iscomplexobj(x):
        return jnp.sign(x)
    zero = x == 0
    away = jnp.where(zero, 1, x)
    return jnp.where(zero, 0, away / jnp.abs(away))


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten.complex.default": cartesian,
    "aten.polar.default": polar,
    "aten.view_as_real.default": as_real,
    "aten.view_as_complex.default": as_complex,
    "aten._conj.default": jnp.conj,
    "aten._conj_physical.default": jnp.conj,
    "aten._neg_view.default": jnp.negative,
    "aten.angle.default": angle,
    "aten.sgn.default": sgn,
}
