"""From one order of axes to another: permutations, reshapes and parts derived from axes named in words.

An array's axes are written as words: `"out in"`, `"*spatial in out"`. Beside plain words there are
`(a b)`      one axis that holds two, a outside;
`out:heads`  an axis that is a part of what the other side may keep as one axis `out`;
`*spatial`   as many axes as the array has more than there are other words;
`1`, `*1`    an axis, or several, of size 1;
`-time`      an axis that runs backwards, `-*spatial` several;
`0of3`       the first of three equal parts; the other two are other arrays' business;
`in|`, `|in` the first part of an axis, or the last; the rest of it is other arrays' business.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bridge.core.errors import WeightsError

Shape = tuple[int, ...]

_AXIS = re.compile(r"\(([^()]*)\)|([^\s()]+)")
_ATOM = re.compile(r"(?P<pick>\d+)of(?P<of>\d+)|(?P<last>\|)?(?P<back>-)?(?P<word>[^|]+)(?P<first>\|)?")
_UNIT = "1"


@dataclass(frozen=True)
class Atom:
    """A factor of an axis: `size` places of `whole`, from `start` on.

    They are the places of `word`, and `backwards` where they run against its order; without a word they
    are one place, which is another array's axis no more.
    """

    word: str | None
    size: int
    whole: int
    start: int = 0
    backwards: bool = False

    @property
    def index(self) -> Any:
        """What indexes the factor so that its places come in the word's order."""
        if self.word is None:
            return self.start
        places = range(self.start, self.start + self.size)
        if not self.backwards:
            return slice(places.start, places.stop)
        return slice(places.stop - 1, places.start - 1 if places.start else None, -1)

    def __str__(self) -> str:
        if self.word is None:
            return _UNIT if self.whole == 1 else f"{self.start}of{self.whole}"
        taken = f"[{self.start}:{self.start + self.size}]" if self.size != self.whole else ""
        return ("-" if self.backwards else "") + _spoken(self.word) + taken


