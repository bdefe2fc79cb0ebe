"""Where two models part: the values that enter each layer, in the order of the program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import bridge.core.paths as paths
from bridge.core.paths import Path
from bridge.dataflow.comparing import distance, unordered_distance
from bridge.dataflow.flow import TABLE, Block
from bridge.dataflow.probing import is_padded
from bridge.dataflow.proving import ANCHORS
from bridge.dataflow.tracing import OUTPUT, Traced, place
from bridge.doctor.programs import Program
from bridge.doctor.stretches import Stretch
from bridge.weights.report import Pair

# An array of more axes is compared without regard to their order.
_MOST_AXES = 5


@dataclass(frozen=True)
class Step:
    """A value that both models have: what enters a layer, or the output.

    `far` is its relative L2 distance, whatever the order of its numbers; `turned` says that the order
    of the numbers along its axes is another one. `mine` and `theirs` are the ops that make it, `before`
    the steps that it is made of.
    """

    path: Path
    key: str
    far: float
    turned: bool
    mine: Stretch
    theirs: Stretch
    before: tuple[int, ...]

    @property
    def where(self) -> str:
        """The step for a message."""
        return f"the input of {paths.join(self.path)} ({self.key})" if self.key else "the output"


@dataclass(frozen=True)
class _Met:
    """A layer of both programs: the array by which it was found, and where it begins."""

    path: Path
    key: str
    mine: Block
    theirs: Block


def located(mine: Traced, theirs: Traced, pairs: Sequence[Pair]) -> list[Step]:
    """The values that enter the layers of two programs, as far as both have them, and the output."""
    layers = [*_met(mine, theirs, pairs)]
    first = _Side(mine, [one.mine for one in layers])
    second = _Side(theirs, [one.theirs for one in layers])
    steps, numbers = list[Step](), dict[int, int]()
    for one in (*layers, _Met((), "", mine.flow.output, theirs.flow.output)):
        ours, others = first.value(one.mine), second.value(one.theirs)
        if ours is None or others is None or _is_numbered(one, ours, others):
            continue
        stretch, origins = first.stretch(one.mine)
        before = tuple(numbers[origin] for origin in origins if origin in numbers)
        numbers[id(one.mine.start)] = len(steps)
        far, turned = compared(ours, others, is_padded(one.mine))
        other, _ = second.stretch(one.theirs)
        steps.append(Step(one.path, one.key, far, turned, stretch, other, before))
    return steps


class _Side:
    """One of two programs: the values that enter its layers, and what makes them."""

    def __init__(self, traced: Traced, layers: Sequence[Block]) -> None:
        self._program = Program(traced)
        self._starts = {id(layer.start) for layer in layers}
        self._values = traced.observe((one.start, one.operand) for one in layers)(traced.arrays)

    def value(self, layer: Block) -> np.ndarray | None:
        """What enters a layer; None inside of a loop."""
        return self._values.get(OUTPUT if layer.start is None else place(layer.start, layer.operand))

    def stretch(self, layer: Block) -> tuple[Stretch, list[int]]:
        """What makes what enters a layer, and the ops, by identity, of the layers before."""
        stretch, origins = self._program.stretch(layer.start, layer.operand, self._starts)
        return stretch, [id(eqn) for eqn in origins]


def _is_numbered(one: _Met, mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether rows of a table are looked up that one side numbers by batch as well, as vmap does."""
    return bool(one.key) and one.mine.uses[0].role == TABLE and mine.size != theirs.size


def unused(mine: Traced, theirs: Traced, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, bool]]:
    """The pairs of which one program uses its array and the other does not; whether mine does.

    A key that goes to several places is used where any of them is.
    """
    places = {use.array.path for block in mine.flow.blocks for use in block.uses}
    here = {pair.key for pair in pairs if pair.path in places}
    there = {".".join(use.array.path) for block in theirs.flow.blocks for use in block.uses}
    for pair in pairs:
        if (pair.key in here) != (pair.key in there):
            yield pair, pair.key in here


def compared(mine: np.ndarray, theirs: np.ndarray, padded: bool = False) -> tuple[float, bool]:
    """How far two values are, and whether they are near in another order of their numbers alone.

    One of them may be `padded` with zeros, and the other not yet.
    """
    unordered = unordered_distance(mine, theirs, padded)
    if mine.size != theirs.size:
        return unordered, False
    in_order = min(distance(mine, other) for other in _orders(theirs, mine.shape))
    return min(unordered, in_order), in_order > 10 * unordered + 1e-6


def _orders(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The array in each order of its axes that gives a shape, and as it lies in memory."""
    squeezed = array.squeeze()
    wanted = tuple(size for size in shape if size != 1)
    if squeezed.ndim <= _MOST_AXES:
        for order in itertools.permutations(range(squeezed.ndim)):
            turned = squeezed.transpose(order)
            if turned.shape == wanted:
                yield turned.reshape(shape)
    yield array.reshape(shape)


def _met(mine: Traced, theirs: Traced, pairs: Sequence[Pair]) -> Iterator[_Met]:
    """The layers of both programs, in the order of the first: the n-th use of an array is the n-th."""
    keys: dict[Path, set[str]] = {}
    for pair in pairs:
        keys.setdefault(pair.path, set()).add(pair.key)
    there = _by_array(theirs.flow.blocks)
    taken = dict[tuple[str, ...], int]()
    for block in mine.flow.blocks:
        path = _anchor(block)
        for key in sorted(keys.get(path, ())) if path else ():
            rivals = there.get(tuple(key.split(".")), [])
            number = taken.get((*path, key), 0)
            taken[*path, key] = number + 1
            if number < len(rivals):
                yield _Met(path, key, block, rivals[number])
                break


def _by_array(blocks: Sequence[Block]) -> Mapping[Path, list[Block]]:
    found: dict[Path, list[Block]] = {}
    for block in blocks:
        path = _anchor(block)
        if path:
            found.setdefault(path, []).append(block)
    return found


def _anchor(block: Block) -> Path:
    """The array that a layer multiplies or looks up; () for any other block."""
    is_layer = block.start is not None and block.uses and block.uses[0].role in ANCHORS
    return block.uses[0].array.path if is_layer else ()
