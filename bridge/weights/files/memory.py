"""Bytes of a file as arrays: mapped where JAX can take them over as they lie, else read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import CheckpointError

# A mapping costs two calls of the system and whole pages: for less it is quicker to read.
SMALLEST = 1 << 16


def reader(path: Path, place: tensorfile.Tensor) -> Callable[[], np.ndarray]:
    """What reads the array at a place of a file; see `read`."""
    return lambda: read(path, place)


def mapper(path: Path, place: tensorfile.Tensor) -> Callable[[], np.ndarray]:
    """What maps the array at a place of a file, wherever it begins, for a part of it to be read."""
    return lambda: read(path, place, aligned=False)


def read(path: Path, place: tensorfile.Tensor, aligned: bool = True) -> np.ndarray:
    """The array at a place of a file, row-major, in memory that only the caller can write to.

    It is mapped where it is large and, if it must be, `aligned`, so that no byte is moved before it is
    used; what is written to it stays in memory. Raises CheckpointError where the file is gone or was
    cut short.
    """
    try:
        with path.open("rb") as file:
            is_aligned = place.start % tensorfile.ALIGNMENT == 0
            if place.size < SMALLEST or (aligned and not is_aligned):
                return tensorfile.read(file, place)
            if os.fstat(file.fileno()).st_size < place.start + place.size:
                raise CheckpointError(f"{path} was cut short while it was read; load it again")
            return _mapped(file.fileno(), place)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _mapped(descriptor: int, place: tensorfile.Tensor) -> np.ndarray:
    skipped = place.start % mmap.ALLOCATIONGRANULARITY
    # One mapping for each array, so that its pages go when the array does.
    pages = mmap.mmap(
        descriptor, skipped + place.size, access=mmap.ACCESS_COPY, offset=place.start - skipped
    )
    return np.frombuffer(pages, np.uint8, place.size, skipped).view(place.dtype).reshape(place.shape)
