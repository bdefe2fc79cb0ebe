"""Networks of torchvision for images, written once more in JAX libraries, without its names."""

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

import bridge as br

EPS = 1e-5


class Norm(nn.Module):
    """A batch norm with torch's numbers, that only evaluates."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.BatchNorm(True, momentum=0.9, epsilon=EPS)(x)


def _conv(width: int, size: int, stride: int = 1, groups: int = 1, name: str | None = None) -> nn.Conv:
    return nn.Conv(
        width,
        (size, size),
        stride,
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        feature_group_count=groups,
        name=name,
    )


def _pooled(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])


class Residual(nn.Module):
    """Two or three convolutions beside a shortcut, which here runs first."""

    width: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = self.width * (4 if self.bottleneck else 1)
        beside = x
        if self.stride > 1 or x.shape[-1] != wide:
            beside = Norm()(_conv(wide, 1, self.stride)(x))
        if self.bottleneck:
            x = nn.relu(Norm()(_conv(self.width, 1)(x)))
            x = nn.relu(Norm()(_conv(self.width, 3, self.stride)(x)))
            x = Norm()(_conv(wide, 1)(x))
        else:
            x = nn.relu(Norm()(_conv(wide, 3, self.stride)(x)))
            x = Norm()(_conv(wide, 3)(x))
        return nn.relu(beside + x)


class LinenResNet(nn.Module):
    """ResNet-18 or -50 by the number of blocks of each stage."""

    counts: tuple[int, ...]
    bottleneck: bool
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _pooled(nn.relu(Norm()(_conv(64, 7, 2)(x))))
        for stage, count in enumerate(self.counts):
            for number in range(count):
                stride = 2 if stage and not number else 1
                x = Residual(64 * 2**stage, stride, self.bottleneck)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


def linen_resnet(counts: tuple[int, ...], bottleneck: bool, classes: int) -> Any:
    return br.from_linen(LinenResNet(counts, bottleneck, classes))


def haiku_resnet(cls: Any, classes: int) -> Any:
    """Haiku's own ResNet; it pads as TensorFlow does, so that its values are others.

    Haiku makes the averages of its batch norms in train mode alone.
    """

    def run(x: jax.Array) -> jax.Array:
        norm = {"decay_rate": 0.9, "eps": EPS}
        return cls(classes, bn_config=norm)(x, is_training=hk.running_init())

    return br.from_haiku(run)


# Widening, channels, blocks, first stride of each stage: the table of the paper.
INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class LinenMobileNet(nn.Module):
    """MobileNetV2."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu6(Norm()(_conv(32, 3, 2)(x)))
        for widening, channels, count, first in INVERTED:
            for number in range(count):
                x = self.inverted(x, widening, channels, 1 if number else first)
        x = nn.relu6(Norm()(_conv(1280, 1)(x)))
        return nn.Dense(self.classes)(x.mean((1, 2)))

    def inverted(self, x: jax.Array, widening: int, channels: int, stride: int) -> jax.Array:
        y, wide = x, x.shape[-1] * widening
        if widening > 1:
            y = nn.relu6(Norm()(_conv(wide, 1)(y)))
        y = nn.relu6(Norm()(_conv(wide, 3, stride, wide)(y)))
        y = Norm()(_conv(channels, 1)(y))
        return x + y if y.shape == x.shape else y


def linen_mobilenet(classes: int) -> Any:
    return br.from_linen(LinenMobileNet(classes))


class Stage(nnx.Module):
    """A convolution, a batch norm, and perhaps a rectifier."""

    def __init__(self, ins: int, outs: int, size: int, stride: int, groups: int, active: bool) -> None:
        pads, rngs = [(size // 2, size // 2)] * 2, nnx.Rngs(0)
        self.filter = nnx.Conv(
            ins,
            outs,
            (size, size),
            stride,
            padding=pads,
            use_bias=False,
            feature_group_count=groups,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outs, momentum=0.9, epsilon=EPS, rngs=rngs)
        self.active = active

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.filter(x))
        return jnp.clip(x, 0, 6) if self.active else x


class NnxMobileNet(nnx.Module):
    """MobileNetV2."""

    def __init__(self, classes: int) -> None:
        blocks, ins = [], 32
        for widening, channels, count, first in INVERTED:
            for number in range(count):
                wide, stride = ins * widening, 1 if number else first
                block = [Stage(ins, wide, 1, 1, 1, True)] if widening > 1 else []
                block += [Stage(wide, wide, 3, stride, wide, True)]
                blocks.append(nnx.List([*block, Stage(wide, channels, 1, 1, 1, False)]))
                ins = channels
        self.stem, self.blocks = Stage(3, 32, 3, 2, 1, True), nnx.List(blocks)
        self.top = Stage(ins, 1280, 1, 1, 1, True)
        self.out = nnx.Linear(1280, classes, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            y = x
            for stage in block:
                y = stage(y)
            x = x + y if x.shape == y.shape else y
        return self.out(self.top(x).mean((1, 2)))


def nnx_mobilenet(classes: int) -> Any:
    return br.from_nnx(NnxMobileNet(classes))


class LinenDenseNet(nn.Module):
    """DenseNet by the number of layers of each block."""

    counts: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _pooled(nn.relu(Norm()(_conv(64, 7, 2)(x))))
        for block, count in enumerate(self.counts):
            for _ in range(count):
                y = _conv(128, 1)(nn.relu(Norm()(x)))
                x = jnp.concatenate([x, _conv(32, 3)(nn.relu(Norm()(y)))], -1)
            if block < len(self.counts) - 1:
                x = _conv(x.shape[-1] // 2, 1)(nn.relu(Norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.classes)(nn.relu(Norm()(x)).mean((1, 2)))


def linen_densenet(counts: tuple[int, ...], classes: int) -> Any:
    return br.from_linen(LinenDenseNet(counts, classes))


def haiku_densenet(counts: tuple[int, ...], classes: int) -> Any:
    """DenseNet as a function."""

    def active(x: jax.Array) -> jax.Array:
        return jax.nn.relu(hk.BatchNorm(True, True, 0.9, EPS)(x, is_training=hk.running_init()))

    def conv(x: jax.Array, width: int, size: int, stride: int = 1) -> jax.Array:
        pads = [(size // 2, size // 2)] * 2
        return hk.Conv2D(width, size, stride, padding=pads, with_bias=False)(x)

    def run(x: jax.Array) -> jax.Array:
        x = _pooled(active(conv(x, 64, 7, 2)))
        for block, count in enumerate(counts):
            for _ in range(count):
                x = jnp.concatenate([x, conv(active(conv(active(x), 128, 1)), 32, 3)], -1)
            if block < len(counts) - 1:
                x = hk.AvgPool((2, 2, 1), (2, 2, 1), "VALID")(conv(active(x), x.shape[-1] // 2, 1))
        return hk.Linear(classes)(active(x).mean((1, 2)))

    return br.from_haiku(run)
