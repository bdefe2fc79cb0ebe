"""Which key of a source goes to which place of a Module."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import WeightsError
from bridge.core.layers import Layer, Slot
from bridge.core.paths import Path
from bridge.weights.catalogue import buffer_reason, layers_of
from bridge.weights.configs import configured
from bridge.weights.pairing import (
    Couple,
    Shape,
    key_of,
    pair,
    sized_source,
    sized_target,
    source_axes,
    torch_axes,
)
from bridge.weights.planning import RENAMED, SAME_NAME, free_arrays, free_layers, place_of, planned
from bridge.weights.renaming import renamed
from bridge.weights.report import Match
from bridge.weights.sources import Source, open_source
from bridge.weights.structure import compared
from bridge.weights.targets import ARRAY, Targets, array_layer, targets_of


def match(
    module: Any,
    source: Any,
    rename: Mapping[Any, str] | None = None,
    inputs: Sequence[Any] | None = None,
) -> Match:
    """The plan by which `load_state_dict` would load a source into a Module; print it.

    `rename` pairs what matching cannot: names of the source and of the Module, in either direction,
    of layers or of arrays: `{"fc_a": "params.Dense_0"}`, `{"h.*.q": "params.blocks.*.query"}`, or a
    compiled regular expression and its template. Of a file nothing but the header is read.

    With a live torch model, `inputs` are what its forward takes: then the programs of both models prove
    the pairs and how axes are turned, whatever the names, and pairs that only names speak for are
    those that the programs leave open. The evidence of each pair says which it is.

    What does not fit together is in the plan's `problems`. Raises WeightsError for a source, a Module
    or a `rename` that is none.

    >>> import bridge as br, numpy as np
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    >>> br.match(Line(0.0), {"shift": np.ones((), np.float32)}, rename={"shift": "slope"}).problems
    ()
    """
    return match_source(module, open_source(source), rename or {}, model_of(source, inputs), inputs)


def model_of(source: Any, inputs: Sequence[Any] | None) -> Any:
    """The live torch model that a source is, where there are inputs for it; None without inputs.

    Raises WeightsError for inputs without a model.
    """
    if inputs is None:
        return None
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        raise WeightsError(
            f"inputs are for the forward of a torch.nn.Module; weights from a {type(source).__name__}"
            f" have none: leave inputs out, or give the model with its weights in it"
        )
    if not isinstance(inputs, (tuple, list)):
        raise WeightsError(
            f"inputs are a tuple of what the forward takes; a {type(inputs).__name__} was given: type"
            f" inputs=(x,)"
        )
    return source


def match_source(
    module: Any,
    source: Source,
    rename: Mapping[Any, str],
    model: Any = None,
    inputs: Sequence[Any] | None = None,
) -> Match:
    """The plan for an opened source; see `match`."""
    targets = targets_of(module)
    unused = dict(buffers(source))
    shapes = {key: tensor.shape for key, tensor in source.tensors.items() if key not in unused}
    loose = configured(_loose(shapes, source.layers or ()), source.config)
    sources = [*(source.layers or ()), *loose]

    found = _by_rename(targets, sources, shapes, rename)
    differences: Sequence[str] = ()
    if model is not None and inputs is not None:
        structure = compared(module, model, inputs, targets, sources, shapes)
        differences = structure.differences
        known = {id(couple.target) for couple in found}
        found += [couple for couple in structure.couples if id(couple.target) not in known]
        shapes, sources = _without(_tied(source, found), shapes, sources)
    live = {key_of(slot) for layer in source.layers or () for slot in layer.slots}
    found += _by_same_name(targets, {k: v for k, v in shapes.items() if k not in live}, found)
    found += _by_likeness(targets, sources, shapes, found)
    ties = _tied(source, found)
    shapes, sources = _without(ties, shapes, sources)
    spare = [sized_source(layer, shapes) for layer in _free_sources(sources, found)]
    return replace(planned(targets, shapes, found, spare, unused, differences), ties=ties)


def _by_likeness(
    targets: Targets, sources: Sequence[Layer], shapes: Mapping[str, Shape], found: list[Couple]
) -> list[Couple]:
    """Couples of layers by kind, size and names; then of arrays that belong to no known layer."""
    free = [sized_target(layer, targets.leaves) for layer in free_layers(targets, found)]
    known = [one for one in free if one.layer.kind != ARRAY]
    own = [one for one in free if one.layer.kind == ARRAY]
    layers = [sized_source(layer, shapes) for layer in _free_sources(sources, found)]
    couples = pair(known, layers)
    arrays = [sized_source(layer, shapes) for layer in free_arrays(shapes, [*found, *couples])]
    return couples + pair(own, arrays)


def buffers(source: Source) -> Iterator[tuple[str, str]]:
    """The keys of a source that hold no weight at all, each with why."""
    for key, tensor in source.tensors.items():
        reason = buffer_reason(key)
        if reason is not None and np.issubdtype(tensor.dtype, np.integer):
            yield key, reason


def _tied(source: Source, couples: Sequence[Couple]) -> dict[str, str]:
    """Keys that name an array which is taken under another key, and that key."""
    taken = {key_of(slot) for couple in couples for slot in couple.source.slots}
    groups = ((keys, [key for key in keys if key in taken]) for keys in source.ties)
    return {key: used[0] for keys, used in groups for key in keys if used and key not in taken}


def _without(
    keys: Mapping[str, str], shapes: Mapping[str, Shape], sources: Sequence[Layer]
) -> tuple[dict[str, Shape], list[Layer]]:
    """The shapes and the layers of a source without those of some keys."""
    left = {key: shape for key, shape in shapes.items() if key not in keys}
    return left, [one for one in sources if not any(key_of(slot) in keys for slot in one.slots)]


def _loose(shapes: Mapping[str, Shape], known: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers that keys and shapes show, where no layer of a live model holds the keys."""
    held = {key_of(slot) for layer in known for slot in layer.slots}
    return layers_of({key: shape for key, shape in shapes.items() if key not in held})


