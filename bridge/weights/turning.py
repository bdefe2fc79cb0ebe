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

Rows = Callable[[np.ndarray, int, int], None]


class Turn(NamedTuple):
    """The shape of an array whose first axis becomes the last, and which of its axes comes where.

    It begins at a number of the source, in which its rows, each without gaps, lie `pitch` apart.
    """

    shape: Shape
    axes: tuple[int, ...]
    start: int
    pitch: int

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return math.prod(self.shape[1:])


def turn_of(translation: Translation) -> Turn | None:
    """The turn that a translation is, with as few axes as say it; None where it is anything else."""
    (_, start, first), *loops = translation.steps
    if not translation.fills or first or len(loops) < 2 or 0 in translation.source_shape:
        return None
    outer = sorted(range(len(loops)), key=lambda place: -loops[place][1])
    axes = tuple(outer.index(place) for place in range(len(loops)))
    shape, steps = zip(*(loops[place][:2] for place in outer), strict=True)
    inner = tuple(math.prod(shape[place:]) for place in range(2, len(shape) + 1))
    turn = Turn(shape, axes, start, steps[0])
    return turn if axes[-1] == 0 and steps[1:] == inner and turn.pitch >= turn.width else None


def turned(turn: Turn, dtype: np.dtype, rows: Rows) -> np.ndarray:
    """The turned array in memory of its own, of the shape that the turn's axes have.

    `rows(block, first, pitch)` fills the rows of a block with numbers of the source in their order: the
    first row with those from `first` on, each other one with those `pitch` after the row before.
    """
    (count, *rest), width, itemsize = turn.shape, turn.width, dtype.itemsize
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
            part = panel[: min(height, count - first), :wide]
            _read(part, rows, turn.start + first * turn.pitch + start, turn.pitch)
            moved = part.reshape(len(part), *inner).transpose(turn.axes)
            into[..., first : first + len(part)] = _in_rows(moved)
    return made


def _read(part: np.ndarray, rows: Rows, first: int, pitch: int) -> None:
    """Fills a part of a panel, whose rows have gaps after them, from blocks whose rows have none."""
    wide = part.shape[1]
    several = max(1, tensorfile.PIECE // part.itemsize // wide)
    size = min(several, len(part)) * wide
    block = tensorfile.aligned(size * part.itemsize).view(part.dtype).reshape(-1, wide)
    for place in range(0, len(part), several):
        into = part[place : place + several]
        rows(block[: len(into)], first + place * pitch, pitch)
        into[:] = block[: len(into)]


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
