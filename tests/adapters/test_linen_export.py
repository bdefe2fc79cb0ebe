"""What a Module is as a Flax Linen module."""

import flax.errors
import flax.linen as nn
import flax.serialization
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import bridge as br
from bridge.core.errors import MissingRngError, ModelError
from tests.adapters.exported import KEY, Block, Net, X, net, same, tied


class Counted(br.Module):
    norm: br.Module
    calls: br.State

    def __call__(self, x):
        self.calls = self.calls + 1
        return self.norm(x)


@pytest.fixture(scope="module", name="net")
def _net():
    return net()


@pytest.fixture(scope="module")
def variables(net):
    return br.to_linen(net).init(jax.random.key(0), X)


def test_init_gives_the_arrays_of_the_module_by_collection_and_path(net, variables):
    assert set(variables) == {"params", "batch_stats", "state"}
    assert variables["params"]["block"]["Dense_0"]["kernel"] is net.block.params["Dense_0"]["kernel"]
    assert variables["batch_stats"]["block"]["BatchNorm_0"]["mean"].shape == (11,)
    assert int(variables["state"]["calls"]) == 0
    assert same(br.from_linen(br.to_linen(net), variables), net)


def test_init_makes_what_the_module_has_not_made():
    exported = br.to_linen(Net(br.from_linen(Block())))
    first, second = (exported.init(jax.random.key(seed), X) for seed in (0, 1))
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, second)
    assert not same(first["params"], second["params"])
    assert exported.apply(first, X).shape == (7, 11)


def test_output_and_state_are_those_of_the_module(net, variables):
    out = jax.jit(br.to_linen(net).apply)(variables, X)
    assert np.array_equal(out, jax.jit(lambda net: net.apply(X)[0])(net))


def test_state_is_threaded_as_in_the_module():
    module = Counted(br.from_linen(nn.BatchNorm(momentum=0.9)), 0).init(KEY, X)
    exported = br.to_linen(module)
    state = exported.init(KEY, X)
    for step in range(3):
        out, updates = exported.apply(state, X * step, train=True, mutable=["batch_stats", "state"])
        expected, module = module.apply(X * step, mode="train")
        assert np.array_equal(out, expected)
        state = {**state, **updates}
    assert same(br.from_linen(exported, state), module)
    assert int(state["state"]["calls"]) == 3


def test_linens_own_loop_trains_it(net, variables):
    exported = br.to_linen(net)
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    start = TrainState.create(apply_fn=exported.apply, params=variables["params"], tx=optax.adam(1e-2))

    def loss(params, state, key):
        out, state = exported.apply(
            {"params": params, **state}, X, train=True, rngs={"dropout": key}, mutable=list(state)
        )
        return ((out - 1) ** 2).mean(), state

    @jax.jit
    def train(training, state):
        def body(carry, key):
            training, state = carry
            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(training.params, state, key)
            return (training.apply_gradients(grads=grads), state), value

        return jax.lax.scan(body, (training, state), jax.random.split(KEY, 50))

    (training, state), losses = train(start, rest)
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    back = br.from_linen(exported, {"params": training.params, **state})
    assert same(back.parameters(), training.params)
    assert int(back.calls) == 50
    assert jax.tree.structure(back) == jax.tree.structure(net)


def test_its_variables_go_through_linens_checkpoint(net, variables):
    written = flax.serialization.to_bytes(variables)
    assert same(flax.serialization.from_bytes(variables, written), variables)


def test_dropout_draws_from_linens_stream(net, variables):
    exported = br.to_linen(net)

    @jax.jit
    def run(key):
        return exported.apply(
            variables, X, train=True, rngs={"dropout": key}, mutable=["batch_stats", "state"]
        )[0]

    first, again, second = run(KEY), run(KEY), run(jax.random.key(18))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_a_named_stream_is_linens_of_that_name(net, variables):
    exported = br.to_linen(net)
    streams = {"dropout": KEY, "latent": KEY}
    first = exported.apply(variables, X, rngs=streams, method="noisy")
    other = exported.apply(variables, X, rngs={**streams, "dropout": jax.random.key(1)}, method="noisy")
    served = exported.apply(variables, X, rngs={"dropout": KEY}, method="noisy")
    assert np.array_equal(first, other)
    assert not np.array_equal(first, X)
    assert not np.array_equal(served, X)


