"""Interpolation on the last one to three axes: nearest, linear and cubic, these two also antialiased.

Where the samples lie is known before anything runs, so NumPy computes their places and weights in the
float32 arithmetic of PyTorch (ATen/native/UpSample.h), and JAX slices, gathers and adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bridge.core.errors import LoweringError
from bridge.lowering.promotion import category


class Kernel(NamedTuple):
    """How samples are weighed: by their places next to an output, or by their distance from it."""

    places: tuple[int, ...]
    weights: Callable[[np.ndarray], list[np.ndarray]]
    reach: int
    antialiased: Callable[[np.ndarray], np.ndarray]


def near(distance: Any, a: float) -> Any:
    """The cubic kernel of Keys at a distance of 0 to 1."""
    return ((a + 2) * distance - (a + 3)) * distance * distance + 1


def far(distance: Any, a: float) -> Any:
    """The cubic kernel of Keys at a distance of 1 to 2."""
    return ((distance - 5) * distance + 8) * distance * a - 4 * a


def cubic_weights(part: Any) -> list[Any]:
    """The weights of the four places around an output that lies at `part` between the inner two."""
    a = -0.75  # get_cubic_upsample_coefficients in UpSample.h
    return [far(part + 1, a), near(part, a), near(1 - part, a), far(2 - part, a)]


def cubic_antialiased(distance: np.ndarray) -> np.ndarray:
    """The weights at these distances."""
    a = -0.5  # aa_filter in UpSampleKernel.cpp, which follows PIL
    return np.where(distance < 1, near(distance, a), np.where(distance < 2, far(distance, a), 0))


LINEAR = Kernel(
    places=(0, 1),
    weights=lambda part: [1 - part, part],
    reach=1,
    antialiased=lambda distance: np.maximum(1 - distance, 0),
)
CUBIC = Kernel(
    places=(-1, 0, 1, 2),
    weights=cubic_weights,
    reach=2,
    antialiased=cubic_antialiased,
)


def scale_of(size: int, out: int, factor: float | None, align: bool, dtype: Any) -> Any:
    """How far apart two outputs are, in inputs: area_pixel_compute_scale in UpSample.h."""
    number = np.dtype(dtype).type
    if align:
        return number(size - 1) / number(out - 1) if out > 1 else number(0)
    return number(1 / factor) if factor and factor > 0 else number(size) / number(out)


def sources(out: int, scale: Any, align: bool) -> np.ndarray:
    """Where each output lies, in inputs: area_pixel_compute_source_index in UpSample.h."""
    number, half = np.arange(out, dtype=scale.dtype), scale.dtype.type(0.5)
    return number * scale if align else scale * (number + half) - half


def taken(array: jax.Array, places: np.ndarray, axis: int) -> jax.Array:
    """These places of an axis: repeated or sliced where they are regular, else gathered."""
    size, out = array.shape[axis], len(places)
    before, behind = array.shape[:axis], array.shape[axis + 1 :]
    times = out // size
    if times and np.array_equal(places, np.arange(out) // times):
        wide = jnp.broadcast_to(jnp.expand_dims(array, axis + 1), (*before, size, times, *behind))
        return wide.reshape(*before, out, *behind)
    step = int(places[1] - places[0]) if out > 1 else 1
    if step > 0 and np.array_equal(places, places[0] + step * np.arange(out)):
        return lax.slice_in_dim(array, int(places[0]), int(places[-1]) + 1, step, axis)
    place = (*[slice(None)] * axis, places)
    return array.at[place].get(mode="promise_in_bounds", wrap_negative_indices=False)


def added(
    array: jax.Array, axis: int, places: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> Any:
    """The weighted sum of some reads of an axis."""
    behind = [1] * (array.ndim - axis - 1)
    return sum(
        taken(array, place, axis) * weight.reshape(-1, *behind)
        for place, weight in zip(places, weights, strict=True)
    )


def between(
    array: jax.Array, axis: int, out: int, factor: float | None, align: bool, kernel: Kernel
) -> jax.Array:
    """An axis at another size, each output from its neighbours."""
    size = array.shape[axis]
    scale = scale_of(size, out, factor, align, array.dtype)
    times = out // size
    # at a power of two the same weights come again and again, without a rounding error
    if not align and times in (2, 4, 8) and out == times * size and scale * times == 1:
        return repeated(array, axis, times, kernel)
    where = sources(out, scale, align)
    if kernel is LINEAR:
        where = np.maximum(where, 0)
    first = np.minimum(np.floor(where).astype(int), size - 1)
    part = np.clip(where - first.astype(where.dtype), 0, 1)
    places = [np.clip(first + place, 0, size - 1) for place in kernel.places]
    return added(array, axis, places, kernel.weights(part))


def repeated(array: jax.Array, axis: int, times: int, kernel: Kernel) -> jax.Array:
    """An axis so many times as long: outputs at the same place between inputs are slices added up."""
    size, reach = array.shape[axis], kernel.reach
    edges = [(reach, reach) if at == axis else (0, 0) for at in range(array.ndim)]
    wide = jnp.pad(array, edges, mode="edge")
    where = sources(times, array.dtype.type(1 / times), align=False)
    pieces = []
    for first, part in zip(np.floor(where).astype(int), where - np.floor(where), strict=True):
        starts = [int(reach + first + place) for place in kernel.places]
        places = [np.arange(start, start + size) for start in starts]
        pieces.append(added(wide, axis, places, kernel.weights(np.asarray(part))))
    return jnp.stack(pieces, axis + 1).reshape(
        *array.shape[:axis], size * times, *array.shape[axis + 1 :]
    )


def antialiased(
    array: jax.Array, axis: int, out: int, factor: float | None, align: bool, kernel: Kernel
) -> jax.Array:
    """An axis at another size, each output from all in reach, which is as far as outputs are apart."""
    size = array.shape[axis]
    scale = float(scale_of(size, out, factor, align, array.dtype))
    width = max(scale, 1.0)
    centres = scale * (np.arange(out) + 0.5)
    # _compute_indices_min_size_weights_aa in UpSampleKernel.cpp
    least = np.maximum((centres - kernel.reach * width + 0.5).astype(int), 0)
    most = np.minimum((centres + kernel.reach * width + 0.5).astype(int), size)
    places = least[:, None] + np.arange(max(1, (most - least).max()))
    weights = kernel.antialiased(np.abs(places - centres[:, None] + 0.5) / width)
    weights = np.where(places < most[:, None], weights, 0)
    weights = (weights / weights.sum(1, keepdims=True)).astype(array.dtype)
    return added(array, axis, list(np.minimum(places, size - 1).T), list(weights.T))


def resized(
    method: Callable[..., jax.Array],
    kernel: Kernel,
    self: jax.Array,
    output_size: Sequence[int],
    align_corners: bool,
    *factors: float | None,
) -> jax.Array:
    """The input (batch channels *spatial) with other spatial sizes, computed in float32 at least."""
    if category(self.dtype) != 2:
        raise LoweringError(
            f"Linear and cubic interpolation are for floats alone, and {self.dtype} came; type"
            f" x.float() before it, and round() after it, in the torch model"
        )
    rank = len(output_size)
    result = self.astype(jnp.float32) if self.dtype.itemsize < 4 else self
    factors = (*factors, *[None] * (rank - len(factors)))
    if tuple(output_size) != self.shape[2:]:
        # the last axis first, as PyTorch does with antialiasing
        for at in reversed(range(rank)):
            result = method(result, at + 2, output_size[at], factors[at], align_corners, kernel)
    return result.astype(self.dtype)


def nearest(
    centre: float, self: jax.Array, output_size: Sequence[int], *factors: float | None
) -> jax.Array:
    """The input (batch channels *spatial) with other spatial sizes, each output from one input.

    Outputs lie `centre` behind their number: 0, or 1/2 of the exact way.
    """
    factors = (*factors, *[None] * (len(output_size) - len(factors)))
    for axis, (out, factor) in enumerate(zip(output_size, factors, strict=True), 2):
        size = self.shape[axis]
        scale = scale_of(size, out, factor, False, "float32")
        number = np.arange(out, dtype=np.float32)
        places = np.minimum(np.floor((number + np.float32(centre)) * scale).astype(int), size - 1)
        if not centre and out in (size, 2 * size):  # nearest_idx in UpSample.h: whatever the factor
            places = np.arange(out) // (out // size)
        self = taken(self, places, axis)
    return self


def by_factors(row: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The overload of a row that takes the sizes or the factors, all in one list."""

    def vec(input: jax.Array, output_size: Sequence[int] | None, *rest: Any, **named: Any) -> jax.Array:
        """The input with other spatial sizes."""
        options = [*rest, *named.values()]
        factors = options.pop() or ()
        if output_size is None:
            output_size = [
                int(size * factor) for size, factor in zip(input.shape[2:], factors, strict=True)
            ]
        return row(input, output_size, *options, *factors)

    return vec


KINDS: Mapping[str, Callable[..., jax.Array]] = {
    "upsample_nearest1d": partial(nearest, 0.0),
    "upsample_nearest2d": partial(nearest, 0.0),
    "upsample_nearest3d": partial(nearest, 0.0),
    "_upsample_nearest_exact1d": partial(nearest, 0.5),
    "_upsample_nearest_exact2d": partial(nearest, 0.5),
    "_upsample_nearest_exact3d": partial(nearest, 0.5),
    "upsample_linear1d": partial(resized, between, LINEAR),
    "upsample_bilinear2d": partial(resized, between, LINEAR),
    "upsample_trilinear3d": partial(resized, between, LINEAR),
    "upsample_bicubic2d": partial(resized, between, CUBIC),
    "_upsample_bilinear2d_aa": partial(resized, antialiased, LINEAR),
    "_upsample_bicubic2d_aa": partial(resized, antialiased, CUBIC),
}
ROWS: Mapping[str, Callable] = {f"aten.{name}.default": row for name, row in KINDS.items()} | {
    f"aten.{name}.vec": by_factors(row) for name, row in KINDS.items()
}
