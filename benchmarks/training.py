"""What a train step of a wrapped model costs when it runs: against the library's own.

    python benchmarks/training.py [--quick]

Forward, backward and Adam of a net of linear layers with batch norm and dropout, under jax.jit, module
and optimizer donated, in a loop: CPU time, and the peak of the compiled program's memory. NNX has two
forms of its own, split and merge under jax.jit, and nnx.jit with nnx.Optimizer; Equinox has partition
under jax.jit, and filter_jit. Last a tree of parts from four libraries against the same model in Linen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import optax
from flax import nnx

import bridge as br

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import measuring, nets
from benchmarks.measuring import Figure
from benchmarks.nets import ADAM, KEY, PAIRS, Pair

DEPTH, WIDTH, BATCH = 4, 256, 256
X, Y = jax.random.normal(KEY, (2, BATCH, WIDTH))
EPSILON = 1e-5


def copied(tree: Any) -> Any:
    """The tree with arrays of its own, which may be donated."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, tree)


class Loop:
    """A train loop: each call is one step, which takes what the step before has left.

    A step gives its carry, as many values as it was given of it, and the loss.
    """

    def __init__(self, step: Callable[..., Any], *carry: Any) -> None:
        donated = tuple(range(len(carry)))
        self.compiled = jax.jit(step, donate_argnums=donated).lower(*carry, X, Y, KEY).compile()
        self.jitted = jax.jit(step, donate_argnums=donated)
        self.carry = copied(carry)

    def __call__(self) -> None:
        *self.carry, loss = self.jitted(*self.carry, X, Y, KEY)
        jax.block_until_ready(loss)

    @property
    def peak(self) -> int:
        """The most bytes that the compiled step holds at once: what it is given, gives and needs."""
        memory = self.compiled.memory_analysis()
        kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return kept - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def of_module(module: Any) -> Loop:
    return Loop(nets.bridge_step, module, br.Optimizer(ADAM).init(module))


def of_native(pair: Pair) -> Loop:
    step = nets.native_step(pair.forward)
    return Loop(step, pair.params, pair.state, ADAM.init(pair.params))


def by_nnx_jit(pair: Pair) -> Callable[[], Any]:
    """The loop as NNX's own users write it."""
    model: Any = copied(pair.module.native())
    optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y, key):
        def loss_of(model):
            return optax.l2_loss(model(x, nnx.Rngs(key)), y).mean()

        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads)
        return loss

    return lambda: jax.block_until_ready(step(model, optimizer, X, Y, KEY))


def by_filter_jit(pair: Pair) -> Callable[[], Any]:
    """The loop as Equinox's own users write it."""
    native: Any = pair.module.native()
    model, state = copied(native)
    carry = model, state, ADAM.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit(donate="all-except-first")
    def step(batch, model, state, opt_state):
        x, y, key = batch

        @eqx.filter_value_and_grad(has_aux=True)
        def loss_of(model):
            keys = jax.random.split(key, len(x))
            out, after = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")(x, state, keys)
            return optax.l2_loss(out, y).mean(), after

        (loss, after), grads = loss_of(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), after, opt_state, loss

    def once():
        nonlocal carry
        *carry, loss = step((X, Y, KEY), *carry)
        jax.block_until_ready(loss)

    return once


OWN: dict[str, dict[str, Callable[[Pair], Callable[[], Any]]]] = {
    "nnx": {"nnx.jit, nnx.Optimizer": by_nnx_jit},
    "equinox": {"filter_jit": by_filter_jit},
}


# The four libraries' parts of one model: a norm over the features, a linear layer and gelu.


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.gelu(nn.Dense(WIDTH)(nn.LayerNorm(EPSILON, use_fast_variance=False)(x)))


class LinenBlocks(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = LinenBlock()(x)
        return x


class NnxBlocks(nnx.Module):
    def __init__(self, rngs):
        norms = [
            nnx.LayerNorm(WIDTH, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)
            for _ in range(DEPTH)
        ]
        linears = [nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(DEPTH)]
        self.norms, self.linears = nnx.List(norms), nnx.List(linears)

    def __call__(self, x):
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + nnx.gelu(linear(norm(x)))
        return x


def haiku_blocks(x):
    for _ in range(DEPTH):
        x = x + jax.nn.gelu(hk.Linear(WIDTH)(hk.LayerNorm(-1, True, True, eps=EPSILON)(x)))
    return x


class EquinoxBlocks(eqx.Module):
    norms: list
    linears: list

    def __init__(self, key):
        self.norms = [eqx.nn.LayerNorm(WIDTH, eps=EPSILON) for _ in range(DEPTH)]
        keys = jax.random.split(key, DEPTH)
        self.linears = [eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in keys]

    def __call__(self, x):
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + jax.nn.gelu(linear(norm(x)))
        return x


class Mixed(br.Module):
    parts: list[br.Module]

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


def mixed() -> br.Module:
    """One tree of parts from four libraries."""
    parts = [
        br.from_linen(LinenBlocks(DEPTH)),
        br.from_nnx(NnxBlocks(nnx.Rngs(0))),
        br.from_haiku(haiku_blocks),
        br.from_equinox(EquinoxBlocks(KEY), vmap=True),
    ]
    return jax.jit(Mixed(parts).init)(KEY, X)


def alone() -> Loop:
    """The train loop of the same model in Linen, by Linen's own functional form."""
    net = LinenBlocks(4 * DEPTH)
    params = jax.jit(net.init)(KEY, X)["params"]

    def forward(params, state, x, key):
        return net.apply({"params": params}, x), state

    return Loop(nets.native_step(forward), params, {}, ADAM.init(params))


def figures(quick: bool = False) -> Iterator[Figure]:
    """Time and memory of the step of each library, then of the mixed tree."""
    rounds = 5 if quick else 25
    for library, build in PAIRS.items():
        pair = build(DEPTH, WIDTH)
        ours, theirs = of_module(pair.module), of_native(pair)
        what = f"step, {library}"
        yield Figure("train", what, "native", measuring.ratio(ours, theirs, rounds), 1.02)
        yield Figure("train", f"peak memory, {library}", "native", ours.peak / theirs.peak, 1.0)
        for name, loop in OWN.get(library, {}).items():
            yield Figure("train", what, name, measuring.ratio(ours, loop(pair), rounds), 1.02)
    ours, theirs = of_module(mixed()), alone()
    found = measuring.ratio(ours, theirs, rounds)
    yield Figure("train", "step, parts of four libraries", "Linen alone", found, 1.02)
    peaks = ours.peak / theirs.peak
    yield Figure("train", "peak memory, parts of four libraries", "Linen alone", peaks, 1.0)


def main() -> None:
    given = measuring.parser(__doc__).parse_args()
    measuring.report(figures(given.quick), given.json)


if __name__ == "__main__":
    main()
