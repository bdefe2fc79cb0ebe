"""Bytes of a file as arrays: mapped where JAX can take them over as they lie, else read."""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import CheckpointError

# A mapping costs two calls of the system and whole pages: for less it is quicker to read.
SMALLEST = 1 << 16
# Rows of fewer bytes are taken out of a mapping: a call of the system for each would take longer.
_LONG = 1 << 11


@dataclass(frozen=True)
class Lying:
    """An array that lies in a file, its last axis without gaps, and where.

    Whatever reads it raises CheckpointError where the file is gone or was cut short.
    """

    path: Path
    place: tensorfile.Tensor

    def read(self, look: tensorfile.Look | None = None) -> np.ndarray:
        """The array in memory that only the caller can write to, and that JAX takes over as it is.

        It is mapped where it is large and begins where JAX wants it, so that no byte is moved before it
        is used; what is written to it stays in memory. `look` is shown all of its numbers, in pieces.
        """
        with self._file() as file:
            if self._small or self.place.start % tensorfile.ALIGNMENT:
                return tensorfile.read(file, self.place, look)
            array = self._mapped(file)
        if look:
            look(array)
        return array

    def mapped(self) -> np.ndarray:
        """The array as it lies in the file, wherever it begins: for those who copy a part of it."""
        with self._file() as file:
            return tensorfile.read(file, self.place) if self._small else self._mapped(file)

    @contextmanager
    def rows(
        self, mapped: np.ndarray | None = None
    ) -> Iterator[Callable[[np.ndarray, int, int], None]]:
        """What fills the rows of a block with numbers of the array, in their order.

        It takes the block, the number with which its first row begins, and how far apart rows begin.
        Short rows are taken from `mapped`, which is what `mapped()` gave before.
        """
        start, itemsize = self.place.start, self.place.dtype.itemsize
        with self._file() as file:
            lying = functools.cache(lambda: self._mapped(file) if mapped is None else mapped)

            def fill(block: np.ndarray, first: int, pitch: int) -> None:
                wide = block.shape[1]
                if wide == pitch:
                    tensorfile.fill(file, start + first * itemsize, block.reshape(-1).view(np.uint8))
                elif wide * itemsize < _LONG:
                    block[:] = rows_of(lying(), first, pitch, block.shape)
                else:
                    for number, row in enumerate(block):
                        place = start + (first + number * pitch) * itemsize
                        tensorfile.fill(file, place, row.view(np.uint8))

            yield fill

    @property
    def _small(self) -> bool:
        return self.place.size < SMALLEST

    @contextmanager
    def _file(self) -> Iterator[FileIO]:
        try:
            with self.path.open("rb", buffering=0) as file:
                yield file
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error

    def _mapped(self, file: FileIO) -> np.ndarray:
        place = self.place
        if os.fstat(file.fileno()).st_size < place.start + place.size:
            raise CheckpointError(f"{self.path} was cut short while it was read; load it again")
        skipped = place.start % mmap.ALLOCATIONGRANULARITY
        # One mapping for each array, so that its pages go when the array does.
        pages = mmap.mmap(
            file.fileno(), skipped + place.size, access=mmap.ACCESS_COPY, offset=place.start - skipped
        )
        numbers = np.frombuffer(pages, np.uint8, place.size, skipped)
        return numbers.view(place.dtype).reshape(place.shape)


def rows_of(array: np.ndarray, first: int, pitch: int, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of an array without gaps as a view: from one of its numbers on, `pitch` numbers apart."""
    size = array.itemsize
    return np.ndarray(shape, array.dtype, array.reshape(-1), first * size, (pitch * size, size))
