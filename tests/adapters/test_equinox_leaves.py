"""What the leaves of an Equinox model become, and the model that comes back."""

import copy
import functools
import pickle
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import CheckpointError, ModelError, SharingError, StructureError
from bridge.core.paths import join
from bridge.core.tree import entries

eqx = pytest.importorskip("equinox")
nn = eqx.nn

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (7, 5))
TOKENS = jnp.array([2, 3, 5])


class Holds(eqx.Module):
    held: Any

    def __call__(self, x):
        return x


class Fixed(eqx.Module):
    held: Any = eqx.field(static=True)

    def __call__(self, x):
        return x


def kinds(module: Any) -> dict[str, str]:
    return {join(entry.path): entry.kind.collection or entry.kind.name for entry in entries(module)}


def same(first: Any, second: Any) -> bool:
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def refusal(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# Which leaf is what


ARRAYS = {
    "float": (jnp.ones(3), "parameter"),
    "bfloat16": (jnp.ones(3, jnp.bfloat16), "parameter"),
    "complex": (jnp.ones(3, complex), "parameter"),
    "float of NumPy": (np.ones(3, np.float32), "parameter"),
    "scalar of NumPy": (np.float32(3), "parameter"),
    "array without axes": (jnp.array(0.5), "parameter"),
    "integer": (jnp.arange(3), "buffers"),
    "bool": (jnp.ones(3, bool), "buffers"),
    "integer of NumPy": (np.arange(3), "buffers"),
    "key": (jax.random.key(3), "buffers"),
    "form of a float": (jax.ShapeDtypeStruct((3,), jnp.float32), "parameter"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_a_parameter_or_a_buffer_by_its_dtype(name):
    leaf, kind = ARRAYS[name]
    found = kinds(br.from_equinox(Holds({"a": [leaf]})))
    place = "params.held.a.0" if kind == "parameter" else "state.buffers.held.a.0"
    assert found == {place: kind}
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        assert (kind == "parameter") == eqx.is_inexact_array(leaf)


STATICS = [0.5, 3, True, 1 + 2j, "name", None, jax.nn.relu, functools.partial(jnp.sum, axis=0), object]


@pytest.mark.parametrize("leaf", STATICS, ids=lambda leaf: type(leaf).__name__)
def test_everything_else_is_static_and_comes_back(leaf):
    module = br.from_equinox(Holds(leaf))
    assert kinds(module) == {}
    assert module.native().held is leaf
    np.testing.assert_array_equal(jax.jit(lambda module: module(X))(module), X)


def test_a_float_is_static_as_it_is_for_filter_grad_and_an_array_of_it_is_trained():
    class Scale(eqx.Module):
        by: Any

        def __call__(self, x):
            return self.by * x

    assert eqx.filter_grad(lambda model: model(X).sum())(Scale(0.5)).by is None
    assert jax.tree.leaves(br.from_equinox(Scale(0.5)).grad(X[0, 0])) == []
    assert len(jax.tree.leaves(br.from_equinox(Scale(jnp.array(0.5))).grad(X[0, 0]))) == 1


def test_a_weakly_typed_array_gets_a_definite_dtype():
    class Scale(eqx.Module):
        by: jax.Array

        def __call__(self, x):
            return self.by * x

    half = X.astype(jnp.bfloat16)
    weak = Scale(jnp.asarray(2.0))
    assert weak(half).dtype == jnp.bfloat16
    assert br.from_equinox(weak)(half).dtype == jnp.float32
    assert br.from_equinox(weak).native()(half).dtype == jnp.float32


@pytest.mark.parametrize("value", [[1, [2]], {"a": 1}, {1, 2}], ids=repr)
@pytest.mark.parametrize("make", [Holds, Fixed])
def test_what_has_no_hash_is_static_too(make, value):
    module = br.from_equinox(make(value))
    np.testing.assert_array_equal(jax.jit(lambda module: module(X))(module), X)
    assert module.native().held == value
    assert jax.tree.structure(module.update(module.parameters())) == jax.tree.structure(module)


@pytest.mark.parametrize("array", [np.ones(3), jnp.ones(3)], ids=["NumPy", "jax"])
def test_an_array_in_a_static_field_is_refused_with_its_path(array):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A JAX array is being set as static!")
        model = Holds([nn.Dropout(0.5), Fixed((array,))])
    assert refusal(ModelError, lambda: br.from_equinox(model)) == (
        "this Holds cannot be wrapped:\n  held.1.held is a static field and holds an array, which"
        " jax.jit cannot compare; make it an ordinary field, or a tuple of numbers"
    )


def test_an_array_that_jax_has_not_is_refused_with_its_path():
    model = Holds({"words": np.array(["a", "bc"])})
    assert refusal(ModelError, lambda: br.from_equinox(model)) == (
        "this Holds cannot be wrapped:\n  held.words is an array of <U2, which jax has none of; keep"
        " it as a tuple in a static field"
    )


def test_builds_are_equal_by_the_value_of_their_leaves_and_functions_by_identity():
    def structure(leaf: Any) -> Any:
        return jax.tree.structure(br.from_equinox(Holds(leaf)))

    assert structure((0.5, "a", jax.nn.relu)) == structure((0.5, "a", jax.nn.relu))
    assert structure(functools.partial(jnp.sum, axis=0)) == structure(
        functools.partial(jnp.sum, axis=0)
    )
    assert structure(functools.partial(jnp.sum, axis=0)) != structure(
        functools.partial(jnp.sum, axis=1)
    )
    assert len({structure(leaf) for leaf in (1, 1.0, True)}) == 3
    assert structure(lambda x: x) != structure(lambda x: x)


def test_two_builds_are_one_compilation():
    @jax.jit
    def run(module, x):
        return module(x)

    for seed in range(3):
        norm = nn.WeightNorm(nn.Linear(5, 3, key=jax.random.key(seed)))
        run(br.from_equinox(norm), X[0])
    assert run._cache_size() == 1


# Sharing


class Language(eqx.Module):
    shared: nn.Shared

    def __init__(self, key):
        pair = nn.Embedding(11, 5, key=key), nn.Linear(5, 11, key=key)
        self.shared = nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def __call__(self, tokens):
        embed, head = self.shared()
        return jax.vmap(head)(jax.vmap(embed)(tokens))


def squares(model: Any) -> jax.Array:
    return (model(TOKENS) ** 2).sum()


def test_what_equinox_shares_is_one_parameter_and_stays_one(tmp_path):
    model = Language(KEY)
    module = br.from_equinox(model)
    assert list(kinds(module)) == ["params.shared.pytree.0.weight", "params.shared.pytree.1.bias"]
    loss, grads = br.value_and_grad(squares)(module)
    own_loss, own = eqx.filter_value_and_grad(squares)(model)
    assert loss == own_loss
    assert same(grads, own)
    optimizer = br.Optimizer(optax.sgd(0.1)).init(module)
    module, _ = optimizer.step(grads, module)
    model = eqx.apply_updates(model, jax.tree.map(lambda grad: -0.1 * grad, own))
    assert eqx.tree_equal(module.native(), model)
    embed, head = module.native().shared()
    assert embed.weight is head.weight
    br.save(tmp_path / "net.safetensors", module)
    assert same(br.load(tmp_path / "net.safetensors", module), module)


class Two(eqx.Module):
    first: nn.Linear
    second: nn.Linear

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def test_one_array_at_two_places_is_two_parameters_as_in_equinox():
    linear = nn.Linear(5, 5, key=KEY)
    module = br.from_equinox(Two(linear, linear))
    grads = br.grad(lambda module: module(X[0]).sum())(module)
    own = eqx.filter_grad(lambda model: model(X[0]).sum())(Two(linear, linear))
    assert same(grads, own)
    assert not np.array_equal(own.first.weight, own.second.weight)
    tied = br.tie(module, "params.second.weight", "params.first.weight")
    both = br.grad(lambda module: module(X[0]).sum())(tied)
    np.testing.assert_allclose(
        both.params.tree().first.weight, own.first.weight + own.second.weight, rtol=1e-6
    )
    np.testing.assert_array_equal(tied(X[0]), module(X[0]))


def test_tied_arrays_of_a_model_stay_tied_and_are_both_there_in_the_native_one(tmp_path):
    module = br.from_equinox(Two(nn.Linear(5, 5, key=KEY), nn.Linear(5, 5, key=jax.random.key(7))))
    tied = br.tie(module, "params.second.weight", "params.first.weight")
    optimizer = br.Optimizer(optax.adam(0.1)).init(tied)
    tied, _ = optimizer.step(br.grad(lambda module: module(X[0]).sum())(tied), tied)
    native = tied.native()
    assert native.first.weight is native.second.weight
    np.testing.assert_array_equal(native(X[0]), tied(X[0]))
    br.save(tmp_path / "net.safetensors", tied)
    assert same(br.load(tmp_path / "net.safetensors", tied), tied)


def test_the_native_model_of_a_part_whose_array_is_kept_elsewhere_is_refused():
    class Pair(br.Module):
        first: br.Module
        second: br.Module

        def __call__(self, x):
            return self.second(self.first(x))

    linear = br.from_equinox(nn.Linear(5, 5, key=KEY))
    other = br.from_equinox(nn.Linear(5, 5, key=jax.random.key(7)))
    pair = br.tie(Pair(linear, other), "second.params.weight", "first.params.weight")
    assert pair.first.native().weight is linear.native().weight
    assert refusal(SharingError, pair.second.native) == (
        "params.weight is shared with a place 3 levels above it, at 'first.params.weight', which is"
        " not in this module. Call or read it through the module that holds both"
    )


# The model that comes back


class Net(eqx.Module):
    linear: nn.Linear
    norm: nn.BatchNorm
    table: jax.Array
    activation: Any

    def __init__(self, key):
        self.linear = nn.Linear(5, 3, key=key)
        self.norm = nn.BatchNorm(3, "batch", mode="batch")
        self.table = jnp.arange(3)
        self.activation = jax.nn.relu

    def __call__(self, x, state):
        x, state = self.norm(self.linear(x), state)
        return self.activation(x) + self.table, state


def test_the_native_pair_is_the_one_that_was_given():
    model, state = nn.make_with_state(Net)(KEY)
    native, native_state = br.from_equinox(model, state, vmap=True).native()
    assert jax.tree.structure((native, native_state)) == jax.tree.structure((model, state))
    assert same((native, native_state), (model, state))
    assert native.linear.weight is model.linear.weight
    assert native.activation is model.activation


def test_equinoxs_own_tools_work_on_the_native_model(tmp_path):
    _, after = br.from_equinox(Net(KEY), vmap=True).apply(X, mode="train")
    model, state = after.native()

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, state):
        out, state = jax.vmap(model, (0, None), (0, None), axis_name="batch")(X, state)
        return (out**2).sum(), state

    (value, _), grads = eqx.filter_jit(loss)(model, state)
    assert jnp.isfinite(value)
    stepped = eqx.apply_updates(model, jax.tree.map(lambda grad: -0.1 * grad, grads))
    eqx.tree_serialise_leaves(tmp_path / "net.eqx", (stepped, state))
    loaded = eqx.tree_deserialise_leaves(tmp_path / "net.eqx", (model, state))
    back = br.from_equinox(*loaded, vmap=True)
    assert jax.tree.structure(back) == jax.tree.structure(after)
    assert same(back.native(), (stepped, state))
    assert back.at["state.state.norm.batch_counter"].get() == 1


def test_a_model_of_forms_alone_is_what_a_checkpoint_is_loaded_into(tmp_path):
    module = br.from_equinox(nn.make_with_state(Net)(KEY))
    br.save(tmp_path / "net.safetensors", module)
    forms = br.from_equinox(*eqx.filter_eval_shape(nn.make_with_state(Net), KEY))
    assert jax.tree.structure(forms) == jax.tree.structure(module)
    assert same(br.load(tmp_path / "net.safetensors", forms), module)


# Copies, pickles, ensembles, donation


class Config:
    """Compared by identity, as most objects are."""


def test_a_deep_copy_is_the_same_module_whatever_its_functions_are():
    for model in (Net(KEY), Language(KEY), nn.WeightNorm(nn.Linear(5, 3, key=KEY))):
        module = br.from_equinox(model)
        twin = copy.deepcopy(module)
        assert jax.tree.structure(twin) == jax.tree.structure(module)
        assert same(twin.native(), module.native())


class Default(eqx.Module):
    weight: jax.Array
    scale: float = 0.5

    def __init__(self):
        self.weight = jnp.ones(5)

    def __call__(self, x):
        return self.scale * self.weight * x


@pytest.mark.parametrize("model", [Default(), Fixed(Config())])
@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_runs_where_its_statics_are_other_objects(model, twin_of):
    module = br.from_equinox(model)
    np.testing.assert_array_equal(twin_of(module)(X), module(X))
    assert jax.tree.structure(module.native()) == jax.tree.structure(model)


class Plain(eqx.Module):
    norm: nn.BatchNorm
    scale: float = 0.5
    config: Any = eqx.field(static=True, default_factory=Config)

    def __call__(self, x, state):
        return self.norm(x * self.scale, state)


def test_a_pickle_is_the_same_module_and_functions_without_a_name_are_refused():
    model = Plain(nn.BatchNorm(5, "batch", mode="batch"))
    module = br.from_equinox(model, nn.State(model), vmap=True)
    twin = pickle.loads(pickle.dumps(module))
    first, second = module.apply(X, mode="train"), twin.apply(X, mode="train")
    assert same(first[0], second[0])
    assert same(first[1], second[1])
    partial = br.from_equinox(Holds(functools.partial(sorted, reverse=True)))
    assert jax.tree.structure(pickle.loads(pickle.dumps(partial))) == jax.tree.structure(partial)
    for refused in (Language(KEY), nn.MLP(5, 3, 7, 1, key=KEY)):
        with pytest.raises(CheckpointError, match=r"^a Skeleton cannot be pickled: Can't "):
            pickle.dumps(br.from_equinox(refused))


def test_an_ensemble_is_made_by_vmap_over_the_wrapping():
    def made(key):
        return br.from_equinox(Net(key), vmap=True)

    keys = jax.random.split(KEY, 3)
    ensemble = jax.jit(jax.vmap(made))(keys)
    outs, after = jax.vmap(lambda module: module.apply(X, mode="train"))(ensemble)
    out, _ = jax.jit(made)(keys[1]).apply(X, mode="train")
    np.testing.assert_allclose(outs[1], out, rtol=1e-5, atol=1e-6)
    assert after.at["state.state.norm.batch_counter"].get().tolist() == [1, 1, 1]
    assert jax.tree.structure(after) == jax.tree.structure(made(KEY))


def test_a_step_may_take_the_memory_of_the_module_before_it():
    @functools.partial(jax.jit, donate_argnums=0)
    def step(module, x):
        grads = br.grad(lambda module: (module.apply(x, mode="train")[0] ** 2).sum())(module)
        _, module = module.apply(x, mode="train")
        return module.update(jax.tree.map(jnp.subtract, module.parameters(), grads))

    module = jax.tree.map(jnp.copy, br.from_equinox(Net(KEY), vmap=True))
    for _ in range(3):
        module = step(module, X)
    assert module.at["state.state.norm.batch_counter"].get() == 3


@pytest.mark.parametrize(
    ("array", "came"), [(jnp.ones(2), "float32[2]"), (jnp.ones(3, jnp.int32), "int32[3]")]
)
def test_an_array_of_another_form_is_refused_with_its_path(array, came):
    module = br.from_equinox(nn.Linear(5, 3, key=KEY))
    assert refusal(StructureError, lambda: module.at["params.bias"].set(array)) == (
        f"params.bias is float32[3], and {came} was given. To change sizes, set the whole module:"
        f" module.at[path].set(new_module)"
    )
