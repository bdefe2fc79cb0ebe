"""What a program does with its arrays: which of them act on which value, as what, and what feeds what.

Each array of numbers that a model holds is first met by some op, through transposes and reshapes: that
op says what the array is (a matrix, a kernel, a table, a scale, ...) and which of its axes is which.
Arrays that act on one value one after another, up to the next thing that is no affine map, are a block,
and blocks feed each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.core.paths import Path
from bridge.dataflow.axes import Axis, Dim, matched, parts_of

Cut = tuple[Axis, int, int]

MATRIX, KERNEL, TABLE = "matrix", "kernel", "table"
SCALE, SHIFT, CENTRE, VARIANCE = "scale", "shift", "centre", "variance"
CONTRACTED, FREE, BATCHED, LOOKED_UP = "contracted", "free", "batched", "looked up"


@dataclass(eq=False)
class Array:
    """An array that the program is given: where it is, and the axes of its dimensions."""

    path: Path
    shape: tuple[int, ...]
    dtype: Any
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Link:
    """Axes of an array that are axes of the program: what they are to the op."""

    label: str
    own: Dim
    there: Dim


@dataclass(frozen=True, eq=False)
class Use:
    """How an array enters a block: its role there, what its axes are, which of them run backwards.

    `part` is what was taken of the array, `cuts` what of the block's value it acts on, `offset` what is
    added to it before, `segment` what of its value the block is about.
    """

    array: Array
    role: str
    links: Sequence[Link]
    backwards: frozenset[Axis]
    part: frozenset[Cut]
    cuts: frozenset[Cut]
    offset: float
    number: int
    segment: Cut | None = None


@dataclass(frozen=True)
class Factor:
    """A factor of a dimension of an array: what it is to the op that uses it, and to the program.

    Of its `whole` length, `size` places from `start` on are used.
    """

    size: int
    whole: int
    start: int = 0
    label: str = ""
    axis: Axis | None = None
    backwards: bool = False


def layout(use: Use) -> tuple[tuple[Factor, ...], ...]:
    """What the dimensions of an array are to its use."""
    found: dict[Axis, tuple[str, Axis | None]] = {}
    for link in use.links:
        for own, there in _aligned(link.own, link.there):
            found.setdefault(own, (link.label, there))
            for (start, stop), piece in own.places():
                found.setdefault(piece.one, (link.label, there and there.cut(start, stop)))
    parts = {axis.one: (start, stop) for axis, start, stop in use.part}
    segment = use.segment

    def factor(axis: Axis) -> Factor:
        label, there = found.get(axis, ("", None))
        start, stop = parts.get(axis, (0, axis.size))
        if segment is not None and there is not None and there.one is segment[0].one:
            start, stop = segment[1:]
        return Factor(stop - start, axis.size, start, label, there, axis in use.backwards)

    return tuple(tuple(factor(axis) for axis in parts_of(d)) for d in use.array.dims)


def _aligned(own: Dim, there: Dim) -> list[tuple[Axis, Axis | None]]:
    """The axes of an array, and which of the program's each is."""
    return [*matched(own, there)] if there is not None else [(axis, None) for axis in parts_of(own)]


@dataclass(frozen=True)
class Feed:
    """A block or an input whose value comes into another one: a part of it, and through which ops."""

    origin: Block
    cuts: frozenset[Cut] = frozenset()
    ops: frozenset[str] = frozenset()


@dataclass(eq=False)
class Block:
    """Arrays that act on one value one after another, and what feeds them.

    `start` is the op at which they begin, `operand` which of its operands is the value.
    """

    title: str
    feeders: frozenset[Feed] = frozenset()
    uses: list[Use] = field(default_factory=list)
    start: Any = None
    operand: int = 0


@dataclass
class Flow:
    """What a program does with its arrays."""

    arrays: Mapping[Path, Array]
    inputs: Sequence[Block]
    blocks: Sequence[Block]
    output: Block
