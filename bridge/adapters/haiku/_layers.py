"""Which layers a Haiku model has: those that a call runs through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import haiku as hk

from bridge.adapters.haiku._dialect import ROLES, ROWS
from bridge.core.layers import Layer, class_names, row_of

T = TypeVar("T")


def observed(run: Callable[[], T]) -> tuple[T, tuple[Layer, ...]]:
    """What `run` returns, and the layers that it ran through, each once, in order."""
    found: dict[str, Layer] = {}
    roles: dict[str, str] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__init__":  # a module is known by its attributes, set there
            return call(*args, **kwargs)
        name, row = module.module_name, row_of(module, ROWS)
        for cls in class_names(module):
            roles.update({f"{name}/{part}": role for part, role in ROLES.get(cls, {}).items()})
        if row is not None:
            found.setdefault(name, replace(row.layer((name,), module), role=roles.get(name, "")))
        return call(*args, **kwargs)

    with hk.intercept_methods(record):
        out = run()
    return out, tuple(found.values())
