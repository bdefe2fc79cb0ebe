"""Which layers a Haiku model has: those that a call runs through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import haiku as hk

from bridge.adapters.haiku._dialect import ROWS
from bridge.core.layers import Layer, row_of

T = TypeVar("T")


def observed(run: Callable[[], T]) -> tuple[T, tuple[Layer, ...]]:
    """What `run` returns, and the layers that it ran through, each once, in order."""
    found: dict[str, Layer] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        row = row_of(context.module, ROWS)
        if row is not None and context.method_name != "__init__":
            name = context.module.module_name
            found.setdefault(name, row.layer((name,), context.module))
        return call(*args, **kwargs)

    with hk.intercept_methods(record):
        out = run()
    return out, tuple(found.values())
