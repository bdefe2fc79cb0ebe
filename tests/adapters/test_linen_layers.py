"""Every module class of flax.linen, found by walking the package, against Linen itself."""

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import ModelError

nn = pytest.importorskip("flax.linen")

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (2, 3))
SEQUENCE = jax.random.normal(jax.random.key(7), (2, 5, 6))
IMAGE = jax.random.normal(jax.random.key(13), (2, 7, 5, 3))
KERNEL = jax.random.normal(jax.random.key(17), (3, 5))
DOT = (((1,), (0,)), ((), ()))
CARRY = (jnp.zeros((2, 3)), jnp.ones((2, 3)))
_PYTHON_NAMES = re.compile(r'^module @jit_\w+| \{jax\.result_info = "[^"]*"\}')


class Scoped(nn.Module):
    """What has a `CompactNameScope`: it is made of a method, never by its class."""

    @nn.compact_name_scope
    def up(self, x):
        return nn.Dense(5)(x)

    def __call__(self, x):
        return self.up(x)


@dataclass(frozen=True)
class Case:
    """How a class is made and called; `train` is what Linen's own call is told in training.

    Bridge says that by the mode; `given` is told to both.
    """

    make: Callable[[Any], Any]
    args: tuple[Any, ...] = (X,)
    train: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    mode: str = "train"


ATTENTION = Case(
    lambda cls: cls(2, qkv_features=6, dropout_rate=0.5),
    (SEQUENCE, SEQUENCE),
    {"deterministic": False},
)
CELL = Case(lambda cls: cls(3), (CARRY, X))
STATELESS_CELL = Case(lambda cls: cls(3), (CARRY[0], X))
FP8 = Case(lambda cls: cls(amax_history_length=7), (X, KERNEL, DOT), mode="eval")

CASES = {
    "PReLU": Case(lambda cls: cls()),
    "MultiHeadAttention": ATTENTION,
    "MultiHeadDotProductAttention": ATTENTION,
    "SelfAttention": Case(ATTENTION.make, (SEQUENCE,), ATTENTION.train),
    "Sequential": Case(lambda cls: cls([nn.Dense(5), nn.relu, nn.Dense(7)])),
    "Fp8DirectDotGeneralOp": FP8,
    "Fp8DotGeneralOp": FP8,
    "NANOOFp8DotGeneralOp": FP8,
    "Fp8Einsum": Case(FP8.make, ("ab,bc->ac", X, KERNEL), mode="eval"),
    "Conv": Case(lambda cls: cls(5, (3, 3)), (IMAGE,)),
    "ConvLocal": Case(lambda cls: cls(5, (3, 3)), (IMAGE,)),
    "ConvTranspose": Case(lambda cls: cls(5, (3, 3)), (IMAGE,)),
    "Dense": Case(lambda cls: cls(5)),
    "DenseGeneral": Case(lambda cls: cls((5, 7), axis=(-2, -1)), (SEQUENCE,)),
    "Einsum": Case(lambda cls: cls((3, 5), "ab,bc->ac")),
    "Embed": Case(lambda cls: cls(7, 5), (jnp.arange(6).reshape(2, 3),)),
    "CompactNameScope": Case(lambda _: Scoped()),
    "BatchNorm": Case(lambda cls: cls(), (IMAGE,), {"use_running_average": False}),
    "GroupNorm": Case(lambda cls: cls(num_groups=3), (SEQUENCE,)),
    "InstanceNorm": Case(lambda cls: cls(), (IMAGE,)),
    "LayerNorm": Case(lambda cls: cls()),
    "RMSNorm": Case(lambda cls: cls()),
    "SpectralNorm": Case(lambda cls: cls(nn.Dense(5)), given={"update_stats": True}),
    "WeightNorm": Case(lambda cls: cls(nn.Dense(5))),
    "Bidirectional": Case(lambda cls: cls(nn.RNN(nn.LSTMCell(5)), nn.RNN(nn.GRUCell(7))), (SEQUENCE,)),
    "ConvLSTMCell": Case(
        lambda cls: cls(3, (3, 3)), ((jnp.zeros((2, 7, 5, 3)), jnp.ones((2, 7, 5, 3))), IMAGE)
    ),
    "DenseParams": Case(lambda cls: cls(5)),
    "GRUCell": STATELESS_CELL,
    "LSTMCell": CELL,
    "MGUCell": STATELESS_CELL,
    "OptimizedLSTMCell": CELL,
    "RNN": Case(lambda cls: cls(nn.LSTMCell(5)), (SEQUENCE,)),
    "SimpleCell": STATELESS_CELL,
    "Dropout": Case(lambda cls: cls(0.5), (SEQUENCE,), {"deterministic": False}),
}
ABSTRACT = {"Module", "RNNCellBase", "_Conv", "Fp8DotGeneralBase"}


