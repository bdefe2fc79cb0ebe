"""bridge.batched: a module of one example as one of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import bridge as br
from bridge.core.errors import FieldError, StructureError

KEY = jax.random.key(3)
XS = jax.random.normal(jax.random.key(5), (7, 3))


class Dense(br.Module):
    weight: br.Parameter
    bias: br.Parameter

    def __init__(self, inputs, outputs):
        self.weight = br.ParamInit((outputs, inputs), jax.nn.initializers.normal())
        self.bias = br.ParamInit((outputs,), jax.nn.initializers.ones)

    def __call__(self, x):
        assert x.ndim == 1
        return self.weight @ x + self.bias


class Noise(br.Module):
    def __call__(self, x):
        return x + jax.random.normal(self.rng, x.shape)


class Mean(br.Module):
    """Keeps the mean of what it has seen: over the batch where it has the name of an axis."""

    mean: br.State
    axis: str | None = None

    def __call__(self, x):
        self.mean = x.mean() if self.axis is None else jax.lax.pmean(x.mean(), self.axis)
        return x - self.mean


class Distance(br.Module):
    scale: br.Parameter = br.ParamInit((), jax.nn.initializers.ones)

    def __call__(self, x, y):
        return self.scale * jnp.sum((x["at"] - y) ** 2)


class Lazy(br.Module):
    first: br.Parameter = br.LAZY

    def __call__(self, x):
        if self.initialising:
            self.fill(first=x)
        return x - self.first


class Chain(br.Module):
    parts: list[br.Module]

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_parameters_are_shared_and_keep_their_names():
    module = br.batched(Dense(3, 5)).init(KEY, XS)
    assert module.module.weight.shape == (5, 3)
    np.testing.assert_allclose(module(XS), XS @ module.module.weight.T + 1, rtol=1e-5)
    grads = jax.jit(br.grad(lambda m: jnp.sum(m(XS))))(module)
    np.testing.assert_array_equal(grads.module.bias, jnp.full(5, 7.0))


def test_each_example_draws_other_keys():
    out, _ = br.batched(Noise()).apply(jnp.zeros((7, 2)), rng=KEY)
    assert len(set(np.asarray(out).ravel().tolist())) == 14


def test_axes_are_given_for_each_argument_and_for_the_output():
    module = br.batched(Distance(), axis=(0, None)).init(KEY)
    y = jnp.ones(3)
    np.testing.assert_allclose(module({"at": XS}, y), ((XS - 1) ** 2).sum(1), rtol=1e-5)
    columns = br.batched(Dense(3, 5).init(KEY), axis=1, out_axis=1)
    np.testing.assert_allclose(columns(XS.T), br.batched(columns.module)(XS).T, rtol=1e-6)


def test_a_state_comes_out_the_same_for_all_or_is_refused(refuses):
    module = br.batched(Mean(0.0, "batch"), axis_name="batch")
    out, after = module.apply(XS)
    np.testing.assert_allclose(after.module.mean, XS.mean(), rtol=1e-5)
    np.testing.assert_allclose(out, XS - XS.mean(), rtol=1e-5)
    text = (
        "module.mean came out of bridge.vmap with another value for each example; reduce it there:"
        " jax.lax.pmean(value, 'axis_name')"
    )
    with refuses(StructureError, text):
        br.batched(Mean(0.0)).apply(XS)


def test_what_is_lazy_is_made_from_the_first_example_and_what_follows_from_the_batch():
    chain = Chain([br.batched(Lazy()), Lazy()])
    for init in (lambda x: chain.init(KEY, x), jax.jit(lambda x: chain.init(KEY, x))):
        module = init(XS)
        np.testing.assert_array_equal(module.parts[0].module.first, XS[0])
        np.testing.assert_allclose(module.parts[1].first, XS - XS[0])


def test_axes_that_do_not_fit_the_arguments_say_what_to_type(refuses):
    text = (
        "the root module was made with axis=(0, None) and called with 1 arguments; type"
        " bridge.batched(module, axis=(0, None, ...)), an axis for each argument and None for what all"
        " examples share"
    )
    with refuses(FieldError, text):
        br.batched(Dense(3, 5).init(KEY), axis=(0, None))(XS)
