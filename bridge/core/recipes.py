"""What a parametrized function made a part of, to tell a later call's layers from other ones."""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections.abc import Mapping
from typing import Any

import bridge.core.paths as paths
from bridge.core.leaves import ParamInit
from bridge.core.node import put, spec_of
from bridge.core.opaque import Opaque
from bridge.core.paths import Path
from bridge.core.tree import entries, map_entries, walk


class Recipe:
    """A module as a function made it, without its arrays.

    Two are equal where the classes and the static fields are; a function that is defined anew in each
    call is the same one by its code, whatever values it closes over. `origin` gives the module itself
    while somebody holds it.
    """

    def __init__(self, module: Any) -> None:
        self.skeleton = map_entries(module, lambda *_: None)
        self.shapes = _shapes(module)
        self.origin: Any = weakref.ref(module)

    def difference(self, module: Any) -> str:
        """How a module was made otherwise than this one; nothing where it was not."""
        return self._difference(module, _shapes(module))

    def _difference(self, module: Any, shapes: dict[Path, Any]) -> str:
        for (path, one), (other, node) in itertools.zip_longest(
            walk(self.skeleton), walk(module), fillvalue=((), None)
        ):
            if path != other or type(one) is not type(node):
                return f"it was {_titled(one, path)}, and is {_titled(node, other)}"
            old, new = spec_of(one), spec_of(node)
            if old is not new:
                for name, value in old.statics.items():
                    if not _same(value, new.statics[name]):
                        where = paths.join((*path, name))
                        return f"{where} was {value!r}, and is {new.statics[name]!r}"
        for path, shape in self.shapes.items():
            if shapes.get(path) != shape:
                return f"{paths.join(path)} was of shape {shape}, and is of {shapes.get(path)}"
        return ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and not self._difference(other.skeleton, other.shapes)

    def __hash__(self) -> int:
        return hash(tuple((path, type(node)) for path, node in walk(self.skeleton)))

    def __reduce__(self) -> Any:
        return _restored, (self.skeleton, self.shapes)


def _restored(skeleton: Any, shapes: dict[Path, Any]) -> Recipe:
    recipe = Recipe(skeleton)
    recipe.shapes = shapes
    return recipe


def _shapes(module: Any) -> dict[Path, Any]:
    """The shapes of the arrays that are still to be made."""
    return {e.path: e.value.shape for e in entries(module) if isinstance(e.value, ParamInit)}


def _titled(node: Any, path: Path) -> str:
    if node is None:
        return "nothing"
    return f"a {type(node).__name__}" + (f" at {paths.join(path)}" if path else "")


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, types.FunctionType):
        return one.__code__ is other.__code__
    if isinstance(one, functools.partial):
        called = len(one.args) == len(other.args) and one.keywords.keys() == other.keywords.keys()
        return called and _same(one.func, other.func)
    if isinstance(one, Opaque):
        # What has no hash is compared by identity, and differs each time that it is made.
        return one == other or one.hashed is None or _same(one.value, other.value)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one == other


def refresh(copy: Any, module: Any) -> None:
    """Gives the private copy of a part the functions of this call's module, with their values."""
    copies = dict(walk(copy))
    for path, node in walk(module):
        running = copies.get(path)
        if type(running) is not type(node):
            continue
        held, made = spec_of(running), spec_of(node)
        newer = {
            name: value
            for name, value in made.statics.items()
            if _closes(value) and value is not held.statics[name] and _same(value, held.statics[name])
        }
        if newer:
            put(running, {}, held.replace(statics={**held.statics, **newer}))


def _closes(value: Any) -> bool:
    value = value.value if isinstance(value, Opaque) else value
    return isinstance(value, (types.FunctionType, functools.partial))
