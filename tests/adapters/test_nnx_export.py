"""What a Module is as a Flax NNX module."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bridge as br
from bridge.adapters.nnx._export import FrozenParam
from bridge.core.errors import MissingRngError, ModelError, UninitialisedError
from tests.adapters.exported import KEY, Net, X, net, same, tied


@pytest.fixture(scope="module", name="net")
def _net():
    return net()


def arrays(model, kind):
    return nnx.to_pure_dict(nnx.state(model, kind)).get("variables", {})


def test_every_array_is_a_variable_of_the_type_that_flax_has_for_it(net):
    model = br.to_nnx(net.freeze("shift"))
    params = arrays(model, nnx.Param)["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "block": {
            "BatchNorm_0": {"bias": (11,), "scale": (11,)},
            "Dense_0": {"bias": (11,), "kernel": (5, 11)},
        },
        "scale": (11,),
    }
    statistics = arrays(model, nnx.BatchStat)["batch_stats"]["block"]["BatchNorm_0"]
    assert set(statistics) == {"mean", "var"}
    assert set(arrays(model, FrozenParam)["params"]) == {"shift"}
    assert int(model.variables["state"]["calls"][...]) == 0
    assert model.variables["params"]["scale"].get_value() is net.scale


def test_output_and_state_are_those_of_the_module(net):
    net = net.at["block"].apply(lambda block: block.eval())
    model = br.to_nnx(net)
    model.train()
    for number in range(3):
        expected, net = net.apply(X * number, mode="train")
        assert np.array_equal(model(X * number), expected)
    assert same(br.from_nnx(model), net)
    assert int(model.variables["state"]["calls"][...]) == 3


def test_train_and_eval_set_the_mode_of_the_whole(net):
    model = br.to_nnx(net, rngs=nnx.Rngs(0))
    before = arrays(model, nnx.BatchStat)
    evaluated = model(X)
    assert same(arrays(model, nnx.BatchStat), before)
    model.train()
    assert not np.array_equal(model(X), evaluated)
    trained = arrays(model, nnx.BatchStat)
    assert not same(trained, before)
    model.eval()
    assert np.array_equal(model(X), model(X))
    assert same(arrays(model, nnx.BatchStat), trained)
    assert not np.array_equal(model(X, deterministic=False), model(X, deterministic=False))


def test_nnxs_own_loop_trains_it(net):
    model = br.to_nnx(net, rngs=nnx.Rngs(0))
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss(model):
        return ((model(X) - 1) ** 2).mean()

    @nnx.jit
    def train(model, optimizer):
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(train(model, optimizer)) for _ in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    back = br.from_nnx(model)
    assert jax.tree.structure(back) == jax.tree.structure(net)
    assert same(back.scale, model.variables["params"]["scale"][...])
    assert int(back.calls) == 40


def test_split_and_merged_under_jax_jit_it_keeps_its_state(net):
    graph, state = nnx.split(br.to_nnx(net))

    @jax.jit
    def run(state, key):
        model = nnx.merge(graph, state)
        out = model(X, train=True, rngs=nnx.Rngs(key))
        return out, nnx.state(model)

    first, state = run(state, KEY)
    again, state = run(state, KEY)
    other, state = run(state, jax.random.key(1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert int(nnx.to_pure_dict(state)["variables"]["state"]["calls"]) == 3
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    "rngs", [nnx.Rngs(0), nnx.Rngs(0).default, jax.random.key(0)], ids=["Rngs", "RngStream", "key"]
)
def test_a_call_takes_the_rngs_that_nnxs_own_layers_take(net, rngs):
    out = br.to_nnx(net)(X, train=True, rngs=rngs)
    assert (np.asarray(out) == np.asarray(net.shift)).any()


def test_a_named_stream_is_that_of_the_rngs(net):
    model = br.to_nnx(net)
    first = model.noisy(X, rngs=nnx.Rngs(dropout=0, latent=1))
    assert np.array_equal(first, model.noisy(X, rngs=nnx.Rngs(dropout=2, latent=1)))
    assert not np.array_equal(first, model.noisy(X, rngs=nnx.Rngs(dropout=0, latent=2)))


def test_keys_are_states_of_the_rngs():
    model = br.to_nnx(br.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0))).train())
    assert len(jax.tree.leaves(nnx.state(model, nnx.RngState))) == 2
    first, second = model(X), model(X)
    assert not np.array_equal(first, second)


def test_shared_modules_and_tied_arrays_stay_one_param_through_a_step():
    model = br.to_nnx(tied())
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 3
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: model(X).sum())(model))
    back = br.from_nnx(model)
    assert len(jax.tree.leaves(back)) == 3
    np.testing.assert_allclose(back(X), model(X), rtol=1e-6)


def test_a_frozen_parameter_stays_bit_for_bit_under_weight_decay(net):
    model = br.to_nnx(net.freeze("block"))
    optimizer = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.1), wrt=nnx.Param)
    grads = nnx.grad(lambda model: (model(X) ** 2).sum())(model)
    optimizer.update(model, grads)
    back = br.from_nnx(model)
    assert same(back.block, net.block)
    assert not same(back.scale, net.scale)
    assert not any(entry for entry in arrays(model, nnx.Param)["params"] if entry == "block")


def test_an_nnx_module_comes_back_as_one_of_its_class_unless_the_wrapping_says_more():
    linear = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    wrapped = br.from_nnx(linear)
    assert type(br.to_nnx(wrapped)) is nnx.Linear
    assert same(nnx.state(br.to_nnx(wrapped)), nnx.state(linear))
    for more in (wrapped.freeze("params.bias"), wrapped.train(), wrapped.new_state(KEY)):
        assert type(br.to_nnx(more)) is not nnx.Linear
        back = br.from_nnx(br.to_nnx(more))
        assert jax.tree.structure(back) == jax.tree.structure(more)
        assert same(back.params, more.params)


def test_stacked_by_nnxs_vmap_it_is_an_ensemble():
    linear = br.from_haiku(hk.Linear)(3)

    @nnx.vmap
    def create(key):
        return br.to_nnx(linear.init(key, X))

    @nnx.vmap(in_axes=(0, None))
    def run(model, x):
        return model(x)

    models = create(jax.random.split(KEY, 11))
    assert run(models, X).shape == (11, 7, 3)


def bad_shape(net):
    model = br.to_nnx(net)
    model.variables["params"]["scale"].set_value(jnp.ones(13))
    return model(X)


def no_stream(net):
    return br.to_nnx(net).noisy(X, rngs=nnx.Rngs(dropout=0))


CASES = {
    "no module": (
        lambda net: br.to_nnx(nnx.Linear(5, 3, rngs=nnx.Rngs(0))),
        ModelError,
        "to_nnx takes a bridge.Module; it was given a Linear. A model of a library becomes one by"
        " bridge.wrap(model)",
    ),
    "uninitialised": (
        lambda net: br.to_nnx(Net(br.from_linen(nn.Dense(11)))),
        UninitialisedError,
        "scale, shift, block.params, block.state: not initialised, so there is nothing to hand over;"
        " type module = module.init(key, *sample) first",
    ),
    "another shape": (
        bad_shape,
        ModelError,
        "these arrays do not fit the Net:\n"
        "  params: scale: is float32[13]; the Module has float32[11]\n"
        "Give it what its own init makes",
    ),
    "the flag twice": (
        lambda net: br.to_nnx(net)(X, train=True, deterministic=True),
        ModelError,
        "the train flag of an exported module was given twice: train=True, deterministic=True",
    ),
    "no such stream": (
        no_stream,
        MissingRngError,
        "the exported module draws from the stream 'latent', and the nnx.Rngs have 'dropout'; give it"
        " nnx.Rngs(latent=key), or nnx.Rngs(key) to serve every stream",
    ),
    "rngs that are none": (
        lambda net: br.to_nnx(net)(X, rngs=0),
        ModelError,
        "rngs is a int; an nnx.Rngs, a stream of one or a key was wanted",
    ),
    "an unknown method": (
        lambda net: br.to_nnx(net).decode(X),
        AttributeError,
        "the exported Net has no method 'decode'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(net, case):
    run, error, message = CASES[case]
    with pytest.raises(error) as caught:
        run(net)
    assert str(caught.value) == message


def test_a_draw_without_rngs_says_what_to_type(net):
    with pytest.raises(MissingRngError, match=r"^block draws from the stream 'dropout'") as caught:
        br.to_nnx(net)(X, train=True)
    assert "rngs=nnx.Rngs(" in str(caught.value)
