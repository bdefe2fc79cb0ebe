"""From one order of axes to another: permutations and reshapes derived from axes named in words.

An array's axes are written as words: `"out in"`, `"*spatial in out"`. Beside plain words there are
`(a b)`      one axis that holds two, a outside;
`out:heads`  an axis that is a part of what the other side may keep as one axis `out`;
`*spatial`   as many axes as the array has more than there are other words;
`1`, `*1`    an axis, or several, of size 1;
`0of3`       the first of three equal parts; the other two are other arrays' business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.core.errors import WeightsError

Axis = tuple[str, ...]
Axes = tuple[Axis, ...]
Shape = tuple[int, ...]

_AXIS = re.compile(r"\(([^()]*)\)|([^\s()]+)")
_PICK = re.compile(r"(\d+)of(\d+)")
_UNIT = "1"


@dataclass(frozen=True)
class Translation:
    """How an array with axes `source` becomes one with axes `target`; made by `translation`.

    `sizes` are those of the words. Calling it never changes its argument; the result shares the
    argument's memory where only a view is needed.
    """

    source: Axes
    target: Axes
    sizes: Mapping[str, int]

    @property
    def source_shape(self) -> Shape:
        """The shape that an array to translate must have."""
        return tuple(_size(axis, self.sizes) for axis in self.source)

    @property
    def target_shape(self) -> Shape:
        """The shape of the translated array."""
        return tuple(_size(axis, self.sizes) for axis in self.target)

    @property
    def moves(self) -> bool:
        """Whether anything but the shape is changed: axes in another order, or a part taken."""
        return _words(self.source) != _words(self.target) or bool(_picks(self.source))

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The array with its axes as in `target`."""
        atoms = [atom for axis in self.source for atom in axis]
        array = array.reshape([_size((atom,), self.sizes) for atom in atoms])
        array = array[tuple(_index(atom) for atom in atoms)]
        kept = _words(self.source)
        array = array.transpose([kept.index(word) for word in _words(self.target)])
        return array.reshape(self.target_shape)

    def inverse(self) -> Translation:
        """The way back; raises WeightsError where only a part was taken."""
        if _picks(self.source):
            raise WeightsError(f"({_written(self.source)}) is a part of an array; it has no inverse")
        return Translation(self.target, self.source, self.sizes)

    def __str__(self) -> str:
        if self.source == self.target:
            return _written(self.source) or "a number"
        return f"{_written(self.source)} -> {_written(self.target)}"


def translation(source: str, target: str, target_shape: Sequence[int]) -> Translation:
    """The translation between two orders of axes, its sizes taken from the array at the target.

    Raises WeightsError where the words of the two do not agree, or not with the number of axes.

    >>> flip = translation("out in *spatial", "*spatial in out", (5, 3, 7))
    >>> flip.source_shape, flip(np.zeros((7, 3, 5))).shape
    ((7, 3, 5), (5, 3, 7))
    >>> str(translation("out in", "in out:heads out:features", (7, 2, 3)))
    '(heads features) in -> in heads features'
    """
    shape = tuple(target_shape)
    stars: dict[str, int] = {}
    there = _expanded(_parsed(target), len(shape), stars)
    here = _expanded(_parsed(source), None, stars)
    here, there = _refined(here, there), _refined(there, here)
    if sorted(_words(here)) != sorted(_words(there)):
        raise WeightsError(f"the axes ({source}) and ({target}) do not name the same things")
    sizes: dict[str, int] = {}
    for axis, size in zip(there, shape, strict=True):
        words, rest = _words((axis,)), math.prod(_atom_size(pick, {}) for pick in _picks((axis,)))
        if len(words) > 1:
            continue
        if size % rest or (not words and size != rest):
            raise WeightsError(f"the axes ({target}) do not divide the shape {shape}")
        sizes.update(dict.fromkeys(words, size // rest))
    missing = sorted(set(_words(there)) - set(sizes))
    if missing:
        raise WeightsError(f"the axes ({target}) of {shape} leave the size of {missing[0]} open")
    return Translation(here, there, sizes)


def labelled(axes: str, shape: Sequence[int]) -> str:
    """The sizes of an array with its axes' words: `out=16, in=32`; the shape where they do not fit."""
    try:
        expanded = _expanded(_parsed(axes), len(shape), {})
    except WeightsError:
        return f"shape {tuple(shape)}"
    pairs = zip(expanded, shape, strict=True)
    return ", ".join(f"{_written((axis,))}={size}" for axis, size in pairs) or "a number"


def _parsed(text: str) -> Axes:
    return tuple(tuple((group or word).split()) for group, word in _AXIS.findall(text))


def _expanded(axes: Axes, rank: int | None, stars: dict[str, int]) -> Axes:
    """The axes with each `*word` as so many axes as the rank, or the other side's star, asks for."""
    free = None if rank is None else rank - sum(not _starred(axis) for axis in axes)
    expanded: list[Axis] = []
    for axis in axes:
        if not _starred(axis):
            expanded.append(axis)
            continue
        word = axis[0][1:]
        count = stars.setdefault(word, free if free is not None else 0)
        numbered = count > 1 and word != _UNIT
        expanded.extend((f"{word}{n}" if numbered else word,) for n in range(1, count + 1))
    if rank is not None and len(expanded) != rank:
        raise WeightsError(f"({_written(axes)}) names {len(axes)} axes and the array has {rank}")
    return tuple(expanded)


def _starred(axis: Axis) -> bool:
    return len(axis) == 1 and axis[0].startswith("*")


def _refined(axes: Axes, other: Axes) -> Axes:
    """The axes with a word that the other side keeps in parts, `out:heads`, as those parts."""
    parts: dict[str, list[str]] = {}
    for word in _words(other):
        if ":" in word:
            parts.setdefault(word.partition(":")[0], []).append(word)
    return tuple(tuple(part for word in axis for part in parts.get(word, [word])) for axis in axes)


def _words(axes: Axes) -> list[str]:
    return [word for axis in axes for word in axis if word != _UNIT and not _PICK.fullmatch(word)]


def _picks(axes: Axes) -> list[str]:
    return [word for axis in axes for word in axis if _PICK.fullmatch(word)]


def _size(axis: Axis, sizes: Mapping[str, int]) -> int:
    return math.prod(_atom_size(atom, sizes) for atom in axis)


def _atom_size(atom: str, sizes: Mapping[str, int]) -> int:
    pick = _PICK.fullmatch(atom)
    return 1 if atom == _UNIT else int(pick[2]) if pick else sizes[atom]


def _index(atom: str) -> Any:
    pick = _PICK.fullmatch(atom)
    return 0 if atom == _UNIT else int(pick[1]) if pick else slice(None)


def _written(axes: Axes) -> str:
    return " ".join(_axis_texts(axes))


def _axis_texts(axes: Axes) -> Iterator[str]:
    for axis in axes:
        words = [word.rpartition(":")[2] for word in axis]
        yield words[0] if len(words) == 1 else f"({' '.join(words)})"
