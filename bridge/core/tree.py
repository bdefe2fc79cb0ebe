"""Reading a tree of modules: what stands at a path, whose it is, and every array in it."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax

import bridge.core.paths as paths
from bridge.core.errors import SharingError
from bridge.core.kinds import BY_FIRST_KEY, CHILD, STATIC, Field, Kind
from bridge.core.leaves import PLACEHOLDERS, Leaves, is_array, leaves_of, map_leaves, segments
from bridge.core.node import (
    Alias,
    Node,
    children_of,
    field_at,
    map_children,
    rebuild,
    rng_of,
    spec_of,
)
from bridge.core.paths import Path


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The node and everything below it, parents first, each with its path."""
    yield path, node
    for below, child in children_of(node):
        yield from walk(child, (*path, *below))


def find(node: Any, path: Path) -> Any:
    """What stands at a path: a module, an array, or a container; raises LookupError if nothing."""
    value = node
    for position, segment in enumerate(path):
        if isinstance(value, Node):
            field = _field_of(value, segment)
            value = getattr(value, field.name)
            if not field.inline:
                continue
        if isinstance(value, Leaves):
            found = value.at(path[position:])
            if found is not None:
                return found
            value = value.tree()
        value = _inside(value, segment, path)
    return value


def _field_of(node: Node, segment: str) -> Field:
    """The field into which one step down from a node leads."""
    try:
        return field_at(node, (segment,))[0]
    except LookupError:
        raise LookupError(segment) from None


def _inside(value: Any, segment: str, path: Path) -> Any:
    """One step into a container or a library's own pytree."""
    if isinstance(value, dict) and segment in value:
        return value[segment]
    if isinstance(value, tuple) and segment.isdigit() and int(segment) < len(value):
        return value[int(segment)]
    if value is None or is_array(value) or isinstance(value, (Node, *PLACEHOLDERS)):
        raise LookupError(paths.join(path))
    keyed, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
    for keys, part in keyed:
        if segments(keys) == (segment,):
            return part
    raise LookupError(paths.join(path))


def owner_path(position: Path, reference: Any, root: Any) -> Path:
    """The path at which what an alias or a tied array stands for is kept, through aliases.

    Raises SharingError where that place is not in the tree.
    """
    try:
        path = paths.absolute(position, reference.up, reference.path)
        return direct(root, path)
    except LookupError:
        raise SharingError(
            f"{paths.name(position)} is shared with a place {reference.up} levels above it, at"
            f" {paths.join(reference.path)!r}, which is not in this module. Call or read it through"
            f" the module that holds both"
        ) from None


def direct(root: Any, path: Path) -> Path:
    """The path with every alias on the way replaced by the place it stands for."""
    value = root
    for position, segment in enumerate(path):
        try:
            if isinstance(value, Node):
                field = _field_of(value, segment)
                value = getattr(value, field.name)
                rest = path[position + (not field.inline) :]
                if isinstance(value, Leaves) and rest in value.layout.places:
                    return path
                if field.kind != CHILD:  # no module stands below it
                    break
                value = value[segment] if field.inline else value
            else:
                value = _inside(value, segment, path)
        except LookupError:
            break
        if isinstance(value, Alias):
            here = position + 1
            return direct(root, (*owner_path(path[:here], value, root), *path[here:]))
    find(root, path)
    return path


class Entry(typing.NamedTuple):
    """One array of a tree: where it is, what it is for, and in which node it stands."""

    path: Path
    kind: Kind
    value: Any
    node: Any
    within: Path

    @property
    def frozen(self) -> bool:
        """Whether the array or something that holds it is frozen."""
        frozen = spec_of(self.node).frozen
        return bool(frozen) and paths.under(self.within, frozen)

    @property
    def trained(self) -> bool:
        """Whether an optimizer sees the array."""
        return self.kind.name == "parameter" and not self.frozen and is_array(self.value)


def entries(root: Any) -> Iterator[Entry]:
    """Every array and placeholder of a tree with its path and kind, parents first."""
    for path, node in walk(root):
        yield from own_entries(node, path)


def own_entries(node: Any, path: Path = ()) -> Iterator[Entry]:
    """The arrays and placeholders of one node alone; `path` is its own."""
    for name, field in type(node)._fields.items():
        if field.kind in (STATIC, CHILD):
            continue
        for below, value in leaves_of(getattr(node, name)):
            kind = field.kind
            if kind.collection == BY_FIRST_KEY and below:
                kind = Kind(kind.name, below[0])
            within = (*field.prefix, *below)
            yield Entry((*path, *within), kind, value, node, within)


def map_entries(root: Any, change: Callable[[Path, Any], Any]) -> Any:
    """The tree with every array and placeholder replaced by `change(path, value)`."""

    def visit(path: Path, node: Any) -> Any:
        changes = map_children(node, visit, path)
        for name, field in type(node)._fields.items():
            if field.kind not in (STATIC, CHILD):
                mapped = functools.partial(_prefixed, change, (*path, *field.prefix))
                changes[name] = map_leaves(getattr(node, name), mapped)
        return rebuild(node, **changes)

    return visit((), root)


def map_rngs(root: Any, change: Callable[[Path, Any], Any]) -> Any:
    """The tree with every attached key, or dict of keys, replaced by `change(path, rng)`."""

    def visit(path: Path, node: Any) -> Any:
        rng = rng_of(node)
        rng = rng if rng is None else change(path, rng)
        return rebuild(node, rng=rng, **map_children(node, visit, path))

    return visit((), root)


def _prefixed(change: Callable[[Path, Any], Any], prefix: Path, path: Path, leaf: Any) -> Any:
    return change((*prefix, *path), leaf)
