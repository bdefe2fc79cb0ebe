"""Arrays of a plan: each translated in memory of its own, or each device's part of it alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.narrowing import Uneven, narrowed
from bridge.weights.casting import cast
from bridge.weights.finite import Finding
from bridge.weights.report import Pair
from bridge.weights.sources import Source

Box = tuple[slice, ...]
# The steps of a translation that turns a matrix: where it begins, and a loop over each of two axes.
_MATRIX = 3
Read = Callable[[str], np.ndarray]


def array_of(pairs: Sequence[Pair], source: Source, dtype: np.dtype) -> np.ndarray:
    """The array that the pairs of one place fill, in memory that nobody else can write to.

    A matrix that is turned is a view: `jax.device_put` turns it while it copies, in a fifth of the time
    that NumPy takes.
    """
    first, tensor = pairs[0], source.tensors[pairs[0].key]
    if len(pairs) == 1 and first.translation.fills and not first.offset:
        turns = len(first.translation.steps) == _MATRIX
        read = tensor.mapped if turns and tensor.mapped else tensor.read
        came = read()
        array = cast(first.key, came, dtype)
        array = first.translation(array.copy() if tensor.shared and array is came else array)
        if turns:
            return array
        return np.ascontiguousarray(array).reshape(first.translation.target_shape)  # () would be (1,)
    return _filled(pairs, lambda key: source.tensors[key].read(), _common(pairs, source), dtype)


def sharded(
    pairs: Sequence[Pair], source: Source, dtype: np.dtype, sharding: jax.sharding.Sharding
) -> tuple[jax.Array, Finding]:
    """The array that the pairs fill, on several devices, and what of it is not finite.

    Each part is read straight to its place, so that the host never holds all of it.
    """
    shape = pairs[0].translation.target_shape
    lying = {key: source.tensors[key] for key in dict.fromkeys(pair.key for pair in pairs)}
    arrays = {key: (tensor.mapped or tensor.read)() for key, tensor in lying.items()}
    came = _common(pairs, source)
    parts: dict[Any, np.ndarray] = {}  # a part that several devices hold is made once
    found = Finding()

    def part(index: Any) -> np.ndarray:
        box = tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, shape, strict=True))
        place = tuple((one.start, one.stop) for one in box)
        if place not in parts:
            parts[place] = _box(pairs, arrays.__getitem__, came, dtype, box)
            found.look(parts[place])
        return parts[place]

    return jax.make_array_from_callback(shape, sharding, part), found


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
