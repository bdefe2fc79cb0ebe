"""What `match` gives: which key goes where, how, and why; printable, and kept in a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    `differences` hyper-parameters that differ; `problems` what makes loading impossible. `ties` are
    keys that name the array of another key, by which it is taken. `str(match)` is a table.

    `bridge.match` makes one; `load_state_dict(plan=)` follows it, `state_dict(like=)` goes it back.
    """

    pairs: tuple[Pair, ...]
    constants: Mapping[Path, int | bool]
    unused: Mapping[str, str]
    left_over: Mapping[str, str]
    differences: tuple[str, ...]
    problems: tuple[str, ...]
    ties: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every place has its key, and every key its place."""
        return not (self.problems or self.left_over or self.differences)

    def complaints(self, strict: bool = True) -> list[str]:
        """One sentence for all that stands against loading; without `strict`, keys may be left over."""
        lenient = (*self.differences, *self.left_over.values()) if strict else ()
        return [*self.problems, *lenient]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan to a file: JSON, a line for each pair, to be read and edited.

        It takes the place of an older file when all of it is on disk. Raises CheckpointError where it
        cannot be written.

        >>> import bridge as br, numpy as np, os, tempfile
        >>> class Line(br.Module):
        ...     slope: br.Parameter
        >>> match = br.match(Line(0.0), {"slope": np.ones((), np.float32)})
        >>> path = os.path.join(tempfile.mkdtemp(), "plan.json")
        >>> match.save(path)
        >>> br.Match.load(path) == match
        True
        """
        from bridge.weights.plans import write

        write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Match:
        """The plan in a file that `save` has written; see there.

        Raises WeightsError where the file is none, or tells of arrays that cannot be.
        """
        from bridge.weights.plans import read

        return read(path)

    def to_table(self) -> dict[str, tuple[str, Any]]:
        r"""The plan as the table that NNX projects keep: a regular expression -> (template, transform).

        A transform is (permute, reshape, reshape_first), None for what is not done; layers that differ
        in a number alone are one line. Its paths leave out `params` and `state`, the collections of a
        wrapped model. Raises WeightsError with all pairs that a table cannot say: parts of arrays,
        axes that run backwards, sums, and numbers that are added. What a plan sets itself, a counter
        of steps, is not in it.

        >>> import bridge as br, jax, numpy as np
        >>> from flax import nnx
        >>> module = br.from_nnx(nnx.Linear(3, 5, use_bias=False, rngs=nnx.Rngs(0)))
        >>> br.match(module, {"fc.weight": np.ones((5, 3), np.float32)}).to_table()
        {'fc\\.weight': ('kernel', ((1, 0), None, False))}
        """
        from bridge.weights.tables import table_of

        return table_of(self)

    @classmethod
    def from_table(cls, table: Mapping[str, tuple[str, Any]], module: Any, source: Any) -> Match:
        r"""The plan that a table makes for a Module and a source, as `to_table` writes one.

        A transform may also be None, or an enum whose value is one. A regular expression must match
        the whole of a key; a path may be written with `params` or `state` as well. What does not fit
        is among the plan's `problems`. Raises WeightsError for a source or a Module that is none.

        >>> import bridge as br, jax, numpy as np
        >>> from flax import nnx
        >>> module = br.from_nnx(nnx.Linear(3, 5, use_bias=False, rngs=nnx.Rngs(0)))
        >>> table = {r"(.*)\.weight": (r"kernel", ((1, 0), None, False))}
        >>> source = {"fc.weight": np.ones((5, 3), np.float32)}
        >>> br.load_state_dict(module, source, plan=br.Match.from_table(table, module, source))(
        ...     np.ones(3, np.float32)
        ... )
        Array([3., 3., 3., 3., 3.], dtype=float32)
        """
        from bridge.weights.tables import match_of

        return match_of(table, module, source)

    def remarks(self) -> list[str]:
        """What stands below the pairs: a sentence for all that they do not tell."""
        count = len(by_path(self.pairs))
        return [
            *(f"{paths.join(path)} is set to {value}" for path, value in self.constants.items()),
            *(f"{key}: not loaded, {reason}" for key, reason in self.unused.items()),
            *(f"{key}: the same array as {owner}" for key, owner in self.ties.items()),
            f"{count} arrays find their places." if count != 1 else "1 array finds its place.",
        ]

    def __str__(self) -> str:
        lines = [*table([HEADLINE, *(pair.row() for pair in self.pairs)]), *self.remarks()]
        complaints = self.complaints()
        if complaints:
            count = f"{len(complaints)} problems:" if len(complaints) > 1 else "1 problem:"
            lines += [count, *(f"  {line}" for line in complaints)]
        return "\n".join(lines)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns, the first one underlined."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
