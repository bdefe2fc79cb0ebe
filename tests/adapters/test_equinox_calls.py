"""How an Equinox model is called: keys, the train flag, batches, and methods of every form."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import MissingRngError, ModelError, TraceError

eqx = pytest.importorskip("equinox")
nn = eqx.nn

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (7, 5))
DROPPED = nn.Dropout(0.5)(X, key=KEY)
SIZES = X.shape


def refusal(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


class Drops(eqx.Module):
    """Dropout behind every way to take a key or a flag."""

    dropout: nn.Dropout = nn.Dropout(0.5)

    def __call__(self, x, *, key):
        return self.dropout(x, key=key)

    def optional(self, x, key=None):
        return x if key is None else self.dropout(x, key=key)

    def positional(self, key, x, /):
        return self.dropout(x, key=key)

    def other(self, x, rng=None):
        return self.dropout(x, key=rng)

    def attends(self, query, key, rng):
        return self.dropout(query + 0 * key, key=rng)

    def passes(self, x, **options):
        return self.dropout(x, **options)

    def named(self, x, dropout_key):
        return self.dropout(x, key=dropout_key)

    def splits(self, x, key):
        first, _ = jax.random.split(key)
        return self.dropout(x, key=first)

    def unpacks(self, x, key):
        first, _ = key
        return self.dropout(x, key=first)

    def told(self, x, inference=False, key=None):
        return self.dropout(x, inference=inference, key=key)

    def trains(self, x, train, key=None):
        return self.dropout(x, inference=not train, key=key)

    def both(self, x, inference=None, deterministic=None, key=None):
        inference = deterministic if inference is None else inference
        return self.dropout(x, inference=inference, key=key)

    @eqx.filter_jit
    def compiled(self, x, *, key):
        return self.dropout(x, key=key)

    @staticmethod
    def static(x, key):
        return nn.Dropout(0.5)(x, key=key)

    @classmethod
    def of_class(cls, x, key):
        return cls().dropout(x, key=key)


class Compiled(Drops):
    @eqx.filter_jit
    def __call__(self, x, *, key):
        return self.dropout(x, key=key)


DROPS = br.from_equinox(Drops())
TAKERS = ("__call__", "optional", "other", "told", "trains", "both", "compiled", "static", "of_class")


# Keys


@pytest.mark.parametrize("method", TAKERS)
def test_the_rng_goes_to_the_key_of_a_method_however_it_is_taken(method):
    np.testing.assert_array_equal(DROPS.apply(X, rng=KEY, mode="train", method=method)[0], DROPPED)


@pytest.mark.parametrize("model", [Compiled(), eqx.filter_jit(Drops()), eqx.filter_jit(nn.Dropout())])
def test_the_rng_reaches_a_model_behind_filter_jit(model):
    np.testing.assert_array_equal(br.from_equinox(model).apply(X, rng=KEY, mode="train")[0], DROPPED)


def test_of_two_names_for_a_key_the_rng_goes_to_the_one_that_means_nothing_else():
    out, _ = DROPS.apply(X, X, rng=KEY, mode="train", method="attends")
    np.testing.assert_array_equal(out, DROPPED)


def test_a_key_that_the_caller_gives_goes_first():
    other = jax.random.key(11)
    out, _ = DROPS.apply(X, key=KEY, rng=other, mode="train")
    np.testing.assert_array_equal(out, DROPPED)
    out, _ = DROPS.apply(KEY, X, rng=other, mode="train", method="positional")
    np.testing.assert_array_equal(out, DROPPED)
    out, _ = DROPS.apply(X, key=KEY, mode="train", method="passes")
    np.testing.assert_array_equal(out, DROPPED)
    assert DROPS.apply(X, None, rng=KEY, mode="train", method="optional")[0] is X


def test_eval_needs_no_key_even_where_the_method_asks_for_one():
    for method in ("__call__", "optional", "other", "told", "trains", "both", "static"):
        if method != "static":
            assert DROPS.apply(X, method=method)[0] is X
    sequence = nn.Sequential([nn.Linear(5, 3, key=KEY), nn.Dropout(0.5)])
    np.testing.assert_array_equal(br.from_equinox(sequence)(X[0]), sequence[0](X[0]))


NO_RNG = "the root module draws from the stream 'default', and no rng was given. Type"


@pytest.mark.parametrize("method", ["__call__", "splits", "unpacks", "told", "other", "compiled"])
def test_a_draw_without_rng_says_where(method):
    with pytest.raises(MissingRngError) as caught:
        DROPS.apply(X, mode="train", method=method)
    assert str(caught.value).startswith(NO_RNG)


def test_a_method_for_which_none_means_something_is_called_with_none():
    assert DROPS.apply(X, mode="train", method="optional")[0] is X


def test_a_method_without_a_parameter_for_the_key_says_so():
    assert refusal(ModelError, lambda: DROPS.apply(X, rng=KEY, mode="train", method="passes")) == (
        "the root module: Drops.passes(x, **options) has no argument `key`, and draws random numbers;"
        " give it one, or give the key in the call as what the method takes for one"
    )
    assert refusal(ModelError, lambda: DROPS.apply(X, rng=KEY, method="named")).startswith(
        "the root module: Drops.named(x, dropout_key) was called with other arguments: missing a"
        " required argument: 'dropout_key'. The Module gives a key to `key` or `rng`"
    )


class Raw(br.Module):
    """Calls its child under a raw transform, by the lifted one, or as it is."""

    child: br.Module
    how: Callable

    def __call__(self, x):
        return self.how(self.child)(x)


@pytest.mark.parametrize("method", ["__call__", "optional", "splits", "other", "compiled"])
def test_a_key_is_not_silently_missing_under_a_raw_transform(method):
    def mapped(child):
        return jax.vmap(child if method == "__call__" else getattr(child, method))

    text = refusal(TraceError, lambda: Raw(DROPS, mapped).apply(X, rng=KEY, mode="train"))
    assert text.startswith("child draws from the rng stream 'default' inside a JAX transform that was")


def test_what_takes_a_key_and_draws_nothing_is_welcome_under_a_raw_transform():
    linear = nn.Linear(5, 3, key=KEY)
    out, _ = Raw(br.from_equinox(linear), jax.vmap).apply(X, rng=KEY, mode="train")
    np.testing.assert_array_equal(out, jax.vmap(linear)(X))


# The train flag


def test_the_mode_sets_every_flag_as_inference_mode_does():
    class Net(eqx.Module):
        parts: dict
        inference: bool

        def __call__(self, x, key=None):
            x = self.parts["drop"][0](x, key=key)
            return x if self.inference else -x

    model = Net({"drop": [nn.Dropout(0.5, inference=True)]}, inference=True)
    module = br.from_equinox(model)
    np.testing.assert_array_equal(module.apply(X, rng=KEY, mode="train")[0], -DROPPED)
    assert module.apply(X, rng=KEY, mode="eval")[0] is X
    for mode, flag in (("train", False), ("eval", True)):
        assert eqx.tree_equal(module.with_mode(mode).native(), eqx.nn.inference_mode(model, flag))
    assert eqx.tree_equal(module.native(), model)


def test_a_part_is_pinned_by_wrapping_it_alone():
    class Net(br.Module):
        first: br.Module
        second: br.Module

        def __call__(self, x):
            return self.first(x), self.second(x)

    net = Net(DROPS, br.from_equinox(Drops())).at["second"].apply(lambda part: part.eval())
    first, second = net.apply(X, rng=KEY, mode="train")[0]
    assert not np.array_equal(first, X)
    assert second is X


@pytest.mark.parametrize("method", ["told", "trains", "both"])
def test_a_flag_of_the_call_is_that_of_the_mode(method):
    np.testing.assert_array_equal(DROPS.apply(X, rng=KEY, mode="train", method=method)[0], DROPPED)
    assert DROPS.apply(X, rng=KEY, mode="eval", method=method)[0] is X


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_flag_that_the_caller_gives_goes_before_the_mode(mode):
    run = functools.partial(DROPS.apply, X, rng=KEY, mode=mode)
    assert run(method="told", inference=True)[0] is X
    assert run(method="trains", train=False)[0] is X
    np.testing.assert_array_equal(run(method="told", inference=False)[0], DROPPED)
    np.testing.assert_array_equal(DROPS.apply(X, True, KEY, mode=mode, method="trains")[0], DROPPED)
    dropout = br.from_equinox(nn.Dropout(0.5))
    np.testing.assert_array_equal(dropout.apply(X, rng=KEY, mode=mode, inference=False)[0], DROPPED)


def test_a_flag_given_twice_is_refused():
    given = {"inference": True, "deterministic": False}
    assert refusal(ModelError, lambda: DROPS.apply(X, rng=KEY, method="both", **given)) == (
        "the root module: Drops.both(x, inference=None, deterministic=None, key=None) was given the"
        " train flag twice, as deterministic=False and inference=True; give one"
    )
    text = refusal(ModelError, lambda: DROPS.apply(X, False, method="told", inference=True))
    assert "was called with other arguments: multiple values for argument 'inference'." in text


def test_what_is_named_inference_and_is_no_flag_is_left_alone():
    class Infers(eqx.Module):
        dropout: nn.Dropout

        def inference(self, x):
            return 3 * x

        def __call__(self, x, key=None):
            return self.dropout(x, key=key)

    class Has(eqx.Module):
        inference: eqx.Module

        def __call__(self, x, key=None):
            return self.inference(x, key=key)

    for model in (Infers(nn.Dropout(0.5)), Has(nn.Dropout(0.5))):
        module = br.from_equinox(model)
        np.testing.assert_array_equal(module.apply(X, rng=KEY, mode="train")[0], DROPPED)
        assert module.apply(X)[0] is X
    np.testing.assert_array_equal(br.from_equinox(Infers(nn.Dropout())).inference(X), 3 * X)


class Static(eqx.Module):
    inference: bool = eqx.field(static=True)


class Flag(eqx.Module):
    inference: Any


class Unset(eqx.Module):
    inference: bool = False

    def __init__(self):
        """Sets nothing."""


@pytest.mark.parametrize(
    ("model", "held"),
    [
        (Static(False), "a static field"),
        (Flag(jnp.array(False)), "an array"),
        (Flag(None), "None"),
        (Flag(0), "0"),
        (Unset(), "a default of the class alone"),
    ],
)
def test_a_flag_that_no_mode_can_set_is_refused_with_its_path(model, held):
    class Holder(eqx.Module):
        parts: list

    assert refusal(ModelError, lambda: br.from_equinox(Holder([model]))) == (
        f"this Holder cannot be wrapped:\n  parts.0.inference is {held}, which no mode can set; make"
        f" it an ordinary field that __init__ sets to a bool"
    )


# Batches


def batched(model: Any) -> Any:
    return br.from_equinox(model, vmap=True)


class Gated(eqx.Module):
    def __call__(self, x, gate=2.0, *, shift=None):
        out = x["left"] * gate + x["right"][0]
        return out if shift is None else out + shift

    def forms(self, x):
        return {"sum": x.sum(), "pair": (x, "name", None, 3.0)}

    def noise(self, x, key):
        return x + jax.random.normal(key, x.shape)


def test_trees_and_keywords_are_mapped_and_what_is_no_array_is_not():
    x = {"left": X, "right": [np.asarray(X)]}
    np.testing.assert_array_equal(batched(Gated())(x), 2 * X + X)
    np.testing.assert_array_equal(batched(Gated())(x, gate=3.0), 3 * X + X)
    # An array of NumPy is an array: each example has its own row.
    gate = np.arange(7.0, dtype=np.float32)
    np.testing.assert_array_equal(batched(Gated())(x, gate, shift=X), X * gate[:, None] + X + X)


def test_outputs_of_any_form_come_out_with_a_batch():
    out = batched(Gated()).forms(X)
    np.testing.assert_array_equal(out["sum"], jax.vmap(jnp.sum)(X))
    np.testing.assert_array_equal(out["pair"][0], X)
    assert out["pair"][1:3] == ("name", None)
    assert out["pair"][3].tolist() == [3.0] * 7


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_batch_of_any_size_is_what_vmap_makes_of_it(size):
    layers = [nn.Linear(5, 3, key=KEY), nn.Dropout(0.5)]
    out, _ = batched(nn.Sequential(layers)).apply(X[:size], rng=KEY, mode="train")
    own = jax.vmap(lambda x, key: nn.Sequential(layers)(x, key=key))
    np.testing.assert_array_equal(out, own(X[:size], jax.random.split(KEY, size)))


def test_each_example_draws_with_a_key_of_its_own_or_with_one_that_is_given():
    keys = jax.random.split(KEY, 7)
    own = jax.vmap(Gated().noise)(X, keys)
    np.testing.assert_array_equal(batched(Gated()).apply(X, rng=KEY, method="noise")[0], own)
    np.testing.assert_array_equal(batched(Gated()).noise(X, keys), own)
    np.testing.assert_array_equal(batched(Gated()).noise(X, key=keys), own)


MAPS = (
    " maps axis 0 of every array, because of from_equinox(model, vmap=True); it was given\n{came}\n"
    "Give what all examples share a batch axis as well, jnp.broadcast_to(x, (batch, *x.shape)), or"
    " wrap the model without vmap and map it in a bridge.Module: bridge.vmap(self.model,"
    " in_axes=(0, None))"
)


@pytest.mark.parametrize(
    ("call", "came"),
    [
        (lambda: batched(nn.GRUCell(5, 3, key=KEY))(X, jnp.zeros(3)), "  hidden: [3]\n  input: [7, 5]"),
        (
            lambda: batched(nn.LSTMCell(5, 3, key=KEY))(X, (jnp.zeros((7, 3)), jnp.zeros((2, 3)))),
            "  hidden.0: [7, 3]\n  hidden.1: [2, 3]\n  input: [7, 5]",
        ),
        (lambda: batched(Gated()).noise(X, KEY), "  key: []\n  x: [7, 5]"),
        (lambda: batched(nn.Lambda(jnp.sin))(jnp.ones(())), "  x: []"),
        (lambda: batched(nn.Lambda(jnp.sin))(3.0), "  no array"),
    ],
)
def test_arrays_of_no_common_size_are_named_with_their_shapes(call, came):
    text = refusal(ModelError, call)
    assert text.partition(")")[2].removeprefix(" ").endswith(MAPS.format(came=came).lstrip())


def test_what_all_examples_share_goes_in_through_vmap_of_bridge():
    class Shares(br.Module):
        cell: br.Module

        def __call__(self, x, hidden):
            return br.vmap(self.cell, in_axes=(0, None))(x, hidden)

    cell = nn.GRUCell(5, 3, key=KEY)
    np.testing.assert_array_equal(
        Shares(br.from_equinox(cell))(X, jnp.ones(3)), jax.vmap(cell, (0, None))(X, jnp.ones(3))
    )


class Mean(eqx.Module):
    axis_name: Any = eqx.field(static=True)

    def __call__(self, x):
        return x - jax.lax.pmean(x, self.axis_name)


@pytest.mark.parametrize("name", ["rows", ("rows",), ["rows"]])
def test_any_layer_may_name_the_axis_of_the_batch(name):
    np.testing.assert_allclose(batched(Mean(name))(X), X - X.mean(0), atol=1e-6)


def test_where_layers_name_several_axes_the_caller_says_which_is_the_batch():
    class Both(eqx.Module):
        mean: Mean = Mean("rows")
        inner: Mean = Mean("columns")

        def __call__(self, x):
            return jax.vmap(self.inner, axis_name="columns")(self.mean(x))

    assert refusal(ModelError, lambda: batched(Both())) == (
        "the layers of Both name several axes, 'rows' and 'columns'; say which is that of the batch:"
        " from_equinox(model, vmap='rows')"
    )
    out = br.from_equinox(Both(), vmap="rows")(X)
    np.testing.assert_allclose(out, (X - X.mean(0)) - (X - X.mean(0)).mean(1, keepdims=True), atol=1e-6)


def test_an_axis_that_there_is_not_is_named():
    class Hidden(eqx.Module):
        def __call__(self, x):
            return jax.lax.pmean(x, "rows")

    assert refusal(ModelError, lambda: batched(Hidden())(X)) == (
        "the root module averages over the axis 'rows', and that of its batch is called 'batch'; name"
        " it: from_equinox(model, vmap='rows')"
    )
    np.testing.assert_allclose(br.from_equinox(Hidden(), vmap="rows")(X)[0], X.mean(0), atol=1e-6)
    assert refusal(ModelError, lambda: br.from_equinox(Hidden(), vmap=1)) == (
        "vmap is True, False, or the name of the axis of the batch; not 1"
    )


# Methods


class Many(eqx.Module):
    linear: nn.Linear

    def __call__(self, x, *rest, scale=1.0, **options):
        return self.encode(self.encode(x) + sum(rest)) * scale + options.get("shift", 0)

    def encode(self, x):
        return self.linear(x)

    def update(self, x):
        return 3 * x

    def looped(self, x):
        return jax.lax.scan(lambda x, _: (self.linear(x), None), x, None, length=3)[0]

    def mapped(self, x):
        return eqx.filter_vmap(self.linear)(x)

    def saved(self, x):
        return eqx.filter_checkpoint(self.linear)(x)

    def jitted(self, x):
        return eqx.filter_jit(self.linear)(x)


MANY = Many(nn.Linear(5, 5, key=KEY))


@pytest.mark.parametrize("method", ["encode", "looped", "saved", "jitted", "mapped"])
def test_other_methods_and_what_they_do_inside_are_equinoxs_own(method):
    x = X if method == "mapped" else X[0]
    own, module = getattr(MANY, method), br.from_equinox(MANY)
    np.testing.assert_array_equal(getattr(module, method)(x), own(x))
    grads = jax.jit(br.grad(lambda module: getattr(module, method)(x).sum()))(module)
    expected = eqx.filter_jit(eqx.filter_grad(lambda model: getattr(model, method)(x).sum()))(MANY)
    assert jax.tree.all(jax.tree.map(np.array_equal, jax.tree.leaves(grads), jax.tree.leaves(expected)))


def test_arguments_in_every_form_arrive():
    module = br.from_equinox(MANY)
    np.testing.assert_array_equal(
        module(X[0], X[1], X[2], scale=3.0, shift=X[3]), MANY(X[0], X[1], X[2], scale=3.0, shift=X[3])
    )


def test_a_method_with_a_name_of_modules_own_is_invoked():
    out, _ = br.from_equinox(MANY).apply(X, method="update")
    np.testing.assert_array_equal(out, 3 * X)


def test_what_does_not_fit_the_signature_is_named():
    module = br.from_equinox(MANY)
    assert refusal(ModelError, lambda: module.encode(X[0], X[1])).startswith(
        "the root module: Many.encode(x) was called with other arguments: too many positional"
    )
    assert refusal(AttributeError, lambda: module.decode) == (
        "the wrapped Many has no method 'decode'; its arrays are read by path:"
        " module.at['params...'].get()"
    )
    assert refusal(ModelError, lambda: br.from_equinox(Silent())(X)) == (
        "the root module: Silent has no method '__call__'"
    )


class Silent(eqx.Module):
    size: int = eqx.field(static=True, default=3)
