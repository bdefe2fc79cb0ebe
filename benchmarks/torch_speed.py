"""A captured torch model against the same model written in Flax Linen: StableHLO ops, and time.

    python benchmarks/torch_speed.py [--quick] [--batch 8]

ResNet-50 (torch's axes, channels first, and Linen's, channels last) and a small GPT-2. For the forward
in eval mode and for a step of SGD in train mode: the StableHLO ops of both compiled programs and their
ratio, and the ratio of their CPU time. Dropout is off.

On a CPU, XLA turns torch's kernels (out in height width) round in every call, whatever the size of the
batch: that is a tenth of the time of a ResNet-50 on 4 images, and little on 16.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
import transformers

import bridge as br

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import measuring
from benchmarks.measuring import Figure

KEY = jax.random.key(0)
CLASSES = 1000
STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))
VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 1024, 128, 256, 4, 12


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut."""

    inner: int
    outer: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        norm = partial(nn.BatchNorm, use_running_average=not train, epsilon=1e-5)
        conv = partial(nn.Conv, use_bias=False)
        y = nn.relu(norm()(conv(self.inner, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.inner, (3, 3), self.stride, padding=1)(y)))
        y = norm()(conv(self.outer, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(self.outer, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet of stages of blocks; those of the constant make ResNet-50."""

    stages: tuple[tuple[int, int, int], ...] = STAGES

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=1e-5)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, (inner, outer, blocks) in enumerate(self.stages):
            for block in range(blocks):
                x = Bottleneck(inner, outer, 2 if stage and not block else 1)(x, train)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class Block(nn.Module):
    """Attention and a perceptron, each after a layer norm."""

    @nn.compact
    def __call__(self, x):
        batch, length, _ = x.shape
        qkv = nn.Dense(3 * WIDTH)(nn.LayerNorm(epsilon=1e-5)(x))
        q, k, v = (part.reshape(batch, length, HEADS, -1) for part in jnp.split(qkv, 3, axis=-1))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + nn.Dense(WIDTH)(y.reshape(batch, length, WIDTH))
        y = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm(epsilon=1e-5)(x)), approximate=True)
        return x + nn.Dense(WIDTH)(y)


class GPT2(nn.Module):
    """A small GPT-2, whose table of tokens is also its last layer."""

    layers: int = LAYERS

    @nn.compact
    def __call__(self, tokens, train):
        table = nn.Embed(VOCABULARY, WIDTH)
        x = table(tokens) + nn.Embed(LENGTH, WIDTH)(jnp.arange(tokens.shape[1]))
        for _ in range(self.layers):
            x = Block()(x)
        return table.attend(nn.LayerNorm(epsilon=1e-5)(x))


def resnet(stages: Any = STAGES, size: int = 224, batch: int = 4) -> tuple[Any, Any, nn.Module, Any]:
    """The captured ResNet with its input, and the one of Linen with its own."""
    config = transformers.ResNetConfig(
        hidden_sizes=[outer for _, outer, _ in stages],
        depths=[blocks for *_, blocks in stages],
        num_labels=CLASSES,
    )
    images = torch.randn(batch, 3, size, size)
    captured = br.from_torch(transformers.ResNetForImageClassification(config), images)
    x = jnp.asarray(images.numpy())
    return captured, x, ResNet(stages), x.transpose(0, 2, 3, 1)


def gpt2(layers: int = LAYERS, batch: int = 4) -> tuple[Any, Any, nn.Module, Any]:
    """The captured GPT-2 with its input, and the one of Linen with its own."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=layers,
        n_head=HEADS,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    tokens = torch.randint(0, VOCABULARY, (batch, LENGTH))
    captured = br.from_torch(transformers.GPT2LMHeadModel(config), tokens)
    x = jnp.asarray(tokens.numpy())
    return captured, x, GPT2(layers), x


def of_captured(module: Any, x: Any) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """The forward and the train step of a captured model, with their arguments."""

    def step(module, x):
        def loss(module):
            out, after = module.apply(x, mode="train")
            return jnp.mean(out["logits"] ** 2), after

        (value, after), grads = br.value_and_grad(loss, has_aux=True)(module)
        descended = jax.tree.map(lambda p, g: p - 1e-3 * g, after.parameters(), grads)
        return after.update(descended), value

    return {
        "forward": (lambda module, x: module(x)["logits"], (module, x)),
        "step": (step, (module, x)),
    }


def of_twin(twin: nn.Module, x: Any) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """The forward and the train step of the model of Linen, with their arguments."""
    variables = jax.jit(partial(twin.init, train=False))(KEY, x)
    params, state = variables.pop("params"), variables

    def step(params, state, x):
        def loss(params):
            out, after = twin.apply({"params": params, **state}, x, True, mutable=list(state))
            return jnp.mean(out**2), after

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), state, value

    def forward(params, state, x):
        return twin.apply({"params": params, **state}, x, False)

    return {"forward": (forward, (params, state, x)), "step": (step, (params, state, x))}


def ops(function: Callable[..., Any], args: tuple[Any, ...]) -> Counter[str]:
    """How often each StableHLO op stands in a lowered program; constants are no work."""
    found = Counter(re.findall(r"stablehlo\.(\w+)", jax.jit(function).lower(*args).as_text()))
    found.pop("constant", None)
    return found


def figures(quick: bool = False, batch: int = 8) -> Iterator[Figure]:
    """Ops and time of the forward and the train step of each model."""
    rounds = 2 if quick else 5
    for build in (resnet, gpt2):
        module, x, twin, twin_x = build(batch=2 if quick else batch)
        captured, native = of_captured(module, x), of_twin(twin, twin_x)
        for what in ("forward", "step"):
            pair = captured[what], native[what]
            first, second = (ops(*one).total() for one in pair)
            name = f"{what} of {build.__name__}"
            yield Figure("torch", f"StableHLO ops, {name}", "Linen", first / second)
            yield Figure("torch", name, "Linen", measuring.ratio(*map(running, pair), rounds))


def running(side: tuple[Callable[..., Any], tuple[Any, ...]]) -> Callable[[], Any]:
    """A function that runs what a function compiles to."""
    function, args = side
    compiled = jax.jit(function).lower(*args).compile()
    return lambda: jax.block_until_ready(compiled(*args))


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    measuring.report(figures(given.quick, given.batch), given.json)


if __name__ == "__main__":
    main()
