"""From couples of layers to a plan: each array's place, and a sentence for all that does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import bridge.core.paths as paths
from bridge.core.errors import WeightsError
from bridge.core.layers import SUM, Layer, Slot, placed
from bridge.core.paths import Path
from bridge.core.settings import SAME, differing, shown
from bridge.core.translation import coverage, labelled, translation
from bridge.weights.catalogue import torch_row, unfolded
from bridge.weights.coalescing import coalesced
from bridge.weights.pairing import (
    Couple,
    Rivals,
    Shape,
    Sized,
    guess,
    key_of,
    sized_source,
    sized_target,
    source_axes,
    torch_axes,
)
from bridge.weights.report import Match, Pair, by_path
from bridge.weights.targets import ARRAY, Leaf, Targets, array_layer

# So many candidates stand in one sentence.
SHOWN = 4
# Evidence by which an array of a user's own is loaded as it is.
RENAMED, SAME_NAME = "rename", "the same name"


@dataclass
class _Draft:
    """What a plan is made of, while it is made."""

    pairs: list[Pair] = field(default_factory=list)
    constants: dict[Path, int | bool] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    mentioned: set[str] = field(default_factory=set)


def planned(
    targets: Targets,
    shapes: Mapping[str, Shape],
    couples: Sequence[Couple],
    spare: Sequence[Sized],
    unused: Mapping[str, str],
    differences: Sequence[str] = (),
) -> Match:
    """The plan that couples make; `spare` are the layers of the source that are in none."""
    draft = _Draft()
    order = {id(layer): position for position, layer in enumerate(targets.layers)}
    for couple in sorted(couples, key=lambda couple: order[id(couple.target)]):
        _add(draft, couple, targets.leaves, shapes)
    _add_rest(draft, targets, shapes, couples, spare)
    for key in shapes:
        if key not in draft.mentioned:
            draft.left_over[key] = (
                f"{key}: left over: nothing in the Module takes it; type strict=False to leave it out"
            )
    return Match(
        tuple(coalesced(draft.pairs)),
        draft.constants,
        unused,
        draft.left_over,
        (*draft.differences, *differences),
        tuple(draft.problems),
    )


def free_layers(targets: Targets, couples: Iterable[Couple]) -> list[Layer]:
    """The layers of the Module that are in no couple."""
    taken = {id(couple.target) for couple in couples}
    return [layer for layer in targets.layers if id(layer) not in taken]


def free_arrays(shapes: Mapping[str, Shape], couples: Iterable[Couple]) -> list[Layer]:
    """The arrays of the source that are in no couple, each as a layer."""
    taken = {key_of(slot) for couple in couples for slot in couple.source.slots}
    return [array_layer(tuple(key.split("."))) for key in shapes if key not in taken]


def place_of(layer: Layer) -> str:
    """Where the arrays of a layer of the Module are, as a user types it."""
    first = layer.slots[0].path
    if layer.kind == ARRAY:
        return paths.join(first)
    same = [slot.path[:-1] for slot in layer.slots if slot.path[0] == first[0]]
    common = [steps[0] for steps in takewhile(_alike, zip(*same, strict=False))]
    return paths.join(common if len(common) > 1 or not layer.path else first[:-1])


def _alike(steps: Sequence[str]) -> bool:
    return len({*steps}) == 1


def _source_of(couple: Couple) -> str:
    """A layer of the source for a message."""
    return ".".join(couple.source.path) or "the source"


def _add(
    draft: _Draft, couple: Couple, leaves: Mapping[Path, Leaf], shapes: Mapping[str, Shape]
) -> None:
    """Adds the arrays of a couple, and what is wrong with them."""
    target, source = couple.target, couple.source
    draft.mentioned.update(key_of(slot) for slot in source.slots)
    if couple.pairs:
        _add_known(draft, couple)
        return
    refusals = [*_refusals(couple)]
    if refusals:
        draft.problems.extend(refusals)
        return
    given: dict[str, Slot] = {}
    for slot in source.slots:
        given.setdefault(slot.part, slot)
    wanted: set[str] = set()
    for slot in target.slots:
        if slot.value is not None:
            draft.constants[slot.path] = slot.value
            continue
        for number, part in enumerate(slot.part.split(SUM)):
            wanted.add(part)
            rest = slot if number == 0 else replace(slot, offset=0.0)  # a sum has it once
            if part not in given:
                draft.problems.append(_missing(slot, part, couple, leaves[slot.path].shape))
            else:
                _add_array(draft, couple, given[part], rest, leaves[slot.path], shapes)
    folds = "weight" in wanted and "weight" not in given
    for slot in source.slots:
        if slot.part not in wanted and not (folds and slot.part.startswith("weight.")):
            why = dict(target.fixed).get(slot.part)
            draft.left_over[key_of(slot)] = (
                f"{key_of(slot)}: left over: {place_of(target)} has no {slot.part}"
                f"{f', {why}' if why else ''}; type strict=False to leave it out"
            )
    draft.differences.extend(_differences(couple))


def _add_known(draft: _Draft, couple: Couple) -> None:
    """Adds arrays of which it is known where they go."""
    draft.pairs.extend(couple.pairs)
    known = by_path(couple.pairs)
    draft.problems.extend(told for pairs in known.values() for told in _faults(pairs))
    for slot in couple.target.slots:
        if slot.value is not None:
            draft.constants[slot.path] = slot.value
        elif slot.path not in known:
            draft.problems.append(
                f"{paths.join(slot.path)}: missing: the forward of the source has nothing like it; if"
                f" it is there, type rename={{name: {paths.join(slot.path)!r}}}"
            )


def _faults(pairs: Sequence[Pair]) -> Iterator[str]:
    """What is wrong with the pairs of one array: two of them for one place, or none for another."""
    if len(pairs) == 1 and pairs[0].translation.fills:
        return
    place, taken = paths.join(pairs[0].path), dict[Any, Pair]()
    for pair in pairs:
        other = taken.setdefault(pair.translation.region, pair)
        if other.key != pair.key:
            yield _two_at_once(place, other.key, pair.key)
    counted = coverage([pair.translation for pair in taken.values()])
    if counted.twice:
        yield _two_at_once(place, *list(dict.fromkeys(pair.key for pair in pairs))[:2])
    if counted.empty:
        yield (
            f"{place}: only {counted.size - counted.empty} of its {counted.size} numbers are known to"
            f" be in the source; the forward does not tell where the others are"
        )


def _two_at_once(place: str, *keys: str) -> str:
    return (
        f"{place}: would be {' and '.join(keys)} at once: it is used in two places, and each has its"
        f" own array in the source; make it two in the Module, or tie the source's"
    )


def _add_array(
    draft: _Draft,
    couple: Couple,
    given: Slot,
    slot: Slot,
    leaf: Leaf,
    shapes: Mapping[str, Shape],
) -> None:
    key, axes = key_of(given), source_axes(given, couple.source, couple.target)
    try:
        turned = translation(axes, slot.axes, leaf.shape, shapes[key], sizes_of(couple))
    except WeightsError as error:
        draft.problems.append(
            f"{paths.join(slot.path)}: {error}; layers that are stacked or have axes of their own"
            f" cannot be loaded by their kind"
        )
        return
    if couple.target.kind == ARRAY and _unclear(couple, leaf):
        draft.problems.append(
            f"{paths.join(slot.path)}: {key} may lie as it is or turned: two of its axes have one size,"
            f" and nothing tells which is which; type inputs=(...) with a live model, whose forward"
            f" tells, or type rename={{{key!r}: {paths.join(slot.path)!r}}} to load it as it is"
        )
    elif turned.source_shape != shapes[key]:
        draft.problems.append(_wrong_shape(key, axes, shapes[key], turned.source_shape, couple.target))
    else:
        offset = slot.offset - given.offset
        draft.pairs.append(Pair(key, slot.path, turned, couple.evidence, offset))


def _unclear(couple: Couple, leaf: Leaf) -> bool:
    """Whether an array of a user's own may be another one's transpose, for all that is known."""
    sizes = [size for size in leaf.shape if size > 1]
    is_known = leaf.captured or couple.evidence in (RENAMED, SAME_NAME)
    return len({*sizes}) < len(sizes) and not is_known


def sizes_of(couple: Couple) -> dict[str, int]:
    """The sizes that no shape shows, from the settings of the two layers."""
    return {**couple.source.sizes, **couple.target.sizes}


def _wrong_shape(key: str, axes: str, came: Shape, wanted: Shape, target: Layer) -> str:
    if target.kind == ARRAY:
        return f"{key}: has shape {came}; {place_of(target)} has {wanted}"
    return (
        f"{key}: torch keeps it as ({axes}), so it holds {labelled(axes, came)};"
        f" the Module has {labelled(axes, wanted)}"
    )


def _missing(slot: Slot, part: str, couple: Couple, shape: Shape) -> str:
    fold = unfolded(slot.part for slot in couple.source.slots) if part == "weight" else None
    if fold is not None:
        return f"{paths.join(slot.path)}: the weight of {_source_of(couple)} {fold}"
    row = torch_row(couple.target.kind)
    names = [s.path for s in row.slots if s.part == part] if row else []
    key = ".".join(placed(names[0], couple.source.path)) if names else part
    return f"{key}: missing; {paths.join(slot.path)} wants {_wanted(couple.target, slot, shape)}"


def _wanted(target: Layer, slot: Slot, shape: Shape) -> str:
    axes = torch_axes(target.kind, slot.part)
    try:
        return labelled(axes, translation(axes, slot.axes, shape).source_shape)
    except WeightsError:
        return f"shape {shape}"


def _refusals(couple: Couple) -> Iterator[str]:
    """What the target cannot be, whatever its arrays: a sentence each."""
    refused = f"{place_of(couple.target)}: {_source_of(couple)} cannot be loaded:"
    yield from (f"{refused} {why}" for why in couple.source.refused)
    fixed, (mine, theirs) = dict(couple.target.fixed), _settings(couple)
    for name in differing(mine, theirs):
        if name in fixed:
            yield (
                f"{refused} {name} is {shown(theirs[name])} there and {shown(mine[name])} here;"
                f" {fixed[name]}"
            )


def _differences(couple: Couple) -> Iterator[str]:
    """The settings that are not the same on both sides, and may be left so: a sentence each."""
    mine, theirs = _settings(couple)
    for name in differing(mine, theirs):
        one, other = shown(mine[name]), shown(theirs[name])
        decides = " (which is equal for some sizes of the input alone)" if SAME in (one, other) else ""
        yield differs(
            place_of(couple.target), name, one, f"{other} in {_source_of(couple)}{decides}", other
        )


def differs(place: str, name: str, mine: str, there: str, theirs: str) -> str:
    """The sentence for a setting that is `mine` at a place; `there` says what it is, and where."""
    return (
        f"{place}: {name} is {mine}, and {there}: build the model with {theirs}, or type strict=False"
        f" to keep {mine}"
    )


def _settings(couple: Couple) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(couple.target.settings), dict(couple.source.settings)


def _add_rest(
    draft: _Draft,
    targets: Targets,
    shapes: Mapping[str, Shape],
    couples: Sequence[Couple],
    spare: Sequence[Sized],
) -> None:
    """Adds a sentence for each layer of the Module that is in no couple."""
    arrays = [sized_source(layer, shapes) for layer in free_arrays(shapes, couples)]
    rivals = {True: Rivals(arrays), False: Rivals(spare)}
    lost: list[Sized] = []
    ambiguous: dict[int, Sequence[Sized]] = {}
    for layer in free_layers(targets, couples):
        target = sized_target(layer, targets.leaves)
        candidates = rivals[layer.kind == ARRAY].of(target)
        if candidates:
            draft.problems.append(_ambiguous(layer, [one.layer for one in candidates[: SHOWN + 1]]))
            ambiguous[id(candidates)] = candidates  # once, for all layers that may be the same
        else:
            lost.append(target)
    named = (one.layer for candidates in ambiguous.values() for one in candidates)
    draft.mentioned.update(key_of(slot) for layer in named for slot in layer.slots)
    left = [one for one in (*spare, *arrays) if not _mentioned(one, draft)]
    likely = {id(couple.target): couple for couple in guess(lost, left)}
    for target in lost:
        if id(target.layer) in likely:
            _add_likely(draft, likely[id(target.layer)], targets.leaves, shapes)
        else:
            draft.problems.append(_lacking(target.layer, targets.leaves))


def _mentioned(source: Sized, draft: _Draft) -> bool:
    return any(key_of(slot) in draft.mentioned for slot in source.layer.slots)


def _add_likely(
    draft: _Draft, couple: Couple, leaves: Mapping[Path, Leaf], shapes: Mapping[str, Shape]
) -> None:
    """Adds what is wrong with a couple that names suggest; where nothing is, that it is unproven."""
    before = len(draft.problems)
    _add(draft, couple, leaves, shapes)
    if len(draft.problems) == before:
        draft.problems.append(_ambiguous(couple.target, [couple.source]))


def _ambiguous(target: Layer, sources: Sequence[Layer]) -> str:
    names = [".".join(source.path) for source in sources]
    shown = ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
    return (
        f"{place_of(target)}: may be {shown}, and nothing tells which; settle it:"
        f" rename={{{names[0]!r}: {place_of(target)!r}}}, or as it should be"
    )


def _lacking(target: Layer, leaves: Mapping[Path, Leaf]) -> str:
    slot = next((slot for slot in target.slots if slot.value is None), target.slots[0])
    wanted = _wanted(target, slot, leaves[slot.path].shape)
    return (
        f"{place_of(target)}: missing: nothing in the source is like its {target.kind} with {wanted};"
        f" if it has another form there, type rename={{name: {place_of(target)!r}}}"
    )
