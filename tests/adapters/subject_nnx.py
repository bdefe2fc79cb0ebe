"""A small NNX net for the behaviours that every adapter has."""

from typing import Any

import jax
from flax import nnx

import bridge as br
from tests.adapters.subjects import Subject

INPUTS = jax.random.normal(jax.random.key(3), (7, 13, 3))


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 5, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 11, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.dropout(nnx.relu(self.norm(self.conv(x))), rngs=rngs)
        return self.head(x.mean(1))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(5, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(nnx.relu(self.norm(self.linear(x))))


def native(module: br.Module, key: Any, mode: str) -> tuple[Any, Any]:
    model = module.native()
    getattr(model, mode)()
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, x, key):
        model = nnx.merge(graph, state)
        out = model(x) if key is None else model(x, rngs=nnx.Rngs(key))
        return out, nnx.state(model, nnx.Not(nnx.Param))

    out, state = run(state, INPUTS, key)
    statistics, rngs = nnx.split_state(state, nnx.BatchStat, nnx.RngState)
    return out, (statistics, rngs)


def block() -> br.Module:
    return br.from_nnx(Block(nnx.Rngs(0, dropout=1)))


def subject() -> Subject:
    def build() -> br.Module:
        return br.from_nnx(Net(nnx.Rngs(0, dropout=1)))

    return Subject(library="nnx", build=build, block=block, inputs=INPUTS, native=native)
