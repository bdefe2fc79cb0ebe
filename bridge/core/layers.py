"""The vocabulary of layers: what each array is to the layer that it belongs to.

Every library says the same few things about its layers, in tables: `Row` is one line of such a table,
`Layer` is one layer of one model. Axes are named as `bridge.core.translation` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge.core.paths import Path

LAYER = "*"


@dataclass(frozen=True)
class Slot:
    """One array of a layer: the part it plays, where it is, and how its axes are ordered.

    In a `Row`, `*` in the path stands for the path of the layer. `value` is what a loaded layer holds
    here whatever it was loaded from; the array then has no counterpart elsewhere.
    """

    part: str
    path: Path
    axes: str
    value: int | bool | None = None


@dataclass(frozen=True)
class Layer:
    """A layer of a model: its library's own path, its kind, its arrays, its hyper-parameters.

    `slots` are the arrays that a layer of its kind may have; a model without biases has fewer. Their
    paths start at the module that wraps the model. `settings` has neutral names ("eps", "groups"),
    sorted; only what the library's row lists. `role` says what the layer is to the one that holds it,
    where its own name does not: "out".
    """

    path: Path
    kind: str
    slots: tuple[Slot, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    role: str = ""


@dataclass(frozen=True)
class Row:
    """How a library keeps one kind of layer.

    `classes` are its classes of that kind, package and name: `"flax.Dense"`; `slots` have paths with
    `*` for the layer's own; `settings` maps a neutral name to the library's attribute.
    """

    kind: str
    classes: tuple[str, ...]
    slots: tuple[Slot, ...]
    settings: Mapping[str, str]

    def layer(self, path: Path, model: Any) -> Layer:
        """The layer that an object of the library at a path is."""
        slots = tuple(replace(slot, path=placed(slot.path, path)) for slot in self.slots)
        return Layer(path, self.kind, slots, self._settings_of(model))

    def _settings_of(self, model: Any) -> tuple[tuple[str, Any], ...]:
        found = {
            name: hashable(getattr(model, attribute))
            for name, attribute in self.settings.items()
            if hasattr(model, attribute)
        }
        return tuple(sorted(found.items()))


def slot(part: str, place: str, axes: str, value: int | bool | None = None) -> Slot:
    """A slot of a row, its place written as a dotted path.

    >>> slot("weight", "params.*.kernel", "in out").path
    ('params', '*', 'kernel')
    """
    return Slot(part, tuple(place.split(".")), axes, value)


def placed(template: Path, layer: Path) -> Path:
    """The path of a slot of a layer: a segment `*` becomes its segments, one with `*` in it holds them.

    >>> placed(("params", "*", "kernel"), ("encoder", "Dense_0"))
    ('params', 'encoder', 'Dense_0', 'kernel')
    >>> placed(("state", "*/~/mean_ema", "average"), ("net/norm",))
    ('state', 'net/norm/~/mean_ema', 'average')
    """
    path: list[str] = []
    for segment in template:
        path.extend(layer if segment == LAYER else [segment.replace(LAYER, "/".join(layer))])
    return tuple(path)


def row_of(model: Any, rows: tuple[Row, ...]) -> Row | None:
    """The row of an object's class or of the nearest of its ancestors, None for no known layer."""
    found = ((name, row) for name in class_names(model) for row in rows)
    return next((row for name, row in found if name in row.classes), None)


def class_names(model: Any) -> Iterator[str]:
    """The class of an object and its ancestors, each as package and name: `"flax.Dense"`."""
    for cls in type(model).__mro__:
        yield f"{cls.__module__.partition('.')[0]}.{cls.__name__}"


def hashable(value: Any) -> Any:
    """A setting as part of a treedef: lists become tuples, what has no hash its repr."""
    if isinstance(value, (list, tuple)):
        return tuple(hashable(item) for item in value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
