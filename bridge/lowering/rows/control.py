"""Control flow: branches, loops and scans over subgraphs.

A subgraph comes as a function of flat arrays that returns a list. What it only reads is closed over, so
that sizes stay Python numbers and only what a loop carries becomes an array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Graph = Callable[..., Sequence[Any]]


def cond(
    predicate: jax.Array | bool, on_true: Graph, on_false: Graph, operands: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """What the branch that the predicate chooses returns: ``torch.cond``."""
    if isinstance(predicate, bool):
        return tuple((on_true if predicate else on_false)(*operands))
    return lax.cond(
        jnp.reshape(predicate, ()),
        lambda: tuple(on_true(*operands)),
        lambda: tuple(on_false(*operands)),
    )


def while_loop(
    proceed: Graph, body: Graph, carried: Sequence[Any], others: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """The carried values once ``proceed`` says no: ``torch.while_loop``."""

    def going(values: tuple[Any, ...]) -> jax.Array:
        return jnp.reshape(proceed(*values, *others)[0], ())

    def step(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(body(*values, *others))

    return lax.while_loop(going, step, tuple(carried))


def scan(
    combine: Graph, init: Sequence[Any], xs: Sequence[jax.Array], others: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """The last carried values, then what the steps along the first axis gave, stacked."""

    def step(carry: tuple[Any, ...], slices: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        results = tuple(combine(*carry, *slices, *others))
        return results[: len(init)], results[len(init) :]

    last, stacked = lax.scan(step, tuple(init), tuple(xs))
    return *last, *stacked


def map_over(body: Graph, xs: Sequence[jax.Array], others: Sequence[Any] = ()) -> tuple[Any, ...]:
    """What the body gives for each slice of the first axis, stacked."""
    return tuple(lax.map(lambda slices: tuple(body(*slices, *others)), tuple(xs)))


ROWS: Mapping[str, Callable[..., Any]] = {
    "cond": cond,
    "while_loop": while_loop,
    "scan": scan,
    "map_impl": map_over,
}
