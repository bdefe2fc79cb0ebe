"""Transformers, written once more in JAX libraries, without the names that PyTorch's have."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

import bridge as br


def _erf_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


class LinenViT(nn.Module):
    """torchvision's vision transformer: the norms come first."""

    patch: int
    width: int
    mlp: int
    heads: int
    layers: int
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (self.patch,) * 2, self.patch, padding="VALID")(x)
        x = x.reshape(len(x), -1, self.width)
        first = self.param("first", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.width)), x], 1)
        x = x + self.param("places", nn.initializers.normal(), (1, x.shape[1], self.width))
        for _ in range(self.layers):
            y = nn.LayerNorm(1e-6)(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(y, y)
            y = nn.Dense(self.mlp)(nn.LayerNorm(1e-6)(x))
            x = x + nn.Dense(self.width)(_erf_gelu(y))
        return nn.Dense(self.classes)(nn.LayerNorm(1e-6)(x)[:, 0])


def linen_vit(*sizes: int) -> Any:
    return br.from_linen(LinenViT(*sizes))


class ViTBlock(eqx.Module):
    """Attention and two linear layers for one image, each behind a norm."""

    before: list[Any]
    mixer: Any
    up: Any
    down: Any

    def __init__(self, width: int, mlp: int, heads: int) -> None:
        key = jax.random.key(0)
        biases = {f"use_{part}_bias": True for part in ("query", "key", "value", "output")}
        self.before = [eqx.nn.LayerNorm(width, 1e-6) for _ in range(2)]
        self.mixer = eqx.nn.MultiheadAttention(heads, width, **biases, key=key)
        self.up = eqx.nn.Linear(width, mlp, key=key)
        self.down = eqx.nn.Linear(mlp, width, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.vmap(self.before[0])(x)
        x = x + self.mixer(y, y, y)
        y = jax.vmap(self.up)(jax.vmap(self.before[1])(x))
        return x + jax.vmap(self.down)(_erf_gelu(y))


class EquinoxViT(eqx.Module):
    """torchvision's vision transformer for one image."""

    patches: Any
    first: jax.Array
    places: jax.Array
    blocks: list[Any]
    last: Any
    out: Any

    def __init__(
        self, size: int, patch: int, width: int, mlp: int, heads: int, layers: int, classes: int
    ) -> None:
        key = jax.random.key(0)
        self.patches = eqx.nn.Conv2d(3, width, patch, patch, key=key)
        self.first = jnp.zeros((1, width))
        self.places = jnp.zeros(((size // patch) ** 2 + 1, width))
        self.blocks = [ViTBlock(width, mlp, heads) for _ in range(layers)]
        self.last, self.out = eqx.nn.LayerNorm(width, 1e-6), eqx.nn.Linear(width, classes, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patches(x)
        x = jnp.concatenate([self.first, x.reshape(len(x), -1).T]) + self.places
        for block in self.blocks:
            x = block(x)
        return self.out(self.last(x[0]))


def equinox_vit(*sizes: int) -> Any:
    return br.from_equinox(EquinoxViT(*sizes), vmap=True)


def haiku_gpt2(vocab: int, places: int, width: int, mlp: int, heads: int, layers: int) -> Any:
    """GPT-2 as a function: queries, keys and values apart, the head tied to the table."""

    def norm(x: jax.Array) -> jax.Array:
        return hk.LayerNorm(-1, True, True, 1e-5)(x)

    def run(ids: jax.Array) -> jax.Array:
        table, start = hk.Embed(vocab, width), hk.initializers.RandomNormal()
        x = table(ids) + hk.Embed(places, width)(jnp.arange(ids.shape[1]))
        seen = jnp.tril(jnp.ones((ids.shape[1],) * 2, bool))[None, None]
        for _ in range(layers):
            y = norm(x)
            mixer = hk.MultiHeadAttention(heads, width // heads, w_init=start, model_size=width)
            x = x + mixer(y, y, y, seen)
            x = x + hk.Linear(width)(jax.nn.gelu(hk.Linear(mlp)(norm(x)), approximate=True))
        return norm(x) @ table.embeddings.T

    return br.from_haiku(run)


class Rotated(nnx.Module):
    """Llama's attention with fewer keys than queries, and its gated linear layers."""

    def __init__(self, width: int, mlp: int, heads: int, kept: int, size: int) -> None:
        rngs = nnx.Rngs(0)
        self.heads, self.kept, self.size = heads, kept, size
        sizes = {"asks": heads, "holds": kept, "gives": kept}
        for name, count in sizes.items():
            setattr(self, name, nnx.LinearGeneral(width, (count, size), use_bias=False, rngs=rngs))
        self.joins = nnx.LinearGeneral((heads, size), width, axis=(-2, -1), use_bias=False, rngs=rngs)
        self.gate, self.up = (nnx.Linear(width, mlp, use_bias=False, rngs=rngs) for _ in range(2))
        self.down = nnx.Linear(mlp, width, use_bias=False, rngs=rngs)
        self.one, self.two = (nnx.RMSNorm(width, epsilon=1e-6, rngs=rngs) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        y, length = self.one(x), x.shape[1]
        q, k = _turned(self.asks(y)), _turned(self.holds(y))
        k, v = (jnp.repeat(one, self.heads // self.kept, 2) for one in (k, self.gives(y)))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(self.size)
        seen = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
        x = x + self.joins(jnp.einsum("bhqk,bkhd->bqhd", weights, v))
        y = self.two(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


def _turned(x: jax.Array) -> jax.Array:
    """Rotary positions, the two halves of a head as real and imaginary part."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    real, imaginary = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    return jnp.concatenate([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


class NnxLlama(nnx.Module):
    """Llama."""

    def __init__(self, vocab: int, width: int, mlp: int, heads: int, kept: int, layers: int) -> None:
        rngs = nnx.Rngs(0)
        self.table = nnx.Embed(vocab, width, rngs=rngs)
        self.blocks = nnx.List(Rotated(width, mlp, heads, kept, width // heads) for _ in range(layers))
        self.last = nnx.RMSNorm(width, epsilon=1e-6, rngs=rngs)
        self.out = nnx.Linear(width, vocab, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.out(self.last(x))


def nnx_llama(*sizes: int) -> Any:
    return br.from_nnx(NnxLlama(*sizes))


class LinenEncoder(nn.Module):
    """nn.TransformerEncoder: the norms come after."""

    width: int
    mlp: int
    heads: int
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = nn.LayerNorm(1e-5)(x + nn.MultiHeadDotProductAttention(self.heads)(x, x))
            x = nn.LayerNorm(1e-5)(x + nn.Dense(self.width)(nn.relu(nn.Dense(self.mlp)(x))))
        return x


def linen_encoder(*sizes: int) -> Any:
    return br.from_linen(LinenEncoder(*sizes))


def haiku_encoder(width: int, mlp: int, heads: int, layers: int) -> Any:
    """nn.TransformerEncoder as a function."""

    def norm(x: jax.Array) -> jax.Array:
        return hk.LayerNorm(-1, True, True, 1e-5)(x)

    def run(x: jax.Array) -> jax.Array:
        start = hk.initializers.RandomNormal()
        for _ in range(layers):
            mixer = hk.MultiHeadAttention(heads, width // heads, w_init=start, model_size=width)
            x = norm(x + mixer(x, x, x))
            x = norm(x + hk.Linear(width)(jax.nn.relu(hk.Linear(mlp)(x))))
        return x

    return br.from_haiku(run)
