"""A BERT encoder in Equinox: one sentence at a time, `jax.vmap` makes the batch."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .checkpoint import EncoderConfig


def split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Returns so many keys; without a key so many times None, which inference allows."""
    return [None] * count if key is None else list(jax.random.split(key, count))


class Embedder(eqx.Module):
    token_table: eqx.nn.Embedding
    position_table: eqx.nn.Embedding
    segment_table: eqx.nn.Embedding
    layernorm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout

    def __init__(self, config: EncoderConfig, *, key: jax.Array):
        token_key, position_key, segment_key = jax.random.split(key, 3)
        features = config.features
        self.token_table = eqx.nn.Embedding(config.vocabulary, features, key=token_key)
        self.position_table = eqx.nn.Embedding(config.positions, features, key=position_key)
        self.segment_table = eqx.nn.Embedding(config.segments, features, key=segment_key)
        self.layernorm = eqx.nn.LayerNorm(features, eps=config.epsilon)
        self.dropout = eqx.nn.Dropout(config.dropout)

    def __call__(
        self, token_ids: jax.Array, segment_ids: jax.Array, *, key: jax.Array | None
    ) -> jax.Array:
        x = jax.vmap(self.token_table)(token_ids)
        x = x + jax.vmap(self.segment_table)(segment_ids)
        x = x + jax.vmap(self.position_table)(jnp.arange(token_ids.shape[0]))
        return self.dropout(jax.vmap(self.layernorm)(x), key=key)


class FeedForward(eqx.Module):
    expand: eqx.nn.Linear
    contract: eqx.nn.Linear

    def __init__(self, config: EncoderConfig, *, key: jax.Array):
        expand_key, contract_key = jax.random.split(key)
        self.expand = eqx.nn.Linear(config.features, config.mlp_features, key=expand_key)
        self.contract = eqx.nn.Linear(config.mlp_features, config.features, key=contract_key)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.contract(jax.nn.gelu(self.expand(x), approximate=False))


class TransformerLayer(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    attention_layernorm: eqx.nn.LayerNorm
    feed_forward: FeedForward
    feed_forward_layernorm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout

    def __init__(self, config: EncoderConfig, *, key: jax.Array):
        attention_key, feed_forward_key = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(
            num_heads=config.heads,
            query_size=config.features,
            use_query_bias=True,
            use_key_bias=True,
            use_value_bias=True,
            use_output_bias=True,
            dropout_p=config.attention_dropout,
            key=attention_key,
        )
        self.attention_layernorm = eqx.nn.LayerNorm(config.features, eps=config.epsilon)
        self.feed_forward = FeedForward(config, key=feed_forward_key)
        self.feed_forward_layernorm = eqx.nn.LayerNorm(config.features, eps=config.epsilon)
        self.dropout = eqx.nn.Dropout(config.dropout)

    def __call__(self, x: jax.Array, mask: jax.Array, *, key: jax.Array | None) -> jax.Array:
        weights_key, attended_key, y_key = split(key, 3)
        attended = self.attention(x, x, x, mask=mask, key=weights_key)
        x = jax.vmap(self.attention_layernorm)(x + self.dropout(attended, key=attended_key))
        y = jax.vmap(self.feed_forward)(x)
        return jax.vmap(self.feed_forward_layernorm)(x + self.dropout(y, key=y_key))


class SentenceEncoder(eqx.Module):
    embedder: Embedder
    layers: list[TransformerLayer]
    pooler: eqx.nn.Linear

    def __init__(self, config: EncoderConfig, *, key: jax.Array):
        embedder_key, pooler_key, *layer_keys = jax.random.split(key, 2 + config.layers)
        self.embedder = Embedder(config, key=embedder_key)
        self.layers = [TransformerLayer(config, key=layer_key) for layer_key in layer_keys]
        self.pooler = eqx.nn.Linear(config.features, config.features, key=pooler_key)

    def __call__(
        self,
        token_ids: jax.Array,
        mask: jax.Array,
        segment_ids: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns one sentence's last hidden states (tokens features), and pooled (features)."""
        if segment_ids is None:
            segment_ids = jnp.zeros_like(token_ids)
        embedder_key, *layer_keys = split(key, 1 + len(self.layers))
        x = self.embedder(token_ids, segment_ids, key=embedder_key)
        attention_mask = jnp.broadcast_to(mask, (mask.shape[0], mask.shape[0]))
        for layer, layer_key in zip(self.layers, layer_keys, strict=True):
            x = layer(x, attention_mask, key=layer_key)
        return x, jnp.tanh(self.pooler(x[0]))


def build(config: EncoderConfig, seed: int = 0) -> SentenceEncoder:
    return SentenceEncoder(config, key=jax.random.key(seed))
