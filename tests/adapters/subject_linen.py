"""A small Linen net for the behaviours that every adapter has."""

from typing import Any

import flax.linen as nn
import jax

import bridge as br
from tests.adapters.subjects import Subject

INPUTS = jax.random.normal(jax.random.key(3), (7, 13, 3))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(5, (3,))(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(11)(x.mean(1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(x.shape[-1])(x))
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))


def native(module: br.Module, key: Any, mode: str) -> tuple[Any, Any]:
    @jax.jit
    def run(variables, x, key):
        rngs = {} if key is None else {"dropout": key}
        return Net().apply(variables, x, mode == "train", rngs=rngs, mutable=["batch_stats"])

    return run(module.native(), INPUTS, key)


def block() -> br.Module:
    return br.from_linen(Block())


def subject() -> Subject:
    return Subject(
        library="linen", build=lambda: br.from_linen(Net()), block=block, inputs=INPUTS, native=native
    )
