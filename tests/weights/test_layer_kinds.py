"""Each kind of layer in each library, loaded from torch.nn's: the same output."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

torch = pytest.importorskip("torch")

LIBRARIES = {"linen": "flax", "nnx": "flax", "haiku": "haiku", "equinox": "equinox"}


@dataclass(frozen=True)
class Kind:
    """A torch layer, its input, and the order of axes that a JAX library wants of it."""

    torch: Callable[[bool], Any]
    shape: tuple[int, ...]
    spatial: int = 0
    biases: tuple[bool, ...] = (True, False)


def convolution(rank, **options):
    layer = getattr(torch.nn, f"Conv{rank}d")
    sizes = (6, 10) if options.get("groups") else (5, 7)
    settings = {"kernel_size": 3, "padding": 1, "stride": 2, **options}
    shape = (3, sizes[0], 7, 11, 13)[: 2 + rank]
    return Kind(lambda bias: layer(*sizes, bias=bias, **settings), shape, rank, (True, False)[:rank])


KINDS = {
    "linear": Kind(lambda bias: torch.nn.Linear(5, 7, bias=bias), (3, 5)),
    "square": Kind(lambda bias: torch.nn.Linear(7, 7, bias=bias), (3, 7)),
    "embedding": Kind(lambda _: torch.nn.Embedding(13, 5), (3,), biases=(False,)),
    "layer norm": Kind(lambda bias: torch.nn.LayerNorm(7, bias=bias), (3, 7)),
    "batch norm": Kind(lambda _: torch.nn.BatchNorm1d(7), (11, 7), biases=(True,)),
    "convolution 1": convolution(1),
    "convolution 2": convolution(2),
    "convolution 3": convolution(3),
    "grouped": convolution(2, groups=2),
    "square convolution": Kind(
        lambda bias: torch.nn.Conv2d(7, 7, 7, padding=3, stride=2, bias=bias), (3, 7, 7, 11), 2, (True,)
    ),
    "attention": Kind(
        lambda bias: torch.nn.MultiheadAttention(10, 2, bias=bias, batch_first=True), (3, 11, 10)
    ),
}
CONVOLUTIONS = {  # rank, kernel, padding, channels in and out, groups
    "convolution 1": (1, 3, 1, 5, 7, 1),
    "convolution 2": (2, 3, 1, 5, 7, 1),
    "convolution 3": (3, 3, 1, 5, 7, 1),
    "grouped": (2, 3, 1, 6, 10, 2),
    "square convolution": (2, 7, 3, 7, 7, 1),
}


def in_linen(kind, bias):
    import flax.linen as nn

    if kind in CONVOLUTIONS:
        rank, kernel, pad, _, channels, groups = CONVOLUTIONS[kind]
        layer = nn.Conv(
            channels,
            (kernel,) * rank,
            strides=2,
            padding=[(pad, pad)] * rank,
            feature_group_count=groups,
            use_bias=bias,
        )
    else:
        layer = {
            "linear": lambda: nn.Dense(7, use_bias=bias),
            "square": lambda: nn.Dense(7, use_bias=bias),
            "embedding": lambda: nn.Embed(13, 5),
            "layer norm": lambda: nn.LayerNorm(epsilon=1e-5, use_bias=bias),
            "batch norm": lambda: nn.BatchNorm(epsilon=1e-5, momentum=0.9),
            "attention": lambda: nn.MultiHeadDotProductAttention(2, use_bias=bias),
        }[kind]()
    return br.from_linen(layer)


def in_nnx(kind, bias):
    from flax import nnx

    rngs = nnx.Rngs(0)
    if kind in CONVOLUTIONS:
        rank, kernel, pad, inputs, channels, groups = CONVOLUTIONS[kind]
        layer = nnx.Conv(
            inputs,
            channels,
            (kernel,) * rank,
            strides=2,
            padding=[(pad, pad)] * rank,
            feature_group_count=groups,
            use_bias=bias,
            rngs=rngs,
        )
    else:
        layer = {
            "linear": lambda: nnx.Linear(5, 7, use_bias=bias, rngs=rngs),
            "square": lambda: nnx.Linear(7, 7, use_bias=bias, rngs=rngs),
            "embedding": lambda: nnx.Embed(13, 5, rngs=rngs),
            "layer norm": lambda: nnx.LayerNorm(7, epsilon=1e-5, use_bias=bias, rngs=rngs),
            "batch norm": lambda: nnx.BatchNorm(7, epsilon=1e-5, momentum=0.9, rngs=rngs),
            "attention": lambda: nnx.MultiHeadAttention(2, 10, use_bias=bias, decode=False, rngs=rngs),
        }[kind]()
    return br.from_nnx(layer)


def in_haiku(kind, bias):
    import haiku as hk

    if kind in CONVOLUTIONS:
        rank, kernel, pad, _, channels, groups = CONVOLUTIONS[kind]
        return br.from_haiku(getattr(hk, f"Conv{rank}D"))(
            channels,
            kernel,
            stride=2,
            padding=[(pad, pad)] * rank,
            feature_group_count=groups,
            with_bias=bias,
        )
    return {
        "linear": lambda: br.from_haiku(hk.Linear)(7, with_bias=bias),
        "square": lambda: br.from_haiku(hk.Linear)(7, with_bias=bias),
        "embedding": lambda: br.from_haiku(hk.Embed)(13, 5),
        "layer norm": lambda: br.from_haiku(hk.LayerNorm)(-1, True, bias),
        "batch norm": lambda: br.from_haiku(hk.BatchNorm)(True, True, 0.9),
        "attention": lambda: br.from_haiku(hk.MultiHeadAttention)(
            2, 5, w_init=jnp.ones, model_size=10, with_bias=bias
        ),
    }[kind]()


def in_equinox(kind, bias):
    import equinox as eqx

    key = jax.random.key(0)
    if kind in CONVOLUTIONS:
        rank, kernel, pad, inputs, channels, groups = CONVOLUTIONS[kind]
        layer = eqx.nn.Conv(
            rank, inputs, channels, kernel, 2, pad, groups=groups, use_bias=bias, key=key
        )
    else:
        uses = {f"use_{part}_bias": bias for part in ("query", "key", "value", "output")}
        layer = {
            "linear": lambda: eqx.nn.Linear(5, 7, use_bias=bias, key=key),
            "square": lambda: eqx.nn.Linear(7, 7, use_bias=bias, key=key),
            "embedding": lambda: eqx.nn.Embedding(13, 5, key=key),
            "layer norm": lambda: eqx.nn.LayerNorm(7, use_bias=bias),
            "batch norm": lambda: eqx.nn.BatchNorm(7, "batch", mode="batch", momentum=0.9),
            "attention": lambda: eqx.nn.MultiheadAttention(2, 10, **uses, key=key),
        }[kind]()
    return br.from_equinox(layer, vmap=True)


BUILDERS = {"linen": in_linen, "nnx": in_nnx, "haiku": in_haiku, "equinox": in_equinox}


MODULES: dict[tuple[str, str, bool], br.Module] = {}


def initialised(library, kind, bias, arguments):
    """The module, made once: it never changes."""
    if (library, kind, bias) not in MODULES:
        module = BUILDERS[library](kind, bias)
        init = jax.jit(lambda key, args: module.init(key, *args))
        MODULES[library, kind, bias] = init(jax.random.key(0), arguments(sample(kind)))
    return MODULES[library, kind, bias]


def built(library, kind, bias=True):
    """The layer in a library, initialised, with a function from torch's input to its arguments."""
    if importlib.util.find_spec(LIBRARIES[library]) is None:
        pytest.skip(f"{library} is not installed")
    moved = KINDS[kind].spatial and library != "equinox"

    def arguments(x):
        x = np.moveaxis(x, 1, -1) if moved else x
        return (x, x, x) if kind == "attention" else (x,)

    return initialised(library, kind, bias, arguments), arguments, moved


