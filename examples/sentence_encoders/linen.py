"""A BERT encoder in Flax Linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from .checkpoint import EncoderConfig


class AttentionBlock(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        attended = nn.MultiHeadDotProductAttention(
            num_heads=config.heads,
            dropout_rate=config.attention_dropout,
            broadcast_dropout=False,
        )(x, mask=mask, deterministic=deterministic)
        attended = nn.Dropout(config.dropout)(attended, deterministic=deterministic)
        return nn.LayerNorm(epsilon=config.epsilon, use_fast_variance=False)(x + attended)


class MlpBlock(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        y = nn.gelu(nn.Dense(config.mlp_features)(x), approximate=False)
        y = nn.Dense(config.features)(y)
        y = nn.Dropout(config.dropout)(y, deterministic=deterministic)
        return nn.LayerNorm(epsilon=config.epsilon, use_fast_variance=False)(x + y)


class Embedder(nn.Module):
    config: EncoderConfig

    def setup(self):
        config = self.config
        self.tokens = nn.Embed(config.vocabulary, config.features)
        self.positions = nn.Embed(config.positions, config.features)
        self.segments = nn.Embed(config.segments, config.features)
        self.norm = nn.LayerNorm(epsilon=config.epsilon, use_fast_variance=False)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(self, token_ids: jax.Array, segment_ids: jax.Array, deterministic: bool) -> jax.Array:
        x = self.tokens(token_ids) + self.segments(segment_ids)
        x = x + self.positions(jnp.arange(token_ids.shape[-1]))
        return self.dropout(self.norm(x), deterministic=deterministic)


class SentenceEncoder(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        token_ids: jax.Array,
        mask: jax.Array,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the last hidden states (batch tokens features), and pooled (batch features)."""
        if segment_ids is None:
            segment_ids = jnp.zeros_like(token_ids)
        x = Embedder(self.config)(token_ids, segment_ids, deterministic)
        attention_mask = mask[:, None, None, :]  # every head and query sees the same keys
        for _ in range(self.config.layers):
            x = AttentionBlock(self.config)(x, attention_mask, deterministic)
            x = MlpBlock(self.config)(x, deterministic)
        pooled = nn.tanh(nn.Dense(self.config.features, name="pooler")(x[:, 0]))
        return x, pooled


def build(config: EncoderConfig) -> SentenceEncoder:
    return SentenceEncoder(config)
