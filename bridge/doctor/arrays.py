"""Arrays of a Module that are not what its plan makes of torch's: which, and what they are instead."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import bridge.core.paths as paths
from bridge.core.paths import Path
from bridge.dataflow.comparing import distance
from bridge.weights.placing import array_of
from bridge.weights.report import Pair, by_path
from bridge.weights.tensors import Source

# Nearer than this, two arrays are one but for rounding.
_SAME = 1e-6
_ROUNDED = 1e-2
_MOST_BLOCKS = 4


def translated(pairs: Sequence[Pair], source: Source) -> dict[Path, np.ndarray]:
    """The arrays that a plan makes of those of a source, in float64."""
    groups = by_path(pairs).items()
    return {path: array_of(group, source, np.dtype(np.float64)) for path, group in groups}


def changed(
    held: Mapping[Path, np.ndarray], wanted: Mapping[Path, np.ndarray]
) -> Iterator[tuple[Path, str, str]]:
    """The arrays that are not what is wanted: the path, the name of the cause, and a sentence."""
    for path, array in wanted.items():
        mine, theirs = (np.asarray(one, np.float64) for one in (held[path], array))
        if distance(mine, theirs) > _SAME:
            cause, told = _told(path, mine, theirs, wanted)
            yield path, cause, f"{paths.join(path)} {told}"


def _told(
    path: Path, mine: np.ndarray, theirs: np.ndarray, wanted: Mapping[Path, Any]
) -> tuple[str, str]:
    if distance(mine, theirs) < _ROUNDED:
        return "rounding", f"is torch's, rounded: {distance(mine, theirs):.0e} away"
    for order in itertools.permutations(range(theirs.ndim)):
        if theirs.transpose(order).shape == mine.shape and _near(theirs.transpose(order), mine):
            return "layout", f"is torch's with its axes in another order, {order}"
    gates = _gates(mine, theirs)
    if gates:
        return "gates", f"has its {len(gates)} gates in another order than torch: {gates} of torch's"
    for axis in range(theirs.ndim):
        if _near(_sorted(theirs, axis), _sorted(mine, axis)):
            return (
                "flatten order",
                f"has torch's places along axis {axis} in another order, as where channels first are"
                f" flattened",
            )
    others = [
        other
        for other, array in wanted.items()
        if other != path
        and np.shape(array) == mine.shape
        and _near(np.asarray(array, np.float64), mine)
    ]
    if others:
        return "swapped", f"holds what belongs to {paths.join(others[0])}"
    return "weights", (
        f"is not torch's, {distance(mine, theirs):.1e} away: it was not loaded, or trained since; type"
        f" bridge.load_state_dict(module, torch_model)"
    )


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    return distance(one, other) <= _SAME


def _sorted(array: np.ndarray, axis: int) -> np.ndarray:
    """The array with its places along an axis in an order that only depends on what stands there."""
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return rows[np.lexsort(rows.T[::-1])]


def _gates(mine: np.ndarray, theirs: np.ndarray) -> tuple[int, ...]:
    """The order in which an array has equal parts of another one; () where there is none."""
    for axis, size in enumerate(theirs.shape):
        for count in range(2, _MOST_BLOCKS + 1):
            if size % count or size == count or math.prod(theirs.shape) == 1:
                continue
            parts = np.split(theirs, count, axis)
            for order in itertools.permutations(range(count)):
                if _near(np.concatenate([parts[n] for n in order], axis), mine):
                    return order
    return ()
