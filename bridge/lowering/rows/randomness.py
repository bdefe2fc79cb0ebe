"""Ops that draw random numbers: `draw(stream)` gives each its key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bridge.lowering.promotion import FLOAT, category, constant, narrowed, result_type
from bridge.lowering.rows.activation import leaky_relu

Draw = Callable[[str], jax.Array]
SELU_ALPHA = 1.7580993408473766  # alpha times scale of selu: torch.nn.AlphaDropout's paper, section 3


def _key(draw: Draw) -> jax.Array:
    return draw("default")


# ---- dropout


def _kept(draw: Draw, p: float, shape: Sequence[int]) -> jax.Array:
    return jax.random.bernoulli(draw("dropout"), 1 - p, shape)


def _dropped(self: jax.Array, kept: jax.Array, p: float) -> jax.Array:
    return jnp.where(kept, self / (1 - p), 0)


def dropout(draw: Draw, input: jax.Array, p: float, train: bool) -> jax.Array:
    """The input with a share `p` of its elements at zero and the others scaled; itself in eval mode."""
    return _masked(draw, input, p, train, input.shape)


def feature_dropout(draw: Draw, input: jax.Array, p: float, train: bool) -> jax.Array:
    """Dropout of whole channels, the second axis."""
    return _masked(draw, input, p, train, _channels(input))


def _masked(draw: Draw, input: jax.Array, p: float, train: bool, shape: Sequence[int]) -> jax.Array:
    if not train or p == 0:
        return input
    if p == 1:
        return jnp.zeros_like(input)
    return _dropped(input, _kept(draw, p, shape), p)


def _channels(input: jax.Array) -> tuple[int, ...]:
    return (*input.shape[:2], *[1] * (input.ndim - 2))


def native_dropout(
    draw: Draw, input: jax.Array, p: float, train: bool | None
) -> tuple[jax.Array, jax.Array]:
    """The input with a share `p` of its elements at zero, and the mask of what was kept."""
    if train is False or p == 0:
        return input, jnp.ones(input.shape, bool)
    if p == 1:
        return jnp.zeros_like(input), jnp.zeros(input.shape, bool)
    kept = _kept(draw, p, input.shape)
    return _dropped(input, kept, p), kept


def alpha_dropout(draw: Draw, input: jax.Array, p: float, train: bool) -> jax.Array:
    """Dropout towards selu's lower bound, which keeps the mean and the variance."""
    return _alpha_masked(draw, input, p, train, input.shape)


def feature_alpha_dropout(draw: Draw, input: jax.Array, p: float, train: bool) -> jax.Array:
    """Alpha dropout of whole channels, the second axis."""
    return _alpha_masked(draw, input, p, train, _channels(input))


def _alpha_masked(
    draw: Draw, input: jax.Array, p: float, train: bool, shape: Sequence[int]
) -> jax.Array:
    if not train or p == 0:
        return input
    if p == 1:
        return jnp.zeros_like(input)
    scale = 1 / math.sqrt((SELU_ALPHA**2 * p + 1) * (1 - p))
    dropped = jnp.where(_kept(draw, p, shape), input, -SELU_ALPHA)
    return scale * (dropped + SELU_ALPHA * p)


