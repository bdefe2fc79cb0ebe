"""A Module as an Equinox module, in Equinox's own hands."""

import copy
import functools
import io
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.adapters.equinox import from_equinox, to_equinox, with_init_state

KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(7), 3)
X = jax.random.normal(jax.random.key(1), (7, 5))


class Scale(br.Module):
    factor: br.Parameter

    def __call__(self, x):
        return x * self.factor


class Net(br.Module):
    """Parameters (one tied, one of a shared child), two states, a key, and dropout."""

    kernel: br.Parameter
    shift: br.Parameter
    gate: br.Parameter
    scales: list[br.Module]
    mean: br.State
    steps: br.State
    seed: br.Key

    def __init__(self):
        self.kernel = br.ParamInit((5, 3), jax.nn.initializers.normal())
        self.shift = self.gate = br.ParamInit((3,), jax.nn.initializers.ones)
        scale = Scale(br.ParamInit((3,), jax.nn.initializers.ones))
        self.scales = [scale, scale]
        self.mean = jnp.zeros(3)
        self.steps = 0
        self.seed = jax.random.key(3)

    def __call__(self, x):
        x = self.scales[0](x @ self.kernel) * self.gate + self.shift
        if self.training:
            self.seed, own = jax.random.split(self.seed)
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            self.steps = self.steps + 1
            x = jnp.where(jax.random.bernoulli(self.rng, 0.5, x.shape), 2 * x, 0)
            x = x + 0.1 * jax.random.normal(own, x.shape)
        return self.scales[1](x - self.mean)

    def encode(self, x, key=1.0):
        return key * (x @ self.kernel)

    def count(self):
        self.steps = self.steps + 1
        return self.steps


@functools.cache
def net() -> Net:
    return br.tie(Net().init(KEY), "gate", "shift")


