"""Arrays of a plan: each translated in memory of its own, or each device's part of it alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.narrowing import Uneven, narrowed
from bridge.core.tensorfile import Look
from bridge.weights.casting import cast
from bridge.weights.files.memory import rows_of
from bridge.weights.report import Pair
from bridge.weights.tensors import Source, Tensor
from bridge.weights.turning import Rows, Turn, turn_of, turned

# An array of fewer bytes is turned at once: panels of it would cost more than they save.
_LEAST = 1 << 16

Box = tuple[slice, ...]
Read = Callable[[str], np.ndarray]


def array_of(
    pairs: Sequence[Pair], source: Source, dtype: np.dtype, look: Look | None = None
) -> np.ndarray:
    """The array that the pairs of one place fill, in memory that nobody else can write to.

    `look` is shown all of its numbers, in any order.
    """
    first, tensor = pairs[0], source.tensors[pairs[0].key]
    if len(pairs) > 1 or not first.translation.fills or first.offset:
        array = _filled(pairs, lambda key: source.tensors[key].read(), _common(pairs, source), dtype)
    elif turn := _turn(first, dtype):
        with _rows(first.key, tensor, dtype, look) as rows:
            return turned(turn, dtype, rows).reshape(first.translation.target_shape)
    else:
        if tensor.lying and tensor.dtype == dtype and first.translation.exhausts:
            return _ordered(first, tensor.lying().read(look))
        came = tensor.read()
        array = cast(first.key, came, dtype)
        array = _ordered(first, array.copy() if tensor.shared and array is came else array)
    if look:
        look(array)
    return array


def _turn(pair: Pair, dtype: np.dtype) -> Turn | None:
    """The turn that a pair is, where that is worth its panels."""
    size = math.prod(pair.translation.target_shape) * dtype.itemsize
    return turn_of(pair.translation) if size >= _LEAST else None


def _ordered(pair: Pair, array: np.ndarray) -> np.ndarray:
    turned = pair.translation(array)
    return np.ascontiguousarray(turned).reshape(pair.translation.target_shape)  # () would be (1,)


@contextmanager
def _rows(
    key: str,
    tensor: Tensor,
    dtype: np.dtype,
    look: Look | None = None,
    mapped: np.ndarray | None = None,
) -> Iterator[Rows]:
    """What fills the rows of a block with numbers of a tensor in a dtype, and shows them."""
    with tensor.lying().rows(mapped) if tensor.lying else nullcontext(_taken(tensor)) as read:

        def rows(block: np.ndarray, first: int, pitch: int) -> None:
            if dtype == tensor.dtype:
                read(block, first, pitch)
            else:
                came = np.empty(block.shape, tensor.dtype)
                read(came, first, pitch)
                block[:] = cast(key, came, dtype)
            if look:
                look(block)

        yield rows


def _taken(tensor: Tensor) -> Rows:
    flat = tensor.read().reshape(-1)

    def rows(block: np.ndarray, first: int, pitch: int) -> None:
        block[:] = rows_of(flat, first, pitch, block.shape)

    return rows


def sharded(
    pairs: Sequence[Pair],
    source: Source,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    look: Look,
) -> jax.Array:
    """The array that the pairs fill, on several devices; `look` is shown the parts of this process.

    Each part is read straight to its place, so that the host never holds all of it.
    """
    shape = pairs[0].translation.target_shape
    keys = dict.fromkeys(pair.key for pair in pairs)
    arrays = {
        key: tensor.lying().mapped() if tensor.lying else tensor.read()
        for key in keys
        for tensor in [source.tensors[key]]
    }
    parts: dict[Any, np.ndarray] = {}  # a part that several devices hold is made once

    def part(index: Any) -> np.ndarray:
        box = tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, shape, strict=True))
        place = tuple((one.start, one.stop) for one in box)
        if place not in parts:
            parts[place] = _box(pairs, source, arrays, dtype, box)
            look(parts[place])
        return parts[place]

    return jax.make_array_from_callback(shape, sharding, part)


def _common(pairs: Sequence[Pair], source: Source) -> np.dtype:
    """The dtype that the arrays of the source have, or that holds them all."""
    dtypes = {source.tensors[pair.key].dtype for pair in pairs}
    return jnp.result_type(*dtypes) if len(dtypes) > 1 else dtypes.pop()


def _box(
    pairs: Sequence[Pair],
    source: Source,
    arrays: Mapping[str, np.ndarray],
    dtype: np.dtype,
    box: Box,
) -> np.ndarray:
    """A part of the array that the pairs fill; `arrays` are those of the source."""
    read, came = arrays.__getitem__, _common(pairs, source)
    try:
        cut = [(pair, narrowed(pair.translation, box)) for pair in pairs]
    except Uneven:
        return np.array(_filled(pairs, read, came, dtype)[box], order="C")
    parts = [replace(p, translation=part) for p, part in cut if part is not None]
    turn, tensor = _turn(parts[0], dtype), source.tensors[parts[0].key]
    if len(parts) > 1 or parts[0].offset or not turn or not tensor.lying:
        return _filled(parts, read, came, dtype)
    with _rows(parts[0].key, tensor, dtype, mapped=arrays[parts[0].key]) as rows:
        return turned(turn, dtype, rows).reshape(parts[0].translation.target_shape)


def _filled(pairs: Sequence[Pair], read: Read, came: np.dtype, dtype: np.dtype) -> np.ndarray:
    """The array that pairs fill; what fills one region is added up, and cast when it is whole."""
    shape, filled = pairs[0].translation.target_shape, set[Any]()
    array = tensorfile.aligned(math.prod(shape) * came.itemsize).view(came).reshape(shape)
    for pair in pairs:
        taken = read(pair.key)
        taken = taken + np.asarray(pair.offset, taken.dtype) if pair.offset else taken
        pair.translation.put(taken, array, add=pair.translation.region in filled)
        filled.add(pair.translation.region)
    return cast(", ".join(dict.fromkeys(pair.key for pair in pairs)), array, dtype)
