"""Fourier transforms, with PyTorch's three ways to normalise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

# fft_norm_mode of PyTorch's SpectralOpsUtils.h: 0 divides by nothing, 1 by the root of n, 2 by n
_FORWARD = ("backward", "ortho", "forward")
_INVERSE = ("forward", "ortho", "backward")


def complex_to_complex(x: jax.Array, dims: list[int], normalization: int, forward: bool) -> jax.Array:
    """The transform of complex values along the dims."""
    if not dims:
        return x
    transform, norms = (jnp.fft.fftn, _FORWARD) if forward else (jnp.fft.ifftn, _INVERSE)
    return transform(x, axes=dims, norm=norms[normalization])


def real_to_complex(x: jax.Array, dims: list[int], normalization: int, onesided: bool) -> jax.Array:
    """The transform of real values; ``onesided`` keeps the first half of the last dim alone."""
    transform = jnp.fft.rfftn if onesided else jnp.fft.fftn
    return transform(x, axes=dims, norm=_FORWARD[normalization])


def complex_to_real(x: jax.Array, dims: list[int], normalization: int, last_dim_size: int) -> jax.Array:
    """The inverse of a one-sided transform, whose last dim had ``last_dim_size`` values."""
    sizes = [x.shape[dim] for dim in dims[:-1]] + [last_dim_size]
    return jnp.fft.irfftn(x, s=sizes, axes=dims, norm=_INVERSE[normalization])


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten._fft_c2c.default": complex_to_complex,
    "aten._fft_r2c.default": real_to_complex,
    "aten._fft_c2r.default": complex_to_real,
}
