"""What a command shows on stderr while it works: bytes that are done, where that takes a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from bridge.cli.rendering import nbytes, plain
from bridge.weights.tensors import Source, Tensor

AFTER = 1.0  # seconds; what is done by then needs no bar

Advance = Callable[[int], None]


@contextmanager
def bytes_done(label: str, total: int, quiet: bool) -> Iterator[Advance]:
    """A function that is told how many more bytes are done, and shows it on a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda count: None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()
    progress = Progress(*columns, TransferSpeedColumn(), console=console, transient=True)
    task, begin = progress.add_task(plain(label), total=total), time.monotonic()

    def advance(count: int) -> None:
        progress.advance(task, count)
        if not progress.live.is_started and time.monotonic() - begin > AFTER:
            progress.start()

    try:
        yield advance
    finally:
        progress.stop()


@contextmanager
def working(label: str, quiet: bool) -> Iterator[None]:
    """Shows on a terminal that something is being done of which nothing can be counted."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(Text(plain(label))):
        yield


def counted(source: Source, advance: Advance) -> Source:
    """A source that tells of the bytes of each array when it is read."""

    def counting(tensor: Tensor) -> Tensor:
        def read() -> np.ndarray:
            array = tensor.read()
            advance(nbytes(tensor))
            return array

        return Tensor(tensor.shape, tensor.dtype, read, tensor.shared, tensor.memory)

    return replace(source, tensors={key: counting(one) for key, one in source.tensors.items()})


def total_of(source: Source) -> int:
    """The bytes of all arrays of a source."""
    return sum(map(nbytes, source.tensors.values()))
