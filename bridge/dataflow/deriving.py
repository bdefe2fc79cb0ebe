"""How an array of one program lies in the other: from what the axes of both are to their uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from bridge.core.translation import Atom, Translation
from bridge.dataflow.axes import Axis
from bridge.dataflow.flow import VARIANCE, Array, Block, Factor, Use, layout
from bridge.dataflow.proving import Pair, signature

Layout = tuple[tuple[Factor, ...], ...]
Tells = Callable[[Factor, Factor], bool]


@dataclass(frozen=True)
class Derived:
    """An array of the first program as one of the second: `offset` is added after the translation.

    `epsilon` are the numbers that the two programs add to a variance.
    """

    array: Array
    source: Array
    role: str
    translation: Translation
    offset: float
    evidence: str
    epsilon: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Undecided:
    """Two arrays that are one, and whose axes nothing tells apart."""

    array: Array
    source: Array
    reason: str
    evidence: str


def derive(pairs: Iterable[Pair]) -> list[Derived | Undecided]:
    """The translations of the arrays of blocks that are one."""
    uses = [(*both, pair.evidence) for pair in pairs for both in _uses(pair.mine, pair.theirs)]
    layouts = [_alike(layout(mine), layout(theirs)) for mine, theirs, _ in uses]
    known: dict[Axis, Axis] = {}
    count = -1
    while count < len(known):  # what one array tells of an axis may decide another's
        count = len(known)
        for mine, theirs in layouts:
            for one, two in _paired(mine, theirs, known):
                if one.axis is not None and two.axis is not None:
                    known.setdefault(one.axis.one, two.axis.one)
    return [_derived(*use, *both, known) for use, both in zip(uses, layouts, strict=True)]


def _uses(mine: Block, theirs: Block) -> Iterator[tuple[Use, Use]]:
    """The uses of two blocks that are one: of those of one role and size the first, the second, ..."""
    left = sorted(theirs.uses, key=lambda use: use.number)
    for use in sorted(mine.uses, key=lambda use: use.number):
        other = next(one for one in left if signature(one) == signature(use))
        left.remove(other)
        yield use, other


def _alike(mine: Layout, theirs: Layout) -> tuple[Layout, Layout]:
    """Two layouts, a factor of one in parts where the other has the parts."""
    return _divided(mine, _by_label(theirs)), _divided(theirs, _by_label(mine))


def _divided(dims: Layout, other: Mapping[str, list[Factor]]) -> Layout:
    own = _by_label(dims)

    def parts(factor: Factor) -> tuple[Factor, ...]:
        there = other.get(factor.label, [])
        equal = math.prod(part.size for part in there) == factor.size
        even = factor.whole % factor.size == factor.start % factor.size == 0
        if len(own.get(factor.label, ())) != 1 or len(there) < 2 or not (equal and even):
            return (factor,)
        of, start = factor.whole // factor.size, factor.start // factor.size
        pick = (replace(factor, size=1, whole=of, start=start, axis=None),) if of > 1 else ()
        return (*pick, *(replace(factor, size=p.size, whole=p.size, start=0, axis=None) for p in there))

    return tuple(tuple(part for factor in d for part in parts(factor)) for d in dims)


def _derived(
    mine: Use,
    theirs: Use,
    evidence: str,
    layout: Layout,
    source: Layout,
    known: Mapping[Axis, Axis],
) -> Derived | Undecided:
    pairs = _paired(layout, source, known)
    named = {id(one): number for number, pair in enumerate(pairs) for one in pair}
    lost = [
        f for dims in (layout, source) for d in dims for f in d if f.size > 1 and id(f) not in named
    ]
    if lost:
        sizes = " and ".join(str(factor.size) for factor in lost)
        reason = f"nothing tells which axis is which of {sizes}"
        return Undecided(mine.array, theirs.array, reason, evidence)
    there, here = _axes(layout, named), _axes(source, named)
    turned = Translation(here, there)
    if mine.role == VARIANCE:
        both = mine.offset, theirs.offset
        return Derived(mine.array, theirs.array, mine.role, turned, 0.0, evidence, both)
    offset = theirs.offset - mine.offset
    return Derived(mine.array, theirs.array, mine.role, turned, offset, evidence)


def _axes(dims: Layout, named: Mapping[int, int]) -> tuple[tuple[Atom, ...], ...]:
    return tuple(tuple(_atom(factor, named.get(id(factor))) for factor in d) for d in dims)


def _atom(factor: Factor, number: int | None) -> Atom:
    word = None if number is None else f"{factor.label.replace(' ', '') or 'axis'}{number}"
    return Atom(word, factor.size, factor.whole, factor.start, factor.backwards)


def _paired(mine: Layout, theirs: Layout, known: Mapping[Axis, Axis]) -> list[tuple[Factor, Factor]]:
    """The factors of two layouts that are one, as far as anything tells."""
    found: list[tuple[Factor, Factor]] = []
    groups = [_by_label(dims) for dims in (mine, theirs)]
    for label in groups[0].keys() | groups[1].keys():
        left = [list(group.get(label, ())) for group in groups]
        for tells in (_known(known), _labelled, _sized):
            for one in list(left[0]):
                others = [two for two in left[1] if tells(one, two)]
                rivals = [rival for rival in left[0] if any(tells(rival, two) for two in others)]
                if len(others) == len(rivals) == 1:
                    found.append((one, others[0]))
                    left[0].remove(one)
                    left[1].remove(others[0])
    return found


def _by_label(dims: Layout) -> dict[str, list[Factor]]:
    groups: dict[str, list[Factor]] = {}
    for factor in (factor for d in dims for factor in d if factor.size > 1):
        groups.setdefault(factor.label, []).append(factor)
    return groups


def _known(known: Mapping[Axis, Axis]) -> Tells:
    def tells(one: Factor, two: Factor) -> bool:
        if one.axis is None or two.axis is None:
            return False
        return known.get(one.axis.one) is two.axis.one

    return tells


def _labelled(one: Factor, two: Factor) -> bool:
    if one.axis is None or two.axis is None:
        return False
    return bool(one.axis.one.labels & two.axis.one.labels) and one.size == two.size


def _sized(one: Factor, two: Factor) -> bool:
    return one.size == two.size
