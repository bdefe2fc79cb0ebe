"""Padding: constant, reflected, replicated and circular."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bridge.lowering.promotion import constant

MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""What jnp.pad calls the modes of torch.nn.functional.pad."""


def constant_pad(self: jax.Array, pad: Sequence[int], value: Any = 0) -> jax.Array:
    """The input with a number around it; a negative width cuts off."""
    edges = [(low, high, 0) for low, high in _widths(self.ndim, pad)]
    return lax.pad(self, constant(value or 0, self.dtype), edges)


def padded(self: jax.Array, pad: Sequence[int], mode: str = "constant", value: Any = None) -> jax.Array:
    """The input with its last axes longer, in one of PyTorch's modes; a negative width cuts off."""
    if mode == "constant":
        return constant_pad(self, pad, value)
    widths = _widths(self.ndim, pad)
    wider = [(max(low, 0), max(high, 0)) for low, high in widths]
    cuts = [(min(low, 0), min(high, 0), 0) for low, high in widths]
    cut = any(low or high for low, high, _ in cuts)
    zero = jnp.zeros((), self.dtype)
    if cut and mode == "circular":  # what goes around is what is left; the others see what is cut off
        self = lax.pad(self, zero, cuts)
    self = jnp.pad(self, wider, mode=MODES[mode])
    return lax.pad(self, zero, cuts) if cut and mode != "circular" else self


def _widths(rank: int, pad: Sequence[int]) -> list[tuple[int, int]]:
    """The widths before and after each axis; torch names them from the last axis on."""
    named = [(pad[at], pad[at + 1]) for at in range(0, len(pad), 2)]
    return [(0, 0)] * (rank - len(named)) + named[::-1]


ROWS: Mapping[str, Callable] = {
    "aten.constant_pad_nd.default": constant_pad,
    "aten.pad.default": padded,
}
