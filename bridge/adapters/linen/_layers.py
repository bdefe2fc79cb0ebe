"""Which layers a Linen model has: those that a call runs through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn

from bridge.adapters.linen._dialect import ROWS, general_linear
from bridge.core.layers import Layer, Row, row_of
from bridge.core.paths import Path

T = TypeVar("T")


def observed(run: Callable[[], T]) -> tuple[T, tuple[Layer, ...]]:
    """What `run` returns, and the layers that it ran through, each once, in order."""
    found: dict[Path, Layer] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        row = _row(context.module)
        if row is not None:
            path = context.module.path
            found.setdefault(path, row.layer(path, context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        out = run()
    return out, tuple(found.values())


def _row(module: nn.Module) -> Row | None:
    if isinstance(module, nn.DenseGeneral):
        return general_linear(_count(module.axis), _count(module.features))
    return row_of(module, ROWS)


def _count(axes: int | Sequence[int]) -> int:
    return 1 if isinstance(axes, int) else len(axes)
