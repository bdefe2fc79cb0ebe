"""Places in a Module: tuples of segments inside, dotted strings outside."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import itertools
import re
from collections.abc import Callable, Container, Iterable, Sequence
from functools import lru_cache

from bridge.core.errors import PathError

Path = tuple[str, ...]

ROOT: Path = ()
_SEPARATOR = re.compile(r"(?<!\\)((?:\\\\)*)\.")


def join(path: Iterable[str]) -> str:
    r"""The dotted string of a path; `.` and `\` inside a segment are escaped with `\`.

    >>> join(("encoder", "v1.5", "kernel"))
    'encoder.v1\\.5.kernel'
    """
    return ".".join(segment.replace("\\", "\\\\").replace(".", "\\.") for segment in path)


def split(text: str) -> Path:
    r"""The path that a dotted string spells; the inverse of `join`.

    >>> split("encoder.v1\\.5.kernel")
    ('encoder', 'v1.5', 'kernel')
    """
    if not text:
        return ROOT
    marked = _SEPARATOR.sub("\\1\0", text)
    return tuple(re.sub(r"\\(.)", r"\1", segment) for segment in marked.split("\0"))


def name(path: Path) -> str:
    """The dotted string of a path for a message, where the root has none."""
    return join(path) or "the root module"


@lru_cache(maxsize=65536)
def fingerprint(path: Path) -> int:
    """A 32-bit number that differs from path to path, for `jax.random.fold_in`.

    The length of each segment goes in as well, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.blake2b(digest_size=4)
    for segment in path:
        encoded = segment.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def is_pattern(text: str) -> bool:
    """Whether a string selects by glob and not by exact path."""
    return any(sign in text for sign in "*?[")


def matches(path: Path, pattern: str) -> bool:
    """Whether a path is what a glob asks for: `*` stands for any run of characters, dots too.

    >>> matches(("encoder", "layers", "0", "bias"), "*.bias")
    True
    """
    return fnmatch.fnmatchcase(join(path), pattern)


def below(path: Path, prefix: Path) -> bool:
    """Whether a path is `prefix` or lies under it."""
    return path[: len(prefix)] == prefix


def under(path: Path, places: Container[Path]) -> bool:
    """Whether a path is one of several places, or lies below one."""
    return any(path[:length] in places for length in range(len(path) + 1))


def covers(pattern: str, path: Path) -> bool:
    """Whether a pattern selects a path itself or something that it lies under."""
    return any(matches(path[: length + 1], pattern) for length in range(len(path)))


def selects(pattern: str, path: Path) -> bool:
    """Whether a glob, or a path that something may lie under, selects a path.

    >>> selects("encoder", ("encoder", "bias")), selects("*.bias", ("encoder", "bias"))
    (True, True)
    """
    return covers(pattern, path) if is_pattern(pattern) else below(path, split(pattern))


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Those paths that lie under no other one of them, in order."""
    chosen: dict[Path, None] = {}
    for path in paths:
        if not under(path, chosen):
            chosen[path] = None
    return [*chosen]


def relative(position: Path, target: Path) -> tuple[int, Path]:
    """How many levels to climb from `position`, and the path to go down from there to `target`."""
    shared = 0
    while shared < min(len(position), len(target)) and position[shared] == target[shared]:
        shared += 1
    return len(position) - shared, target[shared:]


def absolute(position: Path, up: int, down: Path) -> Path:
    """The target of a reference that `relative` made; raises IndexError above the root."""
    if up > len(position):
        raise IndexError("the reference climbs above the root")
    return position[: len(position) - up] + down


def nearest(wanted: str, candidates: Sequence[str], count: int = 3) -> str:
    """The end of a message: the candidates most like what was asked for, or else the first ones."""
    if not candidates:
        return "there is nothing to select"
    close = difflib.get_close_matches(wanted, candidates, n=count, cutoff=0.5)
    if close:
        return "the nearest are " + ", ".join(map(repr, close))
    more = ", ..." if len(candidates) > count else ""
    return "there are " + ", ".join(map(repr, candidates[:count])) + more


def hints(candidates: Sequence[str], most: int = 4) -> Callable[[str], str]:
    """What ends a message for each of many names that are not there: the nearest, for the first few.

    A search among ten thousands of names takes a second.
    """
    left = itertools.count(most, -1)
    return lambda wanted: f"; {nearest(wanted, candidates)}" if next(left) > 0 else ""


def nothing_there(wanted: str, candidates: Sequence[str]) -> PathError:
    """The error for a path or pattern that selects nothing."""
    return PathError(f"{wanted!r} selects nothing in this module; {nearest(wanted, candidates)}")
