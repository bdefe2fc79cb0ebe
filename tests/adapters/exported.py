"""The Modules that are exported to the libraries in tests, and how trees of arrays are compared."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

import bridge as br

X = jax.random.normal(jax.random.key(3), (7, 5))
KEY = jax.random.key(17)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(11)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


class Net(br.Module):
    """A Linen block between two arrays of one's own, a count of train steps, and a draw of its own."""

    block: br.Module
    scale: br.Parameter
    shift: br.Parameter
    calls: br.State

    def __init__(self, block):
        self.block, self.calls = block, 0
        self.scale = br.ParamInit((11,), jax.nn.initializers.normal())
        self.shift = br.ParamInit((11,), jax.nn.initializers.normal())

    def __call__(self, x):
        if self.training:
            self.calls = self.calls + 1
        return self.block(x) * self.scale + self.shift

    def noisy(self, x):
        return x + jax.random.normal(self.draw("latent"), x.shape)


class Tied(br.Module):
    """One module at two places, and two arrays that `tied` makes one."""

    first: br.Module
    second: br.Module
    table: br.Parameter
    head: br.Parameter

    def __call__(self, x):
        return self.second(self.first(x)) * self.table * self.head


def net() -> Any:
    return jax.jit(lambda key: Net(br.from_linen(Block())).init(key, X))(jax.random.key(5))


def tied() -> Any:
    block = br.from_linen(nn.Dense(5)).init(KEY, X)
    return br.tie(Tied(block, block, np.ones(5), np.ones(5)), "head", "table")


def same(first: Any, second: Any) -> bool:
    """Whether two trees hold the same arrays bit for bit, in the same order."""
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(first) == len(second) and all(map(np.array_equal, first, second))
