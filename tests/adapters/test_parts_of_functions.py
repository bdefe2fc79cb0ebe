"""A model of each library as a part of a parametrized function: alone, in a class, from the inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from tests.adapters.subjects import SUBJECTS, initialised, subject_of

KEY = jax.random.key(5)


class Field(br.Module):
    net: br.Module

    def __call__(self, x):
        return self.net(x).sum()


def equal(one, other):
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(params=SUBJECTS)
def subject(request):
    return subject_of(request.param)


@jax.jit
def trained(module, x, key):
    def loss(module):
        return module.apply(x, rng=key, mode="train")

    (value, after), grads = br.value_and_grad(loss, has_aux=True)(module)
    return value, after, grads


def test_it_is_the_part_that_a_field_of_a_class_is(subject):
    net = initialised(subject.library)
    function = br.parametrized(lambda x: net(x).sum())
    function = function.init(KEY, subject.inputs)
    assert list(function.parts) == ["net"]
    ours = trained(function, subject.inputs, KEY)
    theirs = trained(Field(net), subject.inputs, KEY)
    equal(ours, theirs)
    assert any(jax.tree.leaves(jax.tree.map(jnp.any, ours[2])))


def test_what_is_lazy_is_made_as_in_a_class(subject):
    net = subject.build()
    function = br.parametrized(lambda x: net(x).sum())
    made = jax.jit(function.init)(KEY, subject.inputs)
    equal(made, jax.jit(Field(net).init)(KEY, subject.inputs))


def test_it_is_called_in_cached_functions_with_the_arrays_of_the_call(subject):
    net = initialised(subject.library)
    cached = jax.jit(lambda x: net(x).sum())
    function = br.parametrized(lambda x: cached(x)).init(KEY, subject.inputs)
    for scale in (1.0, 0.5):
        params = jax.tree.map(lambda array, scale=scale: scale * array, net.parameters())
        expected, slopes = br.value_and_grad(lambda net: net(subject.inputs).sum())(net.update(params))
        scaled = function.update(
            jax.tree.map(lambda array, scale=scale: scale * array, function.parameters())
        )
        value, grads = br.value_and_grad(lambda module: module(subject.inputs))(scaled)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_it_stands_in_a_chain_and_is_transplanted(subject):
    net = subject.build()
    chain = br.Sequential(net, jnp.sum)
    function = br.parametrized(lambda x: 2 * net(x).sum())
    source = jax.jit(chain.init)(KEY, subject.inputs)
    moved = br.transplant({chain: source}, function, subject.inputs)
    equal(moved, source)
    np.testing.assert_allclose(moved(subject.inputs), 2 * source(subject.inputs), rtol=1e-6)
