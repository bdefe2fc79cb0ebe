"""The layers of the cases in each library, as Modules, and how they are called."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from tests.weights.kinds.cases import Case

PACKAGES = {"linen": "flax", "nnx": "flax", "haiku": "haiku", "equinox": "equinox"}


def twin(library: str, case: Case) -> Any:
    """The Module of a case in a library, its arrays all zeros."""
    pytest.importorskip(PACKAGES[library])
    module = BUILDERS[library](case, lambda name, default=None: case.options.get(name, default))
    args = arguments(library, case, case.inputs())
    abstract = jax.eval_shape(lambda key: module.init(key, *args), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)


def arguments(library: str, case: Case, inputs: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    """The arguments of a library's layer that say what `inputs` say to torch's."""
    if case.spatial and library != "equinox":
        inputs = tuple(np.moveaxis(x, 1, -1) for x in inputs)
    if case.kind.startswith("lstm"):
        x, h, c = inputs
        if library == "haiku":
            import haiku as hk

            return x, hk.LSTMState(h, c)
        return (x, (h, c)) if library == "equinox" else ((c, h), x)
    if case.kind in ("gru", "rnn") and library in ("linen", "nnx"):
        return inputs[::-1]
    return inputs


def output(library: str, case: Case, out: Any) -> Any:
    """What a library's layer gives, as torch's gives it."""
    if case.kind.startswith(("lstm", "gru", "rnn")):
        carry = {"haiku": lambda: out[0], "linen": lambda: out[1], "nnx": lambda: out[1]}
        return carry[library]() if library in carry else out[0] if isinstance(out, tuple) else out
    return jnp.moveaxis(out, -1, 1) if case.spatial and library != "equinox" else out


def _padding(option: Callable[..., Any]) -> Any:
    """The padding of a convolution as Flax and Haiku take it."""
    padding, rank = option("padding", 0), option("rank")
    if option("padding_mode"):
        return option("padding_mode").upper()
    if isinstance(padding, str):
        return padding.upper()
    return [(p, p) for p in _each(padding, rank)]


def _outside(option: Callable[..., Any]) -> list[tuple[int, int]]:
    """The padding of a transposed convolution as Flax and Haiku take it."""
    names = ("kernel_size", "padding", "output_padding", "dilation")
    sizes = (_each(option(name, int(name == "dilation")), option("rank")) for name in names)
    return [(d * (k - 1) - p, d * (k - 1) - p + more) for k, p, more, d in zip(*sizes, strict=True)]


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * rank


def _linen(case: Case, option: Callable[..., Any]) -> Any:
    import flax.linen as nn

    bias, features = option("bias", True), option("channels", (5, 7))[1]
    kernel = _each(option("kernel_size"), option("rank", 0))
    strides = {"strides": option("stride", 1), "kernel_dilation": option("dilation", 1)}
    convolution = {"padding": _padding(option), "use_bias": bias, **strides} if kernel else {}
    normed = nn.Conv(7, kernel, padding=0) if case.spatial else nn.Dense(7)
    eps = option("eps", 1e-5)
    layers = {
        "linear": lambda: nn.Dense(7, use_bias=bias),
        "embedding": lambda: nn.Embed(13, 5),
        "convolution": lambda: nn.Conv(
            features, kernel, feature_group_count=option("groups", 1), **convolution
        ),
        "transposed convolution": lambda: nn.ConvTranspose(
            features,
            kernel,
            _each(option("stride", 1), len(kernel)),
            _outside(option),
            _each(option("dilation", 1), len(kernel)),
            use_bias=bias,
            transpose_kernel=option("turned", False),
        ),
        "layer norm": lambda: nn.LayerNorm(eps, use_bias=bias),
        "rms norm": lambda: nn.RMSNorm(eps),
        "group norm": lambda: nn.GroupNorm(3, epsilon=eps),
        "instance norm": lambda: nn.InstanceNorm(epsilon=eps),
        "batch norm": lambda: nn.BatchNorm(True, momentum=0.9, epsilon=eps),
        "attention": lambda: nn.MultiHeadDotProductAttention(
            2, qkv_features=10, out_features=10, use_bias=bias
        ),
        "lstm": lambda: nn.OptimizedLSTMCell(7),
        "lstm in parts": lambda: nn.LSTMCell(7),
        "gru": lambda: nn.GRUCell(7),
        "rnn": lambda: nn.SimpleCell(7, activation_fn=getattr(jax.nn, option("activation", "tanh"))),
        "prelu": nn.PReLU,
        "weight norm": lambda: nn.WeightNorm(normed),
    }
    return br.from_linen(layers[case.kind]())


def _nnx(case: Case, option: Callable[..., Any]) -> Any:
    from flax import nnx

    rngs, inputs = nnx.Rngs(0), case.shapes[0][-1]
    bias, channels = option("bias", True), option("channels", (5, 7))
    kernel = _each(option("kernel_size"), option("rank", 0))
    strides = {"strides": option("stride", 1), "kernel_dilation": option("dilation", 1)}
    convolution = {"padding": _padding(option), "use_bias": bias, **strides} if kernel else {}
    eps = option("eps", 1e-5)

    def normed() -> Any:
        if case.spatial:
            return nnx.Conv(5, 7, kernel, padding=0, rngs=rngs)
        return nnx.Linear(5, 7, rngs=rngs)

    layers = {
        "linear": lambda: nnx.Linear(inputs, 7, use_bias=bias, rngs=rngs),
        "embedding": lambda: nnx.Embed(13, 5, rngs=rngs),
        "convolution": lambda: nnx.Conv(
            *channels, kernel, feature_group_count=option("groups", 1), **convolution, rngs=rngs
        ),
        "transposed convolution": lambda: nnx.ConvTranspose(
            *channels,
            kernel,
            _each(option("stride", 1), len(kernel)),
            padding=_outside(option),
            kernel_dilation=_each(option("dilation", 1), len(kernel)),
            use_bias=bias,
            transpose_kernel=option("turned", False),
            rngs=rngs,
        ),
        "layer norm": lambda: nnx.LayerNorm(7, epsilon=eps, use_bias=bias, rngs=rngs),
        "rms norm": lambda: nnx.RMSNorm(7, epsilon=eps, rngs=rngs),
        "group norm": lambda: nnx.GroupNorm(6, 3, epsilon=eps, rngs=rngs),
        "instance norm": lambda: nnx.InstanceNorm(6, epsilon=eps, rngs=rngs),
        "batch norm": lambda: nnx.BatchNorm(
            option("features", 7), momentum=0.9, epsilon=eps, use_running_average=True, rngs=rngs
        ),
        "attention": lambda: nnx.MultiHeadAttention(
            2, 10, 10, 10, use_bias=bias, decode=False, rngs=rngs
        ),
        "lstm": lambda: nnx.OptimizedLSTMCell(inputs, 7, rngs=rngs),
        "lstm in parts": lambda: nnx.LSTMCell(inputs, 7, rngs=rngs),
        "gru": lambda: nnx.GRUCell(inputs, 7, rngs=rngs),
        "rnn": lambda: nnx.SimpleCell(
            inputs, 7, activation_fn=getattr(jax.nn, option("activation", "tanh")), rngs=rngs
        ),
        "prelu": nnx.PReLU,
        "weight norm": lambda: nnx.WeightNorm(normed(), rngs=rngs),
    }
    return br.from_nnx(layers[case.kind]())


def _haiku(case: Case, option: Callable[..., Any]) -> Any:
    import haiku as hk

    bias, features, rank = option("bias", True), option("channels", (5, 7))[1], option("rank")
    eps, kernel, stride = option("eps", 1e-5), option("kernel_size"), option("stride", 1)

    def convolution() -> Any:
        return br.from_haiku(getattr(hk, f"Conv{rank}D"))(
            features,
            kernel,
            stride,
            option("dilation", 1),
            _padding(option),
            bias,
            feature_group_count=option("groups", 1),
        )

    def transposed() -> Any:
        make = br.from_haiku(getattr(hk, f"Conv{rank}DTranspose"))
        return make(features, kernel, stride, padding=_outside(option), with_bias=bias)

    layers = {
        "linear": lambda: br.from_haiku(hk.Linear)(7, with_bias=bias),
        "embedding": lambda: br.from_haiku(hk.Embed)(13, 5),
        "convolution": convolution,
        "transposed convolution": transposed,
        "layer norm": lambda: br.from_haiku(hk.LayerNorm)(-1, True, bias, eps),
        "rms norm": lambda: br.from_haiku(hk.RMSNorm)(-1, eps),
        "group norm": lambda: br.from_haiku(hk.GroupNorm)(3, eps=eps),
        "instance norm": lambda: br.from_haiku(hk.InstanceNorm)(True, True, eps),
        "batch norm": lambda: br.from_haiku(hk.BatchNorm)(True, True, 0.9, eps),
        "attention": lambda: br.from_haiku(hk.MultiHeadAttention)(
            2, 5, w_init=jnp.ones, model_size=10, with_bias=bias
        ),
        "lstm": lambda: br.from_haiku(hk.LSTM)(7),
        "gru": lambda: br.from_haiku(hk.GRU)(7),
        "rnn": lambda: br.from_haiku(hk.VanillaRNN)(7),
    }
    return layers[case.kind]()


def _equinox(case: Case, option: Callable[..., Any]) -> Any:
    import equinox as eqx

    key, inputs, bias = jax.random.key(0), case.shapes[0][-1], option("bias", True)
    rank, channels, kernel = option("rank"), option("channels"), option("kernel_size")
    names = ("stride", "padding", "output_padding", "dilation", "groups", "padding_mode")
    settings = {name: option(name) for name in names if option(name) is not None}
    named = {n: v.upper() if isinstance(v, str) else v for n, v in settings.items()}
    sizes = option("sizes", (10, 10, 10))
    uses = {f"use_{part}_bias": bias for part in ("query", "key", "value", "output")}
    eps = option("eps", 1e-5)

    def normed() -> Any:
        return eqx.nn.Conv2d(5, 7, 3, key=key) if case.spatial else eqx.nn.Linear(5, 7, key=key)

    layers = {
        "linear": lambda: eqx.nn.Linear(inputs, 7, use_bias=bias, key=key),
        "embedding": lambda: eqx.nn.Embedding(13, 5, key=key),
        "convolution": lambda: eqx.nn.Conv(rank, *channels, kernel, use_bias=bias, key=key, **named),
        "transposed convolution": lambda: eqx.nn.ConvTranspose(
            rank, *channels, kernel, use_bias=bias, key=key, **named
        ),
        "layer norm": lambda: eqx.nn.LayerNorm(7, eps, use_bias=bias),
        "rms norm": lambda: eqx.nn.RMSNorm(7, eps, use_bias=False),
        "group norm": lambda: eqx.nn.GroupNorm(3, 6),
        "instance norm": lambda: eqx.nn.GroupNorm(6, 6),
        "batch norm": lambda: eqx.nn.BatchNorm(
            option("features", 7), "batch", eps, mode="batch", momentum=0.9
        ),
        "attention": lambda: eqx.nn.MultiheadAttention(
            2, *sizes, output_size=10, qk_size=5, vo_size=5, **uses, key=key
        ),
        "lstm": lambda: eqx.nn.LSTMCell(inputs, 7, use_bias=bias, key=key),
        "gru": lambda: eqx.nn.GRUCell(inputs, 7, use_bias=bias, key=key),
        "prelu": lambda: eqx.nn.PReLU(
            jnp.ones((option("slopes"), 1)) if option("slopes") else jnp.ones(())
        ),
        "weight norm": lambda: eqx.nn.WeightNorm(normed()),
        "spectral norm": lambda: eqx.nn.SpectralNorm(normed(), "weight", key=key),
    }
    return br.from_equinox(layers[case.kind](), vmap=True)


BUILDERS: dict[str, Callable[..., Any]] = {
    "linen": _linen,
    "nnx": _nnx,
    "haiku": _haiku,
    "equinox": _equinox,
}
