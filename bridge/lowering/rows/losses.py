"""Losses whose gradient or shape torch's own decomposition does not keep.

A target that names no class gives NaN where PyTorch raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bridge.lowering.promotion import promoted

MEAN, SUM = 1, 2
"""Reductions as ATen numbers them; 0 is none."""


def _reduced(loss: jax.Array, reduction: int) -> jax.Array:
    return loss.mean() if reduction == MEAN else loss.sum() if reduction == SUM else loss


def _class_axis(x: jax.Array) -> int:
    return min(x.ndim - 1, 1)


def _picked(x: jax.Array, target: jax.Array) -> jax.Array:
    """The entry of each target's class; NaN for a class that there is not."""
    axis = _class_axis(x)
    known = jnp.where(target < 0, x.shape[axis], target)  # a negative index would count from the end
    entries = jnp.take_along_axis(
        x, jnp.expand_dims(known, axis), axis, mode="fill", fill_value=jnp.nan
    )
    return jnp.squeeze(entries, axis)


def _class_weights(
    weight: jax.Array | None, target: jax.Array, kept: jax.Array, dtype: Any
) -> jax.Array:
    if weight is None:
        return kept.astype(dtype)
    return jnp.where(kept, jnp.take(weight, target, mode="clip"), 0)


def _over_kept(
    losses: jax.Array, target: jax.Array, kept: jax.Array, weight: jax.Array | None, reduction: int
) -> tuple[jax.Array, jax.Array]:
    """The losses without those ignored, weighted and reduced, and the weight of all that counted."""
    losses = jnp.where(kept, losses, 0)
    if weight is not None:
        losses = losses * _class_weights(weight, target, kept, losses.dtype)
    if reduction not in (MEAN, SUM):
        return losses, jnp.zeros((), losses.dtype)
    total = _class_weights(weight, target, kept, losses.dtype).sum()
    return (losses.sum() / total if reduction == MEAN else losses.sum()), total


def _split_ignored(target: jax.Array, ignore_index: int) -> tuple[jax.Array, jax.Array]:
    kept = target != ignore_index
    return jnp.where(kept, target, 0), kept


def nll_loss(
    x: jax.Array, target: jax.Array, weight: jax.Array | None, reduction: int, ignore_index: int
) -> tuple[jax.Array, jax.Array]:
    """The negative log-likelihood of the targets, and the weight of all that counted."""
    target, kept = _split_ignored(target, ignore_index)
    return _over_kept(-_picked(x, target), target, kept, weight, reduction)


def cross_entropy(
    x: jax.Array, target: jax.Array, weight: jax.Array | None = None, reduction: int = MEAN,
    ignore_index: int = -100, label_smoothing: float = 0.0,
) -> jax.Array:  # fmt: skip
    """The cross entropy of logits with classes, or with probabilities of the logits' own shape."""
    wide = x.astype(
        jnp.promote_types(x.dtype, jnp.float32)
    )  # PyTorch's log_softmax accumulates in float32
    if target.shape == x.shape:
        return _soft_cross_entropy(wide, target, weight, reduction, label_smoothing).astype(x.dtype)
    target, kept = _split_ignored(target, ignore_index)
    axis = _class_axis(x)
    normaliser = jax.nn.logsumexp(wide, axis)
    loss, total = _over_kept(normaliser - _picked(wide, target), target, kept, weight, reduction)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss
        share = label_smoothing / x.shape[axis]
        logs = wide - jnp.expand_dims(normaliser, axis)
        smooth = jnp.where(kept, -_weighted(logs, weight).sum(axis), 0)
        smooth = smooth if reduction not in (MEAN, SUM) else smooth.sum()
        loss = loss + share * (smooth / total if reduction == MEAN else smooth)
    return loss.astype(x.dtype)


def _weighted(x: jax.Array, weight: jax.Array | None) -> jax.Array:
    if weight is None:
        return x
    return x * jnp.expand_dims(weight, range(1, x.ndim - _class_axis(x)))


