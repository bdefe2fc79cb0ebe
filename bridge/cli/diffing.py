"""`bridge diff`: in what two checkpoints differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.cli.comparing import Difference, differences, tells_ties, untied
from bridge.cli.ending import end
from bridge.cli.progress import bytes_done, counted, total_of
from bridge.cli.rendering import Json, shape, show, show_json, show_table
from bridge.weights.sources import open_source
from bridge.weights.tensors import Source, Tensor

HEADLINE = ("key", "A", "B", "differing", "largest", "relative")

One = Annotated[Path, typer.Argument(metavar="A", help="A file of weights, an index, or a folder.")]
Other = Annotated[Path, typer.Argument(metavar="B", help="Another one.")]
Tolerance = Annotated[float, typer.Option(min=0.0, help="The largest difference that is none.")]


def diff(a: One, b: Other, tolerance: Tolerance = 0.0, as_json: Json = False) -> None:
    """Compares two checkpoints, array by array.

    Tells what only one of them has, shapes and dtypes that differ, the largest difference of numbers,
    by itself and relative to the largest number of the array, and ties. Ends with 1 where they differ.
    """
    sources = open_source(a), open_source(b)
    total = sum(map(total_of, sources))
    with bytes_done(f"comparing {a} and {b}", total, as_json) as advance:
        one, other = (counted(source, advance) for source in sources)
        found = list(differences(one, other))
    close = [one for one in found if one.within(tolerance)]
    apart = [one for one in found if not one.within(tolerance)]
    ties = _ties(*sources), _ties(*reversed(sources))
    equal = len({*sources[0].tensors, *sources[1].tensors}) - len(found)
    if as_json:
        show_json(_described(apart, close, equal, ties))
    else:
        if apart:
            show_table(HEADLINE, map(_row, apart), right=HEADLINE[3:])
            show("")
        for sentence in (*_of_ties(ties), *_notes(a, *sources), *_notes(b, *reversed(sources))):
            show(sentence)
        near = f", {len(close)} within {tolerance:g}" if close else ""
        differ = "1 array differs" if len(apart) == 1 else f"{len(apart)} arrays differ"
        show(f"{differ}, {equal} are the same{near}.")
    end(not apart and not any(ties))


def _row(one: Difference) -> Sequence[str]:
    if one.gap is None:
        return one.key, _told(one.a), _told(one.b), "", "", ""
    gap = one.gap
    numbers = f"{gap.differing:,}", f"{gap.largest:.3g}", f"{gap.relative:.3g}"
    return one.key, _told(one.a), _told(one.b), *numbers


def _told(tensor: Tensor | None) -> str:
    return f"{shape(tensor)} {tensor.dtype}" if tensor else "-"


Ties = tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]]


def _ties(a: Source, b: Source) -> Sequence[Sequence[str]]:
    """What is tied in `a` and not in `b`, where `b` could tell."""
    return untied(a, b) if tells_ties(b) else ()


def _of_ties(ties: Ties) -> Iterator[str]:
    for groups, (here, there) in zip(ties, ("AB", "BA"), strict=True):
        for keys in groups:
            yield f"{' = '.join(keys)}: tied in {here}, not in {there}"


def _notes(file: Path, source: Source, other: Source) -> Iterator[str]:
    yield from (f"note: {file}: {note}" for note in source.notes)
    if not tells_ties(source) and untied(other, source):
        yield f"note: {file}: a file of this kind does not tell which arrays are tied"


def _described(
    apart: Sequence[Difference], close: Sequence[Difference], equal: int, ties: Ties
) -> dict[str, Any]:
    tied = [[list(keys) for keys in groups] for groups in ties]
    return {
        "same": not apart and not any(ties),
        "equal": equal,
        "differences": [_entry(one) for one in apart],
        "within_tolerance": [_entry(one) for one in close],
        "tied_in_a": tied[0],
        "tied_in_b": tied[1],
    }


def _entry(one: Difference) -> dict[str, Any]:
    numbers = asdict(one.gap) if one.gap is not None else {}
    return {"key": one.key, "a": _form(one.a), "b": _form(one.b), **numbers}


def _form(tensor: Tensor | None) -> dict[str, Any] | None:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype)} if tensor else None
