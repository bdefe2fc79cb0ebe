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


def _axes(option: Callable[..., Any]) -> Any:
    """The last axes, as many as a norm has weights for."""
    count = len(option("shape", (7,)))
    return -1 if count == 1 else tuple(range(-count, 0))


def _linen(case: Case, option: Callable[..., Any]) -> Any:
    import flax.linen as nn

    bias, features = option("bias", True), option("features", 7)
    kernel, axes = _each(option("kernel_size"), option("rank", 0)), _axes(option)
    strides = {"strides": option("stride", 1), "kernel_dilation": option("dilation", 1)}
    convolution = {"padding": _padding(option), "use_bias": bias, **strides} if kernel else {}
    normed = nn.Conv(7, kernel, padding=0) if case.spatial else nn.Dense(7)
    eps, momentum = option("eps", 1e-5), option("momentum", 0.1)
    heads, width = option("heads", 2), option("width", 10)
    layers = {
        "linear": lambda: nn.Dense(features, use_bias=bias),
        "embedding": lambda: nn.Embed(option("vocab", 13), option("features", 5)),
        "convolution": lambda: nn.Conv(
            option("channels")[1], kernel, feature_group_count=option("groups", 1), **convolution
        ),
        "transposed convolution": lambda: nn.ConvTranspose(
            option("channels")[1],
            kernel,
            _each(option("stride", 1), len(kernel)),
            _outside(option),
            _each(option("dilation", 1), len(kernel)),
            use_bias=bias,
            transpose_kernel=option("turned", False),
        ),
        "layer norm": lambda: nn.LayerNorm(eps, use_bias=bias, reduction_axes=axes, feature_axes=axes),
        "rms norm": lambda: nn.RMSNorm(eps, reduction_axes=axes, feature_axes=axes),
        "group norm": lambda: nn.GroupNorm(option("groups", 3), epsilon=eps, use_bias=bias),
        "instance norm": lambda: nn.InstanceNorm(epsilon=eps, use_bias=bias),
        "batch norm": lambda: nn.BatchNorm(
            option("frozen", True), momentum=1 - momentum, epsilon=eps, use_bias=bias
        ),
        "attention": lambda: nn.MultiHeadDotProductAttention(
            heads, qkv_features=width, out_features=width, use_bias=bias
        ),
        "lstm": lambda: nn.OptimizedLSTMCell(features),
        "lstm in parts": lambda: nn.LSTMCell(features),
        "gru": lambda: nn.GRUCell(features),
        "rnn": lambda: nn.SimpleCell(
            features, activation_fn=getattr(jax.nn, option("activation", "tanh"))
        ),
        "prelu": nn.PReLU,
        "weight norm": lambda: nn.WeightNorm(normed),
    }
    return br.from_linen(layers[case.kind]())


def _nnx(case: Case, option: Callable[..., Any]) -> Any:
    from flax import nnx

    rngs, inputs = nnx.Rngs(0), case.shapes[0][-1]
    bias, channels = option("bias", True), option("channels")
    features, kernel = option("features", 7), _each(option("kernel_size"), option("rank", 0))
    strides = {"strides": option("stride", 1), "kernel_dilation": option("dilation", 1)}
    convolution = {"padding": _padding(option), "use_bias": bias, **strides} if kernel else {}
    eps, momentum = option("eps", 1e-5), option("momentum", 0.1)
    heads, width = option("heads", 2), option("width", 10)

    def normed() -> Any:
        if case.spatial:
            return nnx.Conv(5, 7, kernel, padding=0, rngs=rngs)
        return nnx.Linear(5, 7, rngs=rngs)

    layers = {
        "linear": lambda: nnx.Linear(inputs, features, use_bias=bias, rngs=rngs),
        "embedding": lambda: nnx.Embed(option("vocab", 13), option("features", 5), rngs=rngs),
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
        "layer norm": lambda: nnx.LayerNorm(inputs, epsilon=eps, use_bias=bias, rngs=rngs),
        "rms norm": lambda: nnx.RMSNorm(inputs, epsilon=eps, rngs=rngs),
        "group norm": lambda: nnx.GroupNorm(
            option("features", 6), option("groups", 3), epsilon=eps, use_bias=bias, rngs=rngs
        ),
        "instance norm": lambda: nnx.InstanceNorm(
            option("features", 6), epsilon=eps, use_bias=bias, rngs=rngs
        ),
        "batch norm": lambda: nnx.BatchNorm(
            features,
            momentum=1 - momentum,
            epsilon=eps,
            use_bias=bias,
            use_running_average=option("frozen", True),
            rngs=rngs,
        ),
        "attention": lambda: nnx.MultiHeadAttention(
            heads, width, width, width, use_bias=bias, decode=False, rngs=rngs
        ),
        "lstm": lambda: nnx.OptimizedLSTMCell(inputs, features, rngs=rngs),
        "lstm in parts": lambda: nnx.LSTMCell(inputs, features, rngs=rngs),
        "gru": lambda: nnx.GRUCell(inputs, features, rngs=rngs),
        "rnn": lambda: nnx.SimpleCell(
            inputs, features, activation_fn=getattr(jax.nn, option("activation", "tanh")), rngs=rngs
        ),
        "prelu": nnx.PReLU,
        "weight norm": lambda: nnx.WeightNorm(normed(), rngs=rngs),
    }
    return br.from_nnx(layers[case.kind]())


