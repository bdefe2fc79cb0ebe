"""Every class of modules in flax.nnx, found by walking the package, against NNX's functional form."""

import functools
import importlib
import pkgutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.tree import entries

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

X = jax.random.normal(jax.random.key(3), (7, 3))
SEQUENCE = jax.random.normal(jax.random.key(5), (2, 7, 4))
IMAGE = jax.random.normal(jax.random.key(7), (2, 7, 5, 3))
# They are made to be derived from, and hold no arrays.
BASES = {"Module", "LiftedModule", "RNNCellBase"}


class Listed(nnx.Module):
    def __init__(self, layers):
        self.layers = layers

    def __call__(self, x):
        layers = self.layers.values() if isinstance(self.layers, nnx.Dict) else self.layers
        for layer in layers:
            x = layer(x)
        return x


def linear(rngs):
    return nnx.Linear(3, 3, rngs=rngs)


def cell(kind):
    def build(rngs):
        model = kind(3, 5, rngs=rngs)
        return model, model.initialize_carry((7, 3), nnx.Rngs(1)), X

    return build


def attention(rngs):
    return nnx.MultiHeadAttention(
        num_heads=2, in_features=4, decode=False, dropout_rate=0.3, normalize_qk=True, rngs=rngs
    )


ROWS = {
    "BatchNorm": lambda rngs: (nnx.BatchNorm(3, momentum=0.9, rngs=rngs), X),
    "Bidirectional": lambda rngs: (
        nnx.Bidirectional(
            nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs), rngs=rngs),
            nnx.RNN(nnx.SimpleCell(4, 5, rngs=rngs), rngs=rngs),
            rngs=rngs,
        ),
        SEQUENCE,
    ),
    "Conv": lambda rngs: (nnx.Conv(3, 5, (3, 2), strides=2, rngs=rngs), IMAGE),
    "ConvTranspose": lambda rngs: (nnx.ConvTranspose(3, 5, (3, 2), rngs=rngs), IMAGE),
    "Dict": lambda rngs: (Listed(nnx.Dict(one=linear(rngs), relu=nnx.relu, two=linear(rngs))), X),
    "Dropout": lambda rngs: (nnx.Dropout(0.3, rngs=rngs), X),
    "Einsum": lambda rngs: (nnx.Einsum("ab,bc->ac", (3, 5), (5,), rngs=rngs), X),
    "Embed": lambda rngs: (nnx.Embed(11, 3, rngs=rngs), jnp.arange(7)),
    "GRUCell": cell(nnx.GRUCell),
    "GroupNorm": lambda rngs: (nnx.GroupNorm(4, num_groups=2, rngs=rngs), SEQUENCE),
    "InstanceNorm": lambda rngs: (nnx.InstanceNorm(4, rngs=rngs), SEQUENCE),
    "LSTMCell": cell(nnx.LSTMCell),
    "LayerNorm": lambda rngs: (nnx.LayerNorm(3, rngs=rngs), X),
    "Linear": lambda rngs: (nnx.Linear(3, 5, rngs=rngs), X),
    "LinearGeneral": lambda rngs: (nnx.LinearGeneral((5, 3), (2, 11), axis=(2, 3), rngs=rngs), IMAGE),
    "List": lambda rngs: (Listed(nnx.List([linear(rngs), nnx.relu, linear(rngs)])), X),
    "LoRA": lambda rngs: (nnx.LoRA(3, 2, 5, base_module=nnx.Linear(3, 5, rngs=rngs), rngs=rngs), X),
    "LoRALinear": lambda rngs: (nnx.LoRALinear(3, 5, lora_rank=2, rngs=rngs), X),
    "MultiHeadAttention": lambda rngs: (attention(rngs), SEQUENCE),
    "OptimizedLSTMCell": cell(nnx.OptimizedLSTMCell),
    "PReLU": lambda rngs: (nnx.PReLU(), X),
    "RMSNorm": lambda rngs: (nnx.RMSNorm(3, rngs=rngs), X),
    "RNN": lambda rngs: (
        nnx.RNN(nnx.LSTMCell(4, 3, rngs=rngs), return_carry=True, rngs=rngs),
        SEQUENCE,
    ),
    "RoPE": lambda rngs: (nnx.RoPE(embedding_size=4, max_seq_len=7), SEQUENCE),
    "Sequential": lambda rngs: (
        nnx.Sequential(linear(rngs), nnx.relu, nnx.Dropout(0.3, rngs=rngs), lambda x: 2 * x),
        X,
    ),
    "SimpleCell": cell(nnx.SimpleCell),
    "SpectralNorm": lambda rngs: (nnx.SpectralNorm(linear(rngs), rngs=rngs), X),
    "ToNNX": lambda rngs: (nnx.bridge.ToNNX(nn.Dense(5), rngs=rngs).lazy_init(X), X),
    "WeightNorm": lambda rngs: (nnx.WeightNorm(linear(rngs), rngs=rngs), X),
}