def _free_sources(sources: Sequence[Layer], couples: Sequence[Couple]) -> list[Layer]:
    """The layers of the source that are in no couple, and none of whose arrays has another place."""
    taken = {couple.source for couple in couples}
    elsewhere = {key_of(slot) for layer in taken - {*sources} for slot in layer.slots}
    return [
        layer
        for layer in sources
        if layer not in taken and not any(key_of(slot) in elsewhere for slot in layer.slots)
    ]


def _by_same_name(
    targets: Targets, shapes: Mapping[str, Shape], couples: Iterable[Couple]
) -> list[Couple]:
    """Arrays of the user's own modules whose path is a key, with or without a first `params`."""
    free = {layer.path for layer in free_arrays(shapes, couples)}
    own = [layer for layer in free_layers(targets, couples) if layer.kind == ARRAY]
    found = ((layer, next((p for p in _spellings(layer.path) if p in free), None)) for layer in own)
    return [Couple(layer, array_layer(path), SAME_NAME) for layer, path in found if path is not None]


def _spellings(path: Path) -> Iterator[Path]:
    yield path
    if path[0] in ("params", "state"):
        yield path[1:]


def _by_rename(
    targets: Targets,
    sources: Iterable[Layer],
    shapes: Mapping[str, Shape],
    rename: Mapping[Any, str],
) -> list[Couple]:
    """The couples that the user names, arrays of one layer gathered."""
    places, keys = _places(targets.layers), _keys(sources, shapes)
    found: dict[int, Couple] = {}
    for key, place in renamed(rename, keys, places):
        target, part = places[place]
        source = keys[key]
        if part is not None and key in shapes:
            before = found[id(target)].source if id(target) in found else source
            source = _with_array(before, target, part, key)
        found[id(target)] = Couple(target, source, RENAMED)
    return list(found.values())


def _with_array(source: Layer, target: Layer, part: str, key: str) -> Layer:
    """The source layer in which a part of the target's kind is the array of a key."""
    slot = Slot(part, tuple(key.split(".")), torch_axes(target.kind, part))
    others = (
        replace(other, axes=source_axes(other, source, target))
        for other in source.slots
        if other.part in _parts(target) and other.part != part and key_of(other) != key
    )
    return replace(source, kind=target.kind, slots=(slot, *others))


def _parts(layer: Layer) -> set[str]:
    return {slot.part for slot in layer.slots}


def _places(layers: Iterable[Layer]) -> dict[str, tuple[Layer, str | None]]:
    """What a user may call a layer of the Module, or an array of it: as printed, or shorter."""
    found: dict[str, tuple[Layer, str | None]] = {}
    for layer in layers:
        for slot in layer.slots:
            found.setdefault(paths.join(slot.path), (layer, slot.part))
            if layer.kind != ARRAY:
                found.setdefault(paths.join(slot.path[:-1]), (layer, None))
        found.setdefault(place_of(layer), (layer, None))
        found.setdefault(paths.join(layer.path), (layer, None))
    return found


def _keys(sources: Iterable[Layer], shapes: Mapping[str, Shape]) -> dict[str, Layer]:
    """What a user may call a layer of the source, or an array of it."""
    found: dict[str, Layer] = {}
    for layer in sources:
        found.setdefault(".".join(layer.path), layer)
        for slot in layer.slots:
            found.setdefault(key_of(slot), layer)
    return {**{key: array_layer(tuple(key.split("."))) for key in shapes}, **found}