Axes = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True)
class Translation:
    """How an array with axes `source` goes into one with axes `target`; made by `translation`."""

    source: Axes
    target: Axes

    @property
    def source_shape(self) -> Shape:
        """The shape that an array to translate must have."""
        return tuple(math.prod(atom.whole for atom in axis) for axis in self.source)

    @property
    def target_shape(self) -> Shape:
        """The shape of the array that it goes into."""
        return tuple(math.prod(atom.whole for atom in axis) for axis in self.target)

    @property
    def fills(self) -> bool:
        """Whether the target is filled, so that no other array goes there."""
        return all(atom.size == atom.whole for atom in _atoms(self.target))

    @property
    def exhausts(self) -> bool:
        """Whether the source is taken as a whole."""
        return all(atom.size == atom.whole for atom in _atoms(self.source))

    @property
    def region(self) -> tuple[tuple[int, int, int], ...]:
        """What of the target is filled: of each factor the first place, how many, of how many."""
        return tuple((atom.start, atom.size, atom.whole) for atom in _atoms(self.target))

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The array with its axes as in `target`, which it fills.

        The argument is never changed; the result shares its memory where only a view is needed.
        """
        turned = tuple(slice(None, None, -1 if a.backwards else 1) for a in _worded(self.target))
        return self._taken(array)[turned].reshape(self.target_shape)

    def put(self, array: np.ndarray, into: np.ndarray, add: bool = False) -> None:
        """Writes what is taken of an array into another, contiguous one, or adds it to that."""
        factors, place = into.reshape(_wholes(self.target)), _index(self.target)
        taken = self._taken(array)
        factors[place] = factors[place] + taken if add else taken

    @property
    def steps(self) -> tuple[tuple[int, int, int], ...]:
        """What moves where, whatever the words: two translations with the same steps are the same.

        Each is a loop: over how many places, how far apart in the source and in the target. The first
        one is a single place, where each of the two begins.
        """
        (start, here), (first, there) = _walk(self.source), _walk(self.target)
        loops = [(size, here[word][1], step) for word, (size, step) in there.items()]
        loops = [(n, -one, -two) if two < 0 else (n, one, two) for n, one, two in loops if n > 1]
        for word, (size, step) in there.items():
            if step < 0:  # from the other end
                first, start = first + (size - 1) * step, start + (size - 1) * here[word][1]
        merged: list[tuple[int, int, int]] = []
        for size, one, two in sorted(loops, key=lambda loop: -loop[2]):
            if merged and merged[-1][1:] == (one * size, two * size):
                merged[-1] = (merged[-1][0] * size, one, two)
            else:
                merged.append((size, one, two))
        return ((1, start, first), *merged)

    def inverse(self) -> Translation:
        """The way back; where a part was taken, it goes back to its place."""
        return Translation(self.target, self.source)

    def __str__(self) -> str:
        source, target = _written(self.source), _written(self.target)
        return f"{source} -> {target}" if self.source != self.target else source or "a number"

    def _taken(self, array: np.ndarray) -> np.ndarray:
        """What is taken of an array, with one axis for each word, in the order of the target."""
        taken = array.reshape(_wholes(self.source))[_index(self.source)]
        words = [atom.word for atom in _worded(self.source)]
        return taken.transpose([words.index(atom.word) for atom in _worded(self.target)])


def translation(
    source: str,
    target: str,
    target_shape: Sequence[int],
    source_shape: Sequence[int] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Translation:
    """The translation between two orders of axes, its sizes taken from the array at the target.

    What that leaves open is taken from `source_shape`. `sizes` are those that no shape shows, as a
    number of groups; where one is 1, its word may be missing from a side. Raises WeightsError where
    the words of the two do not agree, or not with the number of axes.

    >>> flip = translation("out in *spatial", "*spatial in out", (5, 3, 7))
    >>> flip.source_shape, flip(np.zeros((7, 3, 5))).shape
    ((7, 3, 5), (5, 3, 7))
    >>> str(translation("out in", "in out:heads out:features", (7, 2, 3)))
    '(heads features) in -> in heads features'
    >>> str(translation("out in", "in| out", (7, 2), source_shape=(2, 3)))
    'out in -> in[0:3] out'
    """
    given = None if source_shape is None else tuple(source_shape)
    return _translation(source, target, tuple(target_shape), given, frozenset((sizes or {}).items()))


@functools.lru_cache(maxsize=4096)  # a model repeats the same few layers
def _translation(
    source: str, target: str, target_shape: Shape, source_shape: Shape | None, sizes: frozenset[Any]
) -> Translation:
    found, stars = dict(sizes), dict[str, int]()
    there = _expanded(_parsed(target), len(target_shape), stars)
    ranked = source_shape is not None and f"*{_UNIT}" in source  # nothing else tells how many
    here = _expanded(_parsed(source), len(source_shape or ()) if ranked else None, stars)
    ones = {word for word, size in found.items() if size == 1}
    here, there = _without(here, ones), _without(there, ones)
    here, there = _refined(here, there), _refined(there, here)
    if sorted(_words(here)) != sorted(_words(there)):
        raise WeightsError(f"the axes ({source}) and ({target}) do not name the same things")
    _solve(there, target_shape, found)
    came = source_shape if source_shape is not None and len(source_shape) == len(here) else None
    _solve(here, came or [None] * len(here), found)
    missing = sorted({*_words(there)} - {*found})
    if missing:
        raise WeightsError(f"the axes ({target}) of {target_shape} leave the size of {missing[0]} open")
    made = Translation(_sized(here, came, found), _sized(there, target_shape, found))
    if made.target_shape != target_shape:
        raise WeightsError(f"the axes ({target}) do not divide the shape {target_shape}")
    return made


class Coverage(NamedTuple):
    """How many numbers of an array are filled never, how many more than once, how many there are."""

    empty: int
    twice: int
    size: int


def coverage(translations: Sequence[Translation]) -> Coverage:
    """What translations, all to one array, fill of it; in no more memory than its axes are long.

    >>> halves = [translation("in", f"{pick}of2 in", (2, 3)) for pick in (0, 1)]
    >>> coverage(halves), coverage(halves[:1]).empty
    (Coverage(empty=0, twice=0, size=6), 3)
    """
    # What a translation fills is a product over axes, so places that all take alike count as one.
    taken = zip(*([_places(axis) for axis in one.target] for one in translations), strict=True)
    alike = [_alike(np.stack(masks)) for masks in taken]
    sizes, counted = _outer([lengths for _, lengths in alike]), np.zeros((), np.int64)
    for number in range(len(translations)):
        counted = counted + _outer([kinds[number] for kinds, _ in alike])
    return Coverage(int(sizes[counted == 0].sum()), int(sizes[counted > 1].sum()), int(sizes.sum()))


def _places(axis: tuple[Atom, ...]) -> np.ndarray:
    """Which places of an axis are taken."""
    mask = np.zeros([atom.whole for atom in axis], bool)
    mask[tuple(atom.index for atom in axis)] = True
    return mask.ravel()


def _alike(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns of masks that differ, and how many there are of each."""
    if masks.size and masks.all():  # nearly every axis: it is taken whole
        return masks[:, :1], np.array([masks.shape[1]])
    return np.unique(masks, axis=1, return_counts=True)


