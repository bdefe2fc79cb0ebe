"""A box of an array: the translation that fills it alone, as a device wants it that holds a part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bridge.core.translation import Atom, Translation

Box = Sequence[slice]
Axis = tuple[Atom, ...]
Range = tuple[int, int]


class Uneven(ValueError):
    """A box cuts an axis where its factors do not."""


def narrowed(turned: Translation, box: Box) -> Translation | None:
    """The translation of the same source to a box of the target; None where it fills nothing there.

    Raises Uneven where the box cuts an axis of several factors within an outer one.

    >>> from bridge.core.translation import translation
    >>> part = narrowed(translation("out in", "in out", (5, 8)), (slice(0, 5), slice(4, 6)))
    >>> str(part), part.source_shape, part.target_shape
    ('out[4:6] in -> in out', (8, 5), (5, 2))
    """
    kept: dict[str, Range] = {}
    target: list[Axis] = []
    for axis, part in zip(turned.target, box, strict=True):
        made = _cut(axis, part, kept)
        if made is None:
            return None
        target.append(made)
    source = tuple(
        tuple(_inner(atom, kept[atom.word]) if atom.word in kept else atom for atom in axis)
        for axis in turned.source
    )
    return Translation(source, tuple(target))


def _cut(axis: Axis, part: slice, kept: dict[str, Range]) -> Axis | None:
    """A part of an axis of the target; what of a word is in it is added to `kept`."""
    first, last, _ = part.indices(math.prod(atom.whole for atom in axis))
    place = next((i for i, atom in enumerate(axis) if atom.whole > 1), 0)
    inside = math.prod(atom.whole for atom in axis[place + 1 :])
    if not axis or (first, last) == (0, axis[place].whole * inside):
        return axis
    if first % inside or last % inside:
        raise Uneven
    atom, first, last = axis[place], first // inside, last // inside
    low, high = max(first, atom.start), min(last, atom.start + atom.size)
    if low >= high:
        return None
    if atom.word is not None:
        skipped = (atom.start + atom.size - high) if atom.backwards else (low - atom.start)
        kept[atom.word] = skipped, skipped + high - low
    cut = replace(atom, size=high - low, whole=last - first, start=low - first)
    return (*axis[:place], cut, *axis[place + 1 :])


def _inner(atom: Atom, places: Range) -> Atom:
    """An atom with some places of its word alone, in the same whole."""
    low, high = places
    skipped = atom.size - high if atom.backwards else low
    return replace(atom, size=high - low, start=atom.start + skipped)
