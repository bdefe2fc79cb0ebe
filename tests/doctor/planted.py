"""Pairs of a torch model and a Linen twin of which one thing is not the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

import bridge as br


@dataclass(frozen=True)
class Plant:
    """What is wrong, the models, the shape of the input, and what the doctor must say of it."""

    cause: str
    where: str
    told: str
    torch: Callable[[], torch.nn.Module]
    twin: Callable[[], nn.Module]
    shape: tuple[int, ...]
    spoiled: Callable[[Any], Any] = lambda module: module
    passes: bool = False

    def models(self) -> tuple[Any, torch.nn.Module, np.ndarray]:
        """The Module with torch's weights, the torch model, and an input for both."""
        torch.manual_seed(0)
        model = self.torch().eval()
        x = np.random.default_rng(1).normal(size=self.shape).astype(np.float32)
        own = np.moveaxis(x, 1, -1) if x.ndim == 4 else x
        module = br.from_linen(self.twin()).init(jax.random.key(0), own)
        return self.spoiled(br.load_state_dict(module, model, strict=False)), model, x


class Chain(torch.nn.Module):
    """Two dense layers with something between them."""

    def __init__(self, between, width=7):
        super().__init__()
        self.up, self.down = torch.nn.Linear(5, 7), torch.nn.Linear(width, 3)
        self.between = between

    def forward(self, x):
        return self.down(self.between(self.up(x)))


class LinenChain(nn.Module):
    """The same in Linen."""

    between: Callable[[jax.Array], jax.Array]
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="down")(self.between(nn.Dense(7, dtype=self.dtype, name="up")(x)))


class Normed(torch.nn.Module):
    """A norm between two layers."""

    def __init__(self, norm, first=None):
        super().__init__()
        self.up, self.norm, self.down = first or torch.nn.Linear(5, 7), norm, torch.nn.Linear(7, 3)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


class LinenNormed(nn.Module):
    """The same in Linen."""

    norm: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="down")(self.norm()(nn.Dense(7, name="up")(x)))


class Picture(torch.nn.Module):
    """Convolutions with something between, and a dense layer on what is flattened."""

    def __init__(self, between, inside, padding=1):
        super().__init__()
        self.one = torch.nn.Conv2d(3, 5, 3, 2, padding)
        self.two = torch.nn.Conv2d(5, 7, 1)
        self.head = torch.nn.Linear(inside, 11)
        self.between = between

    def forward(self, x):
        return self.head(self.two(self.between(self.one(x))).flatten(1))


class LinenPicture(nn.Module):
    """The same in Linen; `order` says how the axes are turned before they are flattened."""

    between: Callable[[jax.Array], jax.Array] = lambda x: x
    padding: Any = ((1, 1), (1, 1))
    order: tuple[int, ...] = (0, 3, 1, 2)

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(5, (3, 3), 2, self.padding, name="one")(x)
        x = nn.Conv(7, (1, 1), name="two")(self.between(x))
        return nn.Dense(11, name="head")(x.transpose(self.order).reshape(x.shape[0], -1))


class Attention(torch.nn.Module):
    """Attention written out."""

    def __init__(self, causal=False, scale=7**-0.5):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(5, 7) for _ in range(3))
        self.out = torch.nn.Linear(7, 3)
        self.causal, self.scale = causal, scale

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT * self.scale
        if self.causal:
            allowed = torch.tril(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool))
            scores = scores.masked_fill(~allowed, float("-inf"))
        return self.out(scores.softmax(-1) @ self.v(x))


class LinenAttention(nn.Module):
    """The same in Linen."""

    causal: bool = False
    scale: float = 7**-0.5

    @nn.compact
    def __call__(self, x):
        q, k, v = (nn.Dense(7, name=name)(x) for name in "qkv")
        scores = jnp.einsum("bik,bjk->bij", q, k) * self.scale
        if self.causal:
            allowed = jnp.tril(jnp.ones(scores.shape[1:], bool))
            scores = jnp.where(allowed, scores, -jnp.inf)
        return nn.Dense(3, name="out")(jnp.einsum("bij,bjk->bik", nn.softmax(scores), v))


