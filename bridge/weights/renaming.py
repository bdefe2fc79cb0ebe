"""What `rename` says: pairs of names that settle what matching cannot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import bridge.core.paths as paths
from bridge.core.errors import WeightsError


def renamed(
    rename: Mapping[Any, str], keys: Iterable[str], places: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Each (name in the source, name in the Module) that the entries of `rename` pair.

    An entry is written in either direction: exact names, globs with as many `*` on both sides, or a
    compiled regular expression and a template for `re.Match.expand`. A name is a leaf's or a layer's.
    Raises WeightsError where an entry selects nothing, or leads nowhere.
    """
    keys, places = list(dict.fromkeys(keys)), list(dict.fromkeys(places))
    for left, right in rename.items():
        pattern, template = _compiled(left, right)
        for start, end, flip in ((keys, places, False), (places, keys, True)):
            pairs = [
                (name, found.expand(template)) for name in start if (found := pattern.fullmatch(name))
            ]
            if pairs:
                yield from _checked(left, pairs, end, flip)
                break
        else:
            nearest = paths.nearest(_text(left), [*keys, *places])
            raise WeightsError(
                f"rename: {_text(left)!r} selects nothing, in the source or in the Module; {nearest}"
            )


def _checked(
    left: Any, pairs: list[tuple[str, str]], end: list[str], flip: bool
) -> Iterator[tuple[str, str]]:
    there = {*end}
    for name, other in pairs:
        if other not in there:
            side = "source" if flip else "Module"
            raise WeightsError(
                f"rename: {_text(left)!r} leads from {name!r} to {other!r}, which is not in the"
                f" {side}; {paths.nearest(other, end)}"
            )
        yield (other, name) if flip else (name, other)


def _compiled(left: Any, right: str) -> tuple[re.Pattern[str], str]:
    if isinstance(left, re.Pattern):
        return left, right
    if left.count("*") != right.count("*"):
        raise WeightsError(
            f"rename: {left!r} and {right!r} have different numbers of *; each stands for the same"
            f" text in both"
        )
    pattern = re.compile("(.*?)".join(re.escape(piece) for piece in left.split("*")))
    pieces = [piece.replace("\\", "\\\\") for piece in right.split("*")]
    template = pieces[0] + "".join(f"\\g<{n}>{piece}" for n, piece in enumerate(pieces[1:], 1))
    return pattern, template


def _text(left: Any) -> str:
    return left.pattern if isinstance(left, re.Pattern) else left
