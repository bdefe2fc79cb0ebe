"""Copies of a module that differ in their keys alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from bridge.core.errors import MissingRngError
from bridge.core.kinds import KEY
from bridge.core.leaves import leaves_of, map_leaves
from bridge.core.node import map_children, rebuild, rng_of
from bridge.core.paths import Path
from bridge.core.rng import is_key
from bridge.core.tree import walk


def split(module: Any, number: int) -> tuple[Any, ...]:
    """So many copies of a module, each with keys of its own; see `Module.split`."""
    if not any(_has_keys(node) for _, node in walk(module)):
        raise MissingRngError(
            f"{type(module).__name__} has no key that could be split; attach one first:"
            f" module.new_state(key).split({number})"
        )
    made: dict[Path, jax.Array] = {}

    def nth(index: int) -> Callable[[Path, Any], Any]:
        def piece(path: Path, key: Any) -> Any:
            if path not in made:
                made[path] = jax.random.split(key, number)
            return made[path][index]

        return piece

    return tuple(_with_keys(module, nth(index), ()) for index in range(number))


def _has_keys(node: Any) -> bool:
    own = (leaf for name in _key_fields(node) for _, leaf in leaves_of(getattr(node, name)))
    return rng_of(node) is not None or any(map(is_key, own))


def _key_fields(node: Any) -> list[str]:
    return [name for name, field in type(node)._fields.items() if field.kind == KEY]


def _with_keys(node: Any, change: Callable[[Path, Any], Any], path: Path) -> Any:
    """The tree with each key in it, attached or in a field, replaced by `change(path, key)`."""
    values = map_children(node, lambda at, child: _with_keys(child, change, at), path)
    for name in _key_fields(node):
        place = (*path, name)
        values[name] = map_leaves(
            getattr(node, name),
            lambda below, leaf, place=place: change((*place, *below), leaf) if is_key(leaf) else leaf,
        )
    rng = map_leaves(rng_of(node), lambda below, key: change((*path, "_rng", *below), key))
    return rebuild(node, rng=rng, **values)
