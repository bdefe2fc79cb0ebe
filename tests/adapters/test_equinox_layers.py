"""Every layer of equinox.nn, wrapped, gives what Equinox itself gives."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

eqx = pytest.importorskip("equinox")
nn = eqx.nn

# Such keys compile in a tenth of the time.
KEY, DRAW = (jax.random.key(seed, impl="unsafe_rbg") for seed in (5, 7))
BATCH = 7
# No layers: what a State is looked up by, what stands for a removed state, and an abstract class.
NO_LAYERS = {"StateIndex", "_Sentinel", "StatefulLayer"}


def x(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def tied() -> Any:
    pair = nn.Embedding(11, 5, key=KEY), nn.Linear(5, 11, key=KEY)
    return nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)


def chain() -> Any:
    norm = nn.BatchNorm(3, "batch", mode="batch")
    layers = [linear(), norm, nn.Lambda(jax.nn.relu), nn.Dropout(0.5), nn.Linear(3, 2, key=DRAW)]
    return nn.Sequential(layers)


linear = functools.partial(nn.Linear, 5, 3, key=KEY)
conv = {"kernel_size": 3, "key": KEY}

# A model, and what it is called with for one example. The first word is the name of the class.
ROWS: dict[str, tuple[Callable[[], Any], tuple[Any, ...]]] = {
    "BatchNorm": (lambda: nn.BatchNorm(5, "batch", mode="batch"), (x(5, 3),)),
    "BatchNorm of mode ema": (lambda: nn.BatchNorm(5, "batch", mode="ema"), (x(5),)),
    "Conv": (lambda: nn.Conv(2, 2, 4, **conv, groups=2), (x(2, 7, 5),)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, **conv, stride=2), (x(2, 7),)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, **conv, padding="SAME"), (x(2, 7, 5),)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, **conv, use_bias=False), (x(2, 5, 3, 4),)),
    "ConvTranspose": (lambda: nn.ConvTranspose(2, 2, 3, **conv, stride=2), (x(2, 3, 5),)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, **conv, dilation=2), (x(2, 7),)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 4, **conv, groups=2), (x(2, 3, 5),)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, **conv), (x(2, 3, 2, 4),)),
    "Dropout": (lambda: nn.Dropout(0.5), (x(5, 3),)),
    "Dropout made for inference": (lambda: nn.Dropout(0.5, inference=True), (x(5, 3),)),
    "Embedding": (lambda: nn.Embedding(11, 5, key=KEY), (jnp.array(3),)),
    "GRUCell": (lambda: nn.GRUCell(5, 3, key=KEY), (x(5), x(3))),
    "GroupNorm": (lambda: nn.GroupNorm(3, 6), (x(6, 5),)),
    "LSTMCell": (lambda: nn.LSTMCell(5, 3, key=KEY), (x(5), (x(3), -x(3)))),
    "LayerNorm": (lambda: nn.LayerNorm((5, 3), eps=1e-3), (x(5, 3),)),
    "Linear": (linear, (x(5),)),
    "MLP": (lambda: nn.MLP(5, 3, 11, 2, jnp.tanh, key=KEY), (x(5),)),
    "MLP of learned activations": (lambda: nn.MLP(5, 3, 11, 2, nn.PReLU(), key=KEY), (x(5),)),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(2, 6, key_size=5, value_size=3, dropout_p=0.5, key=KEY),
        (x(7, 6), x(4, 5), x(4, 3), x(7, 4) > 0),
    ),
    "PReLU": (lambda: nn.PReLU(0.1), (x(5),)),
    "RMSNorm": (lambda: nn.RMSNorm(5), (x(5),)),
    "Sequential": (chain, (x(5),)),
    "Shared": (tied, ()),
    "SpectralNorm": (lambda: nn.SpectralNorm(linear(), "weight", key=DRAW), (x(5),)),
    "WeightNorm": (lambda: nn.WeightNorm(linear()), (x(5),)),
    # Without parameters, state or random numbers.
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(2), (x(2, 7),)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), (x(2, 7, 5),)),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), (x(2, 3, 5, 4),)),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(2), (x(2, 7),)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), (x(2, 7, 5),)),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d(2), (x(2, 3, 5, 4),)),
    "AdaptivePool": (lambda: nn.AdaptivePool(2, 1, jnp.mean), (x(2, 7),)),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), (x(2, 7),)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (x(2, 7, 5),)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), (x(2, 3, 5, 4),)),
    "Identity": (nn.Identity, (x(5),)),
    "Lambda": (lambda: nn.Lambda(jnp.tanh), (x(5),)),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), (x(2, 7),)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (x(2, 7, 5),)),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), (x(2, 3, 5, 4),)),
    "Pool": (lambda: nn.Pool(0, jax.lax.add, 1, 2), (x(2, 7),)),
    "RotaryPositionalEmbedding": (lambda: nn.RotaryPositionalEmbedding(6), (x(7, 6),)),
}
# They average over a batch, and one example has none.
BATCHED_ONLY = {"BatchNorm", "BatchNorm of mode ema", "Sequential"}


@functools.cache
def layer_classes() -> dict[str, type]:
    """Every class of modules that a file of equinox.nn defines, by name."""
    names = [info.name for info in pkgutil.walk_packages(nn.__path__, "equinox.nn.")]
    found = [
        value
        for name in ["equinox.nn", *names]
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and issubclass(value, eqx.Module)
    ]
    return {
        cls.__name__: cls
        for cls in found
        if cls.__module__.startswith("equinox.nn") and cls.__name__ not in NO_LAYERS
    }


def has_more_than_a_function(model: Any) -> bool:
    """Whether a model has parameters, state or random numbers."""
    leaves = jax.tree.leaves(model)
    return any(map(eqx.is_array, leaves)) or any(isinstance(leaf, bool) for leaf in leaves)


@functools.cache
def built(label: str) -> tuple[Any, Any]:
    """The model of a row and its State, None where it has no state."""
    model, state = nn.make_with_state(ROWS[label][0])()
    return model, state if jax.tree.leaves(state) else None


def label_class(label: str) -> str:
    return label.partition(" ")[0]


def test_every_class_has_a_row():
    missing = sorted(set(layer_classes()) - {label_class(label) for label in ROWS})
    assert not missing, f"without a row: {', '.join(missing)}"
    assert all(type(built(label)[0]).__name__ == label_class(label) for label in ROWS)
    assert len(layer_classes()) == 41


LAYERS = [label for label in ROWS if has_more_than_a_function(built(label)[0])]


def test_the_layers_with_parameters_state_or_random_numbers_are_counted():
    assert len({label_class(label) for label in LAYERS}) == 24


# Twice as fast to compile, and nothing here runs long.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def loss_of(out: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return sum((leaf**2).sum() for leaf in floats)


def of_bridge(module: Any, inputs: Any, key: jax.Array) -> list[Any]:
    """Output, state after it and gradients, in both modes."""

    def run(module: Any, mode: str) -> Any:
        out, after = module.apply(*inputs, rng=key, mode=mode)
        return loss_of(out), (out, after.state)

    grad = br.value_and_grad(run, has_aux=True)
    return [grad(module, mode) for mode in ("train", "eval")]


def of_equinox(arrays: Any, static: Any, state: Any, inputs: Any, key: jax.Array, batched: bool) -> Any:
    """The same by Equinox alone: arrays apart from the rest, `inference_mode`, and `jax.vmap`."""

    def run(arrays: Any, inference: bool) -> Any:
        model = eqx.nn.inference_mode(eqx.combine(arrays, static), inference)
        taken = inspect.signature(model).parameters
        # Equinox lets each State be used once, and a copy is a new one.
        own = {"state": jax.tree.map(lambda leaf: leaf, state)} if state is not None else {}

        def call(inputs: Any, key: Any, own: Any) -> Any:
            out = model(*inputs, **own, **({"key": key} if "key" in taken else {}))
            return out if own else (out, None)

        if batched:
            keys = jax.random.split(key, BATCH)
            out, after = jax.vmap(call, (0, 0, None), (0, None), "batch")(inputs, keys, own)
        else:
            out, after = call(inputs, key, own)
        return loss_of(out), (out, after)

    grad = jax.value_and_grad(run, has_aux=True)
    return [grad(arrays, inference) for inference in (False, True)]


def assert_same(first: Any, second: Any) -> None:
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


CASES = [
    pytest.param(label, batched, id=f"{label}-{'batch' if batched else 'example'}")
    for label in LAYERS
    for batched in (False, True)
    if (batched and ROWS[label][1]) or (not batched and label not in BATCHED_ONLY)
]


@pytest.mark.parametrize(("label", "batched"), CASES)
def test_output_state_and_gradients_are_equinoxs_own(label, batched):
    inputs = ROWS[label][1]
    if batched:
        inputs = jax.tree.map(lambda leaf: jnp.stack([leaf] * BATCH), inputs)
    model, state = built(label)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    module = br.from_equinox(model, state, vmap=batched)
    own = compiled(functools.partial(of_equinox, static=static, batched=batched))
    ours = compiled(of_bridge)(module, inputs, DRAW)
    assert_same(ours, own(arrays, state=state, inputs=inputs, key=DRAW))


def test_a_layer_without_a_row_fails_by_name(monkeypatch):
    monkeypatch.delitem(ROWS, "GRUCell")
    with pytest.raises(AssertionError, match="without a row: GRUCell"):
        test_every_class_has_a_row()
