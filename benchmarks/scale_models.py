"""Models of the size that `benchmarks/scale.py` asks about, abstract: shapes and dtypes, no numbers.

Each is written as the library's own users would, one layer after another, or with the layers stacked in
one array for each part and run by a scan, where the library has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

import bridge as br

DTYPE = jnp.bfloat16


def key():
    return jax.random.key(0)


def tokens():
    return jnp.zeros((1, 8), jnp.int32)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a transformer like Llama; with experts its feed-forward parts are that many."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    experts: int = 0

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def projections(self) -> Mapping[str, int]:
        """The outputs of the matrices of attention, but for the last, by name."""
        kv = self.kv_heads * self.head
        return {"q_proj": self.heads * self.head, "k_proj": kv, "v_proj": kv}


# Llama-2-70B: config.json of meta-llama/Llama-2-70b-hf
LLAMA = Sizes(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=32000)
# As wide and deep, with a hundred experts of a smaller feed-forward part in each layer.
EXPERTS = Sizes(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=2048, vocab=32000, experts=100)


def shapes(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The keys of a checkpoint as Hugging Face writes it, and the shapes of its arrays."""
    hidden, ffn = sizes.hidden, sizes.ffn
    yield "model.embed_tokens.weight", (sizes.vocab, hidden)
    for number in range(sizes.layers):
        at = f"model.layers.{number}"
        for name, width in sizes.projections.items():
            yield f"{at}.self_attn.{name}.weight", (width, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, sizes.heads * sizes.head)
        if sizes.experts:
            yield f"{at}.mlp.router.weight", (sizes.experts, hidden)
        for inside in [f".experts.{n}" for n in range(sizes.experts)] or [""]:
            yield f"{at}.mlp{inside}.gate_proj.weight", (ffn, hidden)
            yield f"{at}.mlp{inside}.up_proj.weight", (ffn, hidden)
            yield f"{at}.mlp{inside}.down_proj.weight", (hidden, ffn)
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (sizes.vocab, hidden)


def attended(q, k, v, sizes):
    """Attention of every place to all before it; keys and values are shared by groups of heads."""
    heads, head = sizes.heads // sizes.kv_heads, sizes.head
    q = q.reshape(*q.shape[:-1], sizes.kv_heads, heads, head)
    k, v = (one.reshape(*one.shape[:-1], sizes.kv_heads, head) for one in (k, v))
    scores = jnp.einsum("...qghd,...kgd->...ghqk", q, k) / head**0.5
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    out = jnp.einsum("...ghqk,...kgd->...qghd", weights, v)
    return out.reshape(*out.shape[:-3], -1)


def mixed(router, parts):
    """The sum of what the experts give, by what the router says of each."""
    weights = jax.nn.softmax(router)
    return sum(weights[..., n, None] * part for n, part in enumerate(parts))


# Flax Linen


def linen_dense(width, name):
    return nn.Dense(width, use_bias=False, param_dtype=DTYPE, name=name)


def linen_norm(name):
    return nn.RMSNorm(epsilon=1e-5, param_dtype=DTYPE, name=name)


class LinenAttention(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, x):
        parts = [linen_dense(width, name)(x) for name, width in self.sizes.projections.items()]
        return linen_dense(self.sizes.hidden, "o_proj")(attended(*parts, self.sizes))


class LinenFeedForward(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, x):
        gate, up = (linen_dense(self.sizes.ffn, name)(x) for name in ("gate_proj", "up_proj"))
        return linen_dense(self.sizes.hidden, "down_proj")(nn.silu(gate) * up)


class LinenExperts(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, x):
        router = linen_dense(self.sizes.experts, "router")(x)
        experts = [LinenFeedForward(self.sizes, name=f"experts_{n}") for n in range(self.sizes.experts)]
        return mixed(router, [expert(x) for expert in experts])


