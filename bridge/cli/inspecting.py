"""`bridge inspect`: what a checkpoint holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.cli.rendering import Json, nbytes, shape, show, show_json, show_table, size
from bridge.cli.tree import Line, lines, stacks, total, tree_of
from bridge.weights.files import eqx
from bridge.weights.sources import open_source
from bridge.weights.tensors import Source, Tensor

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A file of weights, an index of shards, or a folder.")
]


def inspect(file: File, as_json: Json = False) -> None:
    """Shows what a checkpoint holds, as a tree.

    Its header alone is read, and no code of it is run. Numbered parts that hold the same share their
    lines: layers.(0..11).
    """
    source = eqx.numbered(file) if file.suffix == ".eqx" else open_source(file)
    if as_json:
        show_json({"file": str(file), **_described(source)})
        return
    tree = tree_of(source.tensors)
    rows = [_row(line) for line in lines(tree)]
    show_table(("name", "shape", "dtype", "bytes"), rows, right=("bytes",))
    for sentence in _sentences(source):
        show(sentence)


def _row(line: Line) -> tuple[str, str, str, str]:
    tensor = line.node.tensor
    told = [shape(tensor)] if tensor else []
    told += [f"{line.alike} alike"] if line.alike > 1 else []
    told += [f"{line.stacked} stacked"] if line.stacked is not None else []
    held = nbytes(tensor) if tensor else line.alike * total(line.node)
    dtype = str(tensor.dtype) if tensor else ""
    return "  " * line.depth + line.name, ", ".join(told), dtype, size(held)


def _sentences(source: Source) -> Iterator[str]:
    """What the table does not show."""
    yield ""
    yield from (f"tied: {' = '.join(keys)}" for keys in source.ties)
    yield from (f"note: {note}" for note in source.notes)
    if model_type := _model_type(source.config):
        yield f"config.json: {model_type}"
    once = _once(source)
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in _dtypes(source).items())
    numbers = sum(math.prod(tensor.shape) for tensor in once)
    tied = ", tied ones counted once" if source.ties else ""
    yield (
        f"{len(source.tensors)} arrays{f' ({dtypes})' if dtypes else ''}, {numbers:,} numbers,"
        f" {size(sum(map(nbytes, once)))}{tied}"
    )


def _described(source: Source) -> dict[str, Any]:
    once = _once(source)
    return {
        "model_type": _model_type(source.config),
        "arrays": [
            {
                "key": key,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype),
                "bytes": nbytes(tensor),
            }
            for key, tensor in source.tensors.items()
        ],
        "ties": [list(keys) for keys in source.ties],
        "stacked": [{"path": path, "layers": count} for path, count in stacks(tree_of(source.tensors))],
        "notes": list(source.notes),
        "total": {
            "arrays": len(source.tensors),
            "numbers": sum(math.prod(tensor.shape) for tensor in once),
            "bytes": sum(map(nbytes, once)),
            "dtypes": _dtypes(source),
        },
    }


def _once(source: Source) -> list[Tensor]:
    """The arrays, each of those that are tied once."""
    again = {key for keys in source.ties for key in keys[1:]}
    return [tensor for key, tensor in source.tensors.items() if key not in again]


def _dtypes(source: Source) -> dict[str, int]:
    return dict(Counter(str(tensor.dtype) for tensor in source.tensors.values()).most_common())


def _model_type(config: Mapping[str, Any] | None) -> str | None:
    """What a config.json says that the model is."""
    model_type = (config or {}).get("model_type")
    return model_type if isinstance(model_type, str) else None
