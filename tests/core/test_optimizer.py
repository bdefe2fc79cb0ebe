"""Optax through bridge.Optimizer: every transformation, groups, freezing, compiled epochs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import bridge as br


class Dense(br.Module):
    weight: br.Parameter
    bias: br.Parameter

    def __init__(self, inputs, outputs):
        self.weight = br.ParamInit((inputs, outputs), jax.nn.initializers.lecun_normal())
        self.bias = br.ParamInit((outputs,), jax.nn.initializers.zeros)

    def __call__(self, x):
        return x @ self.weight + self.bias


class Dropout(br.Module):
    rate: float = 0.25

    def __call__(self, x):
        if not self.training:
            return x
        kept = jax.random.bernoulli(self.rng, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


class Net(br.Module):
    stem: Dense
    drop: Dropout
    head: Dense
    steps: br.State

    def __init__(self):
        self.stem, self.drop, self.head, self.steps = Dense(7, 11), Dropout(), Dense(11, 3), 0

    def __call__(self, x):
        self.steps = self.steps + 1
        return self.head(self.drop(jnp.tanh(self.stem(x))))


X = jax.random.normal(jax.random.key(1), (13, 7))
Y = jax.random.normal(jax.random.key(2), (13, 3))


@pytest.fixture
def net():
    return Net().init(jax.random.key(0))


def loss(module, key, x=X, y=Y, mode="train"):
    out, module = module.apply(x, rng=key, mode=mode)
    return jnp.mean((out - y) ** 2), module


def eval_loss(module):
    return loss(module, None, mode="eval")[0]


def train_step(module, optimizer, key):
    (value, after), grads = br.value_and_grad(loss, has_aux=True)(module, key)
    module, optimizer = optimizer.step(grads, after)
    return module, optimizer, value


TRANSFORMS = {
    "adam": lambda: optax.adam(1e-2),
    "adamw with clipping": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=1e-3)
    ),
    "sgd with momentum": lambda: optax.sgd(1e-1, momentum=0.9, nesterov=True),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 3),
    "schedule-free": lambda: optax.contrib.schedule_free_sgd(1e-1),
    "muon": lambda: optax.contrib.muon(1e-2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "a schedule": lambda: optax.adam(optax.cosine_decay_schedule(1e-2, 100)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transformation_equals_optax_on_a_list_of_the_same_arrays(net, name):
    """Names, nesting and Nones change no number."""
    transform = TRANSFORMS[name]()
    optimizer = br.Optimizer(transform).init(net)
    plain = transform.gradient_transformation() if name == "MultiSteps" else transform
    params = jax.tree.leaves(net.parameters())
    state = plain.init(params)

    @jax.jit
    def both(net, optimizer, params, state, key):
        grads = br.grad(lambda module: loss(module, key)[0])(net)
        updates, state = plain.update(jax.tree.leaves(grads), state, params)
        params = optax.apply_updates(params, updates)
        return *optimizer.step(grads, net), params, state

    for step in range(7):
        key = jax.random.key(step)
        net, optimizer, params, state = both(net, optimizer, params, state, key)
    for ours, theirs in zip(jax.tree.leaves(net.parameters()), params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert both._cache_size() == 1


def test_lbfgs_takes_a_value_function_of_the_module(net):
    optimizer = br.Optimizer(optax.lbfgs()).init(net)
    before = eval_loss(net)

    @jax.jit
    def step(net, optimizer):
        value, grads = br.value_and_grad(eval_loss)(net)
        return optimizer.step(grads, net, value=value, value_fn=eval_loss)

    for _ in range(11):
        net, optimizer = step(net, optimizer)
    assert eval_loss(net) < 0.5 * before


def test_schedule_free_gives_evaluation_parameters(net):
    optimizer = br.Optimizer(optax.contrib.schedule_free_adamw(1e-2)).init(net)
    for step in range(5):
        net, optimizer, _ = train_step(net, optimizer, jax.random.key(step))
    averaged = optax.contrib.schedule_free_eval_params(optimizer.state, net.parameters())
    moved = net.update(averaged)
    assert not jnp.array_equal(moved.stem.weight, net.stem.weight)


def test_an_injected_learning_rate_is_set_by_path(net):
    transform = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    optimizer = br.Optimizer(transform).init(net)
    place = "opt_state.hyperparams.learning_rate"
    stopped = optimizer.at[place].set(jnp.zeros((), jnp.float32))
    after, _ = stopped.step(net.parameters(), net)
    np.testing.assert_array_equal(after.stem.weight, net.stem.weight)


def test_frozen_leaves_cost_no_optimizer_memory_and_do_not_move(net):
    frozen = net.freeze("stem")
    optimizer = br.Optimizer(optax.adam(1e-2)).init(frozen)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(optimizer))
    assert sizes == 2 * (11 * 3 + 3) + 1  # two moments of the head and a counter
    after, optimizer, _ = train_step(frozen, optimizer, jax.random.key(0))
    np.testing.assert_array_equal(after.stem.weight, net.stem.weight)
    assert not jnp.array_equal(after.head.weight, net.head.weight)


def test_groups_by_path_give_each_part_its_own_transformation(net):
    groups = {"head.*": optax.sgd(1.0), "*.bias": optax.sgd(0.0), "*": optax.sgd(0.5)}
    optimizer = br.Optimizer(groups).init(net)
    ones = jax.tree.map(jnp.ones_like, net.parameters())
    after, _ = jax.jit(lambda o, g, m: o.step(g, m))(optimizer, ones, net)
    expected = {"head.weight": 1.0, "head.bias": 1.0, "stem.bias": 0.0, "stem.weight": 0.5}
    for path, amount in expected.items():
        moved = net.at[path].get() - after.at[path].get()
        np.testing.assert_allclose(moved, amount, rtol=1e-6)


def test_groups_that_do_not_fit_are_reported_together(net):
    with pytest.raises(br.BridgeError) as error:
        br.Optimizer({"tail.*": optax.sgd(1.0), "head": optax.sgd(1.0)}).init(net)
    assert str(error.value) == (
        "the groups of the optimizer do not fit the module:\n"
        "  'tail.*' selects no trained parameter\n"
        "  stem.weight is in no group\n"
        "  stem.bias is in no group\n"
        'A group "*" at the end takes what is left; freeze what is not to be trained'
    )


def test_a_step_before_init_says_what_to_type(net):
    with pytest.raises(br.BridgeError, match=r"type optimizer = optimizer.init\(module\) first"):
        br.Optimizer(optax.sgd(1.0)).step(net.parameters(), net)


def test_an_uninitialised_module_is_refused():
    with pytest.raises(br.BridgeError, match=r"stem.weight is not initialised.*module.init\(key"):
        br.Optimizer(optax.sgd(1.0)).init(Net())


def test_freezing_after_init_names_what_is_gone(net):
    optimizer = br.Optimizer(optax.adam(1e-3)).init(net)
    with pytest.raises(br.BridgeError) as error:
        optimizer.step(net.parameters(), net.freeze("stem"))
    assert str(error.value) == (
        "the module's trained parameters are not those that the optimizer was made for:\n"
        "  stem.weight: gone\n"
        "  stem.bias: gone\n"
        "After freezing, unfreezing or surgery, type optimizer = optimizer.init(module)"
    )


def test_gradients_of_another_kind_are_refused(net):
    optimizer = br.Optimizer(optax.adam(1e-3)).init(net)
    with pytest.raises(
        br.BridgeError, match=r"the gradients are a Net; a tree like module\.parameters\(\)"
    ):
        optimizer.step(net, net)


def test_what_is_no_transformation_is_refused():
    with pytest.raises(br.BridgeError, match=r"optax.adam\(1e-3\).*it was given a float"):
        br.Optimizer(1e-3)


def test_init_wants_the_module():
    with pytest.raises(br.BridgeError, match="takes the module to train; it was given a dict"):
        br.Optimizer(optax.adam(1e-3)).init({})


def test_the_trained_numbers_go_down_and_state_is_threaded(net):
    optimizer = br.Optimizer(optax.adam(1e-2)).init(net)
    step = jax.jit(train_step)
    first = eval_loss(net)
    for number in range(60):
        net, optimizer, _ = step(net, optimizer, jax.random.key(number))
    assert eval_loss(net) < 0.8 * first
    assert int(net.steps) == 60
    assert step._cache_size() == 1


def looped(net, optimizer, key):
    step = jax.jit(keyed_step)
    for _ in range(9):
        net, optimizer, key = step(net, optimizer, key)
    return net, optimizer, key


def keyed_step(net, optimizer, key):
    key, used = jax.random.split(key)
    net, optimizer, _ = train_step(net, optimizer, used)
    return net, optimizer, key


@jax.jit
def scanned(net, optimizer, key):
    return jax.lax.scan(lambda carry, _: (keyed_step(*carry), None), (net, optimizer, key), None, 9)[0]


@jax.jit
def fori(net, optimizer, key):
    return jax.lax.fori_loop(0, 9, lambda _, carry: keyed_step(*carry), (net, optimizer, key))


@pytest.mark.parametrize("compiled", [scanned, fori])
def test_a_compiled_epoch_equals_the_python_loop_bit_for_bit(net, compiled):
    optimizer = br.Optimizer(optax.adam(1e-2)).init(net)
    carry = (net, optimizer, jax.random.key(5))
    for ours, theirs in zip(
        jax.tree.leaves(compiled(*carry)), jax.tree.leaves(looped(*carry)), strict=True
    ):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_the_repr_names_the_groups():
    assert repr(br.Optimizer({"*": optax.sgd(1.0)})) == "Optimizer uninit (*)"
