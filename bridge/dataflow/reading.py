"""What a program does with its arrays, read from its jaxpr without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr

from bridge.core.paths import Path
from bridge.dataflow.axes import dim
from bridge.dataflow.flow import Array, Block, Feed, Flow
from bridge.dataflow.loops import LOOPS
from bridge.dataflow.ops import OPS
from bridge.dataflow.values import Value, constant, of_array
from bridge.dataflow.walking import Walk


def read(closed: ClosedJaxpr, arrays: Mapping[Path, Any], inputs: Sequence[str]) -> Flow:
    """The flow of a program whose first arguments are these arrays, and then its inputs by name."""
    walk = Walk({**OPS, **LOOPS})
    given = {path: _array(path, tuple(one.shape), one.dtype) for path, one in arrays.items()}
    blocks = [Block(name) for name in inputs]
    variables = closed.jaxpr.invars
    args = [of_array(array) for array in given.values()]
    for block, variable in zip(blocks, variables[len(args) :], strict=True):
        dims = tuple(dim(n, f"{block.title} {i}") for i, n in enumerate(variable.aval.shape))
        args.append(Value(dims, feeders=frozenset({Feed(block)})))
    out = walk.run(closed.jaxpr, [constant(c) for c in closed.consts], args)
    output = Block("output", frozenset(feed for value in out for feed in value.feeders))
    return Flow(given, blocks, walk.blocks, output)


def _array(path: Path, shape: tuple[int, ...], dtype: Any) -> Array:
    return Array(path, shape, dtype, tuple(dim(size) for size in shape))
