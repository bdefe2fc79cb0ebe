"""A BERT encoder in dm-haiku."""

from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp

from .checkpoint import EncoderConfig


def layer_norm(config: EncoderConfig, name: str) -> hk.LayerNorm:
    return hk.LayerNorm(-1, create_scale=True, create_offset=True, eps=config.epsilon, name=name)


def dropout(rate: float, x: jax.Array, is_training: bool) -> jax.Array:
    return hk.dropout(hk.next_rng_key(), rate, x) if is_training else x


class SelfAttention(hk.Module):
    def __init__(self, config: EncoderConfig, name: str | None = None):
        super().__init__(name=name)
        self.config = config

    def __call__(self, x: jax.Array, mask: jax.Array, is_training: bool) -> jax.Array:
        heads, features = self.config.heads, self.config.features

        def project(name: str) -> jax.Array:
            return hk.Linear(features, name=name)(x).reshape(*x.shape[:-1], heads, -1)

        query, key, value = project("query"), project("key"), project("value")
        logits = jnp.einsum("bthd,bThd->bhtT", query, key) / jnp.sqrt(query.shape[-1])
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
        weights = dropout(self.config.attention_dropout, jax.nn.softmax(logits), is_training)
        attended = jnp.einsum("bhtT,bThd->bthd", weights, value).reshape(x.shape)
        return hk.Linear(features)(attended)


class DenseBlock(hk.Module):
    def __init__(self, config: EncoderConfig, name: str | None = None):
        super().__init__(name=name)
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        x = hk.Linear(self.config.mlp_features)(x)
        return hk.Linear(self.config.features)(jax.nn.gelu(x, approximate=False))


class Transformer(hk.Module):
    def __init__(self, config: EncoderConfig, name: str | None = None):
        super().__init__(name=name)
        self.config = config

    def __call__(self, x: jax.Array, mask: jax.Array, is_training: bool) -> jax.Array:
        config = self.config
        for layer in range(config.layers):
            attended = SelfAttention(config, name=f"h{layer}_attn")(x, mask, is_training)
            attended = dropout(config.dropout, attended, is_training)
            x = layer_norm(config, f"h{layer}_attn_ln")(x + attended)
            y = DenseBlock(config, name=f"h{layer}_mlp")(x)
            y = dropout(config.dropout, y, is_training)
            x = layer_norm(config, f"h{layer}_mlp_ln")(x + y)
        return x


class SentenceEncoder(hk.Module):
    def __init__(self, config: EncoderConfig, name: str | None = None):
        super().__init__(name=name)
        self.config = config

    def __call__(
        self,
        token_ids: jax.Array,
        mask: jax.Array,
        segment_ids: jax.Array | None = None,
        is_training: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the last hidden states (batch tokens features), and pooled (batch features)."""
        config = self.config
        if segment_ids is None:
            segment_ids = jnp.zeros_like(token_ids)
        positions = jnp.arange(token_ids.shape[-1])
        x = hk.Embed(config.vocabulary, config.features, name="token_embed")(token_ids)
        x = x + hk.Embed(config.segments, config.features, name="segment_embed")(segment_ids)
        x = x + hk.Embed(config.positions, config.features, name="position_embed")(positions)
        x = dropout(config.dropout, layer_norm(config, "embed_ln")(x), is_training)
        x = Transformer(config)(x, mask, is_training)
        return x, jnp.tanh(hk.Linear(config.features, name="pooler")(x[:, 0]))


def build(config: EncoderConfig) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the function to transform."""

    def encode(
        token_ids: jax.Array,
        mask: jax.Array,
        segment_ids: jax.Array | None = None,
        is_training: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        return SentenceEncoder(config)(token_ids, mask, segment_ids, is_training)

    return encode
