"""One deep net in each library: blocks of a linear layer, a batch norm, relu and dropout.

`PAIRS` makes of each library the wrapped model and what the library itself runs in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import bridge as br

KEY = jax.random.key(0)
RATE = 0.1
ADAM = optax.adam(1e-3)


@dataclass(frozen=True)
class Pair:
    """A wrapped model, and its library's own forms of the same.

    `forward` is the functional one, (params, state, x, key) -> (output, state after). `eager` is what a
    user of the library calls outside of any transform: a function of x and key.
    """

    library: str
    module: br.Module
    forward: Callable[..., Any]
    params: Any
    state: Any
    eager: Callable[[Any, Any], Any]


class LinenNet(nn.Module):
    depth: int
    width: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(self.width)(x)))
            x = nn.Dropout(RATE, deterministic=False)(x)
        return x


def linen(depth: int, width: int) -> Pair:
    net = LinenNet(depth, width)
    module = jax.jit(br.from_linen(net).init)(KEY, jnp.ones((2, width)))
    variables = module.native()

    def forward(params, state, x, key):
        variables = {"params": params, **state}
        return net.apply(variables, x, rngs={"dropout": key}, mutable=["batch_stats"])

    def eager(x, key):
        return net.apply(variables, x, rngs={"dropout": key}, mutable=["batch_stats"])

    state = {name: tree for name, tree in variables.items() if name != "params"}
    return Pair("linen", module, forward, variables["params"], state, eager)


class NnxBlock(nnx.Module):
    def __init__(self, width, rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(RATE)

    def __call__(self, x, rngs):
        return self.dropout(nnx.relu(self.norm(self.linear(x))), rngs=rngs)


class NnxNet(nnx.Module):
    def __init__(self, depth, width, rngs):
        self.rngs = nnx.Rngs(dropout=0)
        self.blocks = nnx.List([NnxBlock(width, rngs) for _ in range(depth)])

    def __call__(self, x, rngs=None):
        for block in self.blocks:
            x = block(x, rngs or self.rngs)
        return x


def nnx_(depth: int, width: int) -> Pair:
    module = br.from_nnx(NnxNet(depth, width, nnx.Rngs(0))).train()
    kinds = nnx.BatchStat, nnx.RngState
    graph, params, *state = nnx.split(module.native(), nnx.Param, *kinds)
    live = module.native()

    def forward(params, state, x, key):
        model = nnx.merge(graph, params, *state, copy=True)
        return model(x, nnx.Rngs(key)), tuple(nnx.split(model, nnx.Param, *kinds)[2:])

    return Pair("nnx", module, forward, params, tuple(state), lambda x, key: live(x, nnx.Rngs(key)))


def haiku(depth: int, width: int) -> Pair:
    def net(x):
        for _ in range(depth):
            x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(width)(x), is_training=True))
            x = hk.dropout(hk.next_rng_key(), RATE, x)
        return x

    module = jax.jit(br.from_haiku(net).init)(KEY, jnp.ones((2, width)))
    native = hk.transform_with_state(net)
    params, state = module.native()

    def forward(params, state, x, key):
        return native.apply(params, state, key, x)

    return Pair("haiku", module, forward, params, state, lambda x, key: forward(params, state, x, key))


class EquinoxNet(eqx.Module):
    linears: list
    norms: list
    dropout: eqx.nn.Dropout

    def __init__(self, depth, width, key):
        keys = jax.random.split(key, depth)
        self.linears = [eqx.nn.Linear(width, width, key=key) for key in keys]
        self.norms = [eqx.nn.BatchNorm(width, axis_name="batch", mode="batch") for _ in keys]
        self.dropout = eqx.nn.Dropout(RATE)

    def __call__(self, x, state, key):
        keys = jax.random.split(key, len(self.linears))
        for linear, norm, key in zip(self.linears, self.norms, keys, strict=True):
            x, state = norm(linear(x), state)
            x = self.dropout(jax.nn.relu(x), key=key)
        return x, state


def equinox(depth: int, width: int) -> Pair:
    module = br.from_equinox(eqx.nn.make_with_state(EquinoxNet)(depth, width, KEY), vmap=True)
    model, state = module.native()
    params, static = eqx.partition(model, eqx.is_array)

    def mapped(model, state, x, key):
        keys = jax.random.split(key, len(x))
        return jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")(x, state, keys)

    def forward(params, state, x, key):
        return mapped(eqx.combine(params, static), state, x, key)

    return Pair("equinox", module, forward, params, state, lambda x, key: mapped(model, state, x, key))


PAIRS: dict[str, Callable[[int, int], Pair]] = {
    "linen": linen,
    "nnx": nnx_,
    "haiku": haiku,
    "equinox": equinox,
}


def native_step(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A train step by a library's functional form; it gives params, state, opt_state and the loss."""

    def step(params, state, opt_state, x, y, key):
        def loss_of(params):
            out, after = forward(params, state, x, key)
            return optax.l2_loss(out, y).mean(), after

        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

    return step


def bridge_step(module: Any, optimizer: Any, x: Any, y: Any, key: Any) -> Any:
    """A train step of a Module of any library."""

    def loss_of(module):
        out, after = module.apply(x, rng=key, mode="train")
        return optax.l2_loss(out, y).mean(), after

    (loss, module), grads = br.value_and_grad(loss_of, has_aux=True)(module)
    module, optimizer = optimizer.step(grads, module)
    return module, optimizer, loss
