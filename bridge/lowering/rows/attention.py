"""Scaled dot-product attention.

jax.nn.dot_product_attention is not used: it gives a query that may meet no key the mean of all values,
has float32 within float64, and refuses float16 on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bridge.lowering.rows.randomness import Draw, dropout


def attention(
    draw: Draw,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attn_mask: jax.Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> jax.Array:
    """The values (*heads source width) by how the keys meet the queries (*heads target width).

    A query that the mask keeps from every key gives zeros, as in PyTorch.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if enable_gqa:
        key, value = (_repeated(array, query.shape[-3]) for array in (key, value))
    exact = jnp.promote_types(query.dtype, np.float32)
    logits = jnp.einsum("...td,...sd->...ts", query, key, preferred_element_type=exact)
    masked = _masked(logits * scale, attn_mask, is_causal)
    # without a mask each query meets a key, the first one at least
    weights = jax.nn.softmax(masked) if attn_mask is None else _weights(masked, -1)
    weights = dropout(draw, weights, dropout_p, train=True)
    return jnp.einsum("...ts,...sd->...td", weights.astype(value.dtype), value)


def _repeated(array: jax.Array, heads: int) -> jax.Array:
    """Each head as often as it takes for `heads`: query heads next to each other share one."""
    return jnp.repeat(array, heads // array.shape[-3], axis=-3)


def _masked(logits: jax.Array, mask: jax.Array | None, is_causal: bool) -> jax.Array:
    if mask is not None and mask.dtype == bool:
        logits = jnp.where(mask, logits, -jnp.inf)
    elif mask is not None:
        logits = logits + mask.astype(logits.dtype)
    if is_causal:  # the first query meets the first key, whatever their numbers: torch's docs
        logits = jnp.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -jnp.inf)
    return logits


def safe_softmax(self: jax.Array, dim: int, dtype: Any = None) -> jax.Array:
    """The softmax over an axis, all zeros where every entry is -inf; 16-bit floats round once."""
    dtype = self.dtype if dtype is None else dtype
    return _weights(self.astype(jnp.promote_types(dtype, np.float32)), dim).astype(dtype)


def _weights(logits: jax.Array, dim: int) -> jax.Array:
    """The softmax over an axis, all zeros where every logit is -inf."""
    least = float(jnp.finfo(logits.dtype).min)  # so that -inf less the maximum is never NaN
    most = lax.stop_gradient(jnp.max(logits, dim, keepdims=True, initial=least))
    powers = jnp.exp(logits - most)
    # The sum is zero there, and at least one elsewhere: the maximum has no tie.
    return powers / jnp.maximum(jnp.sum(powers, dim, keepdims=True), 0.5)


ROWS: Mapping[str, Callable[..., Any]] = {"aten._safe_softmax.default": safe_softmax}
DRAWING: Mapping[str, Callable[..., Any]] = {"aten.scaled_dot_product_attention.default": attention}
