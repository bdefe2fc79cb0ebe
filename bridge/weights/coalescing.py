"""Pairs of a plan that go side by side from one array to another, as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bridge.core.translation import Atom, Axes, Translation
from bridge.weights.report import Pair, by_path

PARTS = "parts"


@dataclass(frozen=True)
class _Piece:
    """A translation as one of several equal parts of another, `whole`: from and to which place."""

    whole: Translation
    count: int
    start: int
    end: int


def coalesced(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs, those as one that together take all parts of an array to as many of another in order.

    So the gates of a recurrent layer are one pair where a library stacks them as torch does; an array
    that is a sum of some gates alone keeps them apart.
    """
    for group in by_path(pairs).values():
        wholes = [*_wholes(group)]
        yield from group if None in wholes else (pair for pair in wholes if pair is not None)


def _wholes(pairs: Sequence[Pair]) -> Iterator[Pair | None]:
    """One pair for all of each key; None where they are not all of it."""
    keys: dict[tuple[str, float], list[Pair]] = {}
    for pair in pairs:
        keys.setdefault((pair.key, pair.offset), []).append(pair)
    for group in keys.values():
        whole = _whole([_piece(pair.translation) for pair in group])
        yield None if whole is None else replace(group[0], translation=whole)


def _whole(pieces: Sequence[_Piece | None]) -> Translation | None:
    """The translation that pieces make up; None where they are not all of it, in order."""
    first = pieces[0]
    if first is None or len(pieces) != first.count:
        return None
    wanted = [replace(first, start=number, end=number) for number in range(first.count)]
    return first.whole if {*pieces} == {*wanted} else None


def _piece(translation: Translation) -> _Piece | None:
    sides = [_picks(translation.source), _picks(translation.target)]
    if [len(side) for side in sides] != [1, 1] or sides[0][0].whole != sides[1][0].whole:
        return None
    whole = Translation(_unpicked(translation.source), _unpicked(translation.target))
    return _Piece(whole, sides[0][0].whole, sides[0][0].start, sides[1][0].start)


def _picks(axes: Axes) -> list[Atom]:
    """The factors of which one place is taken."""
    return [atom for axis in axes for atom in axis if atom.word is None and atom.whole > 1]


def _unpicked(axes: Axes) -> Axes:
    picks = _picks(axes)
    return tuple(
        tuple(Atom(PARTS, a.whole, a.whole) if a in picks else a for a in axis) for axis in axes
    )
