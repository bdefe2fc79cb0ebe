"""Arrays whose first axis becomes the last, moved in panels that stay in a processor's cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.translation import Shape, Translation

# Between the rows of a panel, in bytes: rows that are a power of two apart share few lines of a cache.
_GAP = tensorfile.ALIGNMENT
# Fewer rows than this would fill less than a line of the cache at each place that is written to.
_FEWEST = 16

# What a panel holds, in bytes.
_PANEL = 2 * tensorfile.PIECE
# JAX may have no 64-bit numbers, and changes the bits of no whole one.
_CARRIERS = {1: np.uint8, 2: np.uint16, 4: np.uint32}

Numbers = Callable[[int, np.ndarray], None]


class Turn(NamedTuple):
    """The shape of an array whose first axis becomes the last, and which of its axes comes where."""

    shape: Shape
    axes: tuple[int, ...]


def turn_of(translation: Translation) -> Turn | None:
    """The turn that a translation is, with as few axes as say it; None where it is anything else."""
    (_, *starts), *loops = translation.steps
    if not (translation.fills and translation.exhausts) or any(starts):
        return None
    if len(loops) < 2 or 0 in translation.source_shape or any(step < 0 for _, step, _ in loops):
        return None
    outer = sorted(range(len(loops)), key=lambda place: -loops[place][1])
    axes = tuple(outer.index(place) for place in range(len(loops)))
    return Turn(tuple(loops[place][0] for place in outer), axes) if axes[-1] == 0 else None


def turned(turn: Turn, dtype: np.dtype, numbers: Numbers) -> np.ndarray:
    """The turned array in memory of its own, of the shape that the turn's axes have.

    `numbers` fills a row with the numbers of the source from a certain one on, in their order.
    """
    (count, *rest), itemsize = turn.shape, dtype.itemsize
    width = math.prod(rest)
    made = tensorfile.aligned(count * width * itemsize).view(dtype)
    made = made.reshape([turn.shape[axis] for axis in turn.axes])
    columns = width if len(rest) > 1 else min(width, _PANEL // itemsize // _FEWEST)
    height = max(1, min(count, _PANEL // itemsize // columns))
    panel = np.empty((height, columns + _GAP // itemsize), dtype)
    for start in range(0, width, columns):
        wide = min(columns, width - start)
        into = made[start : start + wide] if wide < width else made
        inner = rest if wide == width else (wide,)
        for first in range(0, count, height):
            rows = panel[: min(height, count - first), :wide]
            _read(rows, numbers, first * width + start, width)
            moved = rows.reshape(len(rows), *inner).transpose(turn.axes)
            into[..., first : first + len(rows)] = _in_rows(moved)
    return made


def _read(rows: np.ndarray, numbers: Numbers, first: int, width: int) -> None:
    """Fills rows that lie `width` numbers apart in the source; they have a gap after each here."""
    wide = rows.shape[1]
    several = max(1, tensorfile.PIECE // rows.itemsize // wide) if wide == width else 1
    read = tensorfile.aligned(min(several, len(rows)) * wide * rows.itemsize).view(rows.dtype)
    for place in range(0, len(rows), several):
        block = rows[place : place + several]
        numbers(first + place * width, read[: block.size])
        block[:] = read[: block.size].reshape(block.shape)


def _in_rows(array: np.ndarray) -> np.ndarray:
    """The array row by row, by XLA where it can: it takes half the time that NumPy takes."""
    carrier, host = _CARRIERS.get(array.itemsize), _host()
    if carrier is None or host is None:
        return array
    return np.asarray(jax.device_put(array.view(carrier), host)).view(array.dtype)


@functools.cache
def _host() -> Any:
    """The CPU as a device of JAX; None where JAX was told to leave it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
