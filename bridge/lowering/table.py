"""All rows in one table: how the ops of a captured program are computed, and how a user adds one."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import bridge.lowering.rows as families
from bridge.core.errors import LoweringError


@dataclass(frozen=True)
class Row:
    """How an op is computed. One that `draws` takes a function first, which gives a key of a stream."""

    run: Callable[..., Any]
    draws: bool = False


_added: dict[str, Row] = {}


@functools.cache
def rows() -> Mapping[str, Row]:
    """The rows that come with bridge, by the name of the op."""
    table: dict[str, Row] = {}
    for family in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"{families.__name__}.{family.name}")
        table |= {name: Row(run) for name, run in getattr(module, "ROWS", {}).items()}
        table |= {name: Row(run, draws=True) for name, run in getattr(module, "DRAWING", {}).items()}
    return table


def find_row(name: str) -> Row | None:
    """The row of an op, an added one first; None where there is none."""
    return _added.get(name) or rows().get(name)


def names() -> frozenset[str]:
    """The ops that have a row."""
    return frozenset(rows()) | frozenset(_added)


def register_op(name: str, run: Callable[..., Any], *, draws: bool = False) -> None:
    """Adds a row for an op that has none, or in the place of bridge's own.

    `name` is the op's, as `torch.ops.mylib.double.default` prints it: "mylib.double.default". `run`
    takes the arguments of the op's schema, arrays as JAX arrays, and gives the array or a tuple of
    them; one that `draws` takes a function first: `draw("dropout")` gives a fresh key of that stream.
    What is captured afterwards, and what was, uses it. Raises LoweringError for another name.

    >>> import jax.numpy as jnp
    >>> from bridge.adapters.torch import register_op
    >>> register_op("mylib.double.default", lambda x: 2 * x)
    """
    if name.count(".") < 2 or not callable(run):
        raise LoweringError(
            f"register_op takes the name of an op with its overload, and a function; it was given"
            f" {name!r} and {run!r}. Type register_op('mylib.double.default', lambda x: 2 * x)"
        )
    _added[name] = Row(run, draws)