def sample(kind, seed=0):
    random = np.random.default_rng(seed)
    if kind == "embedding":
        return random.integers(0, 13, KINDS[kind].shape).astype(np.int32)
    return random.normal(size=KINDS[kind].shape).astype(np.float32)


def trained(kind, bias=True):
    """The torch layer with every array away from its first value, in eval mode."""
    torch.manual_seed(0)
    layer = KINDS[kind].torch(bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    if kind == "batch norm":
        layer(torch.from_numpy(3 * sample(kind, seed=1) + 2))
    return layer.eval()


def output(layer, x):
    x = torch.from_numpy(x)
    out = layer(x, x, x)[0] if isinstance(layer, torch.nn.MultiheadAttention) else layer(x)
    return out.detach().numpy()


PAIRS = [(kind, bias) for kind in KINDS for bias in KINDS[kind].biases]


@pytest.mark.parametrize(("kind", "bias"), PAIRS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_output_is_that_of_torch(library, kind, bias):
    module, arguments, moved = built(library, kind, bias)
    layer, x = trained(kind, bias), sample(kind)
    module = br.load_state_dict(module, layer.state_dict())
    out = np.asarray(jax.jit(lambda module, args: module(*args))(module, arguments(x)))
    out = np.moveaxis(out, -1, 1) if moved else out
    np.testing.assert_allclose(out, output(layer, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "bias"), PAIRS)
def test_a_live_module_is_matched_as_its_state_dict(kind, bias):
    module, *_ = built("equinox", kind, bias)
    layer = trained(kind, bias)
    live, bare = br.match(module, layer), br.match(module, layer.state_dict())
    assert live.complete
    assert bare.complete
    assert [(pair.key, str(pair.translation)) for pair in live.pairs] == [
        (pair.key, str(pair.translation)) for pair in bare.pairs
    ]


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_array_of_a_batch_norm_is_away_from_its_first_value(library):
    module, *_ = built(library, "batch norm")
    loaded = br.load_state_dict(module, trained("batch norm"))
    for old, new in zip(jax.tree.leaves(module), jax.tree.leaves(loaded), strict=True):
        assert not np.array_equal(old, new)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_batch_norm_goes_on_training_from_what_was_loaded(library):
    module, arguments, _ = built(library, "batch norm")
    layer = trained("batch norm")
    module = br.load_state_dict(module, layer)
    x = sample("batch norm", seed=2)
    out, module = module.apply(*arguments(x), mode="train")
    expected = output(layer.train(), x)
    np.testing.assert_allclose(out, expected, atol=1e-5, rtol=1e-5)
    mean = evaluated_mean(module, layer.bias.detach().numpy())
    np.testing.assert_allclose(mean, layer.running_mean.numpy(), atol=1e-5)


def evaluated_mean(module, bias):
    """The mean that a batch norm subtracts when it evaluates, from what it makes of 0 and of 1."""
    zero, one = (module(np.full((2, 7), value, np.float32))[0] for value in (0, 1))
    return (bias - zero) / (one - zero)


def test_equinox_ema_batch_norm_keeps_what_was_loaded_in_its_first_training_step():
    eqx = pytest.importorskip("equinox")
    module = br.from_equinox(eqx.nn.BatchNorm(7, "batch", mode="ema", momentum=0.9), vmap=True)
    layer, x = trained("batch norm"), sample("batch norm")
    module = br.load_state_dict(module, layer)
    np.testing.assert_allclose(module(x), output(layer, x), atol=1e-5)
    _, module = module.apply(x, mode="train")
    mean = module.at["state.state.ema_state_index.0"].get()
    layer.train()(torch.from_numpy(x))
    np.testing.assert_allclose(mean, layer.running_mean.numpy(), atol=1e-6)


def test_attention_with_keys_and_values_of_their_own_sizes():
    nn = pytest.importorskip("flax.linen")
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(10, 2, kdim=3, vdim=7, batch_first=True)
    with torch.no_grad():
        layer.in_proj_bias.normal_()
    random = np.random.default_rng(0)
    query, key, value = (random.normal(size=(3, 5, n)).astype(np.float32) for n in (10, 3, 7))
    module = br.from_linen(nn.MultiHeadDotProductAttention(2, qkv_features=10))
    module = module.init(jax.random.key(0), query, key, value)
    module = br.load_state_dict(module, layer.state_dict())
    expected = layer(*map(torch.from_numpy, (query, key, value)))[0].detach().numpy()
    np.testing.assert_allclose(module(query, key, value), expected, atol=1e-5)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_general_linear_layer_keeps_several_axes_for_one(library):
    torch.manual_seed(0)
    first, second = torch.nn.Linear(5, 6), torch.nn.Linear(6, 7)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    if library == "linen":
        nn = pytest.importorskip("flax.linen")
        model = nn.Sequential([nn.DenseGeneral((2, 3)), nn.DenseGeneral(7, axis=(-2, -1))])
        module = br.from_linen(model).init(jax.random.key(0), x)
    else:
        nnx = pytest.importorskip("flax.nnx")
        parts = (
            nnx.LinearGeneral(5, (2, 3), rngs=nnx.Rngs(0)),
            nnx.LinearGeneral((2, 3), 7, axis=(-2, -1), rngs=nnx.Rngs(0)),
        )
        module = br.from_nnx(nnx.Sequential(*parts))
    model = torch.nn.Sequential(first, second)
    module = br.load_state_dict(module, model)
    np.testing.assert_allclose(module(x), output(model, x), atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_in_double_precision_to_twelve_places(library):
    with jax.enable_x64(True):
        module, *_ = built(library, "linear")
        layer = trained("linear").double()
        x = np.random.default_rng(0).normal(size=(3, 5))
        module = br.load_state_dict(module, layer, dtype="source")
        if library in ("linen", "nnx"):  # their layers compute in the dtype of input and weights
            assert module(x).dtype == np.float64
        np.testing.assert_allclose(module(x), output(layer, x), rtol=0, atol=1e-12)


def test_a_gpt2_projection_keeps_its_matrix_the_other_way_round():
    utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    layer = utils.Conv1D(7, 7)
    module, *_ = built("equinox", "square")
    module = br.load_state_dict(module, torch.nn.Sequential(layer))
    x = sample("square")
    np.testing.assert_allclose(module(x), output(layer, x), atol=1e-5)
