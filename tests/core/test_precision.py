"""with_policy: computing in half precision, keeping in full."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import FieldError, UninitialisedError


@dataclasses.dataclass(frozen=True)
class Policy:
    """What jmp.Policy is."""

    param: Any = jnp.float32
    compute: Any = jnp.bfloat16
    output: Any = jnp.float32

    def _cast(self, tree, dtype):
        def cast(leaf):
            floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(dtype) if floating else leaf

        return jax.tree.map(cast, tree)

    def cast_to_param(self, tree):
        return self._cast(tree, self.param)

    def cast_to_compute(self, tree):
        return self._cast(tree, self.compute)

    def cast_to_output(self, tree):
        return self._cast(tree, self.output)


class Dense(br.Module):
    w: br.Parameter
    seen: br.State = 0.0
    calls: br.State = 0

    def __call__(self, x, ids=None):
        self.calls = self.calls + 1
        if self.training:
            self.seen = 0.75 * self.seen + 0.25 * x.astype(jnp.float32).mean()
        return x @ self.w

    def shifted(self, x):
        return x + self.seen

    def dtypes(self, x, ids):
        return x.dtype.name, ids.dtype.name, self.w.dtype.name, self.seen.dtype.name


ODD = 1.0009765625  # a bfloat16 has no such number: it is 1


def dense():
    return Dense(jnp.full((3, 5), ODD), ODD)


def message(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(("mode", "seen"), [("train", "float32"), ("eval", "bfloat16")])
def test_a_call_sees_what_the_policy_casts(mode, seen):
    module = br.with_policy(dense(), Policy())
    x, ids = jnp.ones((2, 3)), jnp.arange(2)
    dtypes, _ = module.apply(x, ids, mode=mode, method="dtypes")
    assert dtypes == ("bfloat16", "int32", "bfloat16", seen)
    out, _ = module.apply(x, ids=ids, mode=mode)
    np.testing.assert_array_equal(out, np.full((2, 5), 3.0, np.float32))
    assert out.dtype == jnp.float32
    assert br.with_policy(dense(), Policy(output=jnp.float16)).apply(x)[0].dtype == jnp.float16


def test_what_is_kept_is_in_full_precision():
    module = br.with_policy(dense(), Policy())
    _, after = module.apply(jnp.ones((2, 3)), mode="train")
    assert float(after.module.seen) == 0.75 * ODD + 0.25
    assert int(after.module.calls) == 1
    _, after = module.apply(jnp.ones((2, 3)), mode="eval")
    assert float(after.module.seen) == ODD
    assert after.module.w is module.module.w
    grads = br.grad(lambda m: m.apply(jnp.ones((2, 3)))[0].sum())(module)
    assert grads.module.w.dtype == jnp.float32
    np.testing.assert_array_equal(grads.module.w, np.full((3, 5), 2.0))
    optimizer = br.Optimizer(optax.sgd(2**-12)).init(module)
    module, _ = optimizer.step(grads, module)
    assert float(module.module.w[0, 0]) == ODD - 2**-11  # bfloat16 weights would not move


def test_a_method_a_frozen_a_shared_and_a_tied_parameter_are_cast_as_well():
    class Net(br.Module):
        half: br.Module
        outside: br.Module

        def __call__(self, x):
            return self.half.dtypes(x, jnp.arange(2)), self.outside.dtypes(x, jnp.arange(2))

    half = ("bfloat16", "int32", "bfloat16", "bfloat16")
    full = ("float32", "int32", "float32", "float32")
    frozen = br.with_policy(dense().freeze(), Policy())
    assert not jax.tree.leaves(frozen.parameters())
    assert frozen.dtypes(jnp.ones((2, 3)), jnp.arange(2)) == half
    tied = Net(br.with_policy(dense(), Policy()), dense())
    tied = br.tie(tied, "half.module.w", "outside.w")
    assert tied(jnp.ones((2, 3))) == (half, full)
    shared = dense()
    owner = Net(br.with_policy(shared, Policy()), shared)
    assert owner(jnp.ones((2, 3))) == (half, full)
    assert float(owner.half.shifted(jnp.ones(2))[0]) == 2


def test_what_a_call_in_eval_mode_does_not_write_keeps_every_bit():
    class Tally(br.Module):
        tally: br.State

        def __call__(self, x):
            self.tally = {**self.tally, "calls": self.tally["calls"] + 1}
            return x

    class Twice(br.Module):
        first: br.Module
        second: br.Module

        def __call__(self, x):
            return self.second(self.first(x))

    shared = Tally({"mean": ODD, "calls": 0.0})
    _, after = br.with_policy(Twice(shared, shared), Policy()).apply(jnp.ones((2, 3)))
    tally = after.module.first.tally
    assert (float(tally["mean"]), float(tally["calls"])) == (ODD, 2)
    assert tally["calls"].dtype == jnp.float32


def test_parameters_are_kept_as_the_policy_says_and_materialized_as_they_are_seen():
    module = br.with_policy(dense(), Policy(param=jnp.float16))
    assert module.module.w.dtype == jnp.float16
    assert module.module.seen.dtype == jnp.float32
    assert br.materialized(br.with_policy(dense(), Policy())).w.dtype == jnp.bfloat16
    text = repr(br.with_policy(dense(), Policy()))
    assert text.startswith("WithPolicy(\n  Policy(param=")
    assert text.endswith("  (module): Dense()\n)")


def test_it_works_under_jit_grad_and_scan_with_one_compilation():
    traces = 0

    def step(module, x):
        nonlocal traces
        traces += 1

        def loss(module):
            out, module = module.apply(x, mode="train")
            return (out**2).mean(), module

        (_, after), grads = br.value_and_grad(loss, has_aux=True)(module)
        return after.update(jax.tree.map(lambda w, g: w - g, after.parameters(), grads)), grads

    module = br.with_policy(dense(), Policy())
    after, grads = jax.jit(lambda m, xs: jax.lax.scan(step, m, xs))(module, jnp.ones((7, 2, 3)))
    assert traces == 1
    assert int(after.module.calls) == 7
    assert grads.module.w.shape == (7, 3, 5)
    assert float(abs(grads.module.w).min()) > 0


def test_what_cannot_be_given_a_policy_is_refused():
    assert message(FieldError, br.with_policy, dense(), "half") == (
        "with_policy takes a policy, such as jmp.get_policy('params=float32,compute=bfloat16,"
        "output=float32'), and this str has no cast_to_compute, cast_to_param, cast_to_output"
    )
    late = Dense(br.ParamInit((3, 5), jax.nn.initializers.ones))
    assert message(UninitialisedError, br.with_policy, late, Policy()) == (
        "w is not initialised, and a policy casts what is there; type module = module.init(key,"
        " *sample) first"
    )