def numbers(tree: Any) -> list[np.ndarray]:
    def plain(leaf: Any) -> np.ndarray:
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)

    return [plain(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def same(first: Any, second: Any) -> None:
    first, second = numbers(first), numbers(second)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@eqx.filter_jit
def called(model: Any, state: Any, key: Any = None, **flags: bool) -> Any:
    return model(X, state, key=key, **flags)


@functools.partial(jax.jit, static_argnames="mode")
def applied(module: Any, key: Any = None, mode: str | None = None) -> Any:
    return module.apply(X, rng=key, mode=mode)


def agrees(model: Any, found: Any, expected: Any) -> None:
    """Whether a call's output and the Module after it are those of `apply`."""
    same(found[0], expected[0])
    assert spec_and_arrays(from_equinox(model, found[1])) == spec_and_arrays(expected[1])


def spec_and_arrays(module: Any) -> tuple[Any, list[bytes]]:
    return jax.tree.structure(module), [leaf.tobytes() for leaf in numbers(module)]


def message(call, *args, **kwargs):
    with pytest.raises(br.BridgeError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# What stands where


def test_the_model_has_what_is_trained_and_the_state_all_other_arrays():
    model, state = to_equinox(net())
    shapes = jax.tree.map(jnp.shape, eqx.filter(model, eqx.is_array).params)
    assert shapes == {"kernel": (5, 3), "shift": (3,), "scales": {"0": {"factor": (3,)}}}
    assert len(jax.tree.leaves(eqx.filter(model, eqx.is_array))) == 3
    assert sorted(model.state) == ["rngs", "state"]
    assert sorted(state.get(model.state["state"])) == ["mean", "steps"]
    assert jax.tree.map(jnp.shape, state.get(model.state["rngs"])) == {"seed": ()}


def test_equal_builds_have_equal_treedefs_and_trade_their_states():
    (model, _), (other, state) = to_equinox(net()), to_equinox(net())
    assert jax.tree.structure(model) == jax.tree.structure(other)
    agrees(model, called(model, state, KEY), applied(net(), KEY, "train"))


def test_its_repr_shows_shapes_and_no_blueprint():
    model, _ = to_equinox(Scale(jnp.ones(3)))
    assert repr(model) == "BridgeEquinox(params={'factor': f32[3]}, state={}, inference=False)"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_is_the_same_model(copied):
    model, state = copied(to_equinox(net()))
    assert jax.tree.structure(model) == jax.tree.structure(to_equinox(net())[0])
    agrees(model, called(model, state, KEY), applied(net(), KEY, "train"))


def test_equinox_makes_the_shapes_of_an_exported_module():
    for module in (net(), jax.eval_shape(net)):
        shapes = eqx.filter_eval_shape(to_equinox, module)
        assert jax.tree.structure(shapes) == jax.tree.structure(to_equinox(net()))


# Calls


def test_output_and_state_are_those_of_apply_over_three_steps():
    module = net()
    model, state = to_equinox(module)
    for key in KEYS:
        out, state = called(model, state, key)
        expected, module = applied(module, key, "train")
        same(out, expected)
        same(from_equinox(model, state), module)
    assert state.get(model.state["state"])["steps"] == 3


def test_gradients_are_those_of_the_module():
    def loss(model, state):
        out, _ = model(X, state, key=KEY)
        return (out**2).sum()

    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(loss))(*to_equinox(net()))
    expected = jax.jit(
        br.value_and_grad(lambda module: (module.apply(X, rng=KEY, mode="train")[0] ** 2).sum())
    )(net())
    same(value, expected[0])
    for path, grad in (("kernel", grads.params["kernel"]), ("shift", grads.params["shift"])):
        same(grad, getattr(expected[1], path))
    assert grads.inference is None
    assert jax.tree.leaves(grads.state) == []


def test_inference_mode_finds_it_and_a_keyword_of_the_call_goes_first():
    model, state = to_equinox(net())
    still = eqx.nn.inference_mode(model)
    assert (model.inference, still.inference) == (False, True)
    evaluated, trained = applied(net()), applied(net(), KEY, "train")
    agrees(model, called(still, state), evaluated)
    agrees(model, called(model, state, inference=True), evaluated)
    agrees(model, called(model, state, train=False), evaluated)
    agrees(model, called(still, state, KEY, deterministic=False), trained)


def test_the_mode_of_the_module_is_the_first_mode():
    assert [to_equinox(m)[0].inference for m in (net(), net().train(), net().eval())] == [
        False,
        False,
        True,
    ]


def test_a_call_that_changes_nothing_gives_its_state_back():
    model, state = to_equinox(net())
    _, after = model(X, state, inference=True)
    assert after is state


def test_the_state_is_taken_from_any_place_of_a_call():
    for call in (lambda m, s: m(X, s), lambda m, s: m(X, state=s), lambda m, s: m(s, X)):
        model, state = to_equinox(net().eval())
        agrees(model, call(model, state), net().eval().apply(X))


def test_a_model_without_state_gives_its_output_alone_or_with_the_state_that_it_was_given():
    model, state = to_equinox(Scale(jnp.full(5, 2.0)))
    assert jax.tree.leaves(state) == []
    same(model(X), 2 * X)
    out, after = model(X, state)
    same(out, 2 * X)
    assert after is state


def test_an_argument_called_state_is_the_methods_own_where_it_is_none_of_equinox():
    class Cell(br.Module):
        weight: br.Parameter
        steps: br.State

        def __call__(self, x, state):
            self.steps = self.steps + 1
            return self.weight * (x + state)

    model, kept = to_equinox(Cell(2.0, 0))
    out, kept = model(X, kept, state=X)
    same(out, 4 * X)
    out, kept = model(X, X, state=kept)
    same(out, 4 * X)
    assert kept.get(model.state["state"])["steps"] == 2


def test_other_methods_are_there_and_go_through_the_transforms_of_equinox():
    model, state = to_equinox(net())
    out, state = eqx.filter_jit(model.encode)(X, state, key=2.0)
    same(out, jax.jit(lambda m, x: m.encode(x, 2.0))(net(), X))
    count, state = model.count(state)
    assert count == state.get(model.state["state"])["steps"] == 1


def test_keys_by_stream_reach_their_streams():
    class Noise(br.Module):
        def __call__(self, x):
            return x + jax.random.normal(self.draw("latent"), x.shape) + self.rng[0]

    module = Noise()
    legacy = {"latent": jax.random.PRNGKey(5), "default": jax.random.PRNGKey(9)}
    model, _ = to_equinox(module)
    same(model(X, key=legacy), module.apply(X, rng=legacy)[0])


def test_a_state_is_written_back_with_the_type_that_it_had():
    nn = pytest.importorskip("flax.linen")

    class Resets(nn.Module):
        @nn.compact
        def __call__(self, x):
            level = self.variable("levels", "level", lambda: jnp.ones(()))
            level.value = jnp.asarray(0.0)  # weakly typed
            return x

    model, state = to_equinox(br.from_linen(Resets()).init(KEY, X))
    _, state = model(X, state)
    assert state.get(model.state["levels"]) == {"level": 0.0}


def test_attached_keys_stand_in_the_state_and_advance():
    module = net().new_state(KEYS[0], mode="train")
    model, state = to_equinox(module)
    assert sorted(state.get(model.state["rngs"])) == ["_rng", "seed"]
    for _ in range(2):
        expected, module = applied(module)
        out, state = called(model, state)
        same(out, expected)
    assert spec_and_arrays(from_equinox(model, state)) == spec_and_arrays(module)


# Training with Equinox's tools


def trained(model: Any, state: Any, optimizer: optax.GradientTransformation, steps: int = 3) -> Any:
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, opt_state, key):
        def loss(model, state):
            out, state = model(X, state, key=key)
            return ((out - 1) ** 2).mean(), state

        (_, state), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model, state)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, opt_state

    for key in jax.random.split(KEY, steps):
        model, state, opt_state = step(model, state, opt_state, key)
    return model, state