class LinenLayer(nn.Module):
    sizes: Sizes

    @nn.compact
    def __call__(self, x):
        inside = LinenExperts if self.sizes.experts else LinenFeedForward
        x = x + LinenAttention(self.sizes, name="self_attn")(linen_norm("input_layernorm")(x))
        return x + inside(self.sizes, name="mlp")(linen_norm("post_attention_layernorm")(x))


class LinenModel(nn.Module):
    sizes: Sizes
    scanned: bool = False

    @nn.compact
    def __call__(self, tokens):
        sizes = self.sizes
        table = nn.Embed(sizes.vocab, sizes.hidden, param_dtype=DTYPE, name="embed_tokens")
        x = table(tokens)
        if self.scanned:
            stack = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=sizes.layers,
            )
            x, _ = stack(LinenLayer(sizes, name="layers"), x, None)
        else:
            for number in range(sizes.layers):
                x = LinenLayer(sizes, name=f"layers_{number}")(x)
        return linen_dense(sizes.vocab, "lm_head")(linen_norm("norm")(x))


def linen(sizes, scanned=False):
    model = LinenModel(sizes, scanned)
    return lambda: model.init(key(), tokens()), lambda: br.from_linen(model).init(key(), tokens())


# Flax NNX


class NnxAttention(nnx.Module):
    def __init__(self, sizes, rngs):
        dense = nnx_dense(rngs)
        self.sizes = sizes
        for name, width in sizes.projections.items():
            setattr(self, name, dense(sizes.hidden, width))
        self.o_proj = dense(sizes.hidden, sizes.hidden)

    def __call__(self, x):
        parts = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(attended(*parts, self.sizes))


class NnxFeedForward(nnx.Module):
    def __init__(self, sizes, rngs):
        dense = nnx_dense(rngs)
        self.gate_proj = dense(sizes.hidden, sizes.ffn)
        self.up_proj = dense(sizes.hidden, sizes.ffn)
        self.down_proj = dense(sizes.ffn, sizes.hidden)

    def __call__(self, x):
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class NnxExperts(nnx.Module):
    def __init__(self, sizes, rngs):
        self.router = nnx_dense(rngs)(sizes.hidden, sizes.experts)
        self.experts = nnx.List([NnxFeedForward(sizes, rngs) for _ in range(sizes.experts)])

    def __call__(self, x):
        return mixed(self.router(x), [expert(x) for expert in self.experts])


def nnx_dense(rngs):
    return lambda inputs, width: nnx.Linear(inputs, width, use_bias=False, param_dtype=DTYPE, rngs=rngs)


def nnx_norm(sizes, rngs):
    return nnx.RMSNorm(sizes.hidden, epsilon=1e-5, param_dtype=DTYPE, rngs=rngs)


class NnxLayer(nnx.Module):
    def __init__(self, sizes, rngs):
        self.self_attn = NnxAttention(sizes, rngs)
        self.mlp = (NnxExperts if sizes.experts else NnxFeedForward)(sizes, rngs)
        self.input_layernorm = nnx_norm(sizes, rngs)
        self.post_attention_layernorm = nnx_norm(sizes, rngs)

    def __call__(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class NnxModel(nnx.Module):
    def __init__(self, sizes, scanned, rngs):
        self.scanned = scanned
        self.embed_tokens = nnx.Embed(sizes.vocab, sizes.hidden, param_dtype=DTYPE, rngs=rngs)
        if scanned:
            made = nnx.vmap(lambda rngs: NnxLayer(sizes, rngs), in_axes=0, out_axes=0)
            self.layers = made(rngs.fork(split=sizes.layers))
        else:
            self.layers = nnx.List([NnxLayer(sizes, rngs) for _ in range(sizes.layers)])
        self.norm = nnx_norm(sizes, rngs)
        self.lm_head = nnx_dense(rngs)(sizes.hidden, sizes.vocab)

    def __call__(self, tokens):
        x = self.embed_tokens(tokens)
        if self.scanned:
            x = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, self.layers
            )
        for layer in () if self.scanned else self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def nnx_(sizes, scanned=False):
    def model():
        return NnxModel(sizes, scanned, nnx.Rngs(0))

    return lambda: nnx.state(model()), lambda: br.from_nnx(model())