def _haiku(case: Case, option: Callable[..., Any]) -> Any:
    import haiku as hk

    bias, features, rank = option("bias", True), option("features", 7), option("rank")
    momentum, axes = option("momentum", 0.1), _axes(option)
    eps, kernel, stride = option("eps", 1e-5), option("kernel_size"), option("stride", 1)

    heads, width = option("heads", 2), option("width", 10)

    def convolution() -> Any:
        return br.from_haiku(getattr(hk, f"Conv{rank}D"))(
            option("channels")[1],
            kernel,
            stride,
            option("dilation", 1),
            _padding(option),
            bias,
            feature_group_count=option("groups", 1),
        )

    def transposed() -> Any:
        make = br.from_haiku(getattr(hk, f"Conv{rank}DTranspose"))
        return make(option("channels")[1], kernel, stride, padding=_outside(option), with_bias=bias)

    layers = {
        "linear": lambda: br.from_haiku(hk.Linear)(features, with_bias=bias),
        "embedding": lambda: br.from_haiku(hk.Embed)(option("vocab", 13), option("features", 5)),
        "convolution": convolution,
        "transposed convolution": transposed,
        "layer norm": lambda: br.from_haiku(hk.LayerNorm)(axes, True, bias, eps, param_axis=axes),
        "rms norm": lambda: br.from_haiku(hk.RMSNorm)(axes, eps, param_axis=axes),
        "group norm": lambda: br.from_haiku(hk.GroupNorm)(
            option("groups", 3), create_offset=bias, eps=eps
        ),
        "instance norm": lambda: br.from_haiku(hk.InstanceNorm)(True, bias, eps),
        "batch norm": lambda: br.from_haiku(hk.BatchNorm)(True, bias, 1 - momentum, eps),
        "attention": lambda: br.from_haiku(hk.MultiHeadAttention)(
            heads, width // heads, w_init=jnp.ones, model_size=width, with_bias=bias
        ),
        "lstm": lambda: br.from_haiku(hk.LSTM)(features),
        "gru": lambda: br.from_haiku(hk.GRU)(features),
        "rnn": lambda: br.from_haiku(hk.VanillaRNN)(features),
    }
    return layers[case.kind]()


def _equinox(case: Case, option: Callable[..., Any]) -> Any:
    import equinox as eqx

    key, inputs, bias = jax.random.key(0), case.shapes[0][-1], option("bias", True)
    rank, channels, kernel = option("rank"), option("channels"), option("kernel_size")
    names = ("stride", "padding", "output_padding", "dilation", "groups", "padding_mode")
    settings = {name: option(name) for name in names if option(name) is not None}
    named = {n: v.upper() if isinstance(v, str) else v for n, v in settings.items()}
    heads, width = option("heads", 2), option("width", 10)
    sizes = option("sizes", (width, width, width))
    uses = {f"use_{part}_bias": bias for part in ("query", "key", "value", "output")}
    eps, features, momentum = option("eps", 1e-5), option("features", 7), option("momentum", 0.1)
    normed_shape = option("shape", (7,))

    def normed() -> Any:
        return eqx.nn.Conv2d(5, 7, 3, key=key) if case.spatial else eqx.nn.Linear(5, 7, key=key)

    layers = {
        "linear": lambda: eqx.nn.Linear(inputs, features, use_bias=bias, key=key),
        "embedding": lambda: eqx.nn.Embedding(option("vocab", 13), option("features", 5), key=key),
        "convolution": lambda: eqx.nn.Conv(rank, *channels, kernel, use_bias=bias, key=key, **named),
        "transposed convolution": lambda: eqx.nn.ConvTranspose(
            rank, *channels, kernel, use_bias=bias, key=key, **named
        ),
        "layer norm": lambda: eqx.nn.LayerNorm(normed_shape, eps, use_bias=bias),
        "rms norm": lambda: eqx.nn.RMSNorm(normed_shape, eps, use_bias=False),
        "group norm": lambda: eqx.nn.GroupNorm(option("groups", 3), option("features", 6), eps),
        "instance norm": lambda: eqx.nn.GroupNorm(option("features", 6), option("features", 6), eps),
        "batch norm": lambda: eqx.nn.BatchNorm(
            features, "batch", eps, mode="batch", momentum=1 - momentum
        ),
        "attention": lambda: eqx.nn.MultiheadAttention(
            heads,
            *sizes,
            output_size=width,
            qk_size=width // heads,
            vo_size=width // heads,
            **uses,
            key=key,
        ),
        "lstm": lambda: eqx.nn.LSTMCell(inputs, features, use_bias=bias, key=key),
        "gru": lambda: eqx.nn.GRUCell(inputs, features, use_bias=bias, key=key),
        "prelu": lambda: eqx.nn.PReLU(
            jnp.ones((option("slopes"), *(1,) * (len(case.shapes[0]) - 2)))
            if option("slopes")
            else jnp.ones(())
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
