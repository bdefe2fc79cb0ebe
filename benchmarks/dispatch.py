"""What a Module costs where JAX takes it apart: against a nested dict of the same arrays.

    python benchmarks/dispatch.py

Prints ratios (below 1.0: cheaper than the dict) of flatten, unflatten, tree_map and the dispatch of a
jitted function, for trees of many small modules and for one wrapped model's flat bundle of arrays.
The two sides are timed in turns in one process; a figure is the median of the ratios.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time

import jax
import jax.numpy as jnp

import bridge as br
from bridge.core.leaves import Leaves

ROUNDS, CALLS = 31, 200


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


class Flat(br.Module):
    params: br.Parameter


def trees(leaves):
    """A tree of small modules, one flat module, and a nested dict, of the same arrays."""
    arrays = [jnp.full((3,), index, jnp.float32) for index in range(leaves)]
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
    nested = {f"layer_{i}": {"weight": w, "bias": b} for i, (w, b) in enumerate(pairs)}
    return Stack([Layer(w, b) for w, b in pairs]), Flat(Leaves.of(nested)), nested


def operations(tree):
    """The four things that JAX does with a tree at every step."""
    leaves, structure = jax.tree.flatten(tree)
    jitted = jax.jit(lambda tree: jax.tree.leaves(tree)[0])
    jitted(tree)
    return {
        "flatten": lambda: jax.tree.flatten(tree),
        "unflatten": lambda: jax.tree.unflatten(structure, leaves),
        "tree_map": lambda: jax.tree.map(lambda leaf: leaf, tree),
        "dispatch": lambda: jitted(tree),
    }


def seconds(operation):
    started = time.perf_counter()
    for _ in range(CALLS):
        operation()
    return time.perf_counter() - started


def ratio(ours, theirs):
    """The median of paired timings, each side first in turn."""
    found = []
    for number in range(ROUNDS):
        pair = [ours, theirs] if number % 2 else [theirs, ours]
        timed = {id(operation): seconds(operation) for operation in pair}
        found.append(timed[id(ours)] / timed[id(theirs)])
    return statistics.median(found)


def main():
    print(f"python {platform.python_version()}, jax {jax.__version__}, {platform.machine()}")
    names = "  ".join(f"{name:>9}" for name in operations({"a": jnp.ones(1)}))
    print(f"{'leaves':>6}  {'module':14}  {names}")
    for leaves in (8, 150, 320):
        stack, flat, nested = trees(leaves)
        theirs = operations(nested)
        for name, tree in (("many small", stack), ("one flat node", flat)):
            ours = operations(tree)
            figures = [f"{ratio(ours[key], theirs[key]):9.2f}" for key in ours]
            print(f"{leaves:6}  {name:14}  " + "  ".join(figures))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