@functools.cache
def found() -> frozenset[type]:
    """The classes of modules that flax.nnx defines, wherever in the package."""
    names = [info.name for info in pkgutil.walk_packages(nnx.__path__, "flax.nnx.")]
    values = [value for name in names for value in vars(importlib.import_module(name)).values()]
    modules = [value for value in values if isinstance(value, type) and issubclass(value, nnx.Module)]
    return frozenset(cls for cls in modules if cls.__module__.startswith("flax.nnx."))


def test_every_class_of_modules_in_flax_has_a_row():
    names = {cls.__name__ for cls in found()}
    assert names - ROWS.keys() - BASES == set()
    assert ROWS.keys() - names <= {"RoPE"}  # it came with Flax 0.12.12
    assert len(found()) == 32 + hasattr(nnx, "RoPE")


def squares(out: Any) -> Any:
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(out))


def numbers(arrays: Any) -> Any:
    typed = {at: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for at, leaf in arrays.items()}
    return {
        at: np.asarray(jax.random.key_data(leaf) if typed[at] else leaf) for at, leaf in arrays.items()
    }


def by_path(variables: Any) -> dict[tuple[str, ...], Any]:
    """Arrays by their path in the NNX module; a key that is a tuple is several segments."""

    def spread(keys):
        return sum((spread(key) if isinstance(key, tuple) else (str(key),) for key in keys), ())

    flat = [(keys, getattr(value, "get_raw_value", lambda v=value: v)()) for keys, value in variables]
    return {spread(keys): value for keys, value in flat if value is not None}


def natively(model: Any, args: Any) -> Any:
    """Output, arrays after and gradients in both modes, as NNX itself computes them."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def both(params, rest):
        def run(params, mode):
            model = nnx.merge(graph, params, rest, copy=True)
            getattr(model, mode)()
            out = model(*args)
            return squares(out), (out, by_path(nnx.to_flat_state(nnx.state(model))))

        results = {}
        for mode in ("train", "eval"):
            (_, (out, after)), grads = jax.value_and_grad(run, has_aux=True)(params, mode)
            results[mode] = out, after, by_path(nnx.to_flat_state(grads))
        return results

    return both(params, rest)


def by_bridge(module: Any, args: Any) -> Any:
    @jax.jit
    def both(module):
        def run(module, mode):
            out, after = module.apply(*args, mode=mode)
            return squares(out), (out, after)

        results = {}
        for mode in ("train", "eval"):
            step = br.value_and_grad(functools.partial(run, mode=mode), has_aux=True)
            (_, (out, after)), grads = step(module)
            results[mode] = out, after, module.update(grads)
        return results

    return both(module)


def arrays_of(module: Any) -> dict[tuple[str, ...], Any]:
    return {e.path[1 if e.path[0] == "params" else 2 :]: e.value for e in entries(module)}


def assert_same(ours: dict[Any, Any], native: dict[Any, Any]) -> None:
    ours, native = numbers(ours), numbers(native)
    assert ours.keys() == native.keys()
    for at in ours:
        np.testing.assert_array_equal(ours[at], native[at], err_msg=str(at))


@pytest.mark.filterwarnings("ignore:'.value' access is now deprecated:DeprecationWarning")  # RoPE's own
@pytest.mark.parametrize("name", [name for name in ROWS if hasattr(nnx, name) or name == "ToNNX"])
def test_output_state_and_gradients_are_bit_for_bit_those_of_nnx(name):
    model, *args = ROWS[name](nnx.Rngs(0, dropout=1))
    native = natively(model, args)
    ours = by_bridge(br.from_nnx(model), args)
    for mode in ("train", "eval"):
        (out, after, grads), (own, own_after, own_grads) = ours[mode], native[mode]
        assert jax.tree.structure(out) == jax.tree.structure(own)
        assert all(map(np.array_equal, jax.tree.leaves(out), jax.tree.leaves(own)))
        assert_same(arrays_of(after), own_after)
        trained = {at: array for at, array in arrays_of(grads).items() if at in own_grads}
        assert_same(trained, own_grads)
