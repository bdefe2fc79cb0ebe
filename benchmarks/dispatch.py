"""What a Module costs where JAX takes it apart: against dicts and the modules of other libraries.

    python benchmarks/dispatch.py [--quick]

Two trees of bridge, many small Modules and a wrapped Linen model, whose arrays are one flat node: their
flatten, unflatten and tree_map against a nested dict of as many arrays, and the dispatch of a jitted
function against that of other libraries' trees as well, by jax.jit or by the library's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

import bridge as br

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import measuring
from benchmarks.measuring import Figure

SIZES = (8, 150, 320)
AIMS = {"flatten": 0.5, "unflatten": 0.5, "tree_map": 0.6}
Arrays = list[tuple[jax.Array, jax.Array]]


class Layer(br.Module):
    weight: br.Parameter
    bias: br.Parameter

    def __call__(self, x):
        return x * self.weight + self.bias


class Stack(br.Module):
    layers: list[br.Module]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        ones = nn.initializers.ones
        return x * self.param("weight", ones, (3,)) + self.param("bias", ones, (3,))


class LinenStack(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for number in range(self.depth):
            x = LinenLayer(name=f"layer_{number}")(x)
        return x


class EquinoxLayer(eqx.Module):
    weight: jax.Array
    bias: jax.Array


class EquinoxStack(eqx.Module):
    layers: list[EquinoxLayer]


class NnxLayer(nnx.Module):
    def __init__(self, weight, bias):
        self.weight, self.bias = nnx.Param(weight), nnx.Param(bias)


class NnxStack(nnx.Module):
    def __init__(self, arrays):
        self.layers = nnx.List([NnxLayer(*pair) for pair in arrays])


@flax.struct.dataclass
class StructLayer:
    weight: jax.Array
    bias: jax.Array


@flax.struct.dataclass
class StructStack:
    layers: list[StructLayer]


def nested(arrays: Arrays) -> dict[str, Any]:
    return {f"layer_{i}": {"weight": w, "bias": b} for i, (w, b) in enumerate(arrays)}


def equinox(arrays: Arrays) -> EquinoxStack:
    return EquinoxStack([EquinoxLayer(*pair) for pair in arrays])


OURS: dict[str, Callable[[Arrays], Any]] = {
    "small Modules": lambda arrays: Stack([Layer(*pair) for pair in arrays]),
    "wrapped model": lambda arrays: br.from_linen(LinenStack(len(arrays)), {"params": nested(arrays)}),
}
# Of each rival: how its tree is made, how a function is jitted for it, and what dispatch may cost.
RIVALS: dict[str, tuple[Callable[[Arrays], Any], Callable[..., Any], float | None]] = {
    "nested dict": (nested, jax.jit, 0.8),
    "flax.struct": (lambda arrays: StructStack([StructLayer(*a) for a in arrays]), jax.jit, None),
    "equinox, jax.jit": (equinox, jax.jit, 0.35),
    "equinox, filter_jit": (equinox, eqx.filter_jit, 0.35),
    "nnx, jax.jit": (NnxStack, jax.jit, None),
    "nnx, nnx.jit": (NnxStack, nnx.jit, 0.1),
}


def first(tree: Any) -> Any:
    """A function that does nothing, so that a call of it is all dispatch."""
    return jax.tree.leaves(tree)[0]


def operations(tree: Any) -> dict[str, Callable[[], Any]]:
    """What JAX does with a tree beside dispatch."""
    leaves, structure = jax.tree.flatten(tree)
    return {
        "flatten": lambda: jax.tree.flatten(tree),
        "unflatten": lambda: jax.tree.unflatten(structure, leaves),
        "tree_map": lambda: jax.tree.map(lambda leaf: leaf, tree),
    }


def dispatched(tree: Any, jit: Callable[..., Any]) -> Callable[[], Any]:
    jitted = jit(first)
    return lambda: jitted(tree)


def aim_of(size: int, aim: float | None, small: float | None = None) -> float | None:
    """The aim at a size: what any call costs is most of what a small tree costs."""
    return small if size == SIZES[0] else aim


def figures(quick: bool = False) -> Iterator[Figure]:
    """Each operation of both trees, at each size."""
    rounds = 5 if quick else 25
    for size in SIZES:
        arrays = [(jnp.full(3, i, jnp.float32), jnp.full(3, -i, jnp.float32)) for i in range(size // 2)]
        theirs = operations(nested(arrays))
        for name, build in OURS.items():
            tree = build(arrays)
            for operation, ours in operations(tree).items():
                what = f"{operation}, {size} leaves, {name}"
                found = measuring.ratio(ours, theirs[operation], rounds)
                yield Figure("dispatch", what, "nested dict", found, aim_of(size, AIMS[operation]))
            for rival, (make, jit, aim) in RIVALS.items():
                found = measuring.ratio(
                    dispatched(tree, jax.jit), dispatched(make(arrays), jit), rounds
                )
                what = f"jitted call, {size} leaves, {name}"
                small = 1.0 if rival == "nested dict" else None
                yield Figure("dispatch", what, rival, found, aim_of(size, aim, small))


def main() -> None:
    given = measuring.parser(__doc__).parse_args()
    measuring.report(figures(given.quick), given.json)


if __name__ == "__main__":
    main()