# dm-haiku


def haiku_dense(width, name):
    return hk.Linear(width, with_bias=False, name=name)


def haiku_norm(name):
    return hk.RMSNorm(-1, name=name)


class HaikuAttention(hk.Module):
    def __init__(self, sizes, name):
        super().__init__(name)
        self.sizes = sizes

    def __call__(self, x):
        parts = [haiku_dense(width, name)(x) for name, width in self.sizes.projections.items()]
        return haiku_dense(self.sizes.hidden, "o_proj")(attended(*parts, self.sizes))


class HaikuFeedForward(hk.Module):
    def __init__(self, sizes, name):
        super().__init__(name)
        self.sizes = sizes

    def __call__(self, x):
        gate, up = (haiku_dense(self.sizes.ffn, name)(x) for name in ("gate_proj", "up_proj"))
        return haiku_dense(self.sizes.hidden, "down_proj")(jax.nn.silu(gate) * up)


class HaikuExperts(hk.Module):
    def __init__(self, sizes, name):
        super().__init__(name)
        self.sizes = sizes

    def __call__(self, x):
        router = haiku_dense(self.sizes.experts, "router")(x)
        experts = [HaikuFeedForward(self.sizes, f"experts_{n}") for n in range(self.sizes.experts)]
        return mixed(router, [expert(x) for expert in experts])


class HaikuLayer(hk.Module):
    def __init__(self, sizes, name):
        super().__init__(name)
        self.sizes = sizes

    def __call__(self, x):
        inside = HaikuExperts if self.sizes.experts else HaikuFeedForward
        x = x + HaikuAttention(self.sizes, "self_attn")(haiku_norm("input_layernorm")(x))
        return x + inside(self.sizes, "mlp")(haiku_norm("post_attention_layernorm")(x))


def haiku(sizes, scanned=False):
    def forward(tokens):
        x = hk.Embed(sizes.vocab, sizes.hidden, name="embed_tokens")(tokens).astype(DTYPE)
        if scanned:
            stack = hk.experimental.layer_stack(sizes.layers)
            x = stack(lambda x: HaikuLayer(sizes, "layers")(x))(x)
        else:
            for number in range(sizes.layers):
                x = HaikuLayer(sizes, f"layers_{number}")(x)
        return haiku_dense(sizes.vocab, "lm_head")(haiku_norm("norm")(x))

    def cast(made):  # Haiku's parameters are float32 but for a policy of mixed precision
        return jax.tree.map(lambda leaf: leaf.astype(DTYPE), made)

    native, module = hk.transform(forward), br.from_haiku(forward)
    return lambda: cast(native.init(key(), tokens())), lambda: cast(module.init(key(), tokens()))


# Equinox


def eqx_dense(inputs, width, key):
    return eqx.nn.Linear(inputs, width, use_bias=False, dtype=DTYPE, key=key)


def eqx_norm(sizes):
    return eqx.nn.RMSNorm(sizes.hidden, use_bias=False, eps=1e-5, dtype=DTYPE)


class EquinoxAttention(eqx.Module):
    q_proj: eqx.nn.Linear
    k_proj: eqx.nn.Linear
    v_proj: eqx.nn.Linear
    o_proj: eqx.nn.Linear
    sizes: Sizes = eqx.field(static=True)

    def __init__(self, sizes, key):
        self.sizes = sizes
        self.q_proj, self.k_proj, self.v_proj = (
            eqx_dense(sizes.hidden, width, key) for width in sizes.projections.values()
        )
        self.o_proj = eqx_dense(sizes.hidden, sizes.hidden, key)

    def __call__(self, x):
        parts = [jax.vmap(part)(x) for part in (self.q_proj, self.k_proj, self.v_proj)]
        return jax.vmap(self.o_proj)(attended(*parts, self.sizes))


