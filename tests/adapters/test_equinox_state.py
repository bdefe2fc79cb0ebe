"""Equinox's State: where it comes from, what a method does with it, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import ModelError
from bridge.core.paths import join
from bridge.core.tree import entries

eqx = pytest.importorskip("equinox")
nn = eqx.nn

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (7, 5))


class Counter(eqx.Module):
    """Counts its calls; `how` it gives its State back."""

    index: nn.StateIndex
    how: str = "last"

    def __init__(self, how="last", start=0.0):
        self.index, self.how = nn.StateIndex(jnp.array(start)), how

    def __call__(self, x, state):
        old = state
        state = state.set(self.index, state.get(self.index) + 1)
        returned = {
            "last": (x, state),
            "first": (state, x),
            "in a list": [x, x, state],
            "alone": state,
            "old": (x, old),
            "in a dict": {"x": x, "state": state},
            "deep": ((x, state), x),
            "twice": (x, state, state),
            "smaller": (x, nn.State(())),
            "not at all": x,
        }
        return returned[self.how]

    def peek(self, state, x, scale=1.0):
        return scale * x + state.get(self.index), state

    def double(self, x):
        return 2 * x


class Norm(eqx.Module):
    norm: nn.BatchNorm

    def __init__(self):
        self.norm = nn.BatchNorm(5, "batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(x, state)


def paths_of(module: Any) -> list[str]:
    return [join(entry.path) for entry in entries(module)]


def count(module: Any) -> float:
    return float(module.at["state.state.index"].get())


def refusal(call: Any) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return str(caught.value)


# Where it comes from


def kept_together() -> Any:
    model = Counter()
    return nn.delete_init_state(model), nn.State(model)


def still_inside() -> Any:
    model = Counter()
    return model, nn.State(model)


@pytest.mark.parametrize(
    "build",
    [Counter, nn.make_with_state(Counter), kept_together, still_inside],
    ids=["model alone", "make_with_state", "State(model)", "State(model) of a whole model"],
)
def test_however_the_state_was_made_it_is_the_same_module(build):
    made = build()
    module = br.from_equinox(made)
    assert jax.tree.structure(module) == jax.tree.structure(br.from_equinox(Counter()))
    if isinstance(made, tuple):
        assert jax.tree.structure(br.from_equinox(*made)) == jax.tree.structure(module)
    out, after = module.apply(X)
    np.testing.assert_array_equal(out, X)
    assert (count(module), count(after), count(after.apply(X)[1])) == (0, 1, 2)


class Twice(eqx.Module):
    first: nn.StateIndex
    second: nn.StateIndex

    def __init__(self):
        self.first = self.second = nn.StateIndex(jnp.zeros(()))

    def __call__(self, x, state):
        state = state.set(self.first, state.get(self.first) + 1)
        return x + state.get(self.second), state


@pytest.mark.parametrize("whole", [True, False])
def test_one_state_index_at_two_places_is_one_state(whole):
    model = Twice()
    module = br.from_equinox(model) if whole else br.from_equinox(model, nn.State(model))
    assert paths_of(module) == ["state.state.first"]
    np.testing.assert_array_equal(module.apply(X)[0], X + 1)
    native, state = module.native()
    np.testing.assert_array_equal(native(X, state)[0], X + 1)


def test_make_with_state_parts_a_state_index_at_two_places_and_so_they_are_two():
    model, state = nn.make_with_state(Twice)()
    module = br.from_equinox(model, state)
    assert paths_of(module) == ["state.state.first", "state.state.second"]
    np.testing.assert_array_equal(module.apply(X)[0], model(X, state)[0])


def test_a_state_may_be_any_tree_of_arrays_and_numbers():
    class Tree(eqx.Module):
        index: nn.StateIndex

        def __init__(self):
            self.index = nn.StateIndex({"a": np.arange(3), "b": (0, None, 1.5)})

        def __call__(self, x, state):
            held = jax.tree.map(lambda leaf: leaf + 1, state.get(self.index))
            return x, state.set(self.index, held)

    module = br.from_equinox(Tree())
    assert paths_of(module) == [f"state.state.index.{name}" for name in ("a", "b.0", "b.2")]
    _, after = module.apply(X)
    assert [leaf.tolist() for leaf in jax.tree.leaves(after)] == [[1, 2, 3], 1, 2.5]


def test_a_state_without_entries_is_kept_for_a_model_that_asks_for_one():
    class Asks(eqx.Module):
        def __call__(self, x, state):
            return 2 * x, state

    model, state = nn.make_with_state(Asks)()
    np.testing.assert_array_equal(br.from_equinox(model, state)(X), 2 * X)
    linear, state = nn.make_with_state(nn.Linear)(5, 3, key=KEY)
    alone = br.from_equinox(linear)
    assert jax.tree.structure(br.from_equinox(linear, state)) == jax.tree.structure(alone)


class Layer(eqx.Module):
    linear: nn.Linear
    norm: nn.BatchNorm

    def __init__(self, key):
        self.linear = nn.Linear(5, 5, key=key)
        self.norm = nn.BatchNorm(5, "batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(self.linear(x), state)


class Stack(eqx.Module):
    layers: Layer

    def __init__(self, key):
        self.layers = eqx.filter_vmap(Layer)(jax.random.split(key, 3))

    def __call__(self, x, state):
        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def step(x, layer):
            arrays, state = layer
            return eqx.combine(arrays, static)(x, state)

        x, own = jax.lax.scan(step, x, (arrays, state.substate(self.layers)))
        return x, state.update(own)


def test_layers_stacked_by_filter_vmap_and_scanned_keep_stacked_states():
    model, state = nn.make_with_state(Stack)(KEY)
    module = br.from_equinox(model, state, vmap=True)

    @eqx.filter_jit  # the arrays are arguments, as ours are: of constants XLA makes another program
    def run(model, x, state):
        return jax.vmap(model, (0, None), (0, None), axis_name="batch")(x, state)

    own = run(model, X, state)
    out, after = jax.jit(lambda module: module.apply(X, mode="train"))(module)
    np.testing.assert_array_equal(out, own[0])
    assert jax.tree.all(jax.tree.map(np.array_equal, after.native()[1], own[1]))
    assert after.at["state.state.layers.norm.batch_counter"].get().tolist() == [1, 1, 1]
    whole = br.from_equinox(Stack(KEY), vmap=True)
    assert jax.tree.structure(whole) == jax.tree.structure(module)


def test_an_ensemble_made_by_filter_vmap_is_an_ensemble_of_modules():
    models, states = eqx.filter_vmap(nn.make_with_state(Layer))(jax.random.split(KEY, 3))
    ensemble = br.from_equinox(models, states, vmap=True)
    outs, after = jax.vmap(lambda module: module.apply(X, mode="train"))(ensemble)
    one, state = jax.tree.map(lambda leaf: leaf[1], eqx.filter((models, states), eqx.is_array))
    one = eqx.combine(one, models)
    own, state = jax.vmap(one, (0, None), (0, None), axis_name="batch")(X, state)
    np.testing.assert_allclose(outs[1], own, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(after) == jax.tree.structure(ensemble)


def test_what_a_stateful_sequential_needs_it_gets():
    layers = [nn.Linear(5, 3, key=KEY), nn.BatchNorm(3, "batch", mode="batch"), nn.Lambda(jnp.tanh)]
    whole = br.from_equinox(nn.Sequential(layers), vmap=True)
    out, after = whole.apply(X, mode="train")
    model, state = whole.native()
    own, state = jax.vmap(model, (0, None), (0, None), axis_name="batch")(X, state)
    np.testing.assert_array_equal(out, own)
    assert jax.tree.all(jax.tree.map(np.array_equal, after.native()[1], state))
    stateless = br.from_equinox(nn.Sequential(layers[:1]), vmap=True)
    np.testing.assert_array_equal(stateless(X), jax.vmap(layers[0])(X))


# What a method does with it


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize(
    ("how", "form"),
    [("last", "*"), ("first", "*"), ("in a list", "[*, *]"), ("alone", "None")],
)
def test_the_state_is_taken_out_of_an_output_wherever_it_stands_beside_it(how, form, vmap):
    out, after = br.from_equinox(Counter(how), vmap=vmap).apply(X)
    assert str(jax.tree.structure(out)) == f"PyTreeDef({form})"
    assert count(after) == 1


LOST = "the root module: Counter.__call__(x, state) returns "


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize(
    ("how", "text"),
    [
        (
            "old",
            LOST + "an old eqx.nn.State, which state.set has replaced; return the last one",
        ),
        (
            "smaller",
            LOST + "a State of other entries than the one that it was given; put it back with"
            " state.update(substate)",
        ),
        *[
            (
                how,
                LOST + "a State among other things, where its update would be lost; return one,"
                " beside the output: (out, state)",
            )
            for how in ("in a dict", "deep", "twice")
        ],
    ],
)
def test_a_state_that_would_be_lost_is_refused(how, text, vmap):
    assert refusal(lambda: br.from_equinox(Counter(how), vmap=vmap).apply(X)) == text


def test_a_method_may_read_the_state_or_keep_its_update_to_itself():
    module = br.from_equinox(Counter("not at all", start=3.0))
    out, after = module.apply(X)
    np.testing.assert_array_equal(out, X)
    assert after is module
    np.testing.assert_array_equal(module.double(X), 2 * X)


def test_the_arguments_of_a_method_are_counted_without_its_state():
    module = br.from_equinox(Counter(start=3.0))
    np.testing.assert_array_equal(module.peek(X), X + 3)
    np.testing.assert_array_equal(module.peek(X, 2.0), 2 * X + 3)
    np.testing.assert_array_equal(module.peek(x=X, scale=2.0), 2 * X + 3)


def test_the_state_goes_to_the_parameter_that_is_annotated_as_one():
    class Cell(eqx.Module):
        index: nn.StateIndex

        def __init__(self):
            self.index = nn.StateIndex(jnp.zeros(()))

        def __call__(self, x, state, calls: nn.State):
            return x + state, calls.set(self.index, calls.get(self.index) + 1)

        def late(self, x, calls: "nn.State | None" = None):
            return x + calls.get(self.index), calls

    module = br.from_equinox(Cell())
    out, after = module.apply(X, 2 * X)
    np.testing.assert_array_equal(out, 3 * X)
    assert count(after) == 1
    np.testing.assert_array_equal(after.late(X), X + 1)


def test_a_parameter_that_nobody_fills_is_named():
    class Other(Counter):
        def __call__(self, x, calls):
            return super().__call__(x, calls)

    assert refusal(lambda: br.from_equinox(Other())(X)) == (
        "the root module: Other.__call__(x, calls) was called with other arguments: missing a required"
        " argument: 'calls'. The Module gives a key to `key` or `rng`, and its eqx.nn.State to `state`"
        " or to what is annotated as one; give everything else in the call"
    )


def test_a_state_must_be_one_for_all_examples():
    class Sums(Counter):
        def __call__(self, x, state):
            return x, state.set(self.index, x.sum())

    module = br.from_equinox(Sums(), vmap=True)
    assert refusal(lambda: module.apply(X)) == (
        "the root module: Sums.__call__(x, state) gives another State for each example, and there is"
        " one for all: reduce what it sets, jax.lax.pmean(value, 'batch')"
    )
    _, after = br.from_equinox(Sums()).apply(X)
    assert count(after) == X.sum()


def test_a_state_keeps_its_dtype_as_equinox_wants_it():
    class Widens(Counter):
        def __call__(self, x, state):
            return x, state.set(self.index, jnp.zeros(3))

    with pytest.raises(ValueError, match="Old and new values have different structures/shapes/dtypes"):
        br.from_equinox(Widens()).apply(X)


def test_the_state_that_was_given_stays_usable():
    model, state = nn.make_with_state(Counter)()
    module = br.from_equinox(model, state)
    module.apply(X)
    assert model(X, state)[1].get(model.index) == 1
    module.apply(X)


# What is refused


class Holds(eqx.Module):
    model: eqx.Module
    held: nn.State


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (
            lambda: br.from_equinox(Counter(), {"index": 0}),
            "the state of Counter is an eqx.nn.State, as eqx.nn.make_with_state gives it; it was given"
            " a dict",
        ),
        (
            lambda: br.from_equinox(Holds(*nn.make_with_state(Norm)())),
            "this Holds cannot be wrapped:\n  held is an eqx.nn.State; take it out of the model and"
            " give it beside it: from_equinox(model, state)",
        ),
        (
            lambda: br.from_equinox(Counter())(X, state={"deep": nn.State(())}),
            "a wrapped Equinox model keeps its eqx.nn.State itself; call it without one:"
            " out, module = module.apply(x)",
        ),
    ],
)
def test_a_state_in_another_place_is_refused(wrap, text):
    assert refusal(wrap) == text
