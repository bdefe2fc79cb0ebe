"""Transforms: how an array is transposed and reshaped, (permute, reshape, reshape_first).

`permute` is the order of axes for `transpose`, `reshape` a shape, either None where it is not done. The
array is reshaped after it was transposed, or before it with `reshape_first`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bridge.core.errors import WeightsError
from bridge.core.translation import Atom, Axes, Translation

Shape = tuple[int, ...]
Transform = tuple[tuple[int, ...] | None, Shape | None, bool]


def transform_of(turned: Translation) -> Transform:
    """The transform that does what a translation does; raises WeightsError where none does.

    >>> from bridge.core.translation import translation
    >>> transform_of(translation("out in", "in out:heads out:features", (7, 2, 5)))
    ((1, 0), (7, 2, 5), False)
    """
    atoms = [atom for side in (turned.source, turned.target) for axis in side for atom in axis]
    if any(atom.size != atom.whole for atom in atoms):
        raise WeightsError("it is a part of an array")
    if any(atom.backwards for atom in atoms):
        raise WeightsError("an axis runs backwards")
    here, there = _words(turned.source), _words(turned.target)
    flat, wanted = sum(here, ()), sum(there, ())
    shape = turned.target_shape
    order = _order(here, wanted)
    if order is not None:
        made = tuple(turned.source_shape[axis] for axis in order)
        return _unless(order), None if made == shape else shape, False
    order = _order(there, flat)
    if order is None:
        raise WeightsError("it is reshaped, transposed and reshaped again")
    back = tuple(order.index(axis) for axis in range(len(order)))
    return _unless(back), tuple(shape[axis] for axis in order), True


def _words(axes: Axes) -> list[tuple[str, ...]]:
    return [tuple(atom.word for atom in axis if atom.word is not None) for axis in axes]


def _order(axes: Sequence[tuple[str, ...]], words: tuple[str, ...]) -> tuple[int, ...] | None:
    """The order of axes in which their words come in this order; None where there is none."""
    full = [number for number, axis in enumerate(axes) if axis]
    order = sorted(full, key=lambda number: words.index(axes[number][0]))
    empty = [number for number, axis in enumerate(axes) if not axis]
    joined = sum((axes[number] for number in order), ())
    return (*order, *empty) if joined == words else None


def _unless(order: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if order == tuple(range(len(order))) else order


def translation_of(transform: Any, shape: Shape) -> Translation:
    """The translation that does what a transform, or None, does to an array of this shape.

    Raises WeightsError for what is no transform, or none of such an array.
    """
    permute, reshape, first = _checked(transform)
    if first and reshape is not None:
        here, there = _divided(shape, _resolved(reshape, shape))
        return Translation(here, tuple(there[axis] for axis in _order_of(permute, len(there))))
    order = _order_of(permute, len(shape))
    made = tuple(shape[axis] for axis in order)
    here, there = _divided(made, made if reshape is None else _resolved(reshape, shape))
    return Translation(tuple(here[order.index(axis)] for axis in range(len(order))), there)


def _checked(transform: Any) -> Transform:
    """A transform with its numbers in tuples."""
    match (None, None, False) if transform is None else transform:
        case (permute, reshape, bool(first)) if _whole(permute) and _whole(reshape):
            made = (None if one is None else tuple(map(int, one)) for one in (permute, reshape))
            return (*made, first)  # type: ignore[return-value]
    raise WeightsError(f"{transform!r} is no transform; (permute, reshape, reshape_first) is one")


def _whole(numbers: Any) -> bool:
    """Whether something is None or a row of whole numbers."""
    if numbers is None:
        return True
    return isinstance(numbers, (tuple, list)) and all(type(number) is int for number in numbers)


def _order_of(permute: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    order = tuple(range(rank)) if permute is None else tuple(permute)
    if sorted(order) != [*range(rank)]:
        raise WeightsError(f"{order} is no order of {rank} axes")
    return order


def _resolved(reshape: Shape, shape: Shape) -> Shape:
    """The shape that a reshape gives, the one -1 in it filled in."""
    size, known = math.prod(shape), math.prod(n for n in reshape if n != -1)
    came = tuple(size // max(known, 1) if n == -1 else n for n in reshape)
    if reshape.count(-1) > 1 or math.prod(came) != size or any(n < 0 for n in came):
        raise WeightsError(f"an array of shape {shape} cannot be reshaped to {reshape}")
    return came


def _divided(one: Shape, other: Shape) -> tuple[Axes, Axes]:
    """The axes of two shapes of as many numbers in row-major order, in the same factors."""
    sides: tuple[list[list[Atom]], list[list[Atom]]] = ([[] for _ in one], [[] for _ in other])
    left, right = ([(axis, n) for axis, n in enumerate(side) if n != 1] for side in (one, other))
    count = 0
    while left and right:
        (axis, size), (place, room) = left.pop(), right.pop()
        common = min(size, room)
        if common != max(size, room) and (common == 0 or max(size, room) % common):
            raise WeightsError(
                f"a plan cannot say a reshape from {one} to {other}: an axis is cut within"
            )
        for axes, number in ((sides[0], axis), (sides[1], place)):
            axes[number].insert(0, Atom(f"axis{count}", common, common))
        left += [(axis, size // common)] if size > common else []
        right += [(place, room // common)] if room > common else []
        count += 1
    unit = (Atom(None, 1, 1),)
    here, there = (tuple(tuple(axis) or unit for axis in side) for side in sides)
    return here, there
