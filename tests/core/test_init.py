"""init: what it makes, with which keys, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import FieldError, MissingRngError, UninitialisedError
from bridge.core.leaves import LAZY, Leaves
from bridge.core.opaque import Opaque
from bridge.core.paths import fingerprint
from bridge.core.wrapped import Wrapped

KEY = jax.random.key(5)
X = jnp.arange(6.0).reshape(2, 3)
normal = jax.nn.initializers.normal()


class Dense(br.Module):
    w: br.Parameter

    def __init__(self, n_in, n_out):
        self.w = br.ParamInit((n_in, n_out), normal)

    def __call__(self, x):
        return x @ self.w


class Counter(br.Module):
    calls: br.State

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return x


class Net(br.Module):
    parts: dict[str, br.Module]

    def __call__(self, x):
        for part in self.parts.values():
            x = part(x)
        return x


class Affine(Wrapped):
    """Takes its shape from its input, as the models of Linen and Haiku do."""

    def __init__(self, size):
        self.model = Opaque(size)
        self.params = self.state = LAZY

    def make(self, frame, method, args, kwargs):
        shape = (args[0].shape[-1], self.model.value)
        w = jax.random.normal(frame.init_key()["default"], shape)
        return None, {"dense": {"w": w}}, {"stats": {"n": jnp.zeros((), jnp.int32)}}, ()

    def run(self, frame, method, args, kwargs):
        n = self.state.tree()["stats"]["n"]
        return args[0] @ self.params["dense"]["w"], {"stats": {"n": n + 1}}


def values(module):
    return [leaf.tolist() for leaf in jax.tree.leaves(module)]


def test_init_makes_what_is_not_there_with_the_key_of_the_path():
    module = Net({"a": Dense(3, 5)}).init(KEY)
    path_key = jax.random.fold_in(KEY, fingerprint(("parts", "a", "w")))
    assert module.parts["a"].w.tolist() == normal(path_key, (3, 5), jnp.float32).tolist()


def test_init_leaves_alone_what_is_there():
    made = Dense(3, 5).init(KEY)
    module = Net({"a": made, "b": Dense(5, 7)}).init(jax.random.key(1))
    assert module.parts["a"].w is made.w
    assert module.init(jax.random.key(2)) is module


def test_init_makes_arrays_of_every_kind_and_in_containers():
    class Many(br.Module):
        weights: list[dict[str, br.Parameter]]
        table: br.State

        def __init__(self):
            self.weights = [{"a": br.ParamInit((3,), normal)}, {"b": br.ParamInit((5,), normal)}]
            self.table = br.ParamInit((7,), jax.nn.initializers.ones, jnp.bfloat16)

    module = Many().init(KEY)
    assert [leaf.shape for leaf in jax.tree.leaves(module)] == [(3,), (5,), (7,)]
    assert module.table.dtype == jnp.bfloat16


def test_a_new_sibling_changes_nothing_of_the_others():
    one = Net({"a": Dense(3, 5), "b": Dense(5, 7)}).init(KEY)
    more = Net({"0": Dense(3, 3), "a": Dense(3, 5), "m": Dense(5, 5), "b": Dense(5, 7)}).init(KEY)
    assert more.parts["a"].w.tolist() == one.parts["a"].w.tolist()
    assert more.parts["b"].w.tolist() == one.parts["b"].w.tolist()
    assert more.parts["m"].w.tolist() != more.parts["b"].w[:5, :5].tolist()


@pytest.mark.parametrize(
    "key",
    [
        {"params": KEY},
        {"params": KEY, "default": jax.random.key(1)},
        {"default": KEY, "dropout": jax.random.key(1)},
    ],
)
def test_keys_by_stream(key):
    assert values(Dense(3, 5).init(key)) == values(Dense(3, 5).init(KEY))


def test_no_stream_for_parameters(refuses):
    with refuses(
        MissingRngError,
        "init makes parameters with the stream 'params'; the streams given are 'dropout', 'latent'."
        " Type module.init(key, ...), or module.init({'params': key, ...}, ...)",
    ):
        Dense(3, 5).init({"dropout": KEY, "latent": KEY})


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)])
def test_init_under_jit_and_eval_shape(key):
    module = Net({"a": Dense(3, 5), "b": Affine(7)})
    eager = module.init(key, X)
    jitted = jax.jit(lambda k: module.init(k, X))(key)
    passed = jax.jit(lambda m, k: m.init(k, X))(module, key)
    shapes = jax.eval_shape(lambda k: module.init(k, X), key)
    for other in (jitted, passed):
        assert jax.tree.structure(other) == jax.tree.structure(eager)
        for one, two in zip(jax.tree.leaves(other), jax.tree.leaves(eager), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6)
    assert jax.tree.structure(shapes) == jax.tree.structure(eager)
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [(3, 5), (5, 7), ()]


def test_a_tree_of_shapes_initialises_no_more():
    shapes = jax.eval_shape(lambda k: Dense(3, 5).init(k), KEY)
    assert shapes.init(KEY) is shapes
    assert len(jax.tree.leaves(shapes.parameters())) == 1


def test_many_at_once_by_vmap():
    stacked = jax.vmap(lambda k: Dense(3, 5).init(k))(jax.random.split(KEY, 7))
    assert stacked.w.shape == (7, 3, 5)
    assert len({tuple(map(tuple, w.tolist())) for w in stacked.w}) == 7


# Shapes that come from the input.


@pytest.mark.parametrize(
    "sample",
    [X, jax.ShapeDtypeStruct((2, 3), jnp.float32), np.ones((2, 3), np.float32)],
    ids=["array", "abstract", "numpy"],
)
def test_lazy_parts_take_the_shapes_that_reach_them(sample):
    module = Net({"a": Affine(5), "count": Counter(), "b": Net({"c": Affine(7)})})
    module = module.init(KEY, sample)
    assert module.at["parts.a.params.dense.w"].get().shape == (3, 5)
    assert module.at["parts.b.parts.c.params.dense.w"].get().shape == (5, 7)
    _, after = module.apply(X)
    assert jax.tree.structure(after) == jax.tree.structure(module)


def test_init_advances_no_state():
    made = Affine(5).init(KEY, X)
    _, made = made.apply(X)
    module = Net({"a": made, "count": Counter(), "b": Affine(7)}).init(KEY, X)
    assert int(module.parts["a"].state["stats"]["n"]) == 1
    assert int(module.parts["count"].calls) == 0
    assert int(module.parts["b"].state["stats"]["n"]) == 0
    assert module.parts["a"].params is made.params


def test_lazy_parts_are_made_with_the_key_of_their_path():
    alone = Affine(5).init(KEY, X)
    assert alone.params["dense"]["w"].tolist() == jax.random.normal(KEY, (3, 5)).tolist()
    below = Net({"a": Affine(5)}).init(KEY, X).parts["a"]
    path_key = jax.random.fold_in(KEY, fingerprint(("parts", "a")))
    assert below.params["dense"]["w"].tolist() == jax.random.normal(path_key, (3, 5)).tolist()


def test_a_shared_lazy_part_is_made_once():
    class Twice(br.Module):
        one: br.Module
        two: br.Module

        def __call__(self, x):
            return self.two(self.one(x))

    affine = Affine(3)
    module = Twice(affine, affine).init(KEY, X)
    assert len(jax.tree.leaves(module)) == 2
    _, after = module.apply(X)
    assert int(after.one.state["stats"]["n"]) == 2


def test_init_by_another_method_and_mode():
    class Modal(Net):
        def encode(self, x):
            return self.parts["a"](x) if self.training else x

    module = Modal({"a": Affine(5), "b": Affine(7)})
    encoded = module.init(KEY, X, method="encode", mode="train")
    assert isinstance(encoded.parts["a"].params, Leaves)
    assert encoded.parts["b"].params is LAZY
    whole = encoded.init(jax.random.key(1), X)
    assert whole.parts["a"].params is encoded.parts["a"].params
    assert whole.at["parts.b.params.dense.w"].get().shape == (5, 7)


def test_draws_during_init():
    class Noisy(Net):
        def __call__(self, x):
            return super().__call__(
                x + jax.random.normal(self.rng) + jax.random.normal(self.draw("latent"))
            )

    module = Noisy({"a": Affine(5)}).init(KEY, X)
    assert module.at["parts.a.params.dense.w"].get().shape == (3, 5)


def test_a_missing_sample(refuses):
    with refuses(
        UninitialisedError,
        "parts.a, parts.b.parts.c: shapes come from the input; give one: module.init(key, *sample),"
        " where a sample is an array or a jax.ShapeDtypeStruct",
    ):
        Net({"a": Affine(5), "b": Net({"c": Affine(7)})}).init(KEY)


@pytest.mark.parametrize(
    ("module", "place"), [(Affine(5), "the root module"), (Net({"a": Affine(5)}), "parts.a")]
)
def test_a_lazy_part_that_is_called_too_early(module, place, refuses):
    with refuses(
        UninitialisedError,
        f"{place} is not initialised; type module = module.init(key, *sample) first",
    ):
        module(X)


@pytest.mark.parametrize(
    ("made", "came"),
    [
        (lambda key, shape, dtype: jnp.ones((5, 3)), "float32[5, 3]"),
        (lambda key, shape, dtype: jnp.ones(shape, jnp.int32), "int32[3, 5]"),
    ],
)
def test_an_initializer_that_makes_something_else(made, came, refuses):
    with refuses(
        FieldError,
        f"the initializer {made!r} made {came}; ParamInit asked for float32[3, 5]",
    ):
        br.ParamInit((3, 5), made).make(KEY)


def test_an_initializer_of_numpy_makes_a_jax_array():
    array = br.ParamInit((3,), lambda key, shape, dtype: np.ones(shape)).make(KEY)
    assert isinstance(array, jax.Array)
    assert array.dtype == jnp.float32
