"""Copies of a module that differ in their keys alone."""

from __future__ import annotations

from typing import Any

import jax

from bridge.core.errors import FieldError, MissingRngError
from bridge.core.kinds import KEY
from bridge.core.leaves import map_leaves
from bridge.core.node import rng_of
from bridge.core.rng import is_key
from bridge.core.tree import entries, map_entries, map_rngs, walk


def split(module: Any, number: int) -> tuple[Any, ...]:
    """So many copies of a module, each with keys of its own; see `Module.split`."""
    if not isinstance(number, int):
        raise FieldError(
            f"split takes the number of copies; it was given a {type(number).__name__}. A wrapped"
            f" model's own method of that name is called by module.apply(..., method='split')"
        )
    kept = {one.path for one in entries(module) if one.kind == KEY and is_key(one.value)}
    if not kept and all(rng_of(node) is None for _, node in walk(module)):
        raise MissingRngError(
            f"{type(module).__name__} has no key that could be split; attach one first:"
            f" module.new_state(key).split({number})"
        )

    def copy(index: int) -> Any:
        def piece(key: Any) -> Any:
            return jax.random.split(key, number)[index]

        made = map_entries(module, lambda path, leaf: piece(leaf) if path in kept else leaf)
        return map_rngs(made, lambda _, rng: map_leaves(rng, lambda _, key: piece(key)))

    return tuple(map(copy, range(number)))
