"""A BERT encoder in Flax NNX."""

import jax
import jax.numpy as jnp
from flax import nnx

from .checkpoint import EncoderConfig


class SelfAttention(nnx.Module):
    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        features = config.features
        self.heads = config.heads
        self.q_proj = nnx.Linear(features, features, rngs=rngs)
        self.k_proj = nnx.Linear(features, features, rngs=rngs)
        self.v_proj = nnx.Linear(features, features, rngs=rngs)
        self.o_proj = nnx.Linear(features, features, rngs=rngs)
        self.dropout = nnx.Dropout(config.attention_dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        query, key, value = (
            projection(x).reshape(*x.shape[:-1], self.heads, -1)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(query.shape[-1])
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = self.dropout(jax.nn.softmax(scores))
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.o_proj(attended.reshape(x.shape))


class EncoderLayer(nnx.Module):
    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        features, epsilon = config.features, config.epsilon
        self.attn = SelfAttention(config, rngs)
        self.attn_norm = nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.up_proj = nnx.Linear(features, config.mlp_features, rngs=rngs)
        self.down_proj = nnx.Linear(config.mlp_features, features, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attn_norm(x + self.dropout(self.attn(x, mask)))
        y = self.down_proj(nnx.gelu(self.up_proj(x), approximate=False))
        return self.mlp_norm(x + self.dropout(y))


class SentenceEncoder(nnx.Module):
    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        features = config.features
        self.token_embed = nnx.Embed(config.vocabulary, features, rngs=rngs)
        self.position_embed = nnx.Embed(config.positions, features, rngs=rngs)
        self.segment_embed = nnx.Embed(config.segments, features, rngs=rngs)
        self.embed_norm = nnx.LayerNorm(
            features, epsilon=config.epsilon, use_fast_variance=False, rngs=rngs
        )
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.blocks = nnx.List([EncoderLayer(config, rngs) for _ in range(config.layers)])
        self.pooler = nnx.Linear(features, features, rngs=rngs)

    def __call__(
        self, token_ids: jax.Array, mask: jax.Array, segment_ids: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the last hidden states (batch tokens features), and pooled (batch features)."""
        if segment_ids is None:
            segment_ids = jnp.zeros_like(token_ids)
        x = self.token_embed(token_ids) + self.segment_embed(segment_ids)
        x = x + self.position_embed(jnp.arange(token_ids.shape[-1]))
        x = self.dropout(self.embed_norm(x))
        for block in self.blocks:
            x = block(x, mask)
        return x, nnx.tanh(self.pooler(x[:, 0]))


def build(config: EncoderConfig, seed: int = 0) -> SentenceEncoder:
    return SentenceEncoder(config, rngs=nnx.Rngs(seed))
