"""For what has found no partner: the three most like it on the other side, with their shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import bridge.core.paths as paths
from bridge.weights.names import alike, words
from bridge.weights.report import Match, by_path
from bridge.weights.targets import targets_of
from bridge.weights.tensors import Source

Shape = tuple[int, ...]

COUNT = 3  # so many candidates each
_MOST = 20  # of so many places and keys


def candidates(match: Match, module: Any, source: Source) -> list[str]:
    """A sentence for each place and each key without a partner: which of the others are most like it.

    Where nothing is free on the other side, all that is there stands for choice.
    """
    targets = targets_of(module)
    slots = [slot for layer in targets.layers for slot in layer.slots if slot.value is None]
    places = {paths.join(slot.path): targets.leaves[slot.path].shape for slot in slots}
    keys = {key: tensor.shape for key, tensor in source.tensors.items()}
    free_places = _without(places, map(paths.join, by_path(match.pairs)))
    free_keys = _without(keys, [*(pair.key for pair in match.pairs), *match.unused, *match.ties])
    lonely = [(name, free_places[name], free_keys or keys) for name in free_places]
    lonely += [(name, free_keys[name], free_places or places) for name in free_keys]
    sentences = [_sentence(*one) for one in lonely[:_MOST]]
    return [*sentences, *([f"and {len(lonely) - _MOST} more"] if len(lonely) > _MOST else [])]


def _without(shapes: Mapping[str, Shape], names: Iterable[str]) -> dict[str, Shape]:
    taken = {*names}
    return {name: shape for name, shape in shapes.items() if name not in taken}


def _sentence(name: str, shape: Shape, others: Mapping[str, Shape]) -> str:
    near = ", ".join(f"{other} {others[other]}" for other in nearest(name, shape, others))
    return f"{name} {shape}: nearest are {near}" if near else f"{name} {shape}: nothing is there"


def nearest(name: str, shape: Shape, others: Mapping[str, Shape]) -> Sequence[str]:
    """Those of the others that are most like an array: by their sizes in any order, and by their names.

    >>> nearest("params.Dense_0.kernel", (5, 7), {"a.bias": (7,), "b.weight": (7, 5), "c": (35,)})
    ['b.weight', 'a.bias', 'c']
    """

    def likeness(other: str) -> tuple[float, float]:
        by_name = alike(frozenset(words(name)), frozenset(words(other)))
        return _of_sizes(shape, others[other]) + by_name, SequenceMatcher(None, name, other).ratio()

    return sorted(others, key=likeness, reverse=True)[:COUNT]


def _of_sizes(one: Shape, other: Shape) -> float:
    """How alike two shapes are: the sizes that they share, as many axes, as many numbers."""
    shared = (Counter(one) & Counter(other)).total() / max(len(one), len(other), 1)
    return shared + 0.25 * (len(one) == len(other)) + 0.5 * (math.prod(one) == math.prod(other))