class Rematerialised(br.Module):
    def __call__(self, x):
        return br.remat(lambda x: x + jax.random.normal(self.draw("latent"), x.shape))(x)


def test_a_lifted_transform_takes_the_streams_that_linen_has_and_no_other():
    exported = br.to_linen(Rematerialised())
    out = exported.apply({}, X, rngs={"latent": KEY})
    assert np.array_equal(out, exported.apply({}, X, rngs={"latent": KEY}))
    assert not np.array_equal(out, X)


@pytest.mark.parametrize(
    "flag",
    [{"train": True}, {"training": True}, {"is_training": True}, {"deterministic": False}],
    ids=lambda flag: next(iter(flag)),
)
def test_every_spelling_of_the_train_flag_is_the_mode(net, variables, flag):
    out, updates = br.to_linen(net).apply(
        variables, X, rngs={"dropout": KEY}, mutable=["batch_stats", "state"], **flag
    )
    assert (np.asarray(out) == np.asarray(net.shift)).any()
    assert not same(updates["batch_stats"], variables["batch_stats"])


def test_the_attribute_train_is_the_mode(net, variables):
    exported = br.to_linen(net).clone(train=True)
    _, updates = exported.apply(variables, X, rngs={"dropout": KEY}, mutable=["batch_stats", "state"])
    assert not same(updates["batch_stats"], variables["batch_stats"])


class Parent(nn.Module):
    core: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.core(nn.Dense(5)(x)))


def test_a_lazy_module_takes_the_shapes_that_reach_it():
    class Cell(br.Module):
        cell: br.Module

        def __call__(self, x):
            return self.cell(x, self.cell.initial_state(len(x)))[0]

    parent = Parent(br.to_linen(Cell(br.from_haiku(hk.LSTM)(13))))
    variables = parent.init(KEY, X[:, :2])
    shapes = jax.tree.map(jnp.shape, variables["params"]["core"])
    assert shapes == {"cell": {"lstm/linear": {"b": (52,), "w": (18, 52)}}}
    assert parent.apply(variables, X[:, :2]).shape == (7, 3)


@pytest.mark.parametrize(
    "lift",
    [
        lambda module: nn.remat(type(module))(module.held),
        lambda module: nn.jit(type(module))(module.held),
    ],
    ids=["remat", "jit"],
)
def test_linens_lifted_transforms_take_it(net, variables, lift):
    exported = br.to_linen(net)
    expected = jax.jit(exported.apply)(variables, X)
    np.testing.assert_allclose(lift(exported).apply(variables, X), expected, rtol=1e-6, atol=1e-6)


