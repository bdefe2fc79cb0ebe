"""Which object each part of a module was made from: for sharing, and for reusing what was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import bridge.core.paths as paths
from bridge.core.errors import FieldError, StructureError, listed
from bridge.core.leaves import ParamInit
from bridge.core.node import Alias, Node, children_of, map_children, rebuild, share
from bridge.core.paths import Path
from bridge.core.tree import entries, find


def origins(given: Any, made: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each object that a made module has a part for, with the part's path, parents first."""
    if isinstance(given, Alias) or isinstance(made, Alias) or given is None:
        return
    yield path, given
    parts = dict(children_of(made))
    found = {(name,): recipe.origin() for name, recipe in getattr(made, "recipes", ())}
    for below, child in {**dict(children_of(given)), **found}.items():
        if below in parts:
            yield from origins(child, parts[below], (*path, *below))


def with_node(root: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """The tree with `change(node)` in the place of the module at a path."""

    def visit(at: Path, node: Any) -> Any:
        if at == path:
            return change(node)
        return rebuild(node, **map_children(node, visit, at)) if paths.below(path, at) else node

    return visit((), root)


def parts_by_origin(trained: Mapping[Any, Any] | None) -> dict[int, tuple[Any, Any]]:
    """By identity, each object that has a trained part, with that part; the nearest key is right.

    Raises FieldError for what is no mapping of modules to modules, StructureError where a trained
    module is not one of its key.
    """
    pairs = list(_checked(trained))
    found = {id(key): (key, part) for key, part in pairs}
    for key, part in pairs:
        for path, origin in list(origins(key, part)):
            if path and id(origin) in {id(other) for other, _ in pairs}:
                newer = found[id(origin)][1]
                part = share(with_node(part, path, lambda _, newer=newer: newer))
        found[id(key)] = key, part
        for path, origin in origins(key, part):
            found.setdefault(id(origin), (origin, find(part, path)))
    return found


def _checked(trained: Mapping[Any, Any] | None) -> Iterator[tuple[Any, Any]]:
    for key, part in (trained or {}).items():
        if not (isinstance(key, Node) and isinstance(part, Node)):
            raise FieldError(
                f"what is reused is a dict of modules and their trained forms; it has"
                f" {type(key).__name__}: {type(part).__name__}"
            )
        problems = list(_misfits(key, part))
        if problems:
            raise StructureError(
                f"what was given as the trained {type(key).__name__} is not that one:\n"
                + listed(problems)
            )
        yield key, part


def _misfits(key: Any, part: Any) -> Iterator[str]:
    if type(key) is not type(part):
        yield f"it is a {type(part).__name__}"
        return
    there = {entry.path: entry.value for entry in entries(part)}
    for entry in entries(key):
        if isinstance(entry.value, ParamInit):
            value = there.get(entry.path)
            if getattr(value, "shape", None) != entry.value.shape:
                yield (
                    f"{paths.join(entry.path)}: is {getattr(value, 'shape', 'missing')}, wanted"
                    f" {entry.value.shape}"
                )


def reused(module: Any, trained: Mapping[int, tuple[Any, Any]]) -> Any:
    """The module with the trained part in the place of each object that has one."""

    def visit(_: Path, node: Any) -> Any:
        if id(node) in trained:
            return trained[id(node)][1]
        return node if isinstance(node, Alias) else rebuild(node, **map_children(node, visit))

    return share(visit((), module)) if trained else module


def refuse_unused(
    given: Mapping[Any, Any] | None, trained: Mapping[int, tuple[Any, Any]], made: Any
) -> None:
    """Raises FieldError for a trained module of which nothing has gone into what was made."""
    held = {id(entry.value) for entry in entries(made)}
    for key in given or {}:
        arrays = [entry.value for entry in entries(trained[id(key)][1])]
        if arrays and not any(id(value) in held for value in arrays):
            raise FieldError(
                f"reuse gives a trained {type(key).__name__}, and {type(made).__name__} uses neither"
                f" that module nor a part of it; the key is the very object that the model is made of"
            )
