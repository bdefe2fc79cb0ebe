"""What a Module wants to be loaded: its layers, and the arrays that belong to none."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import bridge.core.paths as paths
from bridge.core.errors import WeightsError
from bridge.core.layers import Layer, Slot
from bridge.core.leaves import Lazy, Tied
from bridge.core.node import Node
from bridge.core.paths import Path
from bridge.core.reparametrizing import Reparametrized
from bridge.core.tree import Entry, entries, walk
from bridge.core.wrapped import Wrapped
from bridge.weights.catalogue import buffer_reason, torch_row

ARRAY = "array"


@dataclass(frozen=True)
class Leaf:
    """An array of a Module, as far as loading must know it; a captured one is laid out as in torch."""

    shape: tuple[int, ...]
    dtype: Any  # of a typed key it is none of NumPy's
    captured: bool = False


@dataclass(frozen=True)
class Targets:
    """The layers of a Module, paths from its root, and all of its arrays by path.

    A parameter that no layer knows is a layer of the kind "array", and so is a buffer that the
    state_dict of a captured torch model holds.
    """

    layers: tuple[Layer, ...]
    leaves: Mapping[Path, Leaf]


def targets_of(module: Any) -> Targets:
    """What a Module wants to be loaded; raises WeightsError where it does not know that itself."""
    if not isinstance(module, Node):
        raise WeightsError(
            f"weights go into a bridge.Module; a {type(module).__name__} was given: a model of a"
            f" library becomes one by bridge.wrap(model)"
        )
    refuse_reparametrized(module)
    found = [entry for entry in entries(module) if not isinstance(entry.value, Tied)]
    lazy = [paths.name(entry.path[:-1]) for entry in found if isinstance(entry.value, Lazy)]
    if lazy:
        raise WeightsError(
            f"{lazy[0]} has no shapes before it has seen an input; type"
            f" module = module.init(key, *sample) first"
        )
    leaves = {e.path: Leaf(tuple(e.value.shape), e.value.dtype, _is_captured(e)) for e in found}
    layers = _outermost(layer for layer in _layers(module, leaves) if layer.slots)
    covered = {slot.path for layer in layers for slot in layer.slots}
    own = tuple(
        array_layer(entry.path)
        for entry in found
        if (entry.kind.name == "parameter" or _is_kept(entry)) and entry.path not in covered
    )
    return Targets(layers + own, leaves)


def refuse_reparametrized(module: Any) -> None:
    """Raises WeightsError where what the tree stores is not what its models see."""
    seen = [paths.name(path) for path, node in walk(module) if isinstance(node, Reparametrized)]
    if seen:
        raise WeightsError(
            f"{', '.join(seen)}: is reparametrized, so the arrays that it stores are not those that its"
            f" model sees; load weights before bridge.reparametrized, and give"
            f" bridge.materialized(module) where they are taken"
        )


def _is_captured(entry: Entry) -> bool:
    """Whether an array is one of a captured torch model."""
    lowering = sys.modules.get("bridge.lowering.module")  # without it, nothing was captured
    return lowering is not None and isinstance(entry.node, lowering.TorchModule)


def _is_kept(entry: Entry) -> bool:
    """Whether an array is a buffer of a captured torch model that its state_dict holds as a weight."""
    name = entry.within[-1]
    return _is_captured(entry) and name in entry.node.persistent and buffer_reason(name) is None


def _outermost(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers without those all of whose arrays another has as well: the parts of a cell."""
    found = list(layers)
    holders: dict[Path, list[Layer]] = {}
    for layer in found:
        for path in {slot.path for slot in layer.slots}:
            holders.setdefault(path, []).append(layer)

    def inside(layer: Layer) -> bool:
        own = _arrays(layer)
        others = (one for one in holders[layer.slots[0].path] if one is not layer)
        return any(own < _arrays(one) or (own == _arrays(one) and _outer(one, layer)) for one in others)

    return tuple(layer for layer in found if not inside(layer))


def _arrays(layer: Layer) -> set[Path]:
    return {slot.path for slot in layer.slots}


def _outer(one: Layer, other: Layer) -> bool:
    """Whether a layer's path is shorter; a segment of Haiku's may be several."""
    return len("/".join(one.path)) < len("/".join(other.path))


def array_layer(path: Path) -> Layer:
    """An array alone as a layer: loaded as it is."""
    return Layer(path, ARRAY, (Slot(ARRAY, path, "*axes"),))


def _layers(module: Any, leaves: Mapping[Path, Leaf]) -> Iterator[Layer]:
    """The layers of every wrapped model in the tree that PyTorch has as well."""
    boxed = _boxed(leaves)
    for path, node in walk(module):
        if not isinstance(node, Wrapped):
            continue
        layers = node.layers()
        if layers is None:
            raise WeightsError(
                f"{paths.name(path)} was wrapped with its variables, and which layers they belong to"
                f" shows only in a call; type module = module.init(key, *sample) once: it changes no"
                f" array"
            )
        for layer in layers:
            if torch_row(layer.kind) is not None:
                yield _below(path, layer, leaves, boxed)


def _below(path: Path, layer: Layer, leaves: Mapping[Path, Leaf], boxed: Mapping[Path, Path]) -> Layer:
    """A layer with those of its arrays that the Module has, paths from its root."""
    own = ((slot, (*path, *slot.path)) for slot in layer.slots)
    places = ((slot, place if place in leaves else boxed.get(place)) for slot, place in own)
    present = tuple(replace(slot, path=place) for slot, place in places if place is not None)
    return replace(layer, path=(*path, *layer.path), slots=present)


def _boxed(leaves: Iterable[Path]) -> dict[Path, Path]:
    """The arrays that are alone in what holds them, by its path.

    A box such as `nn.Partitioned` puts its array one step below the array's own path.
    """
    found: dict[Path, list[Path]] = {}
    for leaf in leaves:
        found.setdefault(leaf[:-1], []).append(leaf)
    return {holder: inside[0] for holder, inside in found.items() if len(inside) == 1}
