"""Windows of an array: Tensor.unfold, im2col and its transpose col2im."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MOST_SLICES = 32
"""Windows are joined from slices up to so many, whose gradient is cheap, and gathered beyond."""


def windows(array: jax.Array, axis: int, size: int, step: int, dilation: int = 1) -> jax.Array:
    """The windows along an axis, which becomes (windows size)."""
    count = (array.shape[axis] - dilation * (size - 1) - 1) // step + 1
    if dilation == 1 and step == size:
        used = lax.slice_in_dim(array, 0, count * size, axis=axis)
        return used.reshape(*array.shape[:axis], count, size, *array.shape[axis + 1 :])
    if min(count, size) > MOST_SLICES:
        places = step * np.arange(count)[:, None] + dilation * np.arange(size)
        whole = (slice(None),) * axis
        return array.at[(*whole, places)].get(mode="promise_in_bounds", wrap_negative_indices=False)
    if count < size:
        starts, length, stride, new = [step * at for at in range(count)], size, dilation, axis
    else:
        starts, length, stride, new = [dilation * at for at in range(size)], count, step, axis + 1
    reach = stride * (length - 1) + 1
    slices = [lax.slice_in_dim(array, at, at + reach, stride, axis) for at in starts]
    return jnp.stack(slices, axis=new)


def unfold(self: jax.Array, dimension: int, size: int, step: int) -> jax.Array:
    """The windows along an axis, with what is in them as a new last axis."""
    if self.ndim == 0:
        return self.reshape(1)[:size]
    axis = dimension % self.ndim
    return jnp.moveaxis(windows(self, axis, size, step), axis + 1, -1)


def im2col(
    self: jax.Array,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> jax.Array:
    """The patches of (batch channels height width), as (batch channels*patch patches)."""
    if self.ndim == 3:
        return im2col(self[None], kernel_size, dilation, padding, stride)[0]
    batch, channels = self.shape[:2]
    edges = [(0, 0, 0), (0, 0, 0), *((width, width, 0) for width in padding)]
    self = lax.pad(self, jnp.zeros((), self.dtype), edges)
    for axis, size, spread, step in zip((2, 4), kernel_size, dilation, stride, strict=True):
        self = windows(self, axis, size, step, spread)
    # batch channels rows row columns column: the place in the patch goes before the patches
    patches = jnp.transpose(self, (0, 1, 3, 5, 2, 4))
    rows, columns = patches.shape[4:]
    return patches.reshape(batch, channels * kernel_size[0] * kernel_size[1], rows * columns)


def col2im(
    self: jax.Array,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> jax.Array:
    """The sum of patches (batch channels*patch patches) in their places: the transpose of im2col."""
    channels = self.shape[-2] // (kernel_size[0] * kernel_size[1])
    image = jax.ShapeDtypeStruct((*self.shape[:-2], channels, *output_size), self.dtype)
    transposed = jax.linear_transpose(
        lambda image: im2col(image, kernel_size, dilation, padding, stride), image
    )
    return transposed(self)[0]


ROWS: Mapping[str, Callable] = {
    "aten.unfold.default": unfold,
    "aten.im2col.default": im2col,
    "aten.col2im.default": col2im,
}
