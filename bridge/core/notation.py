"""A translation as text that a person can read, and back: every word with its size.

`out=7 in=5`       two axes, of seven places and of five;
`(heads=2 in=5)`   one axis that holds two, heads outside;
`in[0:3]of8`       the first three places of eight; the rest are another array's;
`1of3`             the place with the number 1 of three; `1` is an axis of size 1;
`-time=11`         an axis that runs backwards.
"""

from __future__ import annotations

import re
from collections import Counter

from bridge.core.errors import WeightsError
from bridge.core.translation import Atom, Axes, Translation

_AXIS = re.compile(r"\s*(?:\((?P<group>[^()]*)\)|(?P<alone>[^\s()]+))")
_ATOM = re.compile(
    r"(?P<back>-)?(?:(?P<unit>1)|(?P<pick>\d{1,18})of(?P<picks>\d{1,18})|(?P<word>[^\s()]+?)"
    r"(?:=(?P<size>\d{1,18})|\[(?P<start>\d{1,18}):(?P<stop>\d{1,18})\]of(?P<whole>\d{1,18})))"
)


def written(axes: Axes) -> str:
    """The axes of one side of a translation as text; `read` gives the translation back.

    >>> from bridge.core.translation import translation
    >>> turned = translation("(1of3 out) in", "in out:heads out:features", (7, 2, 5))
    >>> written(turned.source), written(turned.target)
    ('(1of3 out:heads=2 out:features=5) in=7', 'in=7 out:heads=2 out:features=5')
    """
    return " ".join(_written_axis([_written_atom(atom) for atom in axis]) for axis in axes)


def read(source: str, target: str) -> Translation:
    """The translation between two sides, each as `written` writes it.

    Raises WeightsError for text that is none, and where the two sides do not name the same things.

    >>> read("out=7 in=5", "in=5 out=7").target_shape
    (5, 7)
    """
    here, there = _axes(source), _axes(target)
    words = [
        Counter((a.word, a.size) for axis in side for a in axis if a.word) for side in (here, there)
    ]
    if words[0] != words[1] or any(count > 1 for count in _names(here).values()):
        raise WeightsError(f"the axes {source!r} and {target!r} do not name the same things, each once")
    return Translation(here, there)


def _names(axes: Axes) -> Counter[str]:
    return Counter(atom.word for axis in axes for atom in axis if atom.word)


def _written_axis(atoms: list[str]) -> str:
    return atoms[0] if len(atoms) == 1 else f"({' '.join(atoms)})"


def _written_atom(atom: Atom) -> str:
    back = "-" if atom.backwards else ""
    if atom.word is None:
        return back + ("1" if atom.whole == 1 else f"{atom.start}of{atom.whole}")
    if atom.size == atom.whole:
        return f"{back}{atom.word}={atom.size}"
    return f"{back}{atom.word}[{atom.start}:{atom.start + atom.size}]of{atom.whole}"


def _axes(text: str) -> Axes:
    axes, end = [], 0
    while end < len(text.rstrip()):
        found = _AXIS.match(text, end)
        if found is None:
            raise WeightsError(f"{text!r} does not tell the axes of an array")
        group = found["alone"] if found["group"] is None else found["group"]
        axes.append(tuple(_atom(word) for word in group.split()))
        end = found.end()
    return tuple(axes)


def _atom(text: str) -> Atom:
    found = _ATOM.fullmatch(text)
    if found is None:
        raise WeightsError(f"{text!r} does not tell an axis and its size")
    back = bool(found["back"])
    if found["unit"]:
        return Atom(None, 1, 1, 0, back)
    if found["pick"]:
        atom = Atom(None, 1, int(found["picks"]), int(found["pick"]), back)
    elif found["size"]:
        atom = Atom(found["word"], int(found["size"]), int(found["size"]), 0, back)
    else:
        start, stop = int(found["start"]), int(found["stop"])
        atom = Atom(found["word"], stop - start, int(found["whole"]), start, back)
    if not 0 <= atom.start <= atom.start + atom.size <= atom.whole or atom.size < 0:
        raise WeightsError(f"{text!r} takes places that are not there")
    return atom
