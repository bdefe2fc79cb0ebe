"""The loss of connectionist temporal classification: one scan over time, in logarithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MEAN, SUM = 1, 2
NEVER = -1e30
"""The logarithm of what cannot be: finite, so that differences of two stay numbers."""


def _padded(targets: jax.Array, lengths: jax.Array) -> jax.Array:
    """Targets as ``(batch, labels)``; where they come one after another, each may have all labels."""
    if targets.ndim == 2:
        return targets
    starts = jnp.cumsum(lengths) - lengths
    places = starts[:, None] + jnp.arange(targets.shape[0], dtype=lengths.dtype)
    return jnp.take(targets, places, mode="clip")


def _losses(
    logs: jax.Array, targets: jax.Array, input_lengths: jax.Array, target_lengths: jax.Array, blank: int
) -> jax.Array:
    """Minus the log-likelihood of each sequence, about ``-NEVER`` where no path is short enough."""
    frames, batch, _ = logs.shape
    labels = targets.shape[1]
    states = 2 * labels + 1
    path = jnp.full((batch, states), blank, targets.dtype).at[:, 1::2].set(targets)
    emitted = jnp.take_along_axis(logs, jnp.broadcast_to(path, (frames, batch, states)), axis=-1)
    # A label may follow another directly, unless they are equal: the blank between is then needed
    skips = jnp.zeros((batch, states), bool).at[:, 3::2].set(targets[:, 1:] != targets[:, :-1])

    def shifted(alpha: jax.Array, by: int) -> jax.Array:
        return jnp.pad(alpha, ((0, 0), (by, 0)), constant_values=NEVER)[:, :states]

    def step(alpha: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        frame, emission = now
        moved = jnp.logaddexp(alpha, shifted(alpha, 1))
        moved = jnp.logaddexp(moved, jnp.where(skips, shifted(alpha, 2), NEVER))
        going = (frame < input_lengths)[:, None]
        return jnp.where(going, moved + emission, alpha), None

    start = jnp.full((batch, states), NEVER, logs.dtype).at[:, 0].set(0)
    alpha, _ = lax.scan(step, start, (jnp.arange(frames, dtype=input_lengths.dtype), emitted))
    ends = jnp.stack((2 * target_lengths, jnp.maximum(2 * target_lengths - 1, 0)), axis=-1)
    last, before = jnp.moveaxis(jnp.take_along_axis(alpha, ends, axis=-1), -1, 0)
    return -jnp.where(target_lengths > 0, jnp.logaddexp(last, before), last)


def ctc_loss(
    log_probs: jax.Array, targets: jax.Array, input_lengths: jax.Array, target_lengths: jax.Array,
    blank: int = 0, reduction: int = MEAN, zero_infinity: bool = False,
) -> jax.Array:  # fmt: skip
    """The loss of ``(time, batch, classes)`` log-probabilities, or ``(time, classes)`` of one sequence.

    ``targets`` are ``(batch, labels)``, or all labels one after another.
    """
    alone = log_probs.ndim == 2
    input_lengths, target_lengths = jnp.atleast_1d(input_lengths), jnp.atleast_1d(target_lengths)
    logs = jnp.maximum(log_probs[:, None] if alone else log_probs, NEVER)
    losses = _losses(logs, _padded(targets, target_lengths), input_lengths, target_lengths, blank)
    # The gradient is that of a log_softmax's logits: ctc_loss_backward in ATen's native/LossCTC.cpp
    running = jnp.arange(logs.shape[0], dtype=input_lengths.dtype)[:, None] < input_lengths
    sums = jnp.where(running, jnp.exp(logs).sum(-1), 0).sum(0)
    losses = losses + (sums - lax.stop_gradient(sums))
    impossible = losses > -NEVER / 2
    losses = jnp.where(impossible, 0, losses)
    if (
        not zero_infinity
    ):  # minus the logarithm of nothing: infinite, and its gradient NaN like PyTorch's
        losses = losses - jnp.log(jnp.where(impossible, 0 * sums, 1))
    if reduction == MEAN:
        return (losses / jnp.maximum(target_lengths, 1).astype(losses.dtype)).mean()
    return losses.sum() if reduction == SUM else losses[0] if alone else losses


ROWS: Mapping[str, Callable[..., Any]] = {"bridge.ctc_loss.default": ctc_loss}
