"""Pooling into a given number of windows: adaptive, and at random places."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bridge.lowering.promotion import in_float32, narrowed
from bridge.lowering.rows.convolution import each
from bridge.lowering.rows.pooling import better, lowest, max_pool_with_indices, picked

Sizes = Sequence[int]


def adaptive_avg_pool(rank: int) -> Callable[..., jax.Array]:
    """The op that gives the means of as many windows as `output_size` says."""

    @in_float32
    def pool(input: jax.Array, output_size: Sizes) -> jax.Array:
        sizes = each(output_size, rank)
        shape = input.shape[-rank:]
        if all(out == 1 for out in sizes):
            return jnp.mean(input, tuple(range(-rank, 0)), keepdims=True)
        if _divisible(shape, sizes):
            split = [
                part for size, out in zip(shape, sizes, strict=True) for part in (out, size // out)
            ]
            blocks = input.reshape(*input.shape[:-rank], *split)
            return jnp.mean(blocks, tuple(range(1 - 2 * rank, 0, 2)))
        for axis, out in enumerate(sizes, start=-rank):
            input = _axis_means(input, axis, out)
        return input

    return pool


def adaptive_max_pool(rank: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The op that gives the maxima of as many windows as `output_size` says, and where they lie."""
    pool = max_pool_with_indices(rank)

    def adaptive_pool(input: jax.Array, output_size: Sizes) -> tuple[jax.Array, jax.Array]:
        shape, sizes = input.shape[-rank:], each(output_size, rank)
        if _divisible(shape, sizes):
            kernel = [size // out for size, out in zip(shape, sizes, strict=True)]
            return pool(input, kernel)
        axes = [_adaptive_windows(size, out)[0] for size, out in zip(shape, sizes, strict=True)]
        places = jnp.broadcast_to(_flat(axes, shape), (*input.shape[:-rank], *sizes, _width(axes)))
        return _best_of(input, places, rank)

    return adaptive_pool


def fractional_max_pool(rank: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The op that gives the maxima of windows placed by samples in [0, 1), and where they lie."""

    def pool(
        input: jax.Array, kernel_size: Sizes, output_size: Sizes, random_samples: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        leading, shape = input.shape[:-rank], input.shape[-rank:]
        batch = leading[0] if len(leading) > 1 else 1  # torch takes samples of a larger batch as well
        samples = random_samples[:batch].reshape(*leading, rank)
        if rank == 2:  # ATen's kernel in two dimensions reads the width's sample first
            samples = samples[..., ::-1]
        axes = [
            _random_starts(samples[..., axis, None], size, width, out)[..., None] + np.arange(width)
            for axis, (size, width, out) in enumerate(
                zip(shape, each(kernel_size, rank), each(output_size, rank), strict=True)
            )
        ]
        return _best_of(input, _flat(axes, shape), rank)

    return pool


def _random_starts(sample: jax.Array, size: int, width: int, out: int) -> jax.Array:
    """Where each window starts: (... out), the last at the very end (ATen: generate_intervals)."""
    if out == 1:
        return jnp.full(sample.shape, size - width, np.int32)
    alpha = np.asarray((size - width) / (out - 1), sample.dtype)
    steps = np.arange(out - 1, dtype=sample.dtype)
    starts = ((steps + sample) * alpha).astype(np.int32) - (sample * alpha).astype(np.int32)
    last = jnp.full(sample.shape, size - width, np.int32)
    return jnp.concatenate([starts, last], -1)


def _divisible(shape: Sizes, sizes: Sizes) -> bool:
    return all(out > 0 and size % out == 0 for size, out in zip(shape, sizes, strict=True))


def _adaptive_windows(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """The places in each window (out widest), the last again where it is shorter, and their counts."""
    step = np.arange(out)
    starts = step * size // out  # ATen's start_index and end_index
    ends = -((step + 1) * size // -out)
    places = starts[:, None] + np.arange((ends - starts).max(initial=0))
    return np.minimum(places, ends[:, None] - 1), ends - starts


def _axis_means(array: jax.Array, axis: int, out: int) -> jax.Array:
    places, counts = _adaptive_windows(array.shape[axis], out)
    parts = jnp.moveaxis(array, axis, -1)[..., places]
    real = np.arange(places.shape[1]) < counts[:, None]
    sums = jnp.sum(parts if real.all() else jnp.where(real, parts, 0), -1)
    return jnp.moveaxis(sums / counts.astype(array.dtype), -1, axis)


def _flat(axes: Sequence[Any], shape: Sizes) -> Any:
    """The flat places in each window, (... *out elements), from those of each axis, (... out width)."""
    rank = len(axes)
    flat: Any = 0
    for axis, (places, size) in enumerate(zip(axes, shape, strict=True)):
        others = [i for i in range(2 * rank) if i % rank != axis]
        flat = flat * size + jnp.expand_dims(places, tuple(i - 2 * rank for i in others))
    return flat.reshape(*flat.shape[:-rank], math.prod(flat.shape[-rank:]))


def _width(axes: Sequence[np.ndarray]) -> int:
    return math.prod(places.shape[-1] for places in axes)


def _best_of(input: jax.Array, places: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """The greatest of the elements at each window's flat places (... *out elements), and its place."""
    parts = picked(lax.stop_gradient(input), places, rank)
    none = np.asarray(math.prod(input.shape[-rank:]), places.dtype)
    _, best = lax.reduce((parts, places), (lowest(input.dtype), none), better, (places.ndim - 1,))
    return picked(input, best, rank), best.astype(narrowed("int64"))


ROWS: Mapping[str, Callable[..., Any]] = {
    **{f"aten.adaptive_avg_pool{rank}d.default": adaptive_avg_pool(rank) for rank in (1, 2, 3)},
    **{f"aten.adaptive_max_pool{rank}d.default": adaptive_max_pool(rank) for rank in (2, 3)},
    **{f"aten.fractional_max_pool{rank}d.default": fractional_max_pool(rank) for rank in (2, 3)},
}
