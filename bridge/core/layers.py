"""The vocabulary of layers: what each array is to the layer that it belongs to.

Every library says the same few things about its layers, in tables: `Row` is one line of such a table,
`Layer` is one layer of one model. Axes are named as `bridge.core.translation` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.core.paths import Path
from bridge.core.settings import normalised

LAYER = "*"
SUM = "+"


@dataclass(frozen=True)
class Slot:
    """One array of a layer: the part it plays, where it is, and how its axes are ordered.

    In a `Row`, `*` in the path stands for the path of the layer. Several slots may be one array, each
    a part of it. A part `"a+b"` is the sum of two that others keep apart. The array holds the part plus
    `offset`. `value` is what a loaded layer holds here whatever it was loaded from; the array then has
    no counterpart elsewhere.
    """

    part: str
    path: Path
    axes: str
    value: int | bool | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class Layer:
    """A layer of a model: its library's own path, its kind, its arrays, its hyper-parameters.

    `slots` are the arrays that a layer of its kind may have; a model without biases has fewer. Their
    paths start at the module that wraps the model. `settings` has neutral names ("eps", "groups"),
    sorted; only what the library's row lists. `role` says what the layer is to the one that holds it,
    where its own name does not: "out". `fixed` says of settings why no other value is possible,
    `refused` what of the layer no other library can do, a sentence each.
    """

    path: Path
    kind: str
    slots: tuple[Slot, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    role: str = ""
    fixed: tuple[tuple[str, str], ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of axes that no shape shows, by their words."""
        words = (("groups", "groups"), ("state", "hidden"), ("slopes", "slopes"))
        found = dict(self.settings)
        return {word: found[name] for word, name in words if isinstance(found.get(name), int)}


@dataclass(frozen=True)
class Fixed:
    """A setting that a kind of layer has in one way only in a library; `why` is for a message."""

    value: Any
    why: str


@dataclass(frozen=True)
class Refusal:
    """What of a layer no other library can do: its attribute has a value that is not plain.

    An attribute that an object lacks is plain.
    """

    attribute: str
    plain: Callable[[Any], bool]
    why: str


@dataclass(frozen=True)
class Row:
    """How a library keeps one kind of layer.

    `classes` are its classes of that kind, package and name: `"flax.Dense"`; `slots` have paths with
    `*` for the layer's own; `settings` maps a neutral name to the library's attribute, or to what is
    `Fixed` there. Attributes are dotted. `where` gives attributes with the values that an object of
    this row has.
    """

    kind: str
    classes: tuple[str, ...]
    slots: tuple[Slot, ...]
    settings: Mapping[str, str | Fixed] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()

    def layer(self, path: Path, model: Any) -> Layer:
        """The layer that an object of the library at a path is."""
        slots = tuple(replace(slot, path=placed(slot.path, path)) for slot in self.slots)
        found = ((one, _read(model, one.attribute)) for one in self.refused)
        refused = tuple(
            one.why for one, value in found if value is not _ABSENT and not one.plain(value)
        )
        return Layer(path, self.kind, slots, self._settings_of(model), "", self.fixed, refused)

    @property
    def fixed(self) -> tuple[tuple[str, str], ...]:
        """Why some settings have one value alone."""
        ways = self.settings.items()
        return tuple(sorted((name, way.why) for name, way in ways if isinstance(way, Fixed)))

    def fits(self, model: Any) -> bool:
        """Whether an object of one of the classes has the attributes of this row."""
        return all(_read(model, name) == value for name, value in self.where.items())

    def _settings_of(self, model: Any) -> tuple[tuple[str, Any], ...]:
        came = {
            name: way.value if isinstance(way, Fixed) else _read(model, way)
            for name, way in self.settings.items()
        }
        found = normalised(self.kind, {name: v for name, v in came.items() if v is not _ABSENT})
        return tuple(sorted((name, hashable(value)) for name, value in found.items()))


_ABSENT = object()


def _read(model: Any, attribute: str) -> Any:
    """The value of a dotted attribute; a number is an item."""
    for name in attribute.split("."):
        items = model if name.isdigit() and isinstance(model, (tuple, list)) else ()
        model = items[int(name)] if items else getattr(model, name, _ABSENT)
    return model


def reparametrised(row: Row, inside: str, layer: Path, shaped: str, beside: tuple[Slot, ...]) -> Row:
    """The row of a module that computes the weight of a layer inside of it, before that is called.

    `inside` is the attribute that is the layer, `layer` its path, where `*` is the module's own. The
    layer's weight plays the part `shaped`; `beside` are the other arrays that make the weight.
    """
    moved = (replace(one, path=placed(one.path, layer)) for one in row.slots)
    own = (replace(one, part=shaped) if one.part == "weight" else one for one in moved)
    settings = {
        name: way if isinstance(way, Fixed) else f"{inside}.{way}" for name, way in row.settings.items()
    }
    return replace(row, slots=(*own, *beside), settings=settings)


def slot(
    part: str, place: str, axes: str, value: int | bool | None = None, offset: float = 0.0
) -> Slot:
    """A slot of a row, its place written as a dotted path.

    >>> slot("weight", "params.*.kernel", "in out").path
    ('params', '*', 'kernel')
    """
    return Slot(part, tuple(place.split(".")), axes, value, offset)


def gated(
    gates: str, part: str, place: str, axes: str, offsets: Mapping[str, float] | None = None
) -> tuple[Slot, ...]:
    """A slot for each gate of a recurrent layer, in the order in which a library has them.

    `{gate}` stands for its name, `{pick}` for its place among them.

    >>> [s.axes for s in gated("rz", "weight.{gate}", "params.*.kernel", "in ({pick} hidden)")]
    ['in (0of2 hidden)', 'in (1of2 hidden)']
    """
    return tuple(
        slot(
            part.format(gate=gate),
            place.format(gate=gate),
            axes.format(pick=f"{number}of{len(gates)}"),
            offset=(offsets or {}).get(gate, 0.0),
        )
        for number, gate in enumerate(gates)
    )


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
    return next((row for name, row in found if name in row.classes and row.fits(model)), None)


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
