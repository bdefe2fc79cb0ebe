"""A module with other values in its fields, or with each of its parts changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

import bridge.core.paths as paths
from bridge.core.errors import FieldError, SharingError
from bridge.core.kinds import STATIC
from bridge.core.leaves import Tied
from bridge.core.node import (
    Alias,
    Node,
    build,
    checked,
    checked_static,
    field_values,
    map_children,
    rebuild,
    refuse_aliases,
    rng_of,
    share,
    spec_of,
    undeclared,
)
from bridge.core.paths import Path
from bridge.core.tree import entries, find, owner_path, walk


def replaced(module: Any, given: Mapping[str, Any]) -> Any:
    """The module with these values in its fields; see `Module.replace`."""
    cls = type(module)
    unknown = [undeclared(cls, name) for name in given if name not in cls._fields]
    if unknown:
        raise FieldError("\n".join(unknown))
    statics, values = dict(spec_of(module).statics), field_values(module)
    for name, value in given.items():
        field = cls._fields[name]
        if field.kind == STATIC:
            statics[name] = checked_static(value, field, cls)
        else:
            values[name] = checked(value, field, cls)
            refuse_aliases(values[name], field, cls)
    made = share(build(spec_of(module).replace(statics=statics), values, rng_of(module)))
    _refuse_lost(module, made)
    return made


def mapped(module: Any, change: Callable[[Any], Any]) -> Any:
    """The module with each part replaced by `change(part)`; see `Module.map`."""
    if not callable(change):
        raise FieldError(
            f"map takes a function of a module that gives a module; it was given a"
            f" {type(change).__name__}. A wrapped model's own method of that name is called by"
            f" module.apply(..., method='map')"
        )
    shared = _references(module)

    def visit(path: Path, node: Any) -> Any:
        if isinstance(node, Alias):
            return node
        part = rebuild(node, **map_children(node, visit, path))
        part = part if part is node else share(part)
        made = change(part)
        if not isinstance(made, Node) or isinstance(made, Alias):
            raise FieldError(
                f"{paths.name(path)}: what map was given made a {type(made).__name__} of this"
                f" {type(part).__name__}; it gives a module, the part itself where nothing changes"
            )
        _refuse_moved(path, part, made, shared)
        return made

    made = visit((), module)
    _refuse_lost(module, made)
    return made


def _stand_ins(module: Any) -> Iterator[tuple[Path, Any]]:
    """Each alias and tied array of a tree, with the place where it stands."""
    yield from ((path, node) for path, node in walk(module) if isinstance(node, Alias))
    yield from ((e.path, e.value) for e in entries(module) if isinstance(e.value, Tied))


def _references(module: Any) -> dict[Path, Path | None]:
    """Where something shared or tied stands again: the path at which it is kept, None if outside."""
    found: dict[Path, Path | None] = {}
    for path, stand_in in _stand_ins(module):
        try:
            found[path] = owner_path(path, stand_in, module)
        except SharingError:
            found[path] = None
    return found


def _refuse_lost(before: Any, after: Any) -> None:
    """Raises SharingError for what is shared with a place that was in the module and is gone."""
    known = _references(before)
    for path, stand_in in _stand_ins(after):
        if known.get(path, path) is not None:
            owner_path(path, stand_in, after)


def _refuse_moved(path: Path, part: Any, made: Any, shared: Mapping[Path, Path | None]) -> None:
    """Raises SharingError where a change moved or dropped what a part shares with places outside."""
    for place, other in [*shared.items(), *((kept, at) for at, kept in shared.items())]:
        if place is None or not _inside(place, path) or (other is not None and _inside(other, path)):
            continue
        below = place[len(path) :]
        if _what_stands(part, below) is not _what_stands(made, below):
            raise SharingError(
                f"{paths.join(place)} is shared with"
                f" {'a place outside' if other is None else paths.join(other)}, and what map was given"
                f" moved or dropped it in {paths.name(path)}; change the shared part itself, or set"
                f" {paths.name(path)} by module.at[path].set(new)"
            )


def _inside(place: Path, path: Path) -> bool:
    return paths.below(place, path) and place != path


def _what_stands(node: Any, path: Path) -> Any:
    """The class of the module or stand-in at a path; one for all arrays, None where nothing is."""
    try:
        value = find(node, path)
    except LookupError:
        return None
    return type(value) if isinstance(value, (Node, Tied)) else jax.Array
