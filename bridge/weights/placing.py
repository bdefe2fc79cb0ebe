"""Arrays of a plan: each translated in memory of its own, or each device's part of it alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
from bridge.weights.report import Pair
from bridge.weights.tensors import Source, Tensor
from bridge.weights.turning import turn_of, turned

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
    elif turn := turn_of(first.translation):
        with _numbers(first.key, tensor, dtype, look) as numbers:
            return turned(turn, dtype, numbers).reshape(first.translation.target_shape)
    else:
        if tensor.lying and tensor.dtype == dtype and first.translation.exhausts:
            return _ordered(first, tensor.lying().read(look))
        came = tensor.read()
        array = cast(first.key, came, dtype)
        array = _ordered(first, array.copy() if tensor.shared and array is came else array)
    if look:
        look(array)
    return array


def _ordered(pair: Pair, array: np.ndarray) -> np.ndarray:
    turned = pair.translation(array)
    return np.ascontiguousarray(turned).reshape(pair.translation.target_shape)  # () would be (1,)


@contextmanager
def _numbers(
    key: str, tensor: Tensor, dtype: np.dtype, look: Look | None
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """What fills a row with numbers of a tensor from a certain one on, in a dtype, and shows them."""
    with tensor.lying().numbers() if tensor.lying else nullcontext(_taken(tensor)) as read:

        def numbers(first: int, row: np.ndarray) -> None:
            if dtype == tensor.dtype:
                read(first, row)
            else:
                came = np.empty(row.shape, tensor.dtype)
                read(first, came)
                row[:] = cast(key, came, dtype)
            if look:
                look(row)

        yield numbers


def _taken(tensor: Tensor) -> Callable[[int, np.ndarray], None]:
    flat = tensor.read().reshape(-1)

    def numbers(first: int, row: np.ndarray) -> None:
        row[:] = flat[first : first + row.size]

    return numbers


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
    lying = {key: source.tensors[key] for key in dict.fromkeys(pair.key for pair in pairs)}
    arrays = {
        key: tensor.lying().mapped() if tensor.lying else tensor.read() for key, tensor in lying.items()
    }
    came = _common(pairs, source)
    parts: dict[Any, np.ndarray] = {}  # a part that several devices hold is made once

    def part(index: Any) -> np.ndarray:
        box = tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, shape, strict=True))
        place = tuple((one.start, one.stop) for one in box)
        if place not in parts:
            parts[place] = _box(pairs, arrays.__getitem__, came, dtype, box)
            look(parts[place])
        return parts[place]

    return jax.make_array_from_callback(shape, sharding, part)


def _common(pairs: Sequence[Pair], source: Source) -> np.dtype:
    """The dtype that the arrays of the source have, or that holds them all."""
    dtypes = {source.tensors[pair.key].dtype for pair in pairs}
    return jnp.result_type(*dtypes) if len(dtypes) > 1 else dtypes.pop()


def _box(pairs: Sequence[Pair], read: Read, came: np.dtype, dtype: np.dtype, box: Box) -> np.ndarray:
    """A part of the array that the pairs fill."""
    try:
        turned = [(pair, narrowed(pair.translation, box)) for pair in pairs]
    except Uneven:
        return np.array(_filled(pairs, read, came, dtype)[box], order="C")
    parts = [replace(p, translation=part) for p, part in turned if part is not None]
    return _filled(parts, read, came, dtype)


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