def test_tied_and_shared_arrays_stay_one_through_training():
    module = from_equinox(*trained(*to_equinox(net()), optax.sgd(0.1)))
    assert jax.tree.structure(module) == jax.tree.structure(net())
    same(module.at["gate"].get(), module.at["shift"].get())
    same(module.at["scales.1.factor"].get(), module.at["scales.0.factor"].get())
    assert (module.at["shift"].get() != net().at["shift"].get()).all()


def test_what_is_frozen_stays_bit_for_bit_under_weight_decay():
    frozen = net().freeze("kernel", "scales.0")
    model, state = to_equinox(frozen)
    assert jax.tree.leaves(state.get(model.state["params"]))[0] is frozen.kernel
    module = from_equinox(*trained(model, state, optax.adamw(0.1, weight_decay=0.5)))
    assert jax.tree.structure(module) == jax.tree.structure(frozen)
    same([module.kernel, module.at["scales.0.factor"].get()], [net().kernel, jnp.ones(3)])
    assert (module.shift != net().shift).all()


def test_the_state_gives_no_gradient_of_what_is_frozen():
    model, state = to_equinox(net().freeze("kernel").eval())
    grads = eqx.filter_grad(lambda state: (model(X, state)[0] ** 2).sum())(state)
    assert not grads.get(model.state["params"])["kernel"].any()


def test_whole_numbers_are_leaves_and_get_no_gradient():
    class Shifted(br.Module):
        offset: br.Parameter
        factor: br.Parameter

        def __call__(self, x):
            return x * self.factor + self.offset

    model, _ = to_equinox(Shifted(jnp.arange(5), jnp.ones(5)))
    grads = eqx.filter_grad(lambda model: model(X).sum())(model)
    assert grads.params["offset"] is None
    same(grads.params["factor"], X.sum(0))


def test_serialised_leaves_come_back():
    class Counted(br.Module):
        scale: br.Module
        steps: br.State

        def __call__(self, x):
            self.steps = self.steps + 1
            return self.scale(x)

    def build(factor):
        return to_equinox(Counted(Scale(jnp.full(5, factor)), 0))

    model, state = build(3.0)
    _, state = model(X, state)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, (model, state))
    file.seek(0)
    loaded, kept = eqx.tree_deserialise_leaves(file, build(1.0))
    same((loaded, kept), (model, state))
    same(loaded(X, kept)[0], 3 * X)


def test_an_ensemble_is_made_and_called_by_filter_vmap():
    @eqx.filter_vmap
    def make(key):
        return to_equinox(br.tie(Net().init(key), "gate", "shift"))

    models, states = make(KEYS)
    assert models.params["kernel"].shape == (3, 5, 3)
    outs, states = eqx.filter_vmap(lambda m, s, key: m(X, s, key=key))(models, states, KEYS)
    for number, key in enumerate(KEYS):
        out, _ = applied(br.tie(Net().init(key), "gate", "shift"), key, "train")
        np.testing.assert_allclose(outs[number], out, rtol=1e-5)
    assert states.get(models.state["state"])["steps"].tolist() == [1, 1, 1]


