"""One module at two places, and one array at two places."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import SharingError

KEY = jax.random.key(5)
X = jnp.arange(6.0).reshape(2, 3)


class Dense(br.Module):
    w: br.Parameter
    calls: br.State

    def __init__(self, size=3, scale=0.1):
        self.w = jnp.arange(1.0, 1 + size * size).reshape(size, size) * scale
        self.calls = 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return x @ self.w


class Seq(br.Module):
    parts: list[br.Module]

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


class Tied(br.Module):
    embed: br.Parameter
    head: br.Parameter
    other: br.Parameter
    steps: br.State

    def __call__(self, x):
        return (x @ self.embed) @ self.head + self.other.sum()


def shared():
    dense = Dense()
    return Seq([dense, jnp.tanh, Seq([dense, Dense(3, 0.2)]), dense])


def tied():
    values = jnp.arange(9.0).reshape(3, 3) / 7
    return br.tie(Tied(values, jnp.ones((3, 3)), jnp.ones((3, 3)), 0), "head", "embed")


def reference(w, other, x=X):
    return jnp.tanh(x @ w) @ w @ other @ w


def through_jit(module):
    return jax.jit(lambda m: m)(module)


def rebuilt(module):
    leaves, treedef = jax.tree.flatten(module)
    return jax.tree.unflatten(treedef, leaves)


PASSES = [lambda m: m, through_jit, rebuilt]


@pytest.mark.parametrize("passed", PASSES)
def test_a_shared_module_is_one_set_of_parameters(passed):
    module = passed(shared())
    assert len(jax.tree.leaves(module)) == 4
    w, other = module.parts[0].w, module.at["parts.2.parts.1.w"].get()
    out, after = module.apply(X)
    np.testing.assert_allclose(out, reference(w, other), rtol=1e-6)
    assert int(after.parts[0].calls) == 3
    assert jax.tree.structure(after) == jax.tree.structure(module)


@pytest.mark.parametrize("passed", PASSES)
def test_gradients_of_a_shared_module_add_up(passed):
    module = passed(shared())
    w, other = module.parts[0].w, module.at["parts.2.parts.1.w"].get()
    grads = br.grad(lambda m: m.apply(X)[0].sum())(module)
    want = jax.grad(lambda w: reference(w, other).sum())(w)
    np.testing.assert_allclose(grads.parts[0].w, want, rtol=1e-5)
    assert len(jax.tree.leaves(grads)) == 2


def test_adam_keeps_one_state_for_what_is_shared():
    module = shared()
    state = optax.adam(1e-2).init(module.parameters())
    assert len(jax.tree.leaves(state)) == 1 + 2 * 2
    grads = br.grad(lambda m: m.apply(X)[0].sum())(module)
    updates, _ = optax.adam(1e-2).update(grads, state)
    after = module.update(optax.apply_updates(module.parameters(), updates))
    assert after.at["parts.3.w"].get().tolist() == after.parts[0].w.tolist()
    assert after.parts[0].w.tolist() != module.parts[0].w.tolist()


def test_sharing_across_levels_and_containers():
    class Both(br.Module):
        first: br.Module
        table: dict[str, list[br.Module]]

    dense = Dense()
    inner = Seq([dense])
    module = Both(inner, {"a": [inner, dense], "b": [Seq([dense])]})
    assert len(jax.tree.leaves(module)) == 2
    for path in ("first.parts.0", "table.a.0.parts.0", "table.a.1", "table.b.0.parts.0"):
        assert module.at[path].get() is dense
        assert module.at[f"{path}.w"].get() is dense.w
    again = Seq([module, module, dense])
    assert len(jax.tree.leaves(again)) == 2
    assert again.at["parts.1.table.b.0.parts.0"].get() is dense


def test_what_holds_a_dict_is_shared_across_levels():
    class Table(br.Module):
        parts: dict[str, br.Module]
        weights: dict[str, br.Parameter]

    table = Table({"a": Dense()}, {"w": 1.0})
    module = Seq([Seq([table]), table])
    assert len(jax.tree.leaves(module)) == 3
    assert module.at["parts.1"].get() is table


def test_equal_modules_are_not_shared():
    assert len(jax.tree.leaves(Seq([Dense(), Dense()]))) == 4


@pytest.mark.parametrize("path", ["parts.0.w", "parts.2.parts.0.w", "parts.3.w"])
def test_a_change_through_any_place_changes_the_one(path):
    module = shared().at[path].set(jnp.eye(3))
    assert module.parts[0].w.tolist() == jnp.eye(3).tolist()
    assert len(jax.tree.leaves(module)) == 4


def test_a_new_owner_is_shared_as_the_old_one_was():
    module = shared().at["parts.0"].set(Dense(3, 0.5))
    assert module.at["parts.3.w"].get().tolist() == Dense(3, 0.5).w.tolist()
    assert len(jax.tree.leaves(module)) == 4


def test_a_module_that_is_set_where_it_stands_already_is_shared():
    module = Seq([Dense(), Dense(3, 0.2)])
    module = module.at["parts.1"].set(module.parts[0])
    assert len(jax.tree.leaves(module)) == 2


def test_a_glob_changes_what_is_shared_once():
    counted = []
    module = shared().at["parts.?"].apply(lambda part: counted.append(part) or part.train())
    assert len(counted) == 3
    assert module.parts[0].mode == "train"


@pytest.mark.parametrize("path", ["parts.3", "parts.2.parts.0"])
def test_an_alias_is_not_set_by_itself(path, refuses):
    with refuses(
        SharingError,
        f"{path} is shared with parts.0: change parts.0 and both change. To part them, build the"
        f" module with two objects, or set what holds {path}",
    ):
        shared().at[path].set(Dense())


@pytest.mark.parametrize(
    ("use", "what"),
    [(lambda alias: alias(X), "called"), (lambda alias: alias.apply(X), "asked for .apply")],
)
def test_an_alias_alone(use, what, refuses):
    module = shared()
    text = (
        "this place holds a shared module, which the tree keeps elsewhere (1 up, then 0); it was"
        f" {what} alone. Go through the module that holds both: whole.at[path].get() gives it,"
        " whole.apply(x, method=lambda m, x: ...) calls it"
    )
    with refuses(SharingError, text):
        use(module.parts[3])


def test_a_part_whose_alias_leads_out_of_it(refuses):
    module = shared()
    with refuses(
        SharingError,
        "parts.0 is shared with a place 3 levels above it, at '0', which is not in this module. Call"
        " or read it through the module that holds both",
    ):
        module.parts[2].apply(X)
    out, after = module.apply(X, method=lambda m, x: m.parts[2](x))
    np.testing.assert_allclose(out, X @ module.parts[0].w @ module.parts[2].parts[1].w, rtol=1e-6)
    assert int(after.parts[0].calls) == 1


# Ties.


def stepped(module):
    grads = br.grad(lambda m: m(X).sum())(module)
    updates = jax.tree.map(lambda grad: -0.1 * grad, grads)
    return module.update(optax.apply_updates(module.parameters(), updates))


@pytest.mark.parametrize("passed", [*PASSES, stepped, lambda m: m.train().new_state(KEY)])
def test_a_tied_array_is_one_parameter(passed):
    module = passed(tied())
    embed = module.embed
    assert len(jax.tree.leaves(module.parameters())) == 2
    assert module.at["head"].get() is embed
    np.testing.assert_allclose(module(X), X @ embed @ embed + 9 * module.other.mean(), rtol=1e-5)


def test_gradients_of_a_tied_array_add_up():
    module = tied()
    grads = br.grad(lambda m: m(X).sum())(module)
    want = jax.grad(lambda w: (X @ w @ w).sum())(module.embed)
    np.testing.assert_allclose(grads.embed, want, rtol=1e-5)
    assert grads.head is None


@pytest.mark.parametrize("patterns", [["embed"], ["head"], ["e*"], ["h*"]])
def test_freezing_either_place_freezes_the_one_array(patterns):
    frozen = tied().freeze(*patterns)
    assert frozen.parameters().embed is None
    assert frozen.unfreeze(*patterns).parameters().embed is not None
    assert len(jax.tree.leaves(frozen.parameters())) == 1


@pytest.mark.parametrize("path", ["parts.0", "parts.3", "parts.3.w", "parts.2.parts.0", "*.0.w"])
def test_freezing_a_shared_module_by_any_of_its_places(path):
    frozen = shared().freeze(path)
    assert frozen.parameters().parts[0].w is None
    assert len(jax.tree.leaves(frozen.parameters())) == 1
    assert frozen.unfreeze(path).parameters().parts[0].w is not None


def test_ties_are_made_before_init_too():
    class Late(br.Module):
        a: br.Parameter
        b: br.Parameter

        def __init__(self):
            self.a = self.b = br.ParamInit((3,), jax.nn.initializers.normal())

    module = br.tie(Late(), "b", "a").init(KEY)
    assert len(jax.tree.leaves(module)) == 1
    assert module.at["b"].get() is module.a


def test_ties_across_modules():
    module = br.tie(Seq([Dense(), Seq([Dense(3, 0.2)])]), "parts.1.parts.0.w", "parts.0.w")
    out, _ = module.apply(X)
    np.testing.assert_allclose(out, X @ module.parts[0].w @ module.parts[0].w, rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "place", "owner", "text"),
    [
        (Tied(jnp.ones((3, 5)), jnp.ones((5, 3)), 1.0, 0), "head", "embed",
         "embed is float32[3, 5]"),
        (Tied(jnp.ones(3), jnp.ones(3), 1.0, 0), "head", "head", "head is the same place"),
        (Tied(jnp.ones(3), jnp.ones(3), 1.0, 0), "head", "steps", "steps is no parameter array"),
        (tied(), "head", "other", "head is tied already"),
        (tied(), "other", "head", "head is tied itself: tie to its owner"),
    ],
)  # fmt: skip
def test_what_cannot_be_tied(module, place, owner, text, refuses):
    if text.startswith("embed is"):
        text = "head is float32[5, 3]\n  " + text
    with refuses(SharingError, f"{place!r} cannot be tied to {owner!r}:\n  {text}"):
        br.tie(module, place, owner)


def test_a_tied_array_is_not_set_by_itself(refuses):
    with refuses(
        SharingError,
        "head is shared with embed: change embed and both change. To part them, build the module"
        " with two objects, or set what holds head",
    ):
        tied().at["head"].set(jnp.eye(3))
    assert tied().at["embed"].set(jnp.eye(3)).at["head"].get().tolist() == jnp.eye(3).tolist()
