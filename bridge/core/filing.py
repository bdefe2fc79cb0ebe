"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from io import BufferedWriter
from typing import Any

from bridge.core.errors import CheckpointError

FilePath = str | os.PathLike[str]


def replace_files(files: Sequence[tuple[FilePath, Callable[[BufferedWriter], Any]]]) -> None:
    """Puts new files in the place of old ones, when all of them are on disk, or leaves the old ones.

    Each path has what writes its file; they are moved into place in their order. Raises CheckpointError
    for what the operating system refuses.
    """
    parts: dict[pathlib.Path, pathlib.Path] = {}
    try:
        for path, write in files:
            with os_errors("written", path):
                target = pathlib.Path(path).resolve()  # a link stays, and what it points to is replaced
                part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
                with open(part, "xb") as file:
                    parts[part] = target
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
        for part, target in parts.items():
            with os_errors("written", target):
                os.replace(part, target)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    for folder in {target.parent for target in parts.values()}:
        _settle(folder)


def _settle(folder: pathlib.Path) -> None:
    """Brings the names in a folder to the disk."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and a rename is on disk already
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def os_errors(what: str, path: FilePath) -> Iterator[None]:
    """Tells what the operating system refused as a CheckpointError."""
    try:
        yield
    except OSError as error:
        folder = pathlib.Path(path).resolve().parent
        missing = f"; there is no folder {folder}: make it first" if not folder.is_dir() else ""
        raise CheckpointError(f"{path} cannot be {what}: {error.strerror}{missing}") from error