class Deep(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            lambda layer, carry: (layer(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return scan(self.layer, x)[0]


def test_linens_scan_stacks_it():
    deep = Deep(br.to_linen(br.from_haiku(hk.Linear)(5)))
    variables = deep.init(KEY, X)
    weights = variables["params"]["layer"]["linear"]["w"]
    assert weights.shape == (3, 5, 5)
    expected = X
    for weight in weights:
        expected = expected @ weight
    np.testing.assert_allclose(deep.apply(variables, X), expected, rtol=1e-5, atol=1e-6)


def test_shared_modules_and_tied_arrays_are_one_param():
    module = tied()
    exported = br.to_linen(module)
    variables = exported.init(KEY, X)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "first": {"bias": (5,), "kernel": (5, 5)},
        "table": (5,),
    }
    assert np.array_equal(jax.jit(exported.apply)(variables, X), jax.jit(lambda m: m(X))(module))


def test_a_frozen_parameter_gets_no_gradient(net, variables):
    exported = br.to_linen(net.freeze("block"))

    def loss(params):
        return (exported.apply({**variables, "params": params}, X, mutable=["state"])[0] ** 2).sum()

    grads = jax.grad(loss)(variables["params"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["block"]))
    assert grads["scale"].any()


def test_a_linen_module_comes_back_itself_unless_the_wrapping_says_more():
    dense = nn.Dense(5)
    assert br.to_linen(br.from_linen(dense)) == dense
    wrapped = br.from_linen(dense).init(KEY, X)
    for more in (wrapped.freeze("params.bias"), wrapped.train(), wrapped.new_state(KEY)):
        assert br.to_linen(more) != dense
        assert br.from_linen(br.to_linen(more)) is more


def test_through_nnx_and_back_into_linen_no_array_is_lost(net):
    inner = br.to_linen(br.from_nnx(br.to_nnx(net)))
    assert same(inner.init(KEY, X), br.to_linen(net).init(KEY, X))


class Params(br.Module):
    params: br.Parameter

    def __call__(self, x):
        return x * self.params


def immutable(net, variables):
    br.to_linen(net).apply(variables, X, train=True, rngs={"dropout": KEY})


CASES = {
    "no module": (
        lambda net, variables: br.to_linen(nn.Dense(3)),
        ModelError,
        "to_linen takes a bridge.Module; it was given a Dense. A model of a library becomes one by"
        " bridge.wrap(model)",
    ),
    "a field that Linen refuses": (
        lambda net, variables: br.to_linen(Params(jnp.ones(5))),
        ModelError,
        "Linen refuses variables that have 'params' directly below 'params', and Params has a field of"
        " that name; rename it, or put the Module below another one",
    ),
    "a missing and a misshapen param": (
        lambda net, variables: br.to_linen(net).apply(
            {**variables, "params": {"block": variables["params"]["block"], "scale": jnp.ones(13)}}, X
        ),
        ModelError,
        "these arrays do not fit the Net:\n"
        "  params: scale: is float32[13]; the Module has float32[11]\n"
        "  params: shift: missing; the Module has float32[11]\n"
        "Give it what its own init makes",
    ),
    "another kind of number": (
        lambda net, variables: br.from_linen(
            br.to_linen(net), {**variables, "state": {"calls": jnp.ones(())}}
        ),
        ModelError,
        "these arrays do not fit the Net:\n"
        "  state: calls: is float32[]; the Module has int32[]\n"
        "Give it what its own init makes",
    ),
    "the flag twice": (
        lambda net, variables: br.to_linen(net).apply(variables, X, train=True, deterministic=True),
        ModelError,
        "the train flag of an exported module was given twice: train=True, deterministic=True",
    ),
    "the flag by attribute and by keyword": (
        lambda net, variables: br.to_linen(net).clone(train=False).apply(variables, X, train=True),
        ModelError,
        "the train flag of an exported module was given twice: train=True, eval by its attribute",
    ),
    "a draw without a key": (
        lambda net, variables: br.to_linen(net).apply(
            variables, X, rngs={"noise": KEY}, method="noisy"
        ),
        MissingRngError,
        "the root module draws from the stream 'latent', which Linen was given no key for. Type"
        " apply(variables, ..., rngs={'latent': key})",
    ),
    "no keys": (
        lambda net, variables: br.to_linen(net).apply(
            variables, X, train=True, mutable=["batch_stats", "state"]
        ),
        MissingRngError,
        "block draws from the stream 'dropout', and no rng was given. Type apply(variables, ...,"
        " rngs={'dropout': key})",
    ),
    "an unknown method": (
        lambda net, variables: br.to_linen(net).apply(variables, X, method="decode"),
        AttributeError,
        "the exported Net has no method 'decode'",
    ),
    "an uninitialised Module in a call": (
        lambda net, variables: br.to_linen(Net(br.from_linen(nn.Dense(11)))).apply({}, X),
        ModelError,
        "these arrays do not fit the Net:\n"
        "  params: scale: missing; the Module has float32[11]\n"
        "  params: shift: missing; the Module has float32[11]\n"
        "Give it what its own init makes",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(net, variables, case):
    run, error, message = CASES[case]
    with pytest.raises(error) as caught:
        run(net, variables)
    assert str(caught.value) == message


def test_a_state_in_an_immutable_collection_is_linens_own_error(net, variables):
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        br.to_linen(net).apply(variables, X, train=True, rngs={"dropout": KEY})
