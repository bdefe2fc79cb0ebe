"""bridge.LAZY and Module.fill: parameters whose first values come from activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import FieldError, ImmutableError, TraceError, UninitialisedError

KEY = jax.random.key(3)
X = 5 + 3 * jax.random.normal(jax.random.key(5), (11, 3))


class WeightNorm(br.Module):
    """A dense layer whose outputs on the first batch have mean 0 and variance 1."""

    direction: br.Parameter
    gain: br.Parameter
    bias: br.Parameter

    def __init__(self, inputs, outputs):
        self.direction = br.ParamInit((inputs, outputs), jax.nn.initializers.normal())
        self.gain = self.bias = br.LAZY

    def __call__(self, x):
        x = x @ (self.direction / jnp.linalg.norm(self.direction, axis=0))
        if self.initialising:
            self.fill(gain=1 / x.std(0), bias=-x.mean(0) / x.std(0))
        return x * self.gain + self.bias


class Chain(br.Module):
    parts: list[br.Module]

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


def standard(x):
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-4)


@pytest.mark.parametrize("jit", [False, True])
def test_after_init_the_outputs_have_mean_0_and_variance_1_in_every_layer(jit):
    chain = Chain([WeightNorm(3, 5), jnp.tanh, Chain([WeightNorm(5, 2)])])
    assert "uninit" in str(chain)
    init = jax.jit(chain.init) if jit else chain.init
    chain = init(KEY, X)
    assert "uninit" not in str(chain)
    standard(chain.parts[0](X))
    standard(chain(X))
    assert len(jax.tree.leaves(chain.parameters())) == 6
    assert chain.init(KEY, X + 1) is chain


def test_a_layer_called_twice_keeps_what_reached_it_first():
    class Twice(br.Module):
        layer: br.Module

        def __call__(self, x):
            return self.layer(x), self.layer(2 * x)

    standard(Twice(WeightNorm(3, 5)).init(KEY, X)(X)[0])


def test_what_is_there_is_never_touched():
    trained = WeightNorm(3, 5).init(KEY, X).at["gain"].set(jnp.full(5, 7.0))
    chain = Chain([trained, WeightNorm(5, 2)]).init(KEY, 2 * X)
    np.testing.assert_array_equal(chain.parts[0].gain, 7)
    assert chain.parts[0].bias is trained.bias
    standard(chain(2 * X))


def test_keys_and_states_are_made_as_well():
    class Centre(br.Module):
        mean: br.State = br.LAZY

        def __call__(self, x):
            if self.initialising:
                self.fill(mean=x.mean(0))
            return x - self.mean

    centre = Centre().init(KEY, X)
    assert centre.parameters().mean is None
    np.testing.assert_allclose(centre(X).mean(0), 0, atol=1e-5)


def test_a_sample_without_values_is_refused_where_values_are_needed(refuses):
    abstract = jax.ShapeDtypeStruct(X.shape, X.dtype)
    text = (
        "parts.0 makes gain, bias of the values that reach it, and init was given a"
        " jax.ShapeDtypeStruct, which has none; give it an array: module.init(key, x), or for the"
        " shapes alone jax.eval_shape(module.init, key, x)"
    )
    with refuses(UninitialisedError, text):
        Chain([WeightNorm(3, 5)]).init(KEY, abstract)
    shapes = jax.eval_shape(Chain([WeightNorm(3, 5)]).init, KEY, abstract)
    assert shapes.parts[0].gain.shape == (5,)
    trained = WeightNorm(3, 5).init(KEY, X)
    assert trained.init(KEY, abstract) is trained


def test_calls_and_inits_that_cannot_be_say_what_to_type(refuses):
    with refuses(
        UninitialisedError,
        "parts.0.direction of WeightNorm is not initialised; type module = module.init(key, *sample)"
        " first",
    ):
        Chain([WeightNorm(3, 5)])(X)
    with refuses(
        UninitialisedError,
        "gain of WeightNorm is not initialised; type module = module.init(key, *sample) first",
    ):
        WeightNorm(3, 5).at["direction"].set(jnp.ones((3, 5)))(X)
    with refuses(
        UninitialisedError,
        "parts.0: shapes come from the input; give one: module.init(key, *sample), where a sample is an"
        " array or a jax.ShapeDtypeStruct",
    ):
        Chain([WeightNorm(3, 5)]).init(KEY)


class Filling(br.Module):
    scale: br.Parameter
    what: object

    def __call__(self, x):
        self.fill(**{self.what: x})
        return x


def test_fill_works_in_init_alone_and_for_fields_alone(refuses):
    with refuses(
        FieldError,
        "the root module: fill gives first values while init runs; type `if self.initialising:"
        " self.fill(...)`",
    ):
        Filling(jnp.ones(3), "scale")(X)
    with refuses(
        FieldError,
        "the root module: fill was given 'what', which is no parameter, state or key of Filling",
    ):
        Filling(br.LAZY, "what").init(KEY, X)
    with pytest.raises(ImmutableError):
        Filling(jnp.ones(3), "scale").fill(scale=X)


def test_a_layer_inside_a_transform_says_where_to_call_it_first(refuses):
    class Scanned(br.Module):
        layer: br.Module

        def __call__(self, xs):
            return br.scan(lambda carry, x: (carry, self.layer(x)), 0, xs)[1]

    text = (
        "layer makes scale inside a JAX transform that was started during the call, where values"
        " cannot be kept; call it outside of that once while self.initialising, with what reaches it"
        " first"
    )
    with refuses(TraceError, text):
        Scanned(Filling(br.LAZY, "scale")).init(KEY, X)
