"""Which libraries have an adapter: one of bridge's own, of an installed package, or of the program."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

import jax

from bridge.core.leaves import is_array
from bridge.core.node import Node

LIBRARIES = ("flax", "haiku", "equinox", "torch")
# An adapter of bridge's own is named as its library, and Flax has two.
RESERVED = frozenset({*LIBRARIES, "linen", "nnx"})
ENTRY_POINTS = "bridge.adapters"

registered: dict[str, Any] = {}
"""The adapters that the program has registered, by the name that their library is imported by."""


def library_of(model: Any) -> str | None:
    """The library with an adapter that the class of a model comes from, None for any other object."""
    classes = type(model).__mro__
    packages = (cls.__module__.partition(".")[0] for cls in classes)
    own = next((package for package in packages if package in LIBRARIES), None)
    return own or added_library(classes)


def is_foreign(value: Any, library: str) -> bool:
    """Whether a value is a Module, or a model of another library than this, and has arrays in it."""
    if not isinstance(value, Node) and library_of(value) in (None, library):
        return False
    return any(is_array(leaf) and leaf is not value for leaf in jax.tree.leaves(value))


def added_library(classes: Iterable[type]) -> str | None:
    """The library of an added adapter that the first of the classes which has one comes from."""
    names = added_libraries()
    for cls in classes:
        matching = [name for name in names if inside(cls.__module__, name)]
        if matching:
            return max(matching, key=len)
    return None


def added_libraries() -> tuple[str, ...]:
    """The libraries of the adapters that are none of bridge's own, as they are imported."""
    return tuple(sorted({*registered, *installed()}))


def inside(module: str, package: str) -> bool:
    """Whether a module is a package or stands in it, both by their dotted names."""
    return module == package or module.startswith(package + ".")


def is_reserved(name: str) -> bool:
    """Whether a name is that of an adapter of bridge's own, or of a part of such a library."""
    return name.partition(".")[0] in RESERVED


def installed() -> Mapping[str, tuple[EntryPoint, ...]]:
    """The entry points of adapters in installed packages, by the name of their library."""
    return _installed(tuple(sys.path))


@functools.cache
def _installed(_path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    # Kept for each sys.path: the search takes milliseconds, and every child of a module asks.
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    names = sorted(name for name in entries.names if not is_reserved(name))
    return {name: tuple(entries.select(name=name)) for name in names}
