"""Functions that JAX has traced before see the parameters of the call that runs, with gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bridge as br

KEY, X = jax.random.key(0), jnp.float32(2)


class Scale(br.Module):
    factor: br.Parameter

    def __init__(self):
        self.factor = br.ParamInit((), jax.nn.initializers.ones)

    def __call__(self, x):
        return self.factor * x


LAYER = Scale()


def step(carry, _):
    return LAYER(carry), None


def body(_, x):
    return LAYER(x)


def layer(x):
    return LAYER(x)


def same(x):
    return x


def below_nine(x):
    return LAYER(x) < 9


JITTED, CHECKPOINTED = jax.jit(layer), jax.checkpoint(layer)
NESTED = jax.jit(jax.checkpoint(lambda x: lax.cond(x > 0, JITTED, same, x)))

# Each with the power of the factor in its result: all of these functions outlive a call.
TRANSFORMS = {
    "jit": (lambda x: JITTED(x), 1),
    "jit, twice": (lambda x: JITTED(JITTED(x)), 2),
    "scan": (lambda x: lax.scan(step, x, None, length=3)[0], 3),
    "cond": (lambda x: lax.cond(x > 0, layer, same, x), 1),
    "switch": (lambda x: lax.switch(1, [same, layer], x), 1),
    "fori_loop": (lambda x: lax.fori_loop(0, 3, body, x), 3),
    "checkpoint": (lambda x: CHECKPOINTED(x), 1),
    "vmap": (lambda x: jax.vmap(layer)(x[None])[0], 1),
    "map": (lambda x: lax.map(layer, x[None])[0], 1),
    "jit of checkpoint of cond of jit": (lambda x: NESTED(x), 1),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("case", TRANSFORMS)
def test_the_second_call_has_the_second_parameters_and_gradients(case, compiled):
    function, power = TRANSFORMS[case]
    net = br.parametrized(function).init(KEY, X)
    assert len(jax.tree.leaves(net)) == 1
    run = jax.jit(lambda net, x: br.value_and_grad(lambda net: net(x))(net)) if compiled else None
    for factor in (1.0, 3.0, 5.0):
        net = net.update(jax.tree.map(lambda _, f=factor: jnp.float32(f), net.parameters()))
        value, grads = run(net, X) if run else br.value_and_grad(lambda net: net(X))(net)
        (slope,) = jax.tree.leaves(grads)
        np.testing.assert_allclose(value, 2 * factor**power, rtol=1e-6)
        np.testing.assert_allclose(slope, 2 * power * factor ** (power - 1), rtol=1e-6)


def test_a_while_loop_sees_them_in_its_condition_and_its_body():
    net = br.parametrized(lambda x: lax.while_loop(below_nine, layer, x)).init(KEY, 20.0)
    for factor, stops in ((2.0, 8.0), (3.0, 3.0)):
        net = net.at["layer" if "layer" in net.parts else "scale"].set(Scale().init(KEY))
        net = net.at["scale.factor"].set(factor)
        np.testing.assert_array_equal(net(1.0), stops)


def test_what_was_traced_outside_is_traced_anew_inside():
    trained = Scale().init(KEY).at["factor"].set(7.0)
    called = jax.jit(lambda x: trained(x))
    assert float(called(2.0)) == 14
    net = br.parametrized(lambda x: called(x)).init(KEY, X)
    (name,) = net.parts
    assert float(net.at[f"{name}.factor"].set(3.0)(2.0)) == 6
    assert float(called(2.0)) == 14


def test_two_functions_use_one_cached_function_each_with_its_own_parameters():
    one, other = (br.parametrized(lambda x: JITTED(x)).init(KEY, 2.0) for _ in range(2))
    one, other = one.at["scale.factor"].set(3.0), other.at["scale.factor"].set(5.0)
    for _ in range(2):
        assert (float(one(2.0)), float(other(2.0))) == (6, 10)


def test_layers_made_inside_a_cached_function_are_as_many_as_without_it():
    def block(x):
        return Scale()(x)

    jitted = jax.jit(block)
    plain, cached = (
        br.parametrized(functools.partial(lambda f, x: f(f(f(x))), f)).init(KEY, X)
        for f in (block, jitted)
    )
    assert list(plain.parts) == list(cached.parts) == ["scale", "scale_1", "scale_2"]
    for _ in range(2):
        cached = cached.at["scale_1.factor"].set(3.0)
        assert float(cached(2.0)) == 6


def test_what_is_first_called_inside_a_transform_is_made_as_outside():
    class Dense(br.Module):
        kernel: br.Parameter

        def __init__(self):
            self.kernel = br.ParamInit((3, 3), jax.nn.initializers.normal())

        def __call__(self, x):
            return x @ self.kernel

    @br.parametrized
    def inner(x):
        return Dense()(x) * br.parameter((3,), jax.nn.initializers.normal(), "gain")

    x = jnp.ones((2, 3))
    jitted = jax.jit(lambda x: inner(Dense()(x)))
    plain = br.parametrized(lambda x: inner(Dense()(x))).init(KEY, x)
    cached = br.parametrized(lambda x: jitted(x)).init(KEY, x)
    made = jax.jit(br.parametrized(lambda x: jitted(x)).init)(KEY, x)
    assert list(jax.tree.leaves(plain)) != []
    for other in (cached, made):
        assert str(jax.tree.structure(other.parameters())) != ""
        for path in ("dense.kernel", "inner.dense.kernel", "inner.gain"):
            np.testing.assert_allclose(other.at[path].get(), plain.at[path].get(), rtol=1e-6)
    np.testing.assert_allclose(cached(x), plain(x), rtol=1e-5)


def test_a_lazy_layer_of_a_library_is_made_from_inside_a_scan():
    linen = pytest.importorskip("flax.linen")
    cell = br.from_linen(linen.Dense(3))

    @br.parametrized
    def net(x):
        return lax.scan(lambda carry, _: (cell(carry), None), x, None, length=2)[0]

    x = jnp.ones((2, 3))
    net = net.init(KEY, x)
    kernel = net.at["cell.params.kernel"].get()
    np.testing.assert_allclose(net(x), x @ kernel @ kernel, rtol=1e-5)


class Noise(br.Module):
    calls: br.State

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return x + jax.random.normal(self.rng)


NOISE = Noise()


def test_draws_and_states_work_in_bridges_transforms_and_raise_in_raw_ones():
    @br.parametrized
    def lifted(x):
        return br.scan(lambda carry, _: (NOISE(carry), carry), x, None, length=5)

    net = lifted.init(KEY, 0.0)
    assert list(net.parts) == ["NOISE"]
    (_, states), after = net.apply(0.0, rng=KEY)
    assert int(after.NOISE.calls) == 5
    assert len(set(np.diff(states).tolist())) == 4
    raw = br.parametrized(lambda x: jax.jit(NOISE)(x))
    with pytest.raises(br.BridgeError) as caught:
        raw.init(KEY, 0.0).apply(0.0, rng=KEY)
    assert "inside a JAX transform that was started during the call" in str(caught.value)


def test_a_scan_that_jax_traces_twice_makes_its_layers_once():
    @br.parametrized
    def net(x):
        return br.scan(lambda carry, x: (Scale()(carry) + x, None), 0.0, x)[0]

    net = net.init(KEY, jnp.ones(3))
    assert list(net.parts) == ["scale"]
    assert float(net(jnp.ones(3))) == 3


def test_under_jit_a_step_compiles_once():
    net = br.parametrized(lambda x: lax.scan(step, x, None, length=3)[0]).init(KEY, X)
    traces = 0

    @jax.jit
    def train(net):
        nonlocal traces
        traces += 1
        grads = net.grad(2.0)
        return net.update(jax.tree.map(lambda p, g: p - 0.01 * g, net.parameters(), grads))

    factor = 1.0
    for _ in range(3):
        net = train(net)
        factor -= 0.01 * 6 * factor**2
    assert traces == 1
    np.testing.assert_allclose(jax.tree.leaves(net)[0], factor, rtol=1e-5)
