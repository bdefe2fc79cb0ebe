"""What is particular to Equinox."""

import functools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (7, 5))


class Net(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    table: jax.Array
    activation: Callable
    name: str = eqx.field(static=True)

    def __init__(self, key, axis_name="batch"):
        self.linear = eqx.nn.Linear(5, 3, key=key)
        self.norm = eqx.nn.BatchNorm(3, axis_name, mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.table = jnp.arange(2)
        self.activation = jax.nn.relu
        self.name = "net"

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.linear(x), state)
        return self.activation(self.dropout(x, key=key)), state

    def encode(self, x, scale=1.0):
        return scale * self.linear(x)


def net(**options):
    return br.from_equinox(eqx.nn.make_with_state(Net)(KEY), vmap=True, **options)


def native_train(model, state, x, key):
    model = eqx.nn.inference_mode(model, value=False)
    batched = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    return batched(x, state, key=jax.random.split(key, len(x)))


def program(function, *arguments):
    """The StableHLO of a function, without its name and those of its results."""
    text = jax.jit(function).lower(*arguments).as_text()
    return re.sub(r' \{jax.result_info = "[^"]*"\}|@jit_\w+', "", text)


def message(call, *args, **kwargs):
    with pytest.raises(br.BridgeError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_arrays_have_the_kind_that_they_are_for():
    rows = [re.split("  +", row)[:2] for row in net().summary().splitlines()[3:-1]]
    assert {place.lstrip("├└─ "): kind for place, kind in rows} == {
        "params.linear.weight": "parameter",
        "params.linear.bias": "parameter",
        "params.norm.weight": "parameter",
        "params.norm.bias": "parameter",
        "state.buffers.table": "state buffers",
        "state.state.norm.batch_counter": "state",
        "state.state.norm.batch_state_index.0": "state",
        "state.state.norm.batch_state_index.1": "state",
    }


def test_equal_builds_have_equal_treedefs():
    assert jax.tree.structure(net()) == jax.tree.structure(net())
    mlp = functools.partial(eqx.nn.MLP, 5, 3, 11, 2)
    first, second = mlp(key=KEY), mlp(key=jax.random.key(1))
    other = mlp(key=KEY, activation=jax.nn.tanh)
    structures = [jax.tree.structure(br.from_equinox(model)) for model in (first, second, other)]
    assert structures[0] == structures[1] != structures[2]


def test_equinox_state_without_make_with_state():
    module = br.from_equinox(Net(KEY), vmap=True)
    assert jax.tree.structure(module) == jax.tree.structure(net())
    _, after = module.apply(X, rng=KEY, mode="train")
    assert after.at["state.state.norm.batch_counter"].get() == 1
    assert module.at["state.state.norm.batch_counter"].get() == 0


def test_equinox_state_of_a_model_that_still_holds_it():
    model = Net(KEY)
    module = br.from_equinox(model, eqx.nn.State(model), vmap=True)
    assert len(jax.tree.leaves(module.parameters())) == 4
    _, after = module.apply(X, rng=KEY, mode="train")
    assert after.at["state.state.norm.batch_counter"].get() == 1


def test_equinox_per_example_keys_equal_vmap():
    module = br.from_equinox(eqx.nn.Dropout(0.5), vmap=True)
    own = jax.vmap(eqx.nn.Dropout(0.5))(X, key=jax.random.split(KEY, 7))
    out, _ = module.apply(X, rng=KEY, mode="train")
    np.testing.assert_array_equal(out, own)
    assert not np.array_equal(out[0] == 0, out[1] == 0), "two examples have one mask"


def test_a_single_example_gets_the_key_itself():
    out, _ = br.from_equinox(eqx.nn.Dropout(0.5)).apply(X[0], rng=KEY, mode="train")
    np.testing.assert_array_equal(out, eqx.nn.Dropout(0.5)(X[0], key=KEY))


def test_a_state_is_used_any_number_of_times():
    module = net()
    first, _ = module.apply(X, rng=KEY, mode="train")
    second, _ = module.apply(X, rng=KEY, mode="train")
    np.testing.assert_array_equal(first, second)


def test_the_compiled_program_is_that_of_equinox():
    module = net()
    model, state = module.native()
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    table, rest = eqx.partition(rest, eqx.is_array)

    def ours(module, x, key):
        def loss(module):
            out, after = module.apply(x, rng=key, mode="train")
            return out.sum(), after.state

        return br.value_and_grad(loss, has_aux=True)(module)

    def own(params, table, state, x, key):
        def loss(params):
            out, after = native_train(eqx.combine(params, table, rest), state, x, key)
            return out.sum(), (table, after)

        return jax.value_and_grad(loss, has_aux=True)(params)

    assert program(ours, module, X, KEY) == program(own, params, table, state, X, KEY)


def test_the_axis_of_the_batch_has_the_name_that_the_layers_give_it():
    module = br.from_equinox(Net(KEY, axis_name="examples"), vmap=True)
    np.testing.assert_array_equal(
        module.apply(X, rng=KEY, mode="train")[0], net().apply(X, rng=KEY, mode="train")[0]
    )


def test_static_arguments_are_not_mapped():
    assert net().encode(X, scale=2.0).shape == (7, 3)
    np.testing.assert_array_equal(net().encode(X, 2.0), 2 * net().encode(X))


def test_an_argument_called_state_is_the_callers_own_where_the_model_has_none():
    class Cell(eqx.Module):
        weight: jax.Array

        def __call__(self, x, state):
            return self.weight * (x + state), state

    out, state = br.from_equinox(Cell(jnp.ones(5)))(X[0], X[1])
    np.testing.assert_array_equal(out, X[0] + X[1])
    np.testing.assert_array_equal(state, X[1])


class Splits(eqx.Module):
    def __call__(self, x, *, key):
        return x * jax.random.bernoulli(jax.random.split(key)[0])


class TwoNames(eqx.Module):
    first: eqx.nn.BatchNorm
    second: eqx.nn.BatchNorm

    def __init__(self):
        self.first = eqx.nn.BatchNorm(5, "batch", mode="batch")
        self.second = eqx.nn.BatchNorm(5, "examples", mode="batch")

    def __call__(self, x, state):
        return x, state


@pytest.mark.parametrize("model", [eqx.nn.Dropout(0.5), Splits()])
def test_a_draw_without_a_key_names_the_path(model):
    class Outer(br.Module):
        inner: br.Module

        def __call__(self, x):
            return self.inner(x)

    text = message(Outer(br.from_equinox(model)).apply, X, mode="train")
    assert text.startswith("inner draws from the stream 'default', and no rng was given.")


def old_state() -> Any:
    model, state = eqx.nn.make_with_state(Net)(KEY)
    native_train(model, state, X, KEY)
    state.set(model.norm.batch_counter, jnp.array(1))
    return model, state


FOREIGN = """\
the eqx.nn.State given to from_equinox is not that of this Net:
  norm.batch_counter: has no entry
  norm.batch_state_index: has no entry
  TwoNames.first.batch_counter: is no part of the model
  TwoNames.first.batch_state_index: is no part of the model
  TwoNames.second.batch_counter: is no part of the model
  TwoNames.second.batch_state_index: is no part of the model
Give it the model and the state that one eqx.nn.make_with_state made"""

REFUSED = {
    "a class": (
        lambda: br.from_equinox(Net),
        "from_equinox was given the class Net; give it a model: from_equinox(Net(..., key=key))",
    ),
    "a Module": (
        lambda: br.from_equinox(br.Function(abs)),
        "from_equinox was given what is a bridge.Module already: Function",
    ),
    "no model": (
        lambda: br.from_equinox(3),
        "from_equinox takes an equinox.Module, or the pair (model, state) that"
        " eqx.nn.make_with_state gives; it was given 3",
    ),
    "a model without its state": (
        lambda: br.from_equinox(eqx.nn.make_with_state(Net)(KEY)[0]),
        "Net was made by eqx.nn.make_with_state, which keeps its state apart; give both:"
        " from_equinox((model, state))",
    ),
    "the state of another model": (
        lambda: br.from_equinox(
            eqx.nn.make_with_state(Net)(KEY)[0], eqx.nn.make_with_state(TwoNames)()[1]
        ),
        FOREIGN,
    ),
    "an old state": (
        lambda: br.from_equinox(old_state()),
        "the eqx.nn.State given to from_equinox is an old one, which a call has replaced; give it the"
        " state that the call returned",
    ),
    "two states": (
        lambda: net(state=eqx.nn.make_with_state(Net)(KEY)[1]),
        "from_equinox was given a state twice, in the pair (model, state) and as `state`; give it once",
    ),
    "two names for the batch": (
        lambda: br.from_equinox(TwoNames(), vmap=True)(X),
        "the layers of TwoNames name several axes, 'batch' and 'examples'; say which is that of the"
        " batch: from_equinox(model, vmap='batch')",
    ),
    "a state among the arguments": (
        lambda: net()(X, eqx.nn.make_with_state(Net)(KEY)[1]),
        "a wrapped Equinox model keeps its eqx.nn.State itself; call it without one:"
        " out, module = module.apply(x)",
    ),
    "batch statistics without a batch": (
        lambda: br.from_equinox(Net(KEY)).apply(X[0], rng=KEY, mode="train"),
        "the root module averages over the axis 'batch' of a batch, which there is none of; wrap it"
        " with from_equinox(model, vmap=True) and call it with batches",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_wrapped_or_called_is_a_sentence(case):
    call, text = REFUSED[case]
    assert message(call) == text


def test_a_model_of_another_library_is_sent_to_its_adapter():
    nnx = pytest.importorskip("flax.nnx")
    text = message(br.from_equinox, nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    assert text == "from_equinox was given a flax Linear; wrap it with bridge.wrap(model)"
