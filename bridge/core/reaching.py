"""What a part of a running call reaches: each of its arrays, and the place where the tree keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bridge.core.frames import frame_of
from bridge.core.leaves import Tied, map_leaves
from bridge.core.node import put
from bridge.core.paths import Path
from bridge.core.tree import Entry, direct, entries, find, owner_path


def reached(copy: Any) -> list[tuple[Entry, Path]]:
    """Each array below a private copy, its path from there, with the place from the root that owns it.

    What is shared or tied has one owner, however many places lead to it.
    """
    frame = frame_of(copy)
    if frame is None:
        return [(entry, entry.path) for entry in entries(copy)]
    root = frame.run.root
    tied = {
        entry.path: owner_path(entry.path, entry.value, root)
        for entry in entries(root)
        if isinstance(entry.value, Tied)
    }
    found = []
    for entry in entries(copy):
        own: Any = frame_of(entry.node)
        place = (*own.path, *entry.within)
        found.append((entry, tied.get(place, place)))
    return found


def stored_at(root: Any, path: Path) -> Any:
    """The array at a path, through what is shared and tied."""
    place = direct(root, path)
    value = find(root, place)
    return find(root, owner_path(place, value, root)) if isinstance(value, Tied) else value


def exchange(
    found: Iterable[tuple[Entry, Path]], values: Mapping[Path, Any]
) -> list[tuple[Any, dict[str, Any]]]:
    """Puts other arrays in the place of those with these owners; gives what was there before."""
    nodes: dict[int, tuple[Any, dict[Path, Any]]] = {}
    for entry, owner in found:
        if owner in values:
            nodes.setdefault(id(entry.node), (entry.node, {}))[1][entry.within] = values[owner]
    before = []
    for node, swaps in nodes.values():
        fields = [field for field in type(node)._fields.values() if field.kind.name == "parameter"]
        before.append((node, {field.name: getattr(node, field.name) for field in fields}))
        put(node, {f.name: _swapped(getattr(node, f.name), f.prefix, swaps) for f in fields})
    return before


def _swapped(value: Any, prefix: Path, swaps: Mapping[Path, Any]) -> Any:
    return map_leaves(value, lambda below, leaf: swaps.get((*prefix, *below), leaf))
