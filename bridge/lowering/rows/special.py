"""Special functions that have no decomposition, or one that loses digits or gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import jax.scipy.special as special
from jax import lax

from bridge.lowering.promotion import floating
from bridge.lowering.rows.activation import in_float32
from bridge.lowering.rows.elementary import of_floats


def _with_slope(
    function: Callable[[jax.Array], jax.Array], slope: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """The function, with this derivative: what JAX derives is not PyTorch's everywhere."""
    smooth = jax.custom_jvp(function)
    smooth.defjvps(lambda tangent, _, x: tangent * slope(x))
    return smooth


def _digamma(x: jax.Array) -> jax.Array:
    """Digamma, which is -inf at 0 and inf at -0: torch.digamma's docs."""
    return jnp.where(x == 0, jnp.copysign(jnp.inf, -x), special.digamma(x))


def _entropy(x: jax.Array) -> jax.Array:
    """`-x log x`: 0 at zero, -inf below."""
    return jnp.where(x < 0, -jnp.inf, -x * jnp.log(jnp.where(x > 0, x, 1)))


def _sinc_slope(x: jax.Array) -> jax.Array:
    """The derivative of sinc: zero where the square of the input vanishes."""
    angle, square = jnp.pi * x, jnp.pi * x * x
    return jnp.where(
        square == 0, 0, (angle * jnp.cos(angle) - jnp.sin(angle)) / jnp.where(square == 0, 1, square)
    )


@jax.custom_jvp
def zeta(x: jax.Array, q: jax.Array) -> jax.Array:
    """The Hurwitz zeta function, infinite at its poles; JAX's own is wrong for a `q` below -8."""
    x, q = floating(*jnp.broadcast_arrays(x, q))
    is_pole = (q <= 0) & (q == jnp.floor(q))

    def is_low(q: jax.Array) -> jax.Array:
        return (q < 0) & ~is_pole

    def add(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, q = carry
        return total + jnp.where(is_low(q), q**-x, 0), jnp.where(is_low(q), q + 1, q)

    start = jnp.zeros_like(q), q
    total, q = lax.while_loop(lambda carry: is_low(carry[1]).any(), add, start)
    return jnp.where(is_pole, jnp.inf, total + special.zeta(x, q))


# PyTorch has no gradient with respect to the first argument.
zeta.defjvps(None, lambda tangent, _, x, q: tangent * -x * zeta(x + 1, q))


def polygamma(n: int, self: jax.Array) -> jax.Array:
    """The n-th derivative of digamma."""
    (x,) = floating(self)
    if n == 0:
        return in_float32(digamma)(x)
    factor = (-1) ** (n + 1) * math.factorial(n)
    return in_float32(lambda x: factor * zeta(jnp.full_like(x, n + 1), x))(x)


digamma = _with_slope(_digamma, lambda x: polygamma(1, x))
lgamma = _with_slope(special.gammaln, digamma)
i0 = _with_slope(special.i0, special.i1)
entropy = _with_slope(_entropy, lambda x: -jnp.log(x) - 1)
sinc = _with_slope(jnp.sinc, _sinc_slope)


def xlogy(self: jax.Array, other: jax.Array) -> jax.Array:
    """`self * log(other)`, which is 0 where `self` is, whatever the logarithm."""
    return _finite_product(self, jnp.log, other, (other <= 0) | (other == jnp.inf), 1)


def xlog1py(self: jax.Array, other: jax.Array) -> jax.Array:
    """`self * log(1 + other)`, which is 0 where `self` is, whatever the logarithm."""
    return _finite_product(self, jnp.log1p, other, (other <= -1) | (other == jnp.inf), 0)


def _finite_product(
    factor: jax.Array,
    function: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    endless: jax.Array,
    safe: int,
) -> jax.Array:
    """`factor * function(x)`, with `safe` for `x` where the factor is zero and the function endless."""
    return factor * function(jnp.where((factor == 0) & endless, safe, x))


def lower_gamma(self: jax.Array, other: jax.Array) -> jax.Array:
    """The regularised lower incomplete gamma function, which is 1 for a shape of zero."""
    return jnp.where((self == 0) & (other > 0), 1, special.gammainc(self, other))


_FLOATS: Mapping[str, Callable[..., jax.Array]] = {
    "erf": special.erf,
    "erfc": special.erfc,
    "erfinv": special.erfinv,
    "lgamma": lgamma,
    "digamma": digamma,
    "i0": i0,
    "sinc": sinc,
    "special_i0e": special.i0e,
    "special_i1": special.i1,
    "special_i1e": special.i1e,
    "special_modified_bessel_i0": i0,
    "special_modified_bessel_i1": special.i1,
    "special_ndtri": special.ndtri,
    "special_log_ndtr": special.log_ndtr,
    "special_entr": entropy,
    "special_erfcx": special.erfcx,
    "special_spherical_bessel_j0": lambda x: jnp.sinc(x / jnp.pi),
    "igamma": lower_gamma,
    "igammac": special.gammaincc,
    "special_zeta": zeta,
    "special_xlog1py": xlog1py,
}

ROWS: Mapping[str, Callable] = {
    **{f"aten.{name}.default": of_floats(in_float32(function)) for name, function in _FLOATS.items()},
    "aten.polygamma.default": polygamma,
    "aten.xlogy.Tensor": of_floats(in_float32(xlogy)),
    "aten.xlogy.Scalar_Self": of_floats(in_float32(xlogy)),
    "aten.xlogy.Scalar_Other": of_floats(in_float32(xlogy)),
    "aten.special_xlog1py.self_scalar": of_floats(in_float32(xlog1py)),
    "aten.special_xlog1py.other_scalar": of_floats(in_float32(xlog1py)),
    "aten.special_zeta.self_scalar": of_floats(in_float32(zeta)),
    "aten.special_zeta.other_scalar": of_floats(in_float32(zeta)),
}
