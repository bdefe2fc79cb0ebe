"""Data and tensor parallel training in each library: the numbers are those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bridge as br
import bridge.core.paths as paths
from bridge.core.tree import entries
from tests.adapters.subjects import PACKAGES

INPUTS, HIDDEN, OUTPUTS, BATCH, STEPS = 6, 8, 4, 12, 3
KEY = jax.random.key(0)
XS = 3 * jax.random.normal(jax.random.key(1), (STEPS, BATCH, INPUTS)) + 1
SGD = optax.sgd(0.1, momentum=0.9)


def linen():
    import flax.linen as nn

    return br.from_linen(
        nn.Sequential(
            [nn.Dense(HIDDEN), nn.BatchNorm(use_running_average=False), nn.relu, nn.Dense(OUTPUTS)]
        )
    )


def nnx():
    from flax import nnx as lib

    rngs = lib.Rngs(0)
    layers = lib.Linear(INPUTS, HIDDEN, rngs=rngs), lib.BatchNorm(HIDDEN, rngs=rngs)
    return br.from_nnx(lib.Sequential(*layers, lib.relu, lib.Linear(HIDDEN, OUTPUTS, rngs=rngs)))


def haiku():
    import haiku as hk

    def net(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(HIDDEN)(x), is_training=is_training)
        return hk.Linear(OUTPUTS)(jax.nn.relu(x))

    return br.from_haiku(net)


def equinox():
    import equinox as eqx

    class Net(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        last: eqx.nn.Linear

        def __init__(self, key):
            self.first = eqx.nn.Linear(INPUTS, HIDDEN, key=key)
            self.norm = eqx.nn.BatchNorm(HIDDEN, axis_name="batch", mode="batch")
            self.last = eqx.nn.Linear(HIDDEN, OUTPUTS, key=key)

        def __call__(self, x, state):
            x, state = self.norm(self.first(x), state)
            return self.last(jax.nn.relu(x)), state

    return br.from_equinox(eqx.nn.make_with_state(Net)(KEY), vmap=True)


def torch():
    import torch as lib

    from tests.adapters.subject_torch import made

    layers = lib.nn.Linear(INPUTS, HIDDEN), lib.nn.BatchNorm1d(HIDDEN), lib.nn.ReLU()
    return made(lambda: lib.nn.Sequential(*layers, lib.nn.Linear(HIDDEN, OUTPUTS)), BATCH, INPUTS)


MODELS = {"linen": linen, "nnx": nnx, "haiku": haiku, "equinox": equinox, "torch": torch}


@pytest.fixture(scope="module", params=MODELS)
def module(request):
    pytest.importorskip(PACKAGES[request.param])
    return jax.jit(MODELS[request.param]().init)(KEY, XS[0])


@jax.jit
def step(module, optimizer, x):
    def loss(module):
        out, after = module.apply(x, mode="train")
        return optax.l2_loss(out, jnp.ones_like(out)).mean(), after

    (value, module), grads = br.value_and_grad(loss, has_aux=True)(module)
    return *optimizer.step(grads, module), value


def trained(module, put=lambda x: x):
    optimizer, values = jax.jit(br.Optimizer(SGD).init)(module), []
    for x in XS:
        module, optimizer, value = step(module, optimizer, put(x))
        values.append(float(value))
    return module, optimizer, values


def statistics(module):
    return {entry.path: entry.value for entry in entries(module) if entry.kind.name == "state"}


def test_the_numbers_are_those_of_one_device(module):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    # The matrices by their outputs, what is as long as those with them, the rest whole.
    kernels = {
        paths.join(entry.path): P(*("model" if size == HIDDEN else None for size in entry.value.shape))
        for entry in entries(module)
        if HIDDEN in entry.value.shape
    }
    rules = br.ShardingRules(mesh, {**kernels, "*": P()})
    on_mesh = jax.device_put(module, rules.of(module))
    split = NamedSharding(mesh, P("data"))
    ours, optimizer, values = trained(on_mesh, lambda x: jax.device_put(x, split))
    theirs, other, expected = trained(module)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    leaves = map(jax.tree.leaves, ((ours, optimizer), (theirs, other)))
    for mine, one in zip(*leaves, strict=True):
        np.testing.assert_allclose(mine, one, rtol=1e-4, atol=1e-5)
    assert any("model" in leaf.sharding.spec for leaf in jax.tree.leaves(ours))
    before, after = statistics(module), statistics(ours)
    assert any(not np.array_equal(before[path], after[path]) for path in before)