class EquinoxFeedForward(eqx.Module):
    gate_proj: eqx.nn.Linear
    up_proj: eqx.nn.Linear
    down_proj: eqx.nn.Linear

    def __init__(self, sizes, key):
        self.gate_proj = eqx_dense(sizes.hidden, sizes.ffn, key)
        self.up_proj = eqx_dense(sizes.hidden, sizes.ffn, key)
        self.down_proj = eqx_dense(sizes.ffn, sizes.hidden, key)

    def __call__(self, x):
        gate, up = jax.vmap(self.gate_proj)(x), jax.vmap(self.up_proj)(x)
        return jax.vmap(self.down_proj)(jax.nn.silu(gate) * up)


class EquinoxExperts(eqx.Module):
    router: eqx.nn.Linear
    experts: list[EquinoxFeedForward]

    def __init__(self, sizes, key):
        self.router = eqx_dense(sizes.hidden, sizes.experts, key)
        self.experts = [EquinoxFeedForward(sizes, key) for _ in range(sizes.experts)]

    def __call__(self, x):
        return mixed(jax.vmap(self.router)(x), [expert(x) for expert in self.experts])


class EquinoxLayer(eqx.Module):
    self_attn: EquinoxAttention
    mlp: EquinoxFeedForward | EquinoxExperts
    input_layernorm: eqx.nn.RMSNorm
    post_attention_layernorm: eqx.nn.RMSNorm

    def __init__(self, sizes, key):
        self.self_attn = EquinoxAttention(sizes, key)
        self.mlp = (EquinoxExperts if sizes.experts else EquinoxFeedForward)(sizes, key)
        self.input_layernorm = eqx_norm(sizes)
        self.post_attention_layernorm = eqx_norm(sizes)

    def __call__(self, x):
        x = x + self.self_attn(jax.vmap(self.input_layernorm)(x))
        return x + self.mlp(jax.vmap(self.post_attention_layernorm)(x))


class EquinoxModel(eqx.Module):
    embed_tokens: eqx.nn.Embedding
    layers: list[EquinoxLayer] | EquinoxLayer
    norm: eqx.nn.RMSNorm
    lm_head: eqx.nn.Linear

    def __init__(self, sizes, scanned, key):
        self.embed_tokens = eqx.nn.Embedding(sizes.vocab, sizes.hidden, dtype=DTYPE, key=key)
        keys = jax.random.split(key, sizes.layers)
        if scanned:
            self.layers = eqx.filter_vmap(lambda key: EquinoxLayer(sizes, key))(keys)
        else:
            self.layers = [EquinoxLayer(sizes, key) for key in keys]
        self.norm = eqx_norm(sizes)
        self.lm_head = eqx_dense(sizes.hidden, sizes.vocab, key)

    def __call__(self, tokens):
        x = jax.vmap(self.embed_tokens)(tokens)
        if isinstance(self.layers, EquinoxLayer):
            arrays, static = eqx.partition(self.layers, eqx.is_array)
            x, _ = jax.lax.scan(lambda x, one: (eqx.combine(one, static)(x), None), x, arrays)
        else:
            for layer in self.layers:
                x = layer(x)
        return jax.vmap(self.lm_head)(jax.vmap(self.norm)(x))


def equinox(sizes, scanned=False):
    def model():
        return EquinoxModel(sizes, scanned, key())

    return lambda: eqx.filter(model(), eqx.is_array), lambda: br.from_equinox(model())


# What makes the library's own arrays, and what makes the Module; for jax.eval_shape.
LIBRARIES: Mapping[str, Callable] = {"linen": linen, "nnx": nnx_, "haiku": haiku, "equinox": equinox}


def abstract(library, sizes, scanned=False):
    """The Module of a model, without a number in it."""
    return jax.eval_shape(LIBRARIES[library](sizes, scanned)[1])
