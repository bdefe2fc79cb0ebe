"""bridge.regularized and bridge.l2: penalties on the parameters of any part of a tree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import FieldError, PathError

KEY = jax.random.key(3)
constant = jax.nn.initializers.constant


class Sum(br.Module):
    a: br.Parameter = br.ParamInit((), constant(1.0))
    b: br.Parameter = br.ParamInit((), constant(2.0))

    def __call__(self):
        return self.a + self.b


class Dense(br.Module):
    kernel: br.Parameter = br.ParamInit((1, 1), constant(1.0))
    bias: br.Parameter = br.ParamInit((1,), constant(1.0))

    def __call__(self, x):
        return x @ self.kernel + self.bias


class Network(br.Module):
    first: br.Module
    second: br.Module

    def __call__(self, x):
        return jnp.sum(self.second(jax.nn.relu(self.first(x))))


class Both(br.Module):
    first: br.Module
    second: br.Module

    def __call__(self):
        return self.first() + self.second()


def half_square(array):
    return 0.5 * jnp.sum(array**2)


def test_the_closed_forms_of_jaxnet():
    assert float(br.regularized(Sum(), lambda x: x * x).init(KEY)()) == 8
    assert float(br.regularized(Sum(), br.l2(2)).init(KEY)()) == 8
    network = Network(Dense(bias=jnp.zeros(1)), Dense(bias=jnp.zeros(1))).init(KEY)
    assert float(br.regularized(network, br.l2(2))(jnp.ones(1))) == 1 + 2
    assert float(br.regularized(Network(Dense(), Dense()).init(KEY), br.l2(2))(jnp.ones(1))) == 3 + 4
    network = Network(Dense(), Dense()).init(KEY)
    assert float(br.regularized(network, br.l2(2), "*.kernel")(jnp.ones(1))) == 3 + 2


def test_penalties_of_several_parts_add_up_and_their_gradients_too():
    one = br.regularized(Sum(), br.l2(2))
    whole = br.regularized(Both(one, Sum()), br.l2(10), "second.b").init(KEY)
    assert float(whole()) == (3 + 5) + 3 + 20
    grads = whole.grad().module
    assert [float(g) for g in jax.tree.leaves(grads)] == [1 + 2, 1 + 4, 1, 1 + 20]


def test_where_takes_paths_globs_and_functions():
    module = Sum().init(KEY)
    assert float(br.regularized(module, half_square, "b")()) == 3 + 2
    assert float(br.regularized(module, half_square, ["a", "b"])()) == 3 + 2.5
    assert float(br.regularized(module, half_square, lambda e: e.path == ("a",))()) == 3.5


def test_what_is_frozen_has_no_penalty_from_when_it_is_frozen(refuses):
    module = br.regularized(Sum(), half_square).init(KEY)
    assert float(module.freeze("module.b")()) == 3 + 0.5
    assert float(module.freeze()()) == 3
    with refuses(PathError, "'b' selects no trained parameter; there are 'a'"):
        br.regularized(Sum().init(KEY).freeze("b"), half_square, "b")


def test_what_is_shared_or_tied_counts_once_and_equal_arrays_count_twice():
    one = Sum().init(KEY)
    assert float(br.regularized(Both(one, one), half_square)()) == 6 + 2.5
    two = Both(Sum().init(KEY), Sum().init(KEY))
    assert float(br.regularized(two, half_square)()) == 6 + 5
    tied = br.regularized(br.tie(two, "second.b", "first.b"), half_square)
    assert float(tied()) == 6 + 3
    outside = br.tie(
        Both(Sum().init(KEY), br.regularized(one, half_square)), "second.module.b", "first.b"
    )
    assert float(outside()) == 6 + 2.5
    array = jnp.array(2.0)
    assert float(br.regularized(Sum(array, array), half_square)()) == 4 + 4


def test_a_part_that_is_shared_with_the_outside_has_its_penalty():
    one = Sum().init(KEY)
    assert float(Both(one, br.regularized(one, half_square))()) == 6 + 2.5


def test_what_is_stored_has_the_penalty_inside_and_what_is_seen_outside():
    number = br.reparametrized(Sum(), lambda array: 10 * array, "b").init(KEY)
    assert float(br.regularized(number, half_square)()) == 21 + 2.5
    inner = br.regularized(Sum(), half_square)
    seen = br.reparametrized(inner, lambda array: 10 * array, "module.b").init(KEY)
    assert float(seen()) == 21 + 0.5 + 200


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f])
def test_it_runs_under_jit_scan_and_grad(wrap):
    module = br.regularized(Sum(), br.l2(2)).init(KEY)

    def loss(module):
        return br.scan(lambda c, _: (c + module(), None), 0.0, None, length=3)[0]

    value, grads = wrap(br.value_and_grad(loss))(module)
    assert float(value) == 24
    assert float(grads.module.b) == 3 * (1 + 4)


def test_equal_penalties_compile_once():
    compilations = 0

    @jax.jit
    def run(module):
        nonlocal compilations
        compilations += 1
        return module()

    for _ in range(2):
        run(br.regularized(Sum(), br.l2(0.5)).init(KEY))
    assert compilations == 1
    assert str(br.regularized(Sum(), br.l2(0.5))) == (
        "Regularized uninit (\n  l2(0.5)\n  (module): Sum uninit ()\n)"
    )


def test_lazy_models_are_penalised_after_init():
    class Lazy(br.Module):
        weight: br.Parameter = br.LAZY

        def __call__(self, x):
            if self.initialising:
                self.fill(weight=jnp.ones_like(x))
            return jnp.sum(x * self.weight)

    module = br.regularized(Lazy(), br.l2(2)).init(KEY, jnp.ones(3))
    assert float(module(jnp.ones(3))) == 3 + 3


def test_an_output_or_a_penalty_that_is_no_number_says_what_to_type(refuses):
    with refuses(
        FieldError,
        "the root module adds penalties to one number, and its Dense returned an array float32[1]."
        " Give bridge.regularized a module that returns the loss: one that holds the model, or a"
        " function of its output after it",
    ):
        br.regularized(Dense().init(KEY), br.l2(2))(jnp.ones(1))
    with refuses(
        FieldError,
        "second adds penalties to one number, and its Function returned a tuple. Give"
        " bridge.regularized a module that returns the loss: one that holds the model, or a function"
        " of its output after it",
    ):
        Both(Sum(), br.regularized(lambda: (1, 2), br.l2(2))).init(KEY)()
    with refuses(
        FieldError,
        "module.first.kernel: its penalty is an array float32[1, 1], and one number was wanted; sum it:"
        " lambda array: jnp.sum(...)",
    ):
        br.regularized(Network(Dense(), Dense()).init(KEY), lambda x: x * x)(jnp.ones(1))
    with refuses(
        FieldError,
        "regularized takes a function of an array that gives one number, such as bridge.l2(1e-4); it"
        " was given 0.1",
    ):
        br.regularized(Sum(), 0.1)


def test_numbers_of_wrapped_functions_are_numbers():
    np.testing.assert_array_equal(br.regularized(lambda: 3, br.l2(2))(), 3)
