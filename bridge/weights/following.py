"""A plan that was made before, checked against the Module and the source that it is followed for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import WeightsError
from bridge.core.translation import Translation, coverage
from bridge.weights.matching import buffers
from bridge.weights.report import Match, Pair, by_path
from bridge.weights.targets import Targets
from bridge.weights.tensors import Source, Tensor


def plan_of(plan: Any) -> Match:
    """The plan that a user gives: itself, or the path of its file; raises WeightsError for none."""
    if isinstance(plan, Match):
        return plan
    if isinstance(plan, (str, os.PathLike)):
        return Match.load(plan)
    raise WeightsError(
        f"a plan is what bridge.match gives, or the path of a file that its save has written; a"
        f" {type(plan).__name__} was given"
    )


def followed(plan: Match, targets: Targets, source: Source) -> Match:
    """The plan for a Module and a source; whatever does not fit them is among its problems."""
    tensors = source.tensors
    unused = {key: plan.unused[key] for key in tensors if key in plan.unused} | dict(buffers(source))
    taken = {pair.key for pair in plan.pairs}
    ties = {key: plan.ties[key] for key in tensors if key in plan.ties and key not in taken}
    left_over = {
        key: plan.left_over.get(key, _left_over(key))
        for key in tensors
        if key in plan.left_over or not (key in taken or key in unused or key in ties)
    }
    left_over |= {key: told for key, told in _partly_taken(plan, tensors) if key not in left_over}
    problems = (
        *plan.problems,
        *_source_faults(plan, tensors),
        *target_faults(plan, targets),
        *(told for key, owner in ties.items() for told in _tie_faults(key, owner, tensors)),
    )
    return replace(plan, unused=unused, left_over=left_over, problems=problems, ties=ties)


def target_faults(plan: Match, targets: Targets) -> Iterator[str]:
    """What of a plan does not fit a Module: a sentence each."""
    hint = paths.hints([paths.join(path) for path in targets.leaves])
    for path, pairs in by_path(plan.pairs).items():
        place, leaf = paths.join(path), targets.leaves.get(path)
        if leaf is None:
            yield f"{place}: the plan fills it, and the Module has none{hint(place)}"
            continue
        wrong = [one for one in pairs if one.translation.target_shape != leaf.shape]
        for one in wrong:
            came = one.translation.target_shape
            yield f"{place}: has shape {leaf.shape}; the plan makes {one.key} into {came}"
        if not wrong:
            yield from _fillings(place, pairs)
    for path, value in plan.constants.items():
        leaf, place = targets.leaves.get(path), paths.join(path)
        if leaf is None:
            yield f"{place}: the plan sets it, and the Module has none{hint(place)}"
        elif not np.issubdtype(leaf.dtype, np.bool_ if isinstance(value, bool) else np.integer):
            yield f"{place}: the plan sets it to {value}; the Module holds {leaf.dtype}"
    filled = {pair.path for pair in plan.pairs} | plan.constants.keys()
    wanted = dict.fromkeys(slot.path for layer in targets.layers for slot in layer.slots)
    yield from (
        f"{paths.join(path)}: the plan leaves it without weights"
        for path in wanted
        if path not in filled
    )


def _fillings(place: str, pairs: Sequence[Pair]) -> Iterator[str]:
    """What is wrong with how pairs fill one array: places that stay empty, or are filled twice."""
    if len(pairs) == 1 and pairs[0].translation.fills:
        return
    regions: dict[Any, list[Pair]] = {}
    for pair in pairs:
        regions.setdefault(pair.translation.region, []).append(pair)
    for same in regions.values():
        if len({(one.key, one.translation) for one in same}) < len(same):
            yield f"{place}: the plan adds {same[0].key} to itself"
    counted = coverage([same[0].translation for same in regions.values()])
    if counted.empty:
        yield f"{place}: the plan leaves {counted.empty} of its {counted.size} numbers without weights"
    if counted.twice:
        yield f"{place}: the plan fills {counted.twice} of its {counted.size} numbers twice"


def _partly_taken(plan: Match, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """The keys of which the plan takes a part alone, with a sentence for each."""
    parts: dict[str, list[Translation]] = {}
    for pair in plan.pairs:
        parts.setdefault(pair.key, []).append(pair.translation.inverse())
    for key, taken in parts.items():
        shapes = {one.target_shape for one in taken}
        known = key in tensors and shapes == {tensors[key].shape}  # anything else is a problem anyway
        if known and not any(one.fills for one in taken):
            counted = coverage(taken)
            if counted.empty:
                yield (
                    key,
                    f"{key}: left over: the plan takes {counted.empty} of its {counted.size} numbers"
                    f" nowhere; type strict=False to leave them out",
                )


def _source_faults(plan: Match, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    hint = paths.hints([*tensors])
    for pair in plan.pairs:
        place, wanted = paths.join(pair.path), pair.translation.source_shape
        if pair.key not in tensors:
            yield f"{pair.key}: missing; the plan takes it to {place}{hint(pair.key)}"
        elif tensors[pair.key].shape != wanted:
            yield f"{pair.key}: has shape {tensors[pair.key].shape}; the plan takes {wanted} to {place}"


def _tie_faults(key: str, owner: str, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What speaks against two keys being one array, as the plan says; here they may be two."""
    if owner not in tensors:
        yield f"{key}: the plan takes it as {owner}, which is missing"
        return
    one, other = tensors[key], tensors[owner]
    if one.memory is not None and one.memory == other.memory:
        return
    same = (one.shape, one.dtype) == (other.shape, other.dtype)
    if not same or one.read().tobytes() != other.read().tobytes():
        yield (
            f"{key}: is another array than {owner}, and in the plan they are one: make a plan for this"
            f" source, or tie them in it"
        )


def _left_over(key: str) -> str:
    return f"{key}: left over: the plan takes it nowhere; type strict=False to leave it out"