class Segments(torch.nn.Module):
    """A layer and a table of segments, all of the first one by default."""

    def __init__(self):
        super().__init__()
        self.up, self.segment, self.down = (
            torch.nn.Linear(5, 7),
            torch.nn.Embedding(2, 7),
            torch.nn.Linear(7, 3),
        )

    def forward(self, x, segments=None):
        segments = torch.zeros(x.shape[:-1], dtype=torch.int64) if segments is None else segments
        return self.down(self.up(x) + self.segment(segments))


class LinenSegments(nn.Module):
    """The same in Linen, where no segments are none at all."""

    @nn.compact
    def __call__(self, x, segments=None):
        table = nn.Embed(2, 7, name="segment")
        if self.is_initializing():
            table(jnp.zeros((1,), int))
        x = nn.Dense(7, name="up")(x)
        return nn.Dense(3, name="down")(x if segments is None else x + table(segments))


class Turning(torch.nn.Module):
    """A layer whose output is multiplied by what no state_dict has."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)
        self.register_buffer("frequencies", torch.arange(1.0, 8.0) ** -0.5, persistent=False)

    def forward(self, x):
        return self.down(self.up(x) * self.frequencies)


class LinenTurning(nn.Module):
    """The same in Linen, with the frequencies as a variable, of another base."""

    @nn.compact
    def __call__(self, x):
        held = self.variable("buffers", "frequencies", lambda: jnp.arange(1.0, 8.0) ** -0.25)
        return nn.Dense(3, name="down")(nn.Dense(7, name="up")(x) * held.value)


class Recurrent(torch.nn.Module):
    """An LSTM and a layer on its last output."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = torch.nn.LSTM(5, 7, batch_first=True), torch.nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class LinenRecurrent(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.RNN(nn.OptimizedLSTMCell(7))(x)[:, -1])


class Square(torch.nn.Module):
    """A square matrix."""

    def __init__(self):
        super().__init__()
        self.down = torch.nn.Linear(7, 7)

    def forward(self, x):
        return self.down(x)


class LinenSquare(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(7, name="down")(x)


def swapped(one: str, other: str) -> Callable[[Any], Any]:
    """Puts an array in the place of another one, and that in its own."""

    def spoil(module: Any) -> Any:
        first, second = module.at[one].get(), module.at[other].get()
        return module.at[one].set(second).at[other].set(first)

    return spoil


def turned(path: str) -> Callable[[Any], Any]:
    """Turns a square matrix."""
    return lambda module: module.at[path].apply(lambda one: one.T)


def resized(x: jax.Array) -> jax.Array:
    """An image twice as large."""
    return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "linear")


DOWN, OUT, TWO = (
    "the input of params.down.kernel (down.weight)",
    "the input of params.out.kernel (out.weight)",
    "the input of params.two.kernel (two.weight)",
)


def plain(x: Any) -> Any:
    """What is given."""
    return x


