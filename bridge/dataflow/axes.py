"""Which axes of the arrays in a program are one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Dim = tuple["Axis", ...] | None
"""The axes that a dimension of an array is made of, outer first; none for one place, None for any."""


class Axis:
    """An axis longer than 1 in a program: one node of all those found to be the same.

    It may turn out to be made of others, outer first, where the program takes it apart.
    """

    def __init__(self, size: int, label: str = "") -> None:
        self.size = size
        self.labels = {label} if label else set[str]()
        self._same: Axis | None = None
        self._parts: tuple[Axis, ...] = ()
        self._cuts: dict[tuple[int, int], Axis] = {}

    @property
    def one(self) -> Axis:
        """The axis that stands for all that are the same as this one."""
        axis = self
        while axis._same is not None:
            axis = axis._same
        return axis

    def parts(self) -> Iterator[Axis]:
        """The axes that it is made of, down to those that nothing takes apart."""
        axis = self.one
        if not axis._parts:
            yield axis
        for part in axis._parts:
            yield from part.parts()

    def divide(self, outer: int) -> None:
        """Takes an axis that is in one piece apart, into one of so many places and the rest."""
        one = self.one
        one._parts = Axis(outer), Axis(one.size // outer)

    def join(self, other: Axis) -> None:
        """Makes two axes of one size, each in one piece, the same."""
        one, two = self.one, other.one
        if one is not two:
            two._same = one
            one.labels |= two.labels
            one._cuts = {**two._cuts, **one._cuts}

    def cut(self, start: int, stop: int) -> Axis:
        """The axis of the places from start to stop."""
        return self.one._cuts.setdefault((start, stop), Axis(stop - start))

    def places(self) -> Iterator[tuple[tuple[int, int], Axis]]:
        """Where other axes are places of it: first and last place but one, and the axis."""
        yield from self.one._cuts.items()

    def piece(self, start: int, axis: Axis) -> None:
        """Says that the places from start on are another axis."""
        self.one._cuts[start, start + axis.size] = axis


def dim(size: int, label: str = "") -> Dim:
    """A dimension that is an axis of its own."""
    return (Axis(size, label),) if size != 1 else ()


def parts_of(dimension: Dim) -> list[Axis]:
    """The axes of a dimension, down to those that nothing takes apart."""
    return [part for axis in dimension or () for part in axis.parts()]


def same(first: Dim, second: Dim) -> None:
    """Makes two dimensions of one size the same."""
    if first is not None and second is not None:
        for one, two in matched(first, second):
            one.join(two)


def matched(first: Dim, second: Dim) -> list[tuple[Axis, Axis]]:
    """The axes of two dimensions of one size, pair by pair, taken apart where the other is in parts.

    They end where the two cannot be taken apart alike.
    """
    mine, theirs = parts_of(first), parts_of(second)
    pairs: list[tuple[Axis, Axis]] = []
    while mine and theirs:
        one, two = mine.pop(0), theirs.pop(0)
        if one.size > two.size and one.size % two.size == 0:
            one.divide(two.size)
            one, *mine[:0] = one.parts()
        elif two.size > one.size and two.size % one.size == 0:
            two.divide(one.size)
            two, *theirs[:0] = two.parts()
        if one.size != two.size:
            break
        pairs.append((one, two))
    return pairs


def reshaped(dims: Sequence[Dim], old: Sequence[int], new: Sequence[int]) -> list[Dim]:
    """The dimensions of an array after a reshape; new axes where it does not keep to the old ones."""
    if tuple(old) == tuple(new):
        return list(dims)
    given = [dim(n) if d is None else d for d, n in zip(dims, old, strict=True)]
    left = [axis for d in given for axis in parts_of(d)]
    found: list[Dim] = []
    for size in new:
        taken: list[Axis] = []
        while (rest := size // math.prod(axis.size for axis in taken)) > 1:
            if not left:
                return [dim(n) for n in new]
            if left[0].size > rest and left[0].size % rest == 0:
                first = left.pop(0)
                first.divide(rest)
                left[:0] = first.parts()
            if rest % left[0].size:
                return [dim(n) for n in new]
            taken.append(left.pop(0))
        found.append(tuple(taken))
    return found
