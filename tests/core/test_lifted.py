"""bridge.scan, bridge.vmap and bridge.remat: state threaded, keys by step and by example."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br


class Noise(br.Module):
    """Adds noise and counts its calls."""

    scale: br.Parameter
    calls: br.State

    def __init__(self):
        self.scale, self.calls = jnp.ones(()), 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return x + self.scale * jax.random.normal(self.rng, jnp.shape(x))

    def step(self, carry, x):
        out = self(x)
        return carry + out, out


class Host(br.Module):
    """Runs its child through whatever a test asks for."""

    child: br.Module
    run: object

    def __call__(self, *args):
        return self.run(self.child, *args)


def host(run, child=None):
    return Host(Noise() if child is None else child, run)


KEY = jax.random.key(3)
XS = jnp.arange(5.0)

SCANS = {
    "a method": lambda child, xs: br.scan(child.step, 0.0, xs),
    "a closure": lambda child, xs: br.scan(lambda c, x: child.step(c, x), 0.0, xs),
    "a partial": lambda child, xs: br.scan(functools.partial(Noise.step, child), 0.0, xs),
    "a default argument": lambda child, xs: br.scan(lambda c, x, m=child: m.step(c, x), 0.0, xs),
    "named modules": lambda child, xs: br.scan(Indirect([child][0]).through, 0.0, xs, modules=[child]),
}


class Indirect:
    """Holds a module where nothing that bridge looks at leads to it."""

    def __init__(self, module):
        self.get = {"module": module}.__getitem__

    def through(self, carry, x):
        return self.get("module").step(carry, x)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("jit", [False, True])
def test_scan_threads_state_and_draws_another_key_at_each_step(name, jit):
    def run(module, xs):
        return module.apply(xs, rng=KEY)

    (total, ys), after = (jax.jit(run) if jit else run)(host(SCANS[name]), XS)
    noise = np.asarray(ys - XS)
    assert len(np.unique(noise)) == 5
    np.testing.assert_allclose(total, ys.sum(), rtol=1e-6)
    assert int(after.child.calls) == 5


def test_scan_takes_a_length_and_runs_in_reverse():
    class Count(br.Module):
        seen: br.State

        def __call__(self, carry, x):
            self.seen = self.seen + 1
            return carry + 1, self.seen

    run = host(lambda child: br.scan(child, 0, length=7, reverse=True), Count(0))
    (total, ys), after = run.apply()
    assert int(total) == int(after.child.seen) == 7
    np.testing.assert_array_equal(ys, np.arange(7, 0, -1))


def test_nested_scans_draw_a_key_for_each_pair_of_steps():
    def run(child, xs):
        return br.scan(lambda c, x: br.scan(lambda d, y: child.step(d, y), c, x), 0.0, xs)[1]

    grid = jnp.zeros((3, 5))
    ys, after = host(run).apply(grid, rng=KEY)
    assert len(np.unique(np.asarray(ys))) == 15
    assert int(after.child.calls) == 15


def test_the_gradient_flows_through_a_scan():
    module = host(SCANS["a closure"])
    grads = br.grad(lambda m: m.apply(XS, rng=KEY)[0][0])(module)
    noise = module.apply(XS, rng=KEY)[0][1] - XS
    np.testing.assert_allclose(grads.child.scale, noise.sum(), rtol=1e-5)


def test_a_state_that_changes_its_dtype_in_a_scan_is_named():
    class Bad(br.Module):
        calls: br.State

        def __call__(self, carry, x):
            self.calls = jnp.float32(1)
            return carry, x

    run = host(lambda child, xs: br.scan(child, 0.0, xs), Bad(0))
    with pytest.raises(br.BridgeError, match=r"child.calls: was int32\[\], was assigned float32\[\]"):
        run.apply(XS)


def test_outside_of_a_call_scan_is_that_of_jax():
    total, ys = br.scan(lambda c, x: (c + x, c), 0.0, XS)
    assert float(total) == 10.0
    np.testing.assert_array_equal(ys, [0, 0, 1, 3, 6])


def test_vmap_draws_another_key_for_each_example():
    class Mask(br.Module):
        def __call__(self, x):
            return jax.random.normal(self.rng, x.shape)

    run = host(lambda child, xs: br.vmap(child)(xs), Mask())
    out, _ = run.apply(jnp.zeros((7, 2)), rng=KEY)
    assert len(np.unique(np.asarray(out))) == 14


def test_vmap_keeps_a_state_that_was_reduced_over_its_axis():
    class Mean(br.Module):
        mean: br.State

        def __call__(self, x):
            self.mean = jax.lax.pmean(x, "batch")
            return x - self.mean

    run = host(lambda child, xs: br.vmap(child, axis_name="batch")(xs), Mean(0.0))
    out, after = run.apply(XS)
    np.testing.assert_allclose(out, XS - 2.0)
    assert float(after.child.mean) == 2.0


def test_vmap_names_a_state_that_differs_by_example():
    class Last(br.Module):
        last: br.State

        def __call__(self, x):
            self.last = x
            return x

    run = host(lambda child, xs: br.vmap(child, axis_name="batch")(xs), Last(0.0))
    with pytest.raises(br.BridgeError) as error:
        run.apply(XS)
    assert str(error.value) == (
        "child.last came out of bridge.vmap with another value for each example; reduce it there:"
        " jax.lax.pmean(value, 'batch')"
    )


def test_vmap_takes_axes():
    run = host(lambda child, a, b: br.vmap(lambda x, y: x * y, (0, None), 1)(a, b))
    out, _ = run.apply(jnp.ones((3, 2)), jnp.full((2,), 5.0))
    np.testing.assert_array_equal(out, np.full((2, 3), 5.0))


def test_another_value_error_under_vmap_is_left_alone():
    run = host(lambda child, xs: br.vmap(lambda x: x, axis_size=3)(xs))
    with pytest.raises(ValueError, match="axis"):
        run.apply(XS)


def test_remat_changes_no_number_and_keeps_state():
    plain = host(lambda child, x: child(x))
    lifted = host(lambda child, x: br.remat(child)(x))
    for run in (plain, lifted):
        run.apply(XS, rng=KEY)
    out, after = lifted.apply(XS, rng=KEY)
    np.testing.assert_array_equal(out, plain.apply(XS, rng=KEY)[0])
    assert int(after.child.calls) == 1


def test_remat_recomputes_in_the_backward_pass():
    lifted = host(lambda child, x: br.remat(child)(x))
    jaxpr = jax.make_jaxpr(br.grad(lambda m, x: m.apply(x, rng=KEY)[0].sum()))(lifted, XS)
    assert "prevent_cse=True" in str(jaxpr)


def test_remat_keeps_what_is_no_array_static():
    def run(child, x):
        return br.remat(lambda x, flag, name: x + 1 if flag and name == "a" else x)(x, True, "a")

    out, _ = host(run).apply(XS)
    np.testing.assert_array_equal(out, XS + 1)


@pytest.mark.parametrize(
    "raw",
    [
        lambda child, xs: jax.lax.scan(lambda c, x: child.step(c, x), 0.0, xs),
        lambda child, xs: jax.vmap(child)(xs),
        lambda child, xs: jax.checkpoint(child)(xs),
        lambda child, xs: jax.vmap(lambda x: br.scan(child.step, 0.0, x[None]))(xs),
    ],
)
def test_a_raw_transform_over_a_child_is_refused_with_the_lifted_form(raw):
    with pytest.raises(br.BridgeError, match=r"child (draws|writes).*Use bridge.scan, bridge.vmap"):
        host(raw).apply(XS, rng=KEY)


def test_a_failed_body_leaves_the_module_as_it_was():
    class Retry(br.Module):
        child: Noise

        def __call__(self, xs):
            try:
                br.scan(self.broken, 0.0, xs)
            except RuntimeError:
                return self.child(xs)

        def broken(self, carry, x):
            self.child(x)
            raise RuntimeError

    out, after = Retry(Noise()).apply(XS, rng=KEY)
    assert int(after.child.calls) == 1
    assert out.shape == (5,)


def test_capture_inside_a_scan_says_that_it_cannot():
    module = host(SCANS["a closure"])
    with pytest.raises(br.BridgeError, match="child runs inside a JAX transform"):
        module.capture(XS, paths=["child"], rng=KEY)