PLANTS = (
    Plant(
        "activation",
        DOWN,
        "GELU is exact (erf) in torch and its tanh form in the Module: type jax.nn.gelu(x,"
        " approximate=False)",
        lambda: Chain(torch.nn.GELU()),
        lambda: LinenChain(nn.gelu),
        (2, 5),
    ),
    Plant(
        "activation",
        DOWN,
        "the activation is tanh in the Module and relu in torch",
        lambda: Chain(torch.relu),
        lambda: LinenChain(nn.tanh),
        (2, 5),
    ),
    Plant(
        "eps",
        DOWN,
        "eps is 0.001 in the Module and 1e-05 in torch",
        lambda: Normed(torch.nn.LayerNorm(7)),
        lambda: LinenNormed(lambda: nn.LayerNorm(epsilon=1e-3, name="norm")),
        (2, 5),
    ),
    Plant(
        "settings",
        "params.norm",
        "decay is 0.99, and 0.9 in norm: build the model with 0.9, or type strict=False to keep 0.99",
        lambda: Normed(torch.nn.BatchNorm1d(7)),
        lambda: LinenNormed(lambda: nn.BatchNorm(True, epsilon=1e-5, name="norm")),
        (2, 5),
        passes=True,
    ),
    Plant(
        "dropout",
        DOWN,
        "numbers are drawn at random in eval mode: dropout is on; type module = module.eval(), and look"
        " for a train flag that is set inside the model",
        lambda: Chain(torch.nn.Dropout(0.3)),
        lambda: LinenChain(lambda x: nn.Dropout(0.3, deterministic=False)(x)),
        (2, 5),
    ),
    Plant(
        "precision",
        "the input of params.up.kernel (up.weight)",
        "the Module computes in bfloat16 and torch does not",
        lambda: Chain(plain),
        lambda: LinenChain(plain, jnp.bfloat16),
        (2, 5),
    ),
    Plant(
        "padding",
        TWO,
        'padding is [(0, 1), (0, 1)] in the Module and [(1, 1), (1, 1)] in torch (padding="SAME" puts'
        " more at the end where the stride is not 1): type padding=[(1, 1), (1, 1)]",
        lambda: Picture(plain, 7 * 4 * 6),
        lambda: LinenPicture(padding="SAME"),
        (2, 3, 8, 12),
    ),
    Plant(
        "pooling",
        TWO,
        "the pooling is reduce_window_sum in the Module and reduce_window_max in torch",
        lambda: Picture(torch.nn.MaxPool2d(2), 7 * 2 * 3),
        lambda: LinenPicture(lambda x: nn.avg_pool(x, (2, 2), (2, 2))),
        (2, 3, 8, 12),
    ),
    Plant(
        "align_corners",
        TWO,
        "the Module does not align the corners of what it resizes, and torch does: align_corners=True;"
        " jax.image.resize never does",
        lambda: Picture(
            torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), 7 * 8 * 12
        ),
        lambda: LinenPicture(resized),
        (2, 3, 8, 12),
    ),
    Plant(
        "flatten order",
        "the input of params.head.kernel (head.weight)",
        "has the same numbers in another order, as a flatten of channels first and of channels last:"
        " type bridge.load_state_dict(module, torch_model, inputs=(x,)), which turns the weights",
        lambda: Picture(torch.tanh, 7 * 4 * 6),
        lambda: LinenPicture(nn.tanh, order=(0, 1, 2, 3)),
        (2, 3, 8, 12),
    ),
    Plant(
        "scale",
        OUT,
        "the scale of the attention is 0.44721 in the Module and 0.37796 in torch",
        Attention,
        lambda: LinenAttention(scale=5**-0.5),
        (2, 3, 5),
    ),
    Plant(
        "attention mask",
        OUT,
        "torch masks its attention and the Module does not: give both the same mask",
        lambda: Attention(causal=True),
        LinenAttention,
        (2, 3, 5),
    ),
    Plant(
        "missing input",
        "params.segment.embedding",
        "torch uses it with these inputs (segment.weight) and the Module does not: an input is missing"
        " there or has another default, as token type ids may; give it to both",
        Segments,
        LinenSegments,
        (2, 3, 5),
    ),
    Plant(
        "buffer",
        DOWN,
        "frequencies of torch's, which no state_dict has, is 3.1e-01 away from what the Module has in"
        " its place",
        Turning,
        LinenTurning,
        (2, 5),
    ),
    Plant(
        "swapped",
        "params.OptimizedLSTMCell_0.if.kernel",
        "params.OptimizedLSTMCell_0.if.kernel holds what belongs to"
        " params.OptimizedLSTMCell_0.ig.kernel",
        Recurrent,
        LinenRecurrent,
        (2, 3, 5),
        swapped("params.OptimizedLSTMCell_0.if.kernel", "params.OptimizedLSTMCell_0.ig.kernel"),
    ),
    Plant(
        "layout",
        "params.down.kernel",
        "params.down.kernel is torch's with its axes in another order, (1, 0)",
        Square,
        LinenSquare,
        (2, 7),
        turned("params.down.kernel"),
    ),
    Plant(
        "weights",
        "params.up.bias",
        "params.up.bias is not torch's, 1.0e+00 away: it was not loaded, or trained since; type"
        " bridge.load_state_dict(module, torch_model)",
        lambda: Chain(torch.tanh),
        lambda: LinenChain(nn.tanh),
        (2, 5),
        lambda module: module.at["params.up.bias"].apply(jnp.zeros_like),
    ),
)