def rrelu(
    draw: Draw, self: jax.Array, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> jax.Array:
    """The input where it is positive, a random fraction elsewhere; in eval mode the mean one."""
    if not training:
        return leaky_relu(self, (lower + upper) / 2)
    return jnp.where(
        self > 0, self, self * jax.random.uniform(_key(draw), self.shape, self.dtype, lower, upper)
    )


# ---- arrays of random numbers


def rand(draw: Draw, size: Sequence[int], dtype: Any = None) -> jax.Array:
    """Uniform numbers from 0 to before 1."""
    return jax.random.uniform(_key(draw), tuple(size), FLOAT if dtype is None else dtype)


def rand_like(draw: Draw, self: jax.Array, dtype: Any = None) -> jax.Array:
    """Uniform numbers from 0 to before 1, in the shape of the input."""
    return rand(draw, self.shape, self.dtype if dtype is None else dtype)


def randn(draw: Draw, size: Sequence[int], dtype: Any = None) -> jax.Array:
    """Standard normal numbers."""
    return jax.random.normal(_key(draw), tuple(size), FLOAT if dtype is None else dtype)


def randn_like(draw: Draw, self: jax.Array, dtype: Any = None) -> jax.Array:
    """Standard normal numbers, in the shape of the input."""
    return randn(draw, self.shape, self.dtype if dtype is None else dtype)


def randint_low(draw: Draw, low: int, high: int, size: Sequence[int], dtype: Any = None) -> jax.Array:
    """Whole numbers from `low` to before `high`."""
    dtype = narrowed("int64") if dtype is None else dtype
    whole = dtype if category(dtype) == 1 else jnp.int32
    bounds = constant(low, whole), constant(high, whole)
    return jax.random.randint(_key(draw), tuple(size), *bounds, whole).astype(dtype)


def randint(draw: Draw, high: int, size: Sequence[int], dtype: Any = None) -> jax.Array:
    """Whole numbers from 0 to before `high`."""
    return randint_low(draw, 0, high, size, dtype)


def randint_like_low(draw: Draw, self: jax.Array, low: int, high: int, dtype: Any = None) -> jax.Array:
    """Whole numbers from `low` to before `high`, in the shape of the input."""
    return randint_low(draw, low, high, self.shape, self.dtype if dtype is None else dtype)


def randint_like(draw: Draw, self: jax.Array, high: int, dtype: Any = None) -> jax.Array:
    """Whole numbers from 0 to before `high`, in the shape of the input."""
    return randint_like_low(draw, self, 0, high, dtype)


def randperm(draw: Draw, n: int, dtype: Any = None) -> jax.Array:
    """The numbers from 0 to before `n`, in a random order."""
    return jax.random.permutation(_key(draw), n).astype(narrowed("int64") if dtype is None else dtype)


def bernoulli(draw: Draw, self: jax.Array, p: Any = None) -> jax.Array:
    """Ones with probability `p`, or that of the input; zeros elsewhere."""
    return jax.random.bernoulli(_key(draw), self if p is None else p, self.shape).astype(self.dtype)


def normal(
    draw: Draw, mean: Any, std: Any = 1, size: Sequence[int] | None = None, dtype: Any = None
) -> jax.Array:
    """Normal numbers with these means and standard deviations."""
    arrays = [value for value in (mean, std) if hasattr(value, "dtype")]
    shape: Any = (
        jnp.broadcast_shapes(*(array.shape for array in arrays)) if size is None else tuple(size)
    )
    dtype = dtype or (result_type(*arrays) if arrays else FLOAT)
    return (mean + std * jax.random.normal(_key(draw), shape, dtype)).astype(dtype)


def multinomial(draw: Draw, self: jax.Array, num_samples: int, replacement: bool = False) -> jax.Array:
    """Places along the last axis, drawn by these weights; each at most once without replacement."""
    odds = jnp.log(self)
    if replacement:
        places = jax.random.categorical(
            _key(draw), odds[..., None, :], shape=(*self.shape[:-1], num_samples)
        )
    else:  # the largest of the odds with Gumbel noise are draws without replacement
        _, places = jax.lax.top_k(
            odds + jax.random.gumbel(_key(draw), odds.shape, odds.dtype), num_samples
        )
    return places.astype(narrowed("int64"))


# ---- values in the place of an input's, from torch.Tensor's methods with a trailing underscore


def _in_place_of(sample: Callable[..., jax.Array], **defaults: float) -> Callable[..., jax.Array]:
    """A row for a distribution with these parameters, in the shape and dtype of the input."""

    def row(draw: Draw, self: jax.Array, *given: float, **named: float) -> jax.Array:
        parameters = {**defaults, **dict(zip(defaults, given, strict=False)), **named}
        return sample(_key(draw), self.shape, self.dtype, *parameters.values()).astype(self.dtype)

    return row


def _exponential(key: jax.Array, shape: Sequence[int], dtype: Any, rate: float) -> jax.Array:
    return jax.random.exponential(key, shape, dtype) / rate


def _normal(key: jax.Array, shape: Sequence[int], dtype: Any, mean: float, std: float) -> jax.Array:
    return mean + std * jax.random.normal(key, shape, dtype)


def _log_normal(key: jax.Array, shape: Sequence[int], dtype: Any, mean: float, std: float) -> jax.Array:
    return jnp.exp(_normal(key, shape, dtype, mean, std))


def _cauchy(key: jax.Array, shape: Sequence[int], dtype: Any, median: float, sigma: float) -> jax.Array:
    return median + sigma * jax.random.cauchy(key, shape, dtype)


def _geometric(key: jax.Array, shape: Sequence[int], _: Any, p: float) -> jax.Array:
    return jax.random.geometric(key, p, shape)


def _whole(key: jax.Array, shape: Sequence[int], _: Any, low: int, high: int) -> jax.Array:
    return jax.random.randint(key, shape, low, high)


def _below(key: jax.Array, shape: Sequence[int], _: Any, high: int) -> jax.Array:
    return jax.random.randint(key, shape, 0, high)


def poisson(draw: Draw, self: jax.Array) -> jax.Array:
    """Counts with the rates of the input."""
    return jax.random.poisson(_key(draw), self).astype(self.dtype)


def gamma(draw: Draw, self: jax.Array) -> jax.Array:
    """Gamma numbers with the shapes of the input."""
    return jax.random.gamma(_key(draw), self, dtype=self.dtype)


def dirichlet(draw: Draw, self: jax.Array) -> jax.Array:
    """Points of a simplex, with the concentrations along the last axis."""
    return jax.random.dirichlet(_key(draw), self, dtype=self.dtype)


def binomial(draw: Draw, count: jax.Array, prob: jax.Array) -> jax.Array:
    """Counts of successes among `count` trials."""
    return jax.random.binomial(_key(draw), count, prob, dtype=count.dtype)


DRAWING: Mapping[str, Callable] = {
    "aten.dropout.default": dropout,
    "aten.native_dropout.default": native_dropout,
    "aten.feature_dropout.default": feature_dropout,
    "aten.alpha_dropout.default": alpha_dropout,
    "aten.feature_alpha_dropout.default": feature_alpha_dropout,
    "aten.rrelu.default": rrelu,
    "aten.rand.default": rand,
    "aten.rand_like.default": rand_like,
    "aten.randn.default": randn,
    "aten.randn_like.default": randn_like,
    "aten.randint.default": randint,
    "aten.randint.low": randint_low,
    "aten.randint_like.default": randint_like,
    "aten.randint_like.low_dtype": randint_like_low,
    "aten.randperm.default": randperm,
    "aten.bernoulli.default": bernoulli,
    "aten.bernoulli.p": bernoulli,
    "aten.bernoulli.Tensor": bernoulli,
    "aten.normal.Tensor_float": normal,
    "aten.normal.float_Tensor": normal,
    "aten.normal.Tensor_Tensor": normal,
    "aten.normal.float_float": normal,
    "aten.multinomial.default": multinomial,
    "aten.uniform.default": _in_place_of(jax.random.uniform, **{"from": 0, "to": 1}),
    "aten.random.from": _in_place_of(_whole, **{"from": 0, "to": 0}),
    "aten.random.to": _in_place_of(_below, to=0),
    "aten.normal_functional.default": _in_place_of(_normal, mean=0, std=1),
    "aten.exponential.default": _in_place_of(_exponential, lambd=1),
    "aten.log_normal.default": _in_place_of(_log_normal, mean=1, std=2),
    "aten.cauchy.default": _in_place_of(_cauchy, median=0, sigma=1),
    "aten.geometric.default": _in_place_of(_geometric, p=0.5),
    "aten.poisson.default": poisson,
    "aten._standard_gamma.default": gamma,
    "aten._sample_dirichlet.default": dirichlet,
    "aten.binomial.default": binomial,
}
