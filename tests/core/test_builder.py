"""Modules made by assignments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import FieldError, ImmutableError
from bridge.core.tree import entries

KEY = jax.random.key(5)
X = jnp.arange(6.0).reshape(2, 3)


class Dense(br.Module):
    w: br.Parameter

    def __init__(self):
        self.w = jnp.full((3, 3), 2.0)

    def __call__(self, x):
        return x @ self.w


def recipe(scale=3.0):
    builder = br.Builder("Net")
    builder.weight = jnp.ones(3)
    builder.bias = br.ParamInit((3,), jax.nn.initializers.ones)
    builder.register_buffer("mean", np.zeros(3, np.float32))
    builder.fc, builder.act = Dense(), jnp.negative
    builder.layers, builder.table = [Dense(), jnp.tanh], {"again": builder.fc}
    builder.flag, builder.rate, builder.steps, builder.name = True, 0.5, 7, "net"

    def act(x):
        return scale * x

    def forward(self, x):
        self.mean = self.rate * self.mean + (1 - self.rate) * x.mean(0)
        x = self.table["again"](self.fc(x)) * self.weight + self.bias
        return act(self.act(x)) if self.flag else x

    return builder.build(forward)


def test_assignments_become_fields_of_their_kinds():
    net = recipe()
    kinds = {entry.path: entry.kind.name for entry in entries(net)}
    assert kinds == {
        ("weight",): "parameter",
        ("bias",): "parameter",
        ("mean",): "state",
        ("fc", "w"): "parameter",
        ("layers", "0", "w"): "parameter",
    }
    assert (net.flag, net.rate, net.steps, net.name) == (True, 0.5, 7, "net")
    assert repr(net) == (
        "Net uninit (\n  (fc): Dense()\n  (act): Function(negative)\n  (layers.0): Dense()\n"
        "  (layers.1): Function(tanh)\n  (table.again): -> fc\n)"
    )


def test_forward_calls_children_and_writes_states():
    net = recipe().init(KEY)
    out, after = jax.jit(lambda net, x: net.apply(x))(net, X)
    np.testing.assert_allclose(out, -3 * (X @ np.full((3, 3), 12.0) + 1))
    np.testing.assert_allclose(after.mean, X.mean(0) / 2)
    outs = net.capture(X, paths=["fc"])
    np.testing.assert_allclose(outs["fc"], X @ np.full((3, 3), 2.0))
    with pytest.raises(ImmutableError, match=r"Net\.weight cannot be assigned"):
        net.weight = X


def test_no_number_of_python_is_trained():
    net = recipe().init(KEY)
    optimizer = br.Optimizer(optax.sgd(1.0)).init(net)
    grads = br.grad(lambda net: net.apply(X)[0].sum())(net)
    trained, _ = optimizer.step(grads, net)
    assert trained.bias.tolist() == [1 + 6] * 3
    assert (trained.rate, trained.steps) == (0.5, 7)


def test_two_builds_of_a_recipe_are_one_compilation():
    compilations = 0

    @jax.jit
    def run(net):
        nonlocal compilations
        compilations += 1
        return net.apply(X)[0]

    for _ in range(2):
        run(recipe().init(KEY))
    assert compilations == 1
    run(recipe(scale=5.0).init(KEY))
    assert compilations == 2
    assert type(recipe()) is type(recipe())
    assert type(recipe()) is not type(recipe(scale=3))


def test_what_forward_closes_over_makes_another_recipe():
    def build(array, times):
        def forward(self, x):
            return forward and array * times * x

        return br.Builder().build(forward)

    one, other = jnp.array(2.0), jnp.array(3.0)
    assert jax.tree.structure(build(one, 5)) == jax.tree.structure(build(one, 5))
    assert float(build(one, 5)(1.0)) == 10
    assert float(build(other, 5)(1.0)) == 15
    assert float(build(one, 7)(1.0)) == 14


def test_it_can_be_said_what_a_value_is():
    builder = br.Builder()
    builder.register_parameter("rate", 0.1)
    builder.register_aux("activation", jnp.tanh)
    builder.dtype, builder.optimizer, builder.nothing = jnp.float32, optax.sgd(0.1), None
    module = builder.build(lambda self, x: self.activation(self.rate * x))
    assert float(module(0.0)) == 0
    assert [entry.path for entry in entries(module)] == [("rate",)]
    assert (builder.dtype, module.dtype) == (jnp.float32, jnp.float32)
    assert repr(builder) == "Builder of Built(rate, activation, dtype, optimizer, nothing)"


def test_models_of_other_libraries_are_wrapped():
    nn, hk = pytest.importorskip("flax.linen"), pytest.importorskip("haiku")
    builder = br.Builder()
    builder.layers = [nn.Dense(5), br.from_haiku(hk.Linear)(7)]
    builder.heads = {"one": nn.Dense(7)}

    def forward(self, x):
        first, second = self.layers
        x = first(x)
        return second(x) + self.heads["one"](x)

    module = builder.build(forward).init(KEY, X)
    assert module(X).shape == (2, 7)
    assert module.layers[0].at["params.kernel"].get().shape == (3, 5)


@pytest.mark.parametrize("name", ["build", "_state", "forward", "mode"])
def test_names_that_are_taken(name, refuses):
    with refuses(
        FieldError,
        f"Built.{name} cannot be a field: a Builder or a Module has {name!r} of its own; give the field"
        f" another name",
    ):
        setattr(br.Builder(), name, 3)


def test_mistakes(refuses):
    builder = br.Builder("Net")
    with refuses(
        FieldError,
        "Net.parts mixes modules, arrays and other values; a field has one kind: assign two fields, or"
        " say it by register_parameter, register_buffer or register_aux",
    ):
        builder.parts = [X, 3]
    with refuses(
        FieldError,
        "Builder.build takes a function of the module and its inputs, `def forward(self, x)`; it was"
        " given a PjitFunction",
    ):
        builder.build(jax.jit(lambda self, x: x))
    with pytest.raises(AttributeError, match="the builder of Net has no 'weight' yet"):
        _ = builder.weight
