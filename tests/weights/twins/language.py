"""Language models of transformers, of PyTorch and of Flax, that take tokens and nothing else."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch


class TorchText(torch.nn.Module):
    """A language model of transformers that gives its logits."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(ids, use_cache=False).logits


class FlaxText(nn.Module):
    """The same of Flax, whose modules want a mask and positions; `made` is one of them."""

    made: nn.Module

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        inner = type(self.made)(self.made.config, name="inner")
        return inner(ids, jnp.ones_like(ids), positions).logits