@functools.cache
def classes() -> dict[str, type]:
    """The module classes that the package flax.linen and its subpackages define, by name."""
    names = ["flax.linen", *(one.name for one in pkgutil.walk_packages(nn.__path__, "flax.linen."))]
    modules = [importlib.import_module(name) for name in names]
    found = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    return {
        cls.__name__: cls
        for cls in found
        if issubclass(cls, nn.Module) and cls.__module__.startswith("flax.linen")
    }


def test_every_class_of_linen_has_a_case():
    assert len(classes()) == 38, "a release of Flax has more classes, or fewer; look at them"
    assert set(classes()) == {*CASES, *ABSTRACT}


def test_a_class_without_a_case_is_there_to_be_inherited_from():
    for name in ABSTRACT:
        assert any(issubclass(classes()[other], classes()[name]) for other in CASES)


def program(function: Any, *args: Any) -> tuple[str, list[tuple[Any, ...]]]:
    """The StableHLO of a function without the names that JAX takes from Python, and its results."""
    lowered = jax.jit(function, keep_unused=True).lower(*args)
    results = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(lowered.out_info)]
    return _PYTHON_NAMES.sub("", lowered.as_text()), results


def squares(out: Any) -> Any:
    return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(out))


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_layer_of_linen_compiles_to_the_program_of_linen_itself(name):
    case = CASES[name]
    model = case.make(classes()[name])
    quiet = {flag: not told for flag, told in case.train.items()}
    wrapped = br.from_linen(model)

    def made(key):
        return model.init(key, *case.args, **quiet, **case.given)

    def ours_made(key):
        return wrapped.init(key, *case.args, **case.given).native()

    variables, module = (
        jax.eval_shape(made, KEY),
        jax.eval_shape(lambda key: wrapped.init(key, *case.args, **case.given), KEY),
    )
    assert jax.tree.structure(module.native()) == jax.tree.structure(variables)
    assert program(ours_made, KEY) == program(made, KEY)

    def ours(module, key):
        def loss(module):
            out, after = module.apply(*case.args, rng=key, mode=case.mode, **case.given)
            return squares(out), (out, after.state)

        (_, (out, state)), grads = br.value_and_grad(loss, has_aux=True)(module)
        return out, state, grads

    def native(params, state, key):
        told = case.train if case.mode == "train" else quiet

        def loss(params):
            given = {**({"params": params} if params else {}), **state}
            options = {"rngs": {"dropout": key}, "mutable": list(state)}
            out, after = model.apply(given, *case.args, **told, **case.given, **options)
            return squares(out), (out, after)

        (_, (out, after)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return out, after, grads

    params = variables.pop("params", {})
    assert program(ours, module, KEY) == program(native, params, variables, KEY)


def test_fp8_layers_are_refused_in_training_for_their_scales_would_never_change():
    model = nn.Dense(5, dot_general_cls=classes()["Fp8DirectDotGeneralOp"])
    module = jax.eval_shape(lambda key: br.from_linen(model).init(key, X), KEY)
    assert jax.eval_shape(lambda module: module(X), module).shape == (2, 5)
    with pytest.raises(ModelError) as caught:
        jax.eval_shape(lambda module: module.apply(X, mode="train"), module)
    assert str(caught.value) == (
        "the root module: the scales of fp8 layers ('_overwrite_with_gradient') are replaced by their"
        " gradients at each step, which flax.training.train_state does and no optimizer of bridge: they"
        " would stay what they are. Train it there; in eval mode it runs"
    )
