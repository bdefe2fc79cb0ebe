"""grad and value_and_grad with respect to what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import DroppedStateError, FieldError


class Line(br.Module):
    slope: br.Parameter
    shift: br.Parameter
    calls: br.State

    def __call__(self, x):
        self.calls = self.calls + 1
        return self.value(x)

    def value(self, x):
        return self.slope * x + self.shift


class Two(br.Module):
    first: br.Module
    second: br.Module

    def __call__(self, x):
        return self.second.value(self.first.value(x))


def two():
    return Two(Line(2.0, 3.0, 0), Line(5.0, 7.0, 0))


@pytest.mark.parametrize("call", [lambda f: f, jax.jit])
def test_gradients_by_field(call):
    grads = call(br.grad(lambda m, x, scale=1: scale * m(x)))(two(), 11.0, scale=2)
    assert [float(leaf) for leaf in jax.tree.leaves(grads)] == [110, 10, 50, 2]
    assert float(grads.first.slope) == 110
    assert grads.first.calls is None
    assert jax.tree.structure(grads) == jax.tree.structure(two().parameters())


def test_the_gradient_of_the_output():
    assert float(two().grad(11.0).second.slope) == 25


@pytest.mark.parametrize("frozen", ["first", "*.shift"])
def test_frozen_parameters_have_no_gradient(frozen):
    grads = two().freeze(frozen).grad(11.0)
    assert len(jax.tree.leaves(grads)) == 2


def test_value_and_aux():
    def loss(module, x):
        out, module = module.apply(x)
        return out**2, module

    line = Line(2.0, 3.0, 0)
    (value, after), grads = br.value_and_grad(loss, has_aux=True)(line, 5.0)
    assert (float(value), int(after.calls), float(grads.slope)) == (169, 1, 130)
    only, after = br.grad(loss, has_aux=True)(line, 5.0)
    assert (float(only.slope), int(after.calls)) == (130, 1)
    assert jax.tree.structure(after) == jax.tree.structure(line)
    value, grads = br.value_and_grad(lambda m: m.value(5.0))(line)
    assert (float(value), float(grads.shift)) == (13, 1)


def test_gradients_under_vmap_and_of_gradients():
    xs = jnp.arange(1.0, 4.0)
    per_example = jax.vmap(br.grad(lambda m, x: m(x)), in_axes=(None, 0))(two(), xs)
    np.testing.assert_allclose(per_example.first.slope, 5 * xs)
    second = br.grad(lambda m: br.grad(lambda m: m(3.0) ** 2)(m).first.shift)(two())
    assert float(second.first.shift) == 2 * 5 * 5


def test_a_gradient_that_would_lose_state(refuses):
    with refuses(
        DroppedStateError,
        "this call updates calls, and calling the module gives only its output: the update would be"
        " lost. Type `out, module = module.apply(...)`",
    ):
        Line(2.0, 3.0, 0).grad(5.0)


@pytest.mark.parametrize("differentiate", [br.grad, br.value_and_grad])
@pytest.mark.parametrize(("first", "shown"), [({"w": 1.0}, "dict"), (2.0, "float")])
def test_the_first_argument_is_a_module(differentiate, first, shown, refuses):
    with refuses(
        FieldError,
        f"the first argument of a function under bridge.grad is the module; it was a {shown}",
    ):
        differentiate(lambda m: m)(first)
