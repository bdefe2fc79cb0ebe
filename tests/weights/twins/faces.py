"""The three nets of MTCNN (Zhang et al. 2016), which find faces, in torch, Linen, Equinox.

torch's are named as facenet-pytorch names them, whose weights they take. Their dense layers want what
is flattened in the order width, height, channels; the twins flatten as their own library lays it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import torch


@dataclass(frozen=True)
class Stage:
    """A convolution to so many channels, and the window of the pooling after it, 0 for none."""

    channels: int
    kernel: int
    pool: int = 0


@dataclass(frozen=True)
class Plan:
    """A net: its stages, the dense layer on them, and the sizes of its outputs by name."""

    file: str
    size: tuple[int, int]
    stages: tuple[Stage, ...]
    dense: str
    width: int
    scores: str
    others: dict[str, int]


NETS = {
    "P-Net": Plan(
        "pnet.pt",
        (27, 31),
        (Stage(10, 3, 2), Stage(16, 3), Stage(32, 3)),
        "",
        0,
        "conv4_1",
        {"conv4_2": 4},
    ),
    "R-Net": Plan(
        "rnet.pt",
        (24, 24),
        (Stage(28, 3, 3), Stage(48, 3, 3), Stage(64, 2)),
        "4",
        128,
        "dense5_1",
        {"dense5_2": 4},
    ),
    "O-Net": Plan(
        "onet.pt",
        (48, 48),
        (Stage(32, 3, 3), Stage(64, 3, 3), Stage(64, 3, 2), Stage(128, 2)),
        "5",
        256,
        "dense6_1",
        {"dense6_2": 4, "dense6_3": 10},
    ),
}


class TorchNet(torch.nn.Module):
    """A net in torch."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan, before = plan, 3
        for number, stage in enumerate(plan.stages, 1):
            self.add_module(f"conv{number}", torch.nn.Conv2d(before, stage.channels, stage.kernel))
            self.add_module(f"prelu{number}", torch.nn.PReLU(stage.channels))
            before = stage.channels
        if plan.dense:
            places = {128: 576, 256: 1152}[plan.width]
            self.add_module(f"dense{plan.dense}", torch.nn.Linear(places, plan.width))
            self.add_module(f"prelu{plan.dense}", torch.nn.PReLU(plan.width))
            before = plan.width
        for name, size in {plan.scores: 2, **plan.others}.items():
            head = torch.nn.Linear(before, size) if plan.dense else torch.nn.Conv2d(before, size, 1)
            self.add_module(name, head)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        for number, stage in enumerate(self.plan.stages, 1):
            x = getattr(self, f"prelu{number}")(getattr(self, f"conv{number}")(x))
            if stage.pool:
                x = torch.nn.functional.max_pool2d(x, stage.pool, 2, ceil_mode=True)
        if self.plan.dense:
            x = x.permute(0, 3, 2, 1).flatten(1)
            x = getattr(self, f"prelu{self.plan.dense}")(getattr(self, f"dense{self.plan.dense}")(x))
        scores = getattr(self, self.plan.scores)(x).softmax(1)
        return [*(getattr(self, name)(x) for name in self.plan.others), scores]


def short(size: int, window: int) -> int:
    """How many places a pooling that rounds up has too few of at the end."""
    return -(size - window) % 2


def bent(x: jax.Array, slopes: jax.Array) -> jax.Array:
    """PReLU with a slope for each channel."""
    return jnp.where(x > 0, x, slopes * x)


class LinenNet(nn.Module):
    """A net in Linen, channels last; `images` have axes (batch, height, width, 3)."""

    plan: Plan

    def bent(self, x: jax.Array, name: str) -> jax.Array:
        return bent(x, self.param(name, nn.initializers.constant(0.25), (x.shape[-1],)))

    @nn.compact
    def __call__(self, images: jax.Array) -> Sequence[jax.Array]:
        x = images
        for number, stage in enumerate(self.plan.stages, 1):
            x = nn.Conv(stage.channels, (stage.kernel,) * 2, padding="VALID")(x)
            x = self.bent(x, f"slopes_{number}")
            if stage.pool:
                ends = [(0, short(size, stage.pool)) for size in x.shape[1:3]]
                x = nn.max_pool(x, (stage.pool,) * 2, (2, 2), ends)
        layer: Callable[[int], Any] = nn.Dense
        if self.plan.dense:
            x = self.bent(nn.Dense(self.plan.width)(x.reshape(x.shape[0], -1)), "slopes")
        else:
            layer = lambda size: nn.Conv(size, (1, 1))  # noqa: E731
        scores = nn.softmax(layer(2)(x))
        return [*(layer(size)(x) for size in self.plan.others.values()), scores]


class EquinoxNet(eqx.Module):
    """A net in Equinox, channels first, for one image of axes (3, height, width)."""

    convs: list[eqx.nn.Conv2d]
    slopes: list[jax.Array]
    dense: eqx.nn.Linear | None
    scores: Any
    others: list[Any]
    plan: Plan = eqx.field(static=True)

    def __init__(self, plan: Plan, places: int, key: jax.Array) -> None:
        sizes = [3, *(stage.channels for stage in plan.stages)]
        self.plan = plan
        self.convs = [
            eqx.nn.Conv2d(before, stage.channels, stage.kernel, key=key)
            for before, stage in zip(sizes, plan.stages, strict=False)
        ]
        widths = [*sizes[1:], *([plan.width] if plan.dense else [])]
        self.slopes = [jnp.full(width, 0.25) for width in widths]
        self.dense = eqx.nn.Linear(places, plan.width, key=key) if plan.dense else None

        def head(size: int) -> Any:
            if plan.dense:
                return eqx.nn.Linear(plan.width, size, key=key)
            return eqx.nn.Conv2d(sizes[-1], size, 1, key=key)

        self.scores, self.others = head(2), [head(size) for size in plan.others.values()]

    def __call__(self, image: jax.Array) -> Sequence[jax.Array]:
        x = image
        for conv, slopes, stage in zip(self.convs, self.slopes, self.plan.stages, strict=False):
            x = bent(conv(x), slopes[:, None, None])
            if stage.pool:
                ends = [(0, short(size, stage.pool)) for size in x.shape[1:]]
                x = eqx.nn.MaxPool2d(stage.pool, 2, ends)(x)
        if self.dense is not None:
            x = bent(self.dense(x.reshape(-1)), self.slopes[-1])
        return [*(head(x) for head in self.others), jax.nn.softmax(self.scores(x), axis=0)]
