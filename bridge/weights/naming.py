"""PyTorch's names for a Module that no torch model is known of: a plan from its layers alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import bridge.core.paths as paths
from bridge.core.errors import WeightsError, listed
from bridge.core.layers import SUM, Layer, Slot, placed
from bridge.core.paths import Path
from bridge.core.translation import translation
from bridge.weights.catalogue import fixed_settings, torch_row, torch_slots
from bridge.weights.pairing import Couple, Shape, key_of
from bridge.weights.planning import place_of, planned
from bridge.weights.report import Match
from bridge.weights.targets import ARRAY, Leaf, Targets

_ENDS = re.compile(r"(?P<last>\|)?(?P<word>[a-z]+)(?P<first>\|)?(?: |$)")


def named(targets: Targets, without: Collection[Path]) -> Match:
    """The plan by which layers have the names and the layouts that torch.nn gives to their parts.

    Arrays of no known layer have their own path as their key, those at the paths `without` have none.
    Raises WeightsError for layers that torch.nn does not have.
    """
    couples: list[Couple] = []
    shapes: dict[str, Shape] = {}
    problems: list[str] = []
    for layer in targets.layers:
        if layer.slots[0].path in without:
            continue
        source = _source(layer)
        try:
            found = _shapes(layer, source, targets.leaves)
        except WeightsError as error:
            problems.append(f"{place_of(layer)}: {error}")
            continue
        problems += [f"{key}: two layers would have this name" for key in found if key in shapes]
        couples.append(Couple(layer, source, "the names of torch.nn"))
        shapes |= found
    covered = Targets(tuple(couple.target for couple in couples), targets.leaves)
    match = planned(covered, shapes, couples, (), {})
    problems += match.complaints()
    if problems:
        raise WeightsError(f"torch.nn cannot hold this Module by itself:\n{listed(problems)}")
    return match


def _source(layer: Layer) -> Layer:
    """The layer of torch.nn that has the parts of a Module's layer."""
    row = torch_row(layer.kind)
    if layer.kind == ARRAY or row is None:
        key = tuple(paths.join(layer.path).split("."))
        return Layer(key, ARRAY, (Slot(ARRAY, key, "*axes"),))
    path = tuple(_plain(layer.path))
    own = {one.part for one in reversed(row.slots)}
    slots: dict[str, Slot] = {}
    for one in torch_slots(layer.kind):
        if one.part in _parts(layer) and (one.part in own or one.part not in slots):
            slots.setdefault(one.part, replace(one, path=placed(one.path, path)))
    return Layer(path, layer.kind, tuple(slots.values()), fixed_settings(row))


def _plain(path: Path) -> Iterator[str]:
    """The segments of a path, those of Haiku's names among them."""
    for segment in path:
        yield from (name for name in segment.split("/") if name != "~")


def _parts(layer: Layer) -> set[str]:
    slots = (slot for slot in layer.slots if slot.value is None)
    return {part for slot in slots for part in slot.part.split(SUM)}


def _shapes(target: Layer, source: Layer, leaves: Mapping[Path, Leaf]) -> dict[str, Shape]:
    """The shapes of a source's arrays, from those of the Module's."""
    given = {slot.part: slot for slot in source.slots}
    if strange := sorted(_parts(target) - given.keys()):
        raise WeightsError(f"torch's {target.kind} has no {', '.join(strange)}")
    shapes: dict[str, Shape] = {}
    for slot in target.slots:
        shape = leaves[slot.path].shape
        for part in slot.part.split(SUM) if slot.value is None else ():
            sizes = {**target.sizes, **_ends(target, slot, shape)}
            turned = translation(given[part].axes, slot.axes, shape, None, sizes)
            shapes[key_of(given[part])] = turned.source_shape
    return shapes


def _ends(layer: Layer, slot: Slot, shape: Shape) -> dict[str, int]:
    """The sizes of the two parts of an axis that one array shares with another: `in|` and `|state`."""
    found = [_ENDS.match(one.axes) for one in layer.slots if one.path == slot.path]
    words = dict.fromkeys(one["word"] for one in found if one and (one["first"] or one["last"]))
    known = [word for word in words if word in layer.sizes]
    if len(words) != 2 or len(known) != 1:
        return {}
    (other,) = words.keys() - {*known}
    return {other: shape[0] - layer.sizes[known[0]]}
