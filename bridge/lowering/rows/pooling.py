"""Pooling: windows of the last axes, reduced to their maximum or their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bridge.lowering.promotion import category, in_float32, narrowed
from bridge.lowering.rows.convolution import each

Sizes = Sequence[int]


class Windows(NamedTuple):
    """Where the windows of the last axes lie, in lax.reduce_window's words, and PyTorch's padding."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    edges: Sequence[tuple[int, int]]

    def reduced(self, operand: Any, initial: Any, reducer: Callable[..., Any]) -> Any:
        """The operand (one array or several), reduced over each window."""
        leading = jax.tree.leaves(operand)[0].ndim - len(self.kernel)
        ones = (1,) * leading
        return lax.reduce_window(
            operand,
            initial,
            reducer,
            window_dimensions=(*ones, *self.kernel),
            window_strides=(*ones, *self.stride),
            padding=[*[(0, 0)] * leading, *self.edges],
            window_dilation=(*ones, *self.dilation),
        )

    def counts(self, shape: Sizes, padded: bool) -> np.ndarray:
        """How many elements each window covers, with those of torch's padding or without them."""
        counts = np.ones(())
        rows = zip(shape, self.kernel, self.stride, self.padding, self.edges, strict=True)
        for size, kernel, stride, pad, (before, behind) in rows:
            out = (size + before + behind - kernel) // stride + 1
            starts = np.arange(out) * stride - pad
            # what ceil_mode adds behind the padding never counts: ATen's avg_pool kernels
            ends = np.minimum(starts + kernel, size + (pad if padded else 0))
            counts = counts[..., None] * (ends - (starts if padded else np.maximum(starts, 0)))
        return counts


def windows(
    shape: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> Windows:
    """The windows over axes of these sizes; no stride stands for the kernel's sizes."""
    rank = len(shape)
    kernel, padding, dilation = (each(sizes, rank) for sizes in (kernel, padding, dilation))
    stride = each(stride, rank) if stride else kernel
    edges = []
    for size, width, step, pad, apart in zip(shape, kernel, stride, padding, dilation, strict=True):
        reach = apart * (width - 1) + 1
        more = 0
        if ceil_mode:
            out = -((size + 2 * pad - reach) // -step) + 1
            # torch's docs: a window that would start in the padding behind is left out
            out -= (out - 1) * step >= size + pad
            more = max(0, (out - 1) * step + reach - size - 2 * pad)
        edges.append((pad, pad + more))
    return Windows(kernel, stride, padding, dilation, edges)


def max_pool(rank: int) -> Callable[..., jax.Array]:
    """The op that gives the maxima of windows of the last `rank` axes."""

    def pool(
        input: jax.Array,
        kernel_size: Sizes,
        stride: Sizes = (),
        padding: Sizes = (0,),
        dilation: Sizes = (1,),
        ceil_mode: bool = False,
    ) -> jax.Array:
        where = windows(input.shape[-rank:], kernel_size, stride, padding, dilation, ceil_mode)
        if any(apart > 1 for apart in where.dilation):  # JAX has no gradient for dilated maxima
            return picked(input, _places(input, where), rank)
        return where.reduced(input, lowest(input.dtype), lax.max)

    return pool


def max_pool_with_indices(rank: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The op that gives the maxima and where each lies in the flattened last `rank` axes."""
    pool = max_pool(rank)

    def pool_with_indices(
        input: jax.Array,
        kernel_size: Sizes,
        stride: Sizes = (),
        padding: Sizes = (0,),
        dilation: Sizes = (1,),
        ceil_mode: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        where = windows(input.shape[-rank:], kernel_size, stride, padding, dilation, ceil_mode)
        maxima = pool(input, kernel_size, stride, padding, dilation, ceil_mode)
        return maxima, _places(input, where).astype(narrowed("int64"))

    return pool_with_indices


def avg_pool(rank: int) -> Callable[..., jax.Array]:
    """The op that gives the means of windows of the last `rank` axes."""

    @in_float32
    def pool(
        input: jax.Array,
        kernel_size: Sizes,
        stride: Sizes = (),
        padding: Sizes = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> jax.Array:
        shape = input.shape[-rank:]
        where = windows(shape, kernel_size, stride, padding, (1,), ceil_mode)
        sums = where.reduced(input, np.zeros((), input.dtype), lax.add)
        counts = where.counts(shape, count_include_pad)
        if divisor_override is not None:
            counts = np.asarray(divisor_override)
        elif (counts == counts.flat[:1]).all():
            counts = counts.flat[:1].reshape(())
        divide = (
            lax.div if category(input.dtype) == 1 else jnp.divide
        )  # torch cuts integers towards zero
        return divide(sums, jnp.broadcast_to(counts.astype(sums.dtype), sums.shape))

    return pool


def _places(input: jax.Array, where: Windows) -> jax.Array:
    """The flat place of each window's greatest element."""
    shape = input.shape[-len(where.kernel) :]
    count = math.prod(shape)
    places = jnp.broadcast_to(np.arange(count, dtype=np.int32).reshape(shape), input.shape)
    initial = (lowest(input.dtype), np.int32(count))
    return where.reduced((lax.stop_gradient(input), places), initial, better)[1]


def better(left: Any, right: Any) -> Any:
    """The greater of two (value, place), the first of equal ones; the last NaN beats any number."""
    (value, place), (other, elsewhere) = left, right
    is_nan, other_is_nan = value != value, other != other
    greater = (value > other) | ((value == other) & (place < elsewhere))
    stays = jnp.where(is_nan & other_is_nan, place > elsewhere, is_nan | (greater & ~other_is_nan))
    return jnp.where(stays, value, other), jnp.where(stays, place, elsewhere)


def picked(input: jax.Array, places: jax.Array, rank: int) -> jax.Array:
    """The elements of the flattened last axes at these places, whose leading axes are the input's."""
    leading = input.shape[:-rank]
    flat = input.reshape(*leading, math.prod(input.shape[-rank:]))
    count = math.prod(places.shape[len(leading) :])
    return jnp.take_along_axis(flat, places.reshape(*leading, count), -1).reshape(places.shape)


def lowest(dtype: Any) -> Any:
    """The number of this dtype that is no greater than any other."""
    return np.asarray(-np.inf if category(dtype) == 2 else np.iinfo(dtype).min, dtype)


ROWS: Mapping[str, Callable[..., Any]] = {
    **{f"aten.max_pool{rank}d.default": max_pool(rank) for rank in (1, 2, 3)},
    **{f"aten.max_pool{rank}d_with_indices.default": max_pool_with_indices(rank) for rank in (2, 3)},
    **{f"aten.avg_pool{rank}d.default": avg_pool(rank) for rank in (1, 2, 3)},
}
