"""What a command prints: tables and sentences, or JSON; nothing of a file can steer the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from bridge.weights.tensors import Tensor

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]

_WIDE = 10_000  # a file or a program reads rows in one piece


def tell(text: str) -> None:
    """Writes sentences to stderr."""
    typer.echo("\n".join(map(plain, text.split("\n"))), err=True)


def show(text: str) -> None:
    """Writes sentences to stdout."""
    typer.echo("\n".join(map(plain, text.split("\n"))))


def show_json(value: Any) -> None:
    """Writes a value as JSON to stdout, in which a number that is not finite is null."""
    typer.echo(json.dumps(_with_null(value), indent=2, allow_nan=False))


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_table(
    headline: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()
) -> None:
    """Writes a table to stdout; the columns of `right` are aligned to the right."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in headline:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    with console.capture() as printed:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def plain(text: str) -> str:
    r"""A text without the characters that a terminal obeys, each spelled as Python does.

    >>> print(plain("fc\x1b[2J.weight"))
    fc\x1b[2J.weight
    """
    return text if text.isprintable() else "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def shape(tensor: Tensor) -> str:
    """The shape of an array as tables show it.

    >>> (
    ...     shape(Tensor((5, 3), np.dtype(np.float32), np.empty)),
    ...     shape(Tensor((), np.dtype(int), np.empty)),
    ... )
    ('5x3', '()')
    """
    return "x".join(map(str, tensor.shape)) or "()"


def size(count: int) -> str:
    """A number of bytes in decimal units.

    >>> size(90_868_376)
    '90.9 MB'
    """
    return decimal(count)


def nbytes(tensor: Tensor) -> int:
    """How many bytes the numbers of an array take."""
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
