"""Activation functions; those that are not here are decomposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from bridge.lowering.promotion import in_float32


def hardtanh(self: jax.Array, min_val: float = -1, max_val: float = 1) -> jax.Array:
    """The input within its bounds; unlike that of clamp, the gradient at a bound is zero."""
    return jax.lax.clamp(jnp.asarray(min_val, self.dtype), self, jnp.asarray(max_val, self.dtype))


def relu6(self: jax.Array) -> jax.Array:
    """The input between 0 and 6."""
    return hardtanh(self, 0, 6)


@in_float32
def hardsigmoid(self: jax.Array) -> jax.Array:
    """A line from 0 at -3 to 1 at 3."""
    return hardtanh(self + 3, 0, 6) / 6


@in_float32
def hardswish(self: jax.Array) -> jax.Array:
    """The input times its hardsigmoid."""
    return self * hardtanh(self + 3, 0, 6) / 6


@in_float32
def leaky_relu(self: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    """The input where it is positive, a fraction of it elsewhere; at zero the gradient is the slope."""
    return jnp.where(self > 0, self, self * negative_slope)


@in_float32
def elu(self: jax.Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> jax.Array:
    """The input where it is positive, an exponential towards `-alpha` elsewhere."""
    positive = self > 0
    below = jnp.where(positive, 0.0, self)  # keeps an overflowing exponential out of the gradient
    below = below if input_scale == 1 else below * input_scale
    result = jnp.where(positive, self, alpha * jnp.expm1(below))
    return result if scale == 1 else result * scale


def celu(self: jax.Array, alpha: float = 1) -> jax.Array:
    """An elu whose exponential is stretched by `alpha`, so that its slope has no jump."""
    return elu(self, alpha, 1, 1 / alpha)


@in_float32
def gelu(self: jax.Array, approximate: str = "none") -> jax.Array:
    """The input times the probability of a smaller normal number."""
    return jax.nn.gelu(self, approximate=approximate == "tanh")


@in_float32
def softplus(self: jax.Array, beta: float = 1, threshold: float = 20) -> jax.Array:
    """The logarithm of one plus the exponential; the input itself above the threshold."""
    scaled = self if beta == 1 else self * beta
    linear = scaled > threshold
    curve = jnp.log1p(jnp.exp(jnp.where(linear, 0.0, scaled)))  # the other branch's would overflow
    return jnp.where(linear, self, curve if beta == 1 else curve / beta)


@in_float32
def mish(self: jax.Array) -> jax.Array:
    """The input times the tanh of its softplus."""
    return self * jnp.tanh(softplus(self))


def softmax(self: jax.Array, dim: int, half_to_float: bool = False) -> jax.Array:
    """The exponentials, divided by their sum along the axis."""
    return _along(jax.nn.softmax, self, dim, half_to_float)


def log_softmax(self: jax.Array, dim: int, half_to_float: bool = False) -> jax.Array:
    """The logarithm of the softmax along the axis."""
    return _along(jax.nn.log_softmax, self, dim, half_to_float)


def _along(
    function: Callable[..., jax.Array], self: jax.Array, dim: int, half_to_float: bool
) -> jax.Array:
    if half_to_float:
        self = self.astype(jnp.float32)
    if not self.size:
        return self
    if not self.ndim:
        return jnp.reshape(function(jnp.reshape(self, 1)), ())
    return in_float32(function)(self, axis=dim)


ROWS: Mapping[str, Callable] = {
    "aten.relu.default": jax.nn.relu,
    "aten.relu6.default": relu6,
    "aten.hardtanh.default": hardtanh,
    "aten.hardsigmoid.default": hardsigmoid,
    "aten.hardswish.default": hardswish,
    "aten.leaky_relu.default": leaky_relu,
    "aten.elu.default": elu,
    "aten.celu.default": celu,
    "aten.gelu.default": gelu,
    "aten.silu.default": in_float32(jax.nn.silu),
    "aten.mish.default": mish,
    "aten.softplus.default": softplus,
    "aten._softmax.default": softmax,
    "aten._log_softmax.default": log_softmax,
}
