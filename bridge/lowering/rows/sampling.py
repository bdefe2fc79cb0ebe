"""Sampling an image at given places: grid_sampler, and the grids of affine maps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bridge.lowering.rows.interpolation import cubic_weights

BILINEAR, NEAREST, BICUBIC = range(3)  # GridSamplerInterpolation in ATen/native/GridSamplerUtils.h
ZEROS, BORDER, REFLECTION = range(3)  # GridSamplerPadding, there too


def grid_sampler(
    input: jax.Array, grid: jax.Array, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> jax.Array:
    """The samples (batch channels *out) of an input (batch channels *in) at a grid (batch *out axes).

    The grid counts from -1 to 1, its last axis in the order x, y, z.
    """
    dtype = input.dtype
    if dtype.itemsize < 4:
        input, grid = input.astype(jnp.float32), grid.astype(jnp.float32)
    sizes = input.shape[2:]
    places = [
        _unnormalised(grid[..., -1 - axis], size, align_corners) for axis, size in enumerate(sizes)
    ]
    inner = [
        lambda place, size=size: _inside(place, size, padding_mode, align_corners) for size in sizes
    ]
    if interpolation_mode == BICUBIC:
        samples = _cubic(input, places, inner)
    else:
        samples = _MODES[interpolation_mode](
            input, [move(place) for move, place in zip(inner, places, strict=True)]
        )
    return samples.astype(dtype)


def _unnormalised(place: jax.Array, size: int, align_corners: bool) -> jax.Array:
    """A place from -1 to 1 as one in inputs: -1 and 1 are the outer inputs' centres, or their edges."""
    if align_corners:
        return (place + 1) / 2 * (size - 1)
    return ((place + 1) * size - 1) / 2


def _inside(place: jax.Array, size: int, padding_mode: int, align_corners: bool) -> jax.Array:
    """A place moved into the input, as the padding says."""
    if padding_mode == REFLECTION:
        low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
        place = _reflected(place, low, span)
    return place if padding_mode == ZEROS else _clipped(place, size)


def _clipped(place: jax.Array, size: int) -> jax.Array:
    """A place cut to the input, without a gradient at its ends; NaN is 0, as in clip_coordinates."""
    return jnp.where(place > 0, jnp.where(place < size - 1, place, size - 1), 0)


def _reflected(place: jax.Array, low: float, span: float) -> jax.Array:
    """A place reflected at both ends until it is inside: reflect_coordinates in GridSamplerUtils.h."""
    if span == 0:
        return jnp.zeros_like(place)
    place = place - low
    place = jnp.where(place < 0, -place, place)
    flips, rest = jnp.floor(place / span), lax.rem(place, jnp.asarray(span, place.dtype))
    return jnp.where(flips % 2 == 0, rest, span - rest) + low


def _read(input: jax.Array, places: Sequence[jax.Array]) -> jax.Array:
    """The input (batch channels *in) at whole places (batch *out), zero outside of it."""
    inside, flat = jnp.ones((), bool), jnp.zeros((), jnp.int32)
    for place, size in zip(places, input.shape[2:], strict=True):
        inside &= (place >= 0) & (place < size)
        flat = flat * size + jnp.clip(jnp.nan_to_num(place), 0, size - 1).astype(jnp.int32)
    image = input.reshape(*input.shape[:2], -1)
    # the batch and the places go together, all channels at once
    read = jax.vmap(
        lambda one, at: one.at[:, at].get(mode="promise_in_bounds", wrap_negative_indices=False)
    )
    return jnp.where(inside[:, None], read(image, flat), 0)


def _linear(input: jax.Array, places: Sequence[jax.Array]) -> jax.Array:
    """The samples from the two neighbours along each axis."""
    firsts = [jnp.floor(place) for place in places]
    parts = [place - first for place, first in zip(places, firsts, strict=True)]
    result = jnp.zeros((), input.dtype)
    for corner in itertools.product((0, 1), repeat=len(places)):
        weight = jnp.ones((), input.dtype)
        for part, step in zip(parts, corner, strict=True):
            weight = weight * (part if step else 1 - part)
        read = _read(input, [first + step for first, step in zip(firsts, corner, strict=True)])
        result = result + read * weight[:, None]
    return result


def _nearest(input: jax.Array, places: Sequence[jax.Array]) -> jax.Array:
    """The samples from the nearest input; of two the even one."""
    return _read(input, [jnp.round(place) for place in places])


def _cubic(
    input: jax.Array,
    places: Sequence[jax.Array],
    inner: Sequence[Callable[[jax.Array], jax.Array]],
) -> jax.Array:
    """The samples from the four neighbours along each axis, each of them moved into the input."""
    firsts = [jnp.floor(place) for place in places]
    weights = [cubic_weights(place - first) for place, first in zip(places, firsts, strict=True)]
    result = jnp.zeros((), input.dtype)
    for row, column in itertools.product(range(4), repeat=2):
        at = [
            move(first + step - 1)
            for move, first, step in zip(inner, firsts, (row, column), strict=True)
        ]
        read = _read(input, [jnp.round(place) for place in at])
        result = result + read * (weights[0][row] * weights[1][column])[:, None]
    return result


_MODES: Mapping[int, Callable[..., jax.Array]] = {BILINEAR: _linear, NEAREST: _nearest}


def affine_grid(theta: jax.Array, size: Sequence[int], align_corners: bool) -> jax.Array:
    """The grid (batch *out axes) that maps (batch axes axes+1) make of an output of `size`."""
    axes = []
    for count in size[2:]:
        line = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
        axes.append(line if align_corners else line * (count - 1) / count)
    x_first = np.meshgrid(*axes, indexing="ij")[::-1]
    base = np.stack([*x_first, np.ones(tuple(size[2:]))], -1).astype(theta.dtype)
    return jnp.einsum("...k,bjk->b...j", base, theta, precision="highest")


ROWS: Mapping[str, Callable] = {
    "aten.grid_sampler_2d.default": grid_sampler,
    "aten.grid_sampler_3d.default": grid_sampler,
    "aten.affine_grid_generator.default": affine_grid,
}