def test_it_is_a_carry_of_scan_by_partition_and_combine():
    model, state = to_equinox(net())
    params, static = eqx.partition(model, eqx.is_array)

    @jax.jit
    def epoch(params, state):
        def body(carry, key):
            params, state = carry
            out, state = eqx.combine(params, static)(X, state, key=key)
            return (params, state), out

        return jax.lax.scan(body, (params, state), KEYS)

    (_, after), outs = epoch(params, state)
    module, expected = jax.jit(
        lambda module: jax.lax.scan(
            lambda m, key: m.apply(X, rng=key, mode="train")[::-1], module, KEYS
        )
    )(net())
    same(outs, expected)
    same(from_equinox(model, after), module)


# Inside of an Equinox model


class Parent(eqx.Module):
    first: eqx.nn.Linear
    child: Any
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, child, state, key):
        first, head = jax.random.split(key)
        self.first = eqx.nn.Linear(5, 5, key=first)
        self.child = with_init_state(child, state)
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(3, 2, key=head)

    def __call__(self, x, state, *, key=None):
        own, childs = (None, None) if key is None else jax.random.split(key)
        x, state = self.child(jax.vmap(self.first)(x), state, key=childs)
        x, state = jax.vmap(self.norm, (0, None), (0, None), axis_name="batch")(x, state)
        return jax.vmap(self.head)(self.dropout(x, key=own)), state


def parent(module: Any) -> Any:
    return eqx.nn.make_with_state(Parent)(*to_equinox(module), KEY)


def linen_child() -> Any:
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(3)(x))
            return nn.Dropout(0.5, deterministic=not train)(x)

    return br.from_linen(Block()), ("batch_stats", ("BatchNorm_0", "mean"))


def haiku_child() -> Any:
    hk = pytest.importorskip("haiku")

    def block(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(3)(x), is_training)
        return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x

    return br.from_haiku(block), ("state", ("batch_norm/~/mean_ema", "average"))


def own_child() -> Any:
    return br.tie(Net(), "gate", "shift"), ("state", ("mean",))


@pytest.mark.parametrize("child", [own_child, linen_child, haiku_child])
def test_inside_of_an_equinox_model_it_trains_with_a_state_for_both(child):
    module, (collection, place) = child()
    module = jax.jit(lambda key: module.init(key, X, mode="train"))(KEY)
    model, state = parent(module)
    assert len(jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))) == 6 + len(
        jax.tree.leaves(module.parameters())
    )
    after, kept = trained(model, state, optax.adam(1e-2))
    before = eqx.filter(model, eqx.is_inexact_array)
    for old, new in zip(numbers(before), numbers(eqx.filter(after, eqx.is_inexact_array)), strict=True):
        assert not np.array_equal(old, new)
    assert kept.get(after.norm.batch_counter) == 3
    seen = kept.get(after.child.state[collection])
    for segment in place:
        seen = seen[segment]
    assert seen.any()
    still = eqx.nn.inference_mode(after)
    same(called(still, kept)[0], called(still, kept)[0])
    first, second = (called(after, kept, key)[0] for key in KEYS[:2])
    assert not np.array_equal(first, second)


def test_a_model_that_holds_one_becomes_a_module_with_its_states_by_path():
    pair = parent(net())
    module = from_equinox(pair)
    places = [row.split()[1] for row in module.summary().splitlines()[3:-1]]
    assert [place for place in places if ".child." in place] == [
        "params.child.params.kernel",
        "params.child.params.scales.0.factor",
        "params.child.params.shift",
        "state.state.child.state.rngs.seed",
        "state.state.child.state.state.mean",
        "state.state.child.state.state.steps",
    ]
    expected, _ = called(*pair, KEY)
    out, after = applied(module, KEY, "train")
    same(out, expected)
    assert after.at["state.state.child.state.state.steps"].get() == 1
    model, state = to_equinox(after)
    assert isinstance(model, Parent)
    assert state.get(model.child.state["state"])["steps"] == 1


def test_a_part_of_a_trained_model_takes_its_own_state_along():
    model, state = trained(*parent(net()), optax.sgd(0.1))
    child, own = eqx.nn.make_with_state(lambda: with_init_state(model.child, state))()
    module = from_equinox(child, own)
    assert module.steps == 3
    same(module, from_equinox(model.child, state.substate(model.child)))


