"""What `match` gives: which key goes where, how, and why; printable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import bridge.core.paths as paths
from bridge.core.paths import Path
from bridge.core.translation import Translation

HEADLINE = ("key", "path", "axes", "shape", "evidence")


@dataclass(frozen=True)
class Pair:
    """One array of the source, the place it goes to, how its axes are turned, and why.

    `offset` is added to its numbers. Pairs with one path fill a part of the array each; those that fill
    the same part are added up.
    """

    key: str
    path: Path
    translation: Translation
    evidence: str
    offset: float = 0.0

    def row(self) -> tuple[str, ...]:
        """The pair as a line of the table; the shape is that in the Module."""
        shape = "x".join(map(str, self.translation.target_shape)) or "()"
        axes = str(self.translation) + (f", {self.offset:+g}" if self.offset else "")
        return self.key, paths.join(self.path), axes, shape, self.evidence


def by_path(pairs: Iterable[Pair]) -> Mapping[Path, Sequence[Pair]]:
    """The pairs of each place."""
    found: dict[Path, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.path, []).append(pair)
    return found


@dataclass(frozen=True)
class Match:
    """A plan: which key of a source goes to which path of a Module.

    `constants` are values that a loaded layer holds whatever the source; `unused` are keys that hold
    no weight, with the reason; `left_over` those that nothing in the Module takes, with what to do;
    `differences` hyper-parameters that differ; `problems` what makes loading impossible.
    `str(match)` is a table.
    """

    pairs: tuple[Pair, ...]
    constants: Mapping[Path, int | bool]
    unused: Mapping[str, str]
    left_over: Mapping[str, str]
    differences: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every place has its key, and every key its place."""
        return not (self.problems or self.left_over or self.differences)

    def complaints(self, strict: bool = True) -> list[str]:
        """One sentence for all that stands against loading; without `strict`, keys may be left over."""
        lenient = (*self.differences, *self.left_over.values()) if strict else ()
        return [*self.problems, *lenient]

    def __str__(self) -> str:
        lines = table([HEADLINE, *(pair.row() for pair in self.pairs)])
        lines += [f"{paths.join(path)} is set to {value}" for path, value in self.constants.items()]
        lines += [f"{key}: not loaded, {reason}" for key, reason in self.unused.items()]
        lines += [f"{len(by_path(self.pairs))} arrays find their places."]
        complaints = self.complaints()
        if complaints:
            lines += [f"{len(complaints)} problems:", *(f"  {line}" for line in complaints)]
        return "\n".join(lines)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns, the first one underlined."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