def _outer(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The products of the numbers of several rows, an axis for each."""
    return functools.reduce(np.multiply.outer, rows, np.ones((), np.int64))


def labelled(axes: str, shape: Sequence[int]) -> str:
    """The sizes of an array with its axes' words: `out=16, in=32`; the shape where they do not fit."""
    try:
        expanded = _expanded(_parsed(axes), len(shape), {})
    except WeightsError:
        return f"shape {tuple(shape)}"
    names = (_grouped([factor.text for factor in axis]) for axis in expanded)
    return ", ".join(f"{n}={size}" for n, size in zip(names, shape, strict=True)) or "a number"


@dataclass(frozen=True)
class _Factor:
    """A factor of an axis as it is written: its word, which may be a pick of it or at one end of it."""

    word: str | None = None
    of: int = 1
    start: int = 0
    backwards: bool = False
    end: str = ""

    @property
    def text(self) -> str:
        """The factor for a message."""
        if self.word is None:
            return _UNIT if self.of == 1 else f"{self.start}of{self.of}"
        return ("-" if self.backwards else "") + _spoken(self.word)


_Factors = tuple[tuple[_Factor, ...], ...]


@functools.cache
def _parsed(text: str) -> _Factors:
    axes = (group or word for group, word in _AXIS.findall(text))
    return tuple(tuple(_factor(word) for word in axis.split()) for axis in axes)


def _factor(text: str) -> _Factor:
    found = _ATOM.fullmatch(text)
    if found is None:
        raise WeightsError(f"{text!r} is no word for an axis")
    if found["pick"]:
        return _Factor(of=int(found["of"]), start=int(found["pick"]))
    end = "first" if found["first"] else "last" if found["last"] else ""
    word = None if found["word"] == _UNIT else found["word"]
    return _Factor(word, backwards=bool(found["back"]), end=end)


def _expanded(axes: _Factors, rank: int | None, stars: dict[str, int]) -> _Factors:
    """The axes with each `*word` as so many axes as the rank, or the other side's star, asks for."""
    free = None if rank is None else rank - sum(not _starred(axis) for axis in axes)
    expanded: list[tuple[_Factor, ...]] = []
    for axis in axes:
        if not _starred(axis):
            expanded.append(axis)
            continue
        word = str(axis[0].word)[1:]
        count = stars.setdefault(word, free if free is not None else 0)
        if word == _UNIT:
            expanded.extend([(_Factor(),)] * (free or 0))
            continue
        names = [f"{word}{n}" if count > 1 else word for n in range(1, count + 1)]
        expanded.extend((replace(axis[0], word=name),) for name in names)
    if rank is not None and len(expanded) != rank:
        text = " ".join(_grouped([factor.text for factor in axis]) for axis in axes)
        raise WeightsError(f"({text}) names {len(axes)} axes and the array has {rank}")
    return tuple(expanded)


def _starred(axis: tuple[_Factor, ...]) -> bool:
    return len(axis) == 1 and str(axis[0].word).startswith("*")


def _without(axes: _Factors, ones: set[str]) -> _Factors:
    """The axes without words whose size is 1."""
    return tuple(tuple(f if f.word not in ones else _Factor() for f in axis) for axis in axes)


def _refined(axes: _Factors, other: _Factors) -> _Factors:
    """The axes with a word that the other side keeps in parts, `out:heads`, as those parts."""
    parts: dict[str, list[str]] = {}
    for word in _words(other):
        if ":" in word:
            parts.setdefault(word.partition(":")[0], []).append(word)
    return tuple(
        tuple(
            replace(factor, word=part)
            for factor in axis
            for part in parts.get(str(factor.word), [factor.word])
        )
        for axis in axes
    )


def _words(axes: _Factors) -> list[str]:
    return [factor.word for axis in axes for factor in axis if factor.word is not None]


def _solve(axes: _Factors, shape: Sequence[int | None], found: dict[str, int]) -> None:
    """Adds the sizes of the words that the sizes of the axes show."""
    for axis, size in zip(axes, shape, strict=True):
        free = [f for f in axis if f.word is not None and f.word not in found]
        if size is None or len(free) != 1 or any(f.end for f in axis):
            continue
        rest = math.prod(f.of if f.word is None else found[f.word] for f in axis if f not in free)
        found[str(free[0].word)] = size // max(rest, 1)


def _sized(axes: _Factors, shape: Sequence[int] | None, sizes: Mapping[str, int]) -> Axes:
    """The axes with sizes; one that is shared with other arrays is as long as the shape says."""
    made = []
    for number, axis in enumerate(axes):
        own = [factor.of if factor.word is None else sizes[factor.word] for factor in axis]
        atoms = [
            Atom(f.word, 1 if f.word is None else size, size, f.start, f.backwards)
            for f, size in zip(axis, own, strict=True)
        ]
        for place, factor in enumerate(axis):
            if factor.end and shape is not None:
                whole = shape[number] * own[place] // max(math.prod(own), 1)
                start = whole - own[place] if factor.end == "last" else 0
                atoms[place] = replace(atoms[place], whole=whole, start=start)
        made.append(tuple(atoms))
    return tuple(made)


def _walk(axes: Axes) -> tuple[int, dict[str, tuple[int, int]]]:
    """The place of the first number, and how many steps each word takes, and how long they are."""
    first, stride, steps = 0, 1, dict[str, tuple[int, int]]()
    for atom in reversed(_atoms(axes)):
        place = atom.start + (atom.size - 1 if atom.backwards else 0)
        first += place * stride
        if atom.word is not None:
            steps[atom.word] = atom.size, -stride if atom.backwards else stride
        stride *= atom.whole
    return first, steps


def _atoms(axes: Axes) -> list[Atom]:
    return [atom for axis in axes for atom in axis]


def _worded(axes: Axes) -> list[Atom]:
    return [atom for atom in _atoms(axes) if atom.word is not None]


def _wholes(axes: Axes) -> list[int]:
    return [atom.whole for atom in _atoms(axes)]


def _index(axes: Axes) -> tuple[Any, ...]:
    return tuple(atom.index for atom in _atoms(axes))


def _written(axes: Axes) -> str:
    return " ".join(_grouped([str(atom) for atom in axis]) for axis in axes)


def _grouped(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"({' '.join(texts)})"


def _spoken(word: str) -> str:
    return word.rpartition(":")[2]
