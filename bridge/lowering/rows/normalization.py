"""Normalization: layer, group, batch and root-mean-square norms; float32 computes 16-bit inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bridge.core.errors import LoweringError

Sizes = Sequence[int]
Optional = jax.Array | None


def layer_norm(
    input: jax.Array,
    normalized_shape: Sizes,
    weight: Optional = None,
    bias: Optional = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> jax.Array:
    """The input, normalised over its last axes, times the weight, plus the bias."""
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def native_layer_norm(
    input: jax.Array, normalized_shape: Sizes, weight: Optional, bias: Optional, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `layer_norm` gives, the means and the inverse standard deviations."""
    centred, mean, rstd = _centred(input, tuple(range(-len(normalized_shape), 0)), eps)
    output = _affine(centred * rstd, weight, bias)
    return output.astype(input.dtype), mean.astype(input.dtype), rstd.astype(input.dtype)


def group_norm(
    input: jax.Array,
    num_groups: int,
    weight: Optional = None,
    bias: Optional = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> jax.Array:
    """(batch features *spatial), normalised over each group of features and all spatial axes."""
    batch, features = input.shape[:2]
    return native_group_norm(input, weight, bias, batch, features, -1, num_groups, eps)[0]


def native_group_norm(
    input: jax.Array, weight: Optional, bias: Optional, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `group_norm` gives, the means and the inverse standard deviations: (batch groups)."""
    blocks = input.reshape(N, group, C // group, *input.shape[2:])
    centred, mean, rstd = _centred(blocks, tuple(range(2, blocks.ndim)), eps)
    weight, bias = (_of_features(array, input.ndim) for array in (weight, bias))
    output = _affine((centred * rstd).reshape(input.shape), weight, bias)
    mean, rstd = (stat.reshape(N, group).astype(input.dtype) for stat in (mean, rstd))
    return output.astype(input.dtype), mean, rstd


def batch_norm(
    input: jax.Array,
    weight: Optional,
    bias: Optional,
    running_mean: jax.Array,
    running_var: jax.Array,
    training: bool,
    momentum: Any,
    eps: float,
) -> tuple[jax.Array, ...]:
    """(batch features *spatial) normalised, the mean and inverse deviation used, the new running stats.

    The running stats have no gradient. Raises LoweringError where a feature has one value only.
    """
    if not training:
        return (
            *batch_norm_inference(input, weight, bias, running_mean, running_var, momentum, eps),
            running_mean,
            running_var,
        )
    output, mean, var, rstd = _over_batch(input, weight, bias, eps)
    count = math.prod(input.shape) // max(input.shape[1], 1)
    if count == 1:
        raise LoweringError(
            f"Batch norm in training needs more than one value for each feature; an input of shape"
            f" {input.shape} has one. Give it a larger batch, or capture the model after model.eval()"
        )
    mean_now, var_now = lax.stop_gradient((mean, var))
    # torch.nn.BatchNorm2d's docs: the running variance takes the unbiased one
    unbiased = var_now * (count / (count - 1))
    new_mean = momentum * mean_now + (1 - momentum) * running_mean
    new_var = momentum * unbiased + (1 - momentum) * running_var
    return output, mean.astype(input.dtype), rstd.astype(input.dtype), new_mean, new_var


def batch_norm_with_update(
    input: jax.Array,
    weight: Optional,
    bias: Optional,
    running_mean: jax.Array,
    running_var: jax.Array,
    momentum: Any,
    eps: float,
) -> tuple[jax.Array, ...]:
    """What `batch_norm` gives in training, with an empty array before the new running stats."""
    found = batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps)
    reserved = jnp.zeros((0,), np.uint8)  # what cuDNN keeps for its backward
    return (*found[:3], reserved, *found[3:])


def batch_norm_without_stats(
    input: jax.Array, weight: Optional, bias: Optional, training: bool, momentum: Any, eps: float
) -> tuple[jax.Array, ...]:
    """(batch features *spatial) by its own statistics, the mean and inverse deviation used."""
    output, mean, _, rstd = _over_batch(input, weight, bias, eps)
    return output, mean.astype(input.dtype), rstd.astype(input.dtype)


def batch_norm_inference(
    input: jax.Array,
    weight: Optional,
    bias: Optional,
    running_mean: jax.Array,
    running_var: jax.Array,
    momentum: Any,
    eps: float,
) -> tuple[jax.Array, ...]:
    """(batch features *spatial) normalised by the running statistics, and two empty arrays."""
    scale = lax.rsqrt(_wide(running_var) + eps)
    centred = _wide(input) - _of_features(_wide(running_mean), input.ndim)
    empty = jnp.zeros((0,), input.dtype)  # torch's CPU saves nothing here
    return _scaled(centred, scale, weight, bias, input.dtype), empty, empty


def rms_norm(
    input: jax.Array, normalized_shape: Sizes, weight: Optional = None, eps: float | None = None
) -> jax.Array:
    """The input divided by the root of its mean square over its last axes, times the weight."""
    wide = _wide(input)
    if eps is None:  # that of the dtype computed in: torch.nn.RMSNorm's default, seen by running it
        eps = float(jnp.finfo(wide.dtype).eps)
    square = jnp.mean(jnp.square(wide), tuple(range(-len(normalized_shape), 0)), keepdims=True)
    return _affine(wide * lax.rsqrt(square + eps), weight, None).astype(input.dtype)


def _over_batch(
    input: jax.Array, weight: Optional, bias: Optional, eps: float
) -> tuple[jax.Array, ...]:
    axes = (0, *range(2, input.ndim))
    wide = _wide(input)
    mean = jnp.mean(wide, axes)
    centred = wide - _of_features(mean, input.ndim)
    var = jnp.mean(jnp.square(centred), axes)
    rstd = lax.rsqrt(var + eps)
    return _scaled(centred, rstd, weight, bias, input.dtype), mean, var, rstd


def _scaled(
    centred: jax.Array, rstd: jax.Array, weight: Optional, bias: Optional, dtype: Any
) -> jax.Array:
    """The centred array times what each feature has, rounded once."""
    scale = rstd if weight is None else rstd * weight
    scale, bias = (_of_features(array, centred.ndim) for array in (scale, bias))
    return _affine(centred, scale, bias).astype(dtype)


def _centred(array: jax.Array, axes: Sizes, eps: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The array less its mean over the axes, the mean, and the inverse of the standard deviation."""
    wide = _wide(array)
    mean = jnp.mean(wide, axes, keepdims=True)
    centred = wide - mean
    return centred, mean, lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + eps)


def _affine(array: jax.Array, weight: Optional, bias: Optional) -> jax.Array:
    scaled = array if weight is None else array * weight
    return scaled if bias is None else scaled + bias


def _of_features(array: Any, rank: int) -> Any:
    """(features) as (1 features 1...) of the rank of (batch features *spatial)."""
    return None if array is None else array.reshape(1, -1, *(1,) * (rank - 2))


def _wide(array: jax.Array) -> jax.Array:
    """The array as float32 where it has 16 bits."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten.layer_norm.default": layer_norm,
    "aten.native_layer_norm.default": native_layer_norm,
    "aten.group_norm.default": group_norm,
    "aten.native_group_norm.default": native_group_norm,
    "aten._native_batch_norm_legit_functional.default": batch_norm,
    "aten._batch_norm_with_update_functional.default": batch_norm_with_update,
    "aten._native_batch_norm_legit.no_stats": batch_norm_without_stats,
    "aten._native_batch_norm_legit_no_training.default": batch_norm_inference,
    "aten.rms_norm.default": rms_norm,
}
