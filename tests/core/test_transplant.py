"""Trained parts taken over: `init(reuse=)` and `transplant`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

KEY, OTHER = jax.random.key(0), jax.random.key(1)
X, Y = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), jnp.ones((2, 5))
normal = jax.nn.initializers.normal(1.0)


class Dense(br.Module):
    kernel: br.Parameter

    def __init__(self, inputs, size):
        self.kernel = br.ParamInit((inputs, size), normal)

    def __call__(self, x):
        return x @ self.kernel


LAYER, HEAD = Dense(3, 3), Dense(3, 5)


@br.parametrized
def encode(x):
    return jnp.tanh(LAYER(x))


@br.parametrized
def predict(x):
    return HEAD(encode(x))


@br.parametrized
def loss(x, y):
    return jnp.mean((predict(x) - y) ** 2)


@br.parametrized
def error(x, y):
    return jnp.max(jnp.abs(predict(x) - y))


def sentence(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


TRAINED = loss.init(KEY, X, Y)


def test_a_part_is_reused_as_it_was_trained():
    net = br.parametrized(lambda x: HEAD(LAYER(x)))
    trained = LAYER.init(OTHER)
    made = net.init(KEY, X, reuse={LAYER: trained})
    assert made.LAYER.kernel is trained.kernel
    plain = net.init(KEY, X)
    np.testing.assert_array_equal(made.HEAD.kernel, plain.HEAD.kernel)


def test_parts_of_what_was_trained_are_reused_alone_and_together():
    alone = br.parametrized(lambda x: HEAD(LAYER(x))).init(OTHER, X, reuse={loss: TRAINED})
    assert alone.LAYER.kernel is TRAINED.predict.encode.LAYER.kernel
    assert alone.HEAD.kernel is TRAINED.predict.HEAD.kernel
    whole = br.parametrized(lambda x: predict(x)).init(OTHER, X, reuse={loss: TRAINED})
    assert whole.predict.encode.LAYER.kernel is TRAINED.predict.encode.LAYER.kernel


def test_the_nearer_key_is_right():
    newer = LAYER.init(jax.random.key(2))
    net = br.parametrized(lambda x: predict(x))
    made = net.init(OTHER, X, reuse={loss: TRAINED, LAYER: newer})
    assert made.predict.encode.LAYER.kernel is newer.kernel
    assert made.predict.HEAD.kernel is TRAINED.predict.HEAD.kernel


def test_reuse_in_a_class_and_in_a_chain():
    trained = LAYER.init(OTHER)
    chain = br.Sequential(br.Sequential(LAYER, jnp.tanh), HEAD).init(KEY, reuse={LAYER: trained})
    assert chain[0][0].kernel is trained.kernel
    inner = br.Sequential(LAYER, jnp.tanh)
    from_chain = br.Sequential(inner, HEAD).init(KEY)
    made = br.parametrized(lambda x: LAYER(x)).init(OTHER, X, reuse={inner: from_chain[0]})
    assert made.LAYER.kernel is from_chain[0][0].kernel


def test_a_part_first_called_inside_a_scan_is_reused():
    net = br.parametrized(lambda x: jax.lax.scan(lambda h, _: (encode(h), None), x, None, length=2)[0])
    trained = encode.init(OTHER, X)
    made = net.init(KEY, X, reuse={encode: trained})
    assert made.encode.LAYER.kernel is trained.LAYER.kernel
    np.testing.assert_allclose(made(X), trained(trained(X)), rtol=1e-6)


def test_transplant_between_models_that_share_parts():
    measure = br.transplant({loss: TRAINED}, error, X, Y)
    np.testing.assert_allclose(measure(X, Y), jnp.abs(TRAINED.predict(X) - Y).max(), rtol=1e-6)
    assert jax.tree.leaves(measure)[0] is jax.tree.leaves(TRAINED)[0]
    again = br.transplant({loss: TRAINED}, encode, X)
    assert again.LAYER.kernel is TRAINED.predict.encode.LAYER.kernel
    compiled = jax.jit(lambda trained: br.transplant({loss: trained}, error, X, Y)(X, Y))
    np.testing.assert_allclose(compiled(TRAINED), measure(X, Y), rtol=1e-6)


def test_transplant_takes_states_and_frozen_marks():
    trained = TRAINED.freeze("predict.HEAD")
    measure = br.transplant({loss: trained}, error, X, Y)
    assert measure.parameters().predict.HEAD.kernel is None
    assert measure.parameters().predict.encode.LAYER.kernel is not None


def test_transplant_of_wrapped_modules():
    linen = pytest.importorskip("flax.linen")
    dense = br.from_linen(linen.Dense(5))
    fit = br.parametrized(lambda x, y: jnp.mean((dense(x) - y) ** 2))
    trained = fit.init(KEY, X, Y)
    twice = br.Sequential(dense, jnp.square)
    made = br.transplant({fit: trained}, twice, X)
    np.testing.assert_allclose(made(X), trained.dense(X) ** 2, rtol=1e-6)


def test_what_nothing_covers_is_listed():
    more = br.parametrized(lambda x: Dense(5, 2)(predict(x)) * br.parameter((), normal, "gain"))
    assert sentence(br.BridgeError, br.transplant, {loss: TRAINED}, more, X) == (
        "what was trained does not cover\n"
        "  gain: parameter float32[]\n"
        "  dense.kernel: parameter float32[5, 2]\n"
        "Give a trained module that has it, or make it: into.init(key, *sample, reuse=...)"
    )


REFUSED = {
    "used nowhere": (
        {HEAD: HEAD.init(KEY)},
        "reuse gives a trained Dense, and Parametrized uses neither that module nor a part of it; the"
        " key is the very object that the model is made of",
    ),
    "another class": (
        {LAYER: TRAINED},
        "what was given as the trained Dense is not that one:\n  it is a Parametrized",
    ),
    "another shape": (
        {LAYER: Dense(3, 2).init(KEY)},
        "what was given as the trained Dense is not that one:\n  kernel: is (3, 2), wanted (3, 3)",
    ),
    "no modules": (
        {LAYER: {"kernel": X}},
        "what is reused is a dict of modules and their trained forms; it has Dense: dict",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_reused_is_a_sentence(case):
    reuse, text = REFUSED[case]
    net = br.parametrized(lambda x: LAYER(x))
    assert sentence(br.BridgeError, net.init, KEY, X, reuse=reuse) == text


def test_a_sequential_takes_layers_one_by_one():
    net = br.Sequential(Dense(3, 5), jnp.tanh, Dense(5, 2)).init(KEY)
    np.testing.assert_allclose(net(X), jnp.tanh(X @ net[0].kernel) @ net[2].kernel, rtol=1e-6)
    assert [type(layer).__name__ for layer in net] == ["Dense", "Function", "Dense"]
    assert len(net) == 3
    assert net.at["2.kernel"].get() is net[2].kernel
    assert br.Sequential()(3) == 3
    text = "Sequential takes its layers one by one; it was given a {}. Type Sequential(*layers)"
    for given in ([jnp.tanh], (layer for layer in [jnp.tanh])):
        assert sentence(br.BridgeError, br.Sequential, given) == text.format(type(given).__name__)
    assert sentence(br.BridgeError, br.Sequential(), 1, 2) == (
        "a Sequential without layers returns its only argument; it was given others"
    )