def test_a_sequential_threads_its_state():
    layers = [eqx.nn.Lambda(jnp.tanh), with_init_state(*to_equinox(net())), eqx.nn.Lambda(jnp.sin)]
    layers.append(to_equinox(Scale(jnp.full(3, 2.0)))[0])
    model, state = eqx.nn.make_with_state(eqx.nn.Sequential)(layers)
    out, state = called(model, state, KEY)
    own = jax.random.split(KEY, 4)[1]
    expected, module = jax.jit(lambda net: net.apply(jnp.tanh(X), rng=own, mode="train"))(net())
    same(out, 2 * jnp.sin(expected))
    assert state.get(model[1].state["state"])["steps"] == module.steps == 1


def test_equinox_batches_a_module_of_single_examples_with_one_state():
    class Centre(br.Module):
        mean: br.State

        def __call__(self, x):
            self.mean = jax.lax.pmean(x, "batch")
            return x - self.mean

    model, state = to_equinox(Centre(jnp.zeros(5)))
    out, state = jax.vmap(model, (0, None), (0, None), axis_name="batch")(X, state)
    np.testing.assert_allclose(out, X - X.mean(0), atol=1e-6)
    np.testing.assert_allclose(state.get(model.state["state"])["mean"], X.mean(0), atol=1e-6)


# Round trips


def test_the_module_comes_back_with_its_arrays():
    module = net().freeze("kernel").train().new_state(KEYS[0])
    for arguments in (to_equinox(module), (to_equinox(module),)):
        assert spec_and_arrays(from_equinox(*arguments)) == spec_and_arrays(module)
    model, state = to_equinox(module)
    assert spec_and_arrays(from_equinox(with_init_state(model, state))) == spec_and_arrays(module)
    model = eqx.tree_at(lambda model: model.params["shift"], model, jnp.full(3, 5.0))
    same(from_equinox(model, state).at["gate"].get(), jnp.full(3, 5.0))


