"""A module in two halves: what is chosen, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax

import bridge.core.paths as paths
from bridge.core.editing import selected
from bridge.core.errors import FieldError, StructureError, listed
from bridge.core.leaves import is_array, segments
from bridge.core.node import Node
from bridge.core.paths import Path
from bridge.core.tree import Entry, entries, map_entries

M = TypeVar("M")
Where = str | Iterable[str] | Callable[[Entry], bool]


def partition(module: M, where: Where) -> tuple[M, M]:
    """Two modules of the same structure: the arrays that `where` chooses, and all others.

    `where` is a path or glob, several of them, or a function of an entry (`path`, `kind`, `value`).
    Each half has None where the other one has an array. Raises PathError for a path that selects
    no array.

    >>> import bridge as br, jax
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    ...     shift: br.Parameter
    >>> chosen, rest = br.partition(Line(2.0, 1.0), "slope")
    >>> float(chosen.slope), chosen.shift, float(rest.shift)
    (2.0, None, 1.0)
    >>> float(br.merge(chosen, rest).slope)
    2.0
    """
    arrays = [entry for entry in entries(module) if is_array(entry.value)]
    picked = {entry.path for entry in chosen(module, where, arrays, "array")}

    def half(belongs: Callable[[Path], bool]) -> M:
        def kept(path: Path, leaf: Any) -> Any:
            return leaf if belongs(path) or not is_array(leaf) else None

        return map_entries(module, kept)

    return half(lambda path: path in picked), half(lambda path: path not in picked)


def chosen(module: Any, where: Where, among: Iterable[Entry], what: str) -> list[Entry]:
    """Those of the entries of a module that `where` chooses; see `partition`.

    Raises PathError for a path that selects none of them.
    """
    if callable(where):
        return [entry for entry in among if where(entry)]
    return selected(module, (where,) if isinstance(where, str) else where, among, what)


def settled_where(where: Where | None) -> Any:
    """A choice as a static field keeps it: several paths as a tuple."""
    return where if where is None or isinstance(where, str) or callable(where) else tuple(where)


def merge(first: M, second: M) -> M:
    """The module whose two halves these are; the inverse of `partition`.

    What is None in both stays None: an optional field that is not set looks the same. Raises
    StructureError where the structures differ, or where both have an array.
    """
    for half in (first, second):
        if not isinstance(half, Node):
            raise FieldError(f"merge takes two modules; it was given a {type(half).__name__}")
    (left, structure), (right, other) = _flat(first), _flat(second)
    if structure != other:
        raise StructureError(
            f"these are not two halves of one module: a {type(first).__name__} and a"
            f" {type(second).__name__} of another structure. Take both from one bridge.partition"
        )
    pairs = [(keys, a, b) for (keys, a), (_, b) in zip(left, right, strict=True)]
    twice = [paths.join(segments(keys)) for keys, a, b in pairs if a is not None and b is not None]
    if twice:
        raise StructureError(
            "both halves have an array at\n"
            + listed(twice)
            + "\nTake both from one bridge.partition: each array is in one of them"
        )
    return jax.tree.unflatten(structure, [b if a is None else a for _, a, b in pairs])


def _flat(half: Any) -> tuple[Any, Any]:
    return jax.tree_util.tree_flatten_with_path(half, is_leaf=lambda leaf: leaf is None)