def _soft_cross_entropy(
    x: jax.Array, target: jax.Array, weight: jax.Array | None, reduction: int, smoothing: float
) -> jax.Array:
    axis = _class_axis(x)
    if smoothing:
        target = target * (1 - smoothing) + smoothing / x.shape[axis]
    losses = -(_weighted(jax.nn.log_softmax(x, axis), weight) * target).sum(axis)
    return _reduced(losses, reduction)


@jax.custom_jvp
def _binary_cross_entropy(x: jax.Array, target: jax.Array) -> jax.Array:
    # The logarithms stop at -100: torch.nn.BCELoss' docs
    on, off = jnp.maximum(jnp.log(x), -100), jnp.maximum(jnp.log1p(-x), -100)
    return -(target * on + (1 - target) * off)


@_binary_cross_entropy.defjvp
def _binary_cross_entropy_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, target), (dx, d_target) = primals, tangents
    slope = (x - target) / jnp.maximum((1 - x) * x, 1e-12)  # EPSILON in ATen's native/Loss.cpp
    return _binary_cross_entropy(x, target), slope * dx + (jnp.log1p(-x) - jnp.log(x)) * d_target


def binary_cross_entropy(
    x: jax.Array, target: jax.Array, weight: jax.Array | None = None, reduction: int = MEAN
) -> jax.Array:
    """The cross entropy of probabilities with targets between 0 and 1."""
    losses = _binary_cross_entropy(*promoted(x, target))
    return _reduced(losses if weight is None else losses * weight, reduction)


def multi_margin_loss(
    x: jax.Array, target: jax.Array, p: float = 1, margin: float = 1, weight: jax.Array | None = None,
    reduction: int = MEAN,
) -> jax.Array:  # fmt: skip
    """The hinge of every other class against the target's, averaged over the classes."""
    classes = x.shape[-1]
    target = target.reshape(x.shape[:-1])
    hinges = jax.nn.relu(
        margin - _picked(x, target)[..., None] + x
    )  # no gradient at zero, like PyTorch's
    hinges = hinges if p == 1 else jnp.square(hinges)
    if weight is not None:
        hinges = hinges * jnp.take(weight, target)[..., None]
    others = jnp.where(jnp.arange(classes, dtype=target.dtype) == target[..., None], 0, hinges)
    return _reduced(others.sum(-1) / classes, reduction)


def multilabel_margin_loss(
    x: jax.Array, target: jax.Array, reduction: int
) -> tuple[jax.Array, jax.Array]:
    """The hinge of every other class against each of the targets, and 1 where a class is a target."""
    shape = target.shape
    x, target = jnp.atleast_1d(x), jnp.atleast_1d(target)
    classes = x.shape[-1]
    listed = lax.cummax((target < 0).astype(jnp.int32), axis=target.ndim - 1) == 0  # up to the first -1
    chosen = jnp.where(listed, target, 0)
    names = jnp.arange(classes, dtype=target.dtype)
    is_target = (listed[..., None] & (chosen[..., None] == names)).any(-2)
    scores = jnp.take_along_axis(x, chosen, -1, mode="fill", fill_value=jnp.nan)
    hinges = jax.nn.relu(1 - scores[..., None] + x[..., None, :])
    counted = listed[..., None] & ~is_target[..., None, :]
    losses = jnp.where(counted, hinges, 0).sum((-1, -2)) / classes
    return _reduced(losses, reduction), is_target.astype(x.dtype).reshape(shape)


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten.cross_entropy_loss.default": cross_entropy,
    "aten.nll_loss_forward.default": nll_loss,
    "aten.nll_loss2d_forward.default": nll_loss,
    "aten.binary_cross_entropy.default": binary_cross_entropy,
    "aten.multi_margin_loss.default": multi_margin_loss,
    "aten.multilabel_margin_loss_forward.default": multilabel_margin_loss,
}