class Native(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.linear = eqx.nn.Linear(5, 3, key=KEY)
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(self.linear(x), state)


@pytest.mark.parametrize(
    "model",
    [eqx.nn.MLP(5, 3, 11, 2, key=KEY), eqx.nn.inference_mode(eqx.nn.Dropout(0.5)), "with state"],
    ids=["no state", "a flag", "state"],
)
def test_a_wrapped_equinox_model_is_given_out_itself(model):
    pair = eqx.nn.make_with_state(Native)() if model == "with state" else (model, eqx.nn.State(model))
    exported, state = to_equinox(from_equinox(*pair))
    assert eqx.tree_equal((exported, state), pair)
    module = from_equinox(exported, state)
    assert jax.tree.structure(module) == jax.tree.structure(from_equinox(*to_equinox(module)))
    if model != "with state":
        assert jax.tree.structure(module) == jax.tree.structure(from_equinox(model))


def wrapped(**options: Any) -> Any:
    return from_equinox(eqx.nn.make_with_state(Native)(), **options)


ADDED = {
    "a batch": (lambda: wrapped(vmap=True), X),
    "something frozen": (lambda: wrapped().freeze("params.linear"), X[0]),
    "a tie": (lambda: br.tie(wrapped(), "params.norm.bias", "params.linear.bias"), X[0]),
    "a mode": (lambda: wrapped().eval(), X[0]),
    "a key": (lambda: wrapped().new_state(KEY), X[0]),
}


@pytest.mark.parametrize("added", ADDED)
def test_what_a_module_adds_to_an_equinox_model_is_not_lost(added):
    build, x = ADDED[added]
    module = build()
    model, state = to_equinox(module)
    out, state = model(x, state, inference=True)
    same(out, module.apply(x, mode="eval")[0])
    assert spec_and_arrays(from_equinox(model, state)) == spec_and_arrays(module)


# What is refused


def after_a_call() -> Any:
    model, state = to_equinox(net())
    model(X, state, key=KEY)
    return model, state


def misshapen() -> Any:
    model, state = to_equinox(net())
    turned = eqx.tree_at(lambda model: model.params["kernel"], model, jnp.ones((3, 5)))
    return eqx.tree_at(lambda model: model.params["shift"], turned, None), state


def another_state() -> Any:
    return to_equinox(Centred(jnp.zeros(3)))[1]


class Centred(br.Module):
    mean: br.State

    def __call__(self, x):
        return x - self.mean


OLD = (
    "the eqx.nn.State given to {} is an old one, which a call has replaced; give it the state that the"
    " last call returned"
)
FOREIGN = (
    "the eqx.nn.State given to {} has no entry for its {}; give it the state that was made with it, or"
    " with the model that holds it"
)

MISFITS = """\
these arrays do not fit the Net:
  params: kernel: is float32[3, 5]; the Module has float32[5, 3]
  params: shift: missing; the Module has float32[3]
Give it what its own init makes"""

REFUSED = {
    "no Module": (
        lambda: to_equinox(eqx.nn.Linear(5, 3, key=KEY)),
        "to_equinox takes a bridge.Module; it was given a Linear. A model of a library becomes one by"
        " bridge.wrap(model)",
    ),
    "no arrays yet": (
        lambda: to_equinox(Net()),
        "kernel, shift, gate, scales.0.factor: not initialised, so there is nothing to hand over; type"
        " module = module.init(key, *sample) first",
    ),
    "shapes in place of arrays": (
        lambda: to_equinox(jax.eval_shape(net)),
        "to_equinox was given a Net that has shapes in place of arrays; for the shapes of the exported"
        " one type eqx.filter_eval_shape(bridge.to_equinox, module)",
    ),
    "no state": (
        lambda: to_equinox(net())[0](X, key=KEY),
        "the exported Net keeps its rngs, state in an eqx.nn.State; call it with the one that came with"
        " it: out, state = model(x, state)",
    ),
    "two states": (
        lambda: to_equinox(net())[0](X, another_state(), state=another_state()),
        "an exported module was called with 2 eqx.nn.State; it takes one, that of the whole model:"
        " out, state = model(x, state)",
    ),
    "an old state": (lambda: after_a_call()[0](X, after_a_call()[1]), OLD.format("the exported Net")),
    "an old state to keep inside": (
        lambda: with_init_state(*after_a_call()),
        OLD.format("BridgeEquinox"),
    ),
    "another model's state": (
        lambda: to_equinox(net())[0](X, another_state()),
        FOREIGN.format("the exported Net", "rngs"),
    ),
    "another model's state to keep inside": (
        lambda: with_init_state(to_equinox(net())[0], another_state()),
        FOREIGN.format("BridgeEquinox", "BridgeEquinox.state['rngs']"),
    ),
    "a batch that is none": (
        lambda: from_equinox(to_equinox(net()), vmap=True),
        "from_equinox was given an exported Module and vmap=True; it takes what the Module took before"
        " it was exported: leave vmap out",
    ),
    "no key": (
        lambda: to_equinox(net())[0](X, to_equinox(net())[1]),
        "the root module draws from the stream 'default', and no rng was given. Type model(x, state,"
        " key=key), or key={'default': key} for this stream alone",
    ),
    "no key of a stream": (
        lambda: to_equinox(net())[0](X, to_equinox(net())[1], key={"latent": KEY}),
        "the root module draws from the stream 'default', and the streams given are 'latent'. Type"
        " model(x, state, key=key), or key={'default': key} for this stream alone",
    ),
    "what is no key": (
        lambda: to_equinox(net())[0](X, to_equinox(net())[1], key=KEYS),
        "rng 'default' is an array key<fry>[3]; a key was wanted: jax.random.key(0), or a dict of them"
        ' by stream: {"dropout": key, "default": other_key}',
    ),
    "two train flags": (
        lambda: to_equinox(net())[0](X, to_equinox(net())[1], train=True, inference=True),
        "the train flag of an exported module was given twice: train=True, inference=True",
    ),
    "other arrays": (lambda: misshapen()[0](X, misshapen()[1], key=KEY), MISFITS),
    "other arrays to come back": (lambda: from_equinox(misshapen()), MISFITS),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_or_called_is_a_sentence(case):
    call, text = REFUSED[case]
    assert message(call) == text


def test_a_name_that_is_no_method_is_an_attribute_error():
    model, _ = to_equinox(net())
    with pytest.raises(AttributeError, match=r"^the exported Net has no method 'decode'$"):
        _ = model.decode
    assert not hasattr(model, "mean")


def test_a_child_without_its_state_is_refused_by_equinox_itself():
    with pytest.raises(ValueError, match="make_with_state"):
        eqx.nn.make_with_state(eqx.nn.Sequential)([to_equinox(net())[0]])
