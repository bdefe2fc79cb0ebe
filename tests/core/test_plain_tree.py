"""A module as nested dicts and back, and trees that are written by hand."""

import copy
import functools
import pickle
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import (
    DroppedStateError,
    FieldError,
    SharingError,
    StructureError,
    TraceError,
)

KEY = jax.random.key(5)
X = jnp.arange(6.0).reshape(2, 3)
ones = jax.nn.initializers.ones


class Dense(br.Module):
    w: br.Parameter
    calls: br.State
    size: int
    table: dict

    def __init__(self, size=3):
        self.w, self.calls = br.ParamInit((size, size), ones), 0
        self.size, self.table = size, {"names": ["a", "b"], "inner": {"rate": 0.5}}

    def __call__(self, x):
        self.calls = self.calls + 1
        return x @ self.w


class Seq(br.Module):
    layers: list[br.Module]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Everything(br.Module):
    layers: list[br.Module]
    named: dict[str, list[br.Module]]
    absent: br.Module | None
    unset: br.Parameter | None
    many: list[br.Parameter]
    key: br.Key
    cache: Annotated[jax.Array, br.collection("cache")]
    empty: list[br.Module]

    def __init__(self):
        shared = Dense()
        self.layers = [shared, jnp.tanh, Dense(2), shared]
        self.named = {"z": [shared, Dense()], "a": [], "with.dot": [Dense()]}
        self.absent = self.unset = None
        self.many = [jnp.ones(2), {"b": jnp.ones(3), "a.x": jnp.zeros(2)}]
        self.key, self.cache, self.empty = jax.random.key(3), {"k": jnp.zeros(1)}, []


@functools.cache
def everything():
    return Everything().init(KEY)


FORMS = {
    "uninitialised": lambda module: Everything(),
    "initialised": lambda module: module,
    "frozen": lambda module: module.freeze("layers.0", "many.1.b"),
    "modes": lambda module: module.train().at["layers.2"].apply(lambda one: one.eval()),
    "attached key": lambda module: module.new_state(KEY),
    "attached keys": lambda module: module.new_state({"default": KEY, "drop.out": KEY}),
    "config": lambda module: module.with_global_config(depth=3, names=["a", {"b": True}]),
    "tied": lambda module: br.tie(module, "named.z.1.w", "layers.0.w"),
    "abstract": lambda module: jax.eval_shape(lambda: module),
    "on the host": jax.device_get,
    "half": lambda module: br.partition(module, "*.w")[0],
    "optimizer": lambda module: br.Optimizer(optax.adam(0.1)).init(module),
    "written by hand": lambda module: by_hand(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_round_trip_is_exact(form):
    module = FORMS[form](everything())
    tree = br.to_tree(module)
    for again in (tree, copy.copy(tree), br.to_tree(br.from_tree(tree))):
        back = br.from_tree(again)
        leaves, treedef = jax.tree.flatten(module)
        assert jax.tree.structure(back) == treedef
        assert all(new is old for new, old in zip(jax.tree.leaves(back), leaves, strict=True))


def test_a_tree_has_five_keys_and_paths_below_its_node_for_names():
    tree = br.to_tree(everything().freeze("many.0").train())
    assert list(tree) == ["params", "buffers", "aux", "apply", "submodules"]
    assert list(tree["params"]) == ["many.0", "many.1.b", "many.1.a\\.x"]
    assert list(tree["buffers"]) == ["key", "cache.k"]
    assert tree["aux"] == {"mode": "train", "freeze": ("many.0",)}
    names = ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert list(tree["submodules"]) == [*names, "named.z.0", "named.z.1", "named.with\\.dot.0"]
    assert tree["submodules"]["layers.2"]["aux"] == {
        "size": 2,
        "table": {"names": ("a", "b"), "inner": {"rate": 0.5}},
    }
    assert repr(tree["apply"]) == "<apply of Everything>"


def test_a_shared_module_is_one_dict():
    tree = br.to_tree(everything())["submodules"]
    assert tree["layers.0"] is tree["layers.3"] is tree["named.z.0"]
    assert tree["layers.0"] is not tree["named.z.1"]


def test_the_apply_of_a_tree_gives_the_tree_after_the_call():
    module = Seq([Dense(), Dense()]).init(KEY).with_global_config(any=1)
    tree = br.to_tree(module)
    after, out = tree["apply"](tree, {"any": 2}, X)
    want, _ = module.apply(X)
    np.testing.assert_array_equal(out, want)
    assert jax.tree.structure(br.from_tree(after)) == jax.tree.structure(module)
    assert int(after["submodules"]["layers.1"]["buffers"]["calls"]) == 1
    assert int(tree["submodules"]["layers.1"]["buffers"]["calls"]) == 0


def test_an_edited_array_takes_effect():
    tree = br.to_tree(Seq([Dense(), Dense()]).init(KEY))
    tree["submodules"]["layers.1"]["params"]["w"] = np.full((3, 2), 2.0, np.float32)
    np.testing.assert_array_equal(_out(tree), X @ np.ones((3, 3)) @ np.full((3, 2), 2.0))


def _out(tree, x=X):
    return br.from_tree(tree).apply(x)[0]


def double(tree, config, x):
    return tree, 2 * x


def test_children_are_replaced_cut_and_added():
    tree = br.to_tree(Seq([Dense(), jnp.tanh, Dense()]).init(KEY))
    del tree["submodules"]["layers.1"]
    np.testing.assert_array_equal(_out(tree), X @ np.full((3, 3), 3.0))
    tree["submodules"]["layers.2"] = {"apply": double}
    np.testing.assert_array_equal(_out(tree), 2 * X @ np.ones((3, 3)))
    tree["submodules"]["layers.3"] = jnp.negative
    tree["submodules"]["layers.10"] = Dense().init(KEY)
    tree["submodules"]["layers.16"] = tree["submodules"]["layers.0"]
    module = br.from_tree(tree)
    assert len(module.layers) == 5
    assert module.layers[2].function is jnp.negative
    assert len(jax.tree.leaves(module)) == 4
    np.testing.assert_array_equal(module.apply(X)[0], -2 * X @ np.full((3, 3), 9.0))


def test_children_in_dicts_and_alone_are_cut_and_added():
    tree = br.to_tree(everything())
    for name in ("named.z.0", "named.z.1", "named.with\\.dot.0"):
        del tree["submodules"][name]
    tree["submodules"]["named.a.0"] = jnp.sin
    tree["submodules"]["named.new"] = jnp.cos
    tree["submodules"]["absent"] = Dense(5)
    tree["params"]["unset"] = 3.0
    module = br.from_tree(tree)
    assert list(module.named) == ["z", "a", "with.dot", "new"]
    assert module.named["z"] == module.named["with.dot"] == ()
    assert [module.named["a"][0].function, module.named["new"].function] == [jnp.sin, jnp.cos]
    assert module.absent.size == 5
    assert float(module.unset) == 3
    tree = br.to_tree(module)
    del tree["submodules"]["absent"], tree["submodules"]["named.new"]
    assert br.from_tree(tree).absent is None
    assert list(br.from_tree(tree).named) == ["z", "a", "with.dot"]


def test_another_apply_keeps_weights_freezing_mode_and_children():
    module = Seq([Dense(), Dense()]).init(KEY).freeze("layers.0").train()

    def backwards(tree, config, x):
        for name in ("layers.1", "layers.0"):
            child = tree["submodules"][name]
            _, x = child["apply"](child, config, x)
        return tree, -x

    tree = br.to_tree(module)
    tree["apply"] = backwards
    tree["submodules"]["layers.0"]["apply"] = lambda tree, config, x: (
        tree,
        x @ tree["params"]["w"] + 1,
    )
    changed = br.from_tree(tree)
    out, after = changed.apply(X)
    np.testing.assert_array_equal(out, -(X @ np.full((3, 3), 3.0) + 1))
    assert int(after.layers["1"].calls) == 1
    assert changed.at["layers.0.w"].get() is module.layers[0].w
    assert changed.mode == "train"
    assert changed.parameters().layers["0"].w is None


def by_hand():
    """A net with a running mean, a shared layer, a scale and a function, all of plain trees."""
    shared = {"params": {"w": jnp.full((3, 3), 2.0)}, "apply": affine, "submodules": {}, "buffers": {}}
    mean = {
        "params": {},
        "buffers": {"mean": jnp.zeros(3), "n": 0},
        "aux": {"rate": 0.5},
        "apply": norm,
    }
    children = {"first": shared, "norm": mean, "act": rectified, "again": shared}
    tree = {"params": {"scale": 3.0}, "buffers": {}, "aux": {"order": ["first", "norm", "act"]}}
    return br.from_tree({**tree, "apply": chain, "submodules": children}, {"sign": 1})


def rectified(x):
    return jnp.maximum(x, 0)


def affine(tree, config, x):
    return tree, config["sign"] * x @ tree["params"]["w"]


def norm(tree, config, x):
    old, rate = tree["buffers"], tree["aux"]["rate"]
    if tree["aux"]["mode"] == "eval":
        return tree, x - old["mean"]
    mean = x.mean(0)
    new = {"mean": (1 - rate) * old["mean"] + rate * mean, "n": old["n"] + 1}
    return {"buffers": new}, x - mean


def chain(tree, config, x):
    for name in tree["aux"]["order"]:
        child = tree["submodules"][name]
        child, x = child["apply"](child, config, x)
    return tree, tree["params"]["scale"] * x


def test_a_tree_by_hand_is_a_module_as_any():
    module = by_hand()
    out, after = jax.jit(lambda module, x: module.apply(x, mode="train"))(module, X)
    centred = (X - X.mean(0)) @ np.full((3, 3), 2.0)
    np.testing.assert_allclose(out, 3 * np.maximum(centred, 0))
    np.testing.assert_allclose(after.norm.mean, 0.5 * (X @ np.full((3, 3), 2.0)).mean(0))
    assert int(after.norm.n) == 1
    assert jax.tree.structure(after) == jax.tree.structure(module)
    assert jax.tree.structure(by_hand()) == jax.tree.structure(module)
    grads = br.grad(lambda module: module(X).sum())(module)
    assert float(grads.scale) == float((X @ np.full((3, 3), 2.0)).sum())
    assert repr(module) == (
        "Handwritten(\n  chain\n  (first): Handwritten(affine)\n  (norm): Handwritten(norm)\n"
        "  (act): Function(rectified)\n  (again): -> first\n)"
    )


def test_a_tree_by_hand_trains_saves_and_pickles(tmp_path):
    module = by_hand().freeze("first")
    optimizer = br.Optimizer(optax.sgd(0.5)).init(module)
    trained, _ = optimizer.step(br.grad(lambda module: module(X[:1]).sum())(module), module)
    assert float(trained.scale) == 3 - 0.5 * 3 * 2 * 3
    assert trained.first.w is module.first.w
    br.save(tmp_path / "net.safetensors", trained)
    loaded = br.load(tmp_path / "net.safetensors", like=module)
    assert float(loaded.scale) == float(trained.scale)
    assert jax.tree.structure(pickle.loads(pickle.dumps(module))) == jax.tree.structure(module)


def test_a_tree_by_hand_is_a_child_and_has_children_of_classes():
    module = Seq([by_hand(), Dense()]).init(KEY).with_global_config(sign=-1)
    outs = module.capture(X, paths=["layers.0.first", "layers.0.norm"])
    np.testing.assert_array_equal(outs["layers.0.first"], -X @ np.full((3, 3), 2.0))
    assert list(outs) == ["layers.0.first", "layers.0.norm"]

    def call(tree, config, x):
        return tree, tree["submodules"]["dense"]["apply"](tree["submodules"]["dense"], config, x)[1]

    outer = br.from_tree({"apply": call, "submodules": {"dense": Dense(), 0: Dense()}}).init(KEY)
    assert list(br.to_tree(outer)["submodules"]) == ["dense", "0"]
    _, after = outer.apply(X)
    assert int(after.dense.calls) == 1
    with pytest.raises(DroppedStateError, match=r"updates dense\.calls"):
        outer(X)


def add(tree, config, y):
    foo = tree["buffers"]["foo"] + y
    return {**tree, "buffers": {"foo": foo}}, foo


def test_a_later_read_sees_what_a_child_wrote_although_its_tree_was_dropped():
    def read(tree, config, x, y):
        child, seen = tree["submodules"]["child"], []
        for value in (x, y):
            child["apply"](child, config, value)
            seen.append(tree["submodules"]["child"]["buffers"]["foo"])
        return {}, jnp.stack(seen)

    child = {"buffers": {"foo": jnp.arange(1.0, 6)}, "apply": add}
    module = br.from_tree({"apply": read, "submodules": {"child": child}})
    seen, after = module.apply(jnp.arange(1.0, 6), 4.0)
    assert seen.tolist() == [[2, 4, 6, 8, 10], [6, 8, 10, 12, 14]]
    assert after.child.foo.tolist() == [6, 8, 10, 12, 14]


def test_the_two_places_of_a_shared_child_have_one_state():
    def both(tree, config, x):
        first, second = tree["submodules"]["first"], tree["submodules"]["second"]
        _, one = first["apply"](first, config, x)
        _, two = second["apply"](second, config, x)
        return tree, (one, two)

    child = {"buffers": {"foo": jnp.array(1.0)}, "apply": add}
    module = br.from_tree({"apply": both, "submodules": {"first": child, "second": child}})
    assert len(jax.tree.leaves(module)) == 1
    (one, two), after = module.apply(5.0)
    assert (float(one), float(two), float(after.first.foo)) == (6, 11, 11)


def test_a_copy_of_a_tree_from_before_a_child_ran_undoes_nothing():
    def stale(tree, config, x):
        before = jax.tree.map(lambda leaf: leaf, tree)
        child = tree["submodules"]["child"]
        child["apply"](child, config, x)
        return before, x

    child = {"buffers": {"foo": jnp.array(1.0)}, "apply": add}
    module = br.from_tree({"apply": stale, "submodules": {"child": child}})
    assert float(module.apply(5.0)[1].child.foo) == 6


def test_buffers_that_a_child_is_given_are_its_state():
    def reset(tree, config, x):
        child = tree["submodules"]["child"]
        child, out = child["apply"]({**child, "buffers": {"foo": 100.0}}, config, x)
        return {"submodules": {"child": child}}, out

    child = {"buffers": {"foo": jnp.array(1.0)}, "apply": add}
    module = br.from_tree({"apply": reset, "submodules": {"child": child}})
    out, after = module.apply(5.0)
    assert (float(out), float(after.child.foo)) == (105, 105)


def test_params_may_change_in_apply():
    def learn(tree, config, x):
        return {"params": {"w": tree["params"]["w"] + x}}, x

    module = br.from_tree({"params": {"w": jnp.array(1.0)}, "apply": learn})
    assert float(module.apply(5.0)[1].w) == 6
    with pytest.raises(DroppedStateError, match="updates w, "):
        module(5.0)


def test_params_are_lent_to_a_child_for_one_call():
    def doubled(tree, config, x):
        child = tree["submodules"]["child"]
        params = {name: 2 * value for name, value in child["params"].items()}
        lent, out = child["apply"]({**child, "params": params}, config, x)
        assert lent["params"]["w"] is params["w"]
        _, plain = child["apply"](child, config, x)
        return tree, out - plain

    module = br.from_tree({"apply": doubled, "submodules": {"child": Dense()}}).init(KEY)
    out, after = module.apply(X)
    np.testing.assert_array_equal(out, X @ np.ones((3, 3)))
    assert after.child.w is module.child.w
    assert int(after.child.calls) == 2
    grads = br.grad(lambda module: module.apply(X)[0].sum())(module)
    np.testing.assert_array_equal(grads.child.w, np.tile(np.asarray(X.sum(0))[:, None], 3))


def test_one_array_that_is_lent_twice_goes_back_to_each_place():
    def lend(tree, config, x):
        child = tree["submodules"]["child"]
        child["apply"]({**child, "params": {"a": x, "b": x}}, config, x)
        return tree, child["apply"](child, config, x)[1]

    def both(tree, config, x):
        return tree, (tree["params"]["a"], tree["params"]["b"])

    child = {"params": {"a": jnp.array(2.0), "b": jnp.array(3.0)}, "apply": both}
    module = br.from_tree({"apply": lend, "submodules": {"child": child}})
    assert [float(value) for value in module(jnp.array(5.0))] == [2, 3]


def test_gradients_with_respect_to_lent_params():
    def slopes(tree, config, x):
        child = tree["submodules"]["child"]

        def loss(params):
            return child["apply"]({**child, "params": params}, config, x)[1].sum()

        return tree, jax.grad(loss)(child["params"])["w"]

    child = {"params": {"w": jnp.ones((3, 3))}, "apply": affine}
    module = br.from_tree({"apply": slopes, "submodules": {"child": child}}, {"sign": 1})
    np.testing.assert_array_equal(module(X), np.tile(np.asarray(X.sum(0))[:, None], 3))


def test_draws_have_the_keys_of_the_call():
    def noise(tree, config, x):
        draw = tree["aux"]["draw"]
        return tree, jnp.stack([jax.random.normal(draw(name)) for name in ("noise", "noise", "other")])

    module = br.from_tree({"apply": noise})
    first, again = (module.apply(X, rng=KEY)[0] for _ in range(2))
    assert first.tolist() == again.tolist()
    assert len({*first.tolist()}) == 3
    attached, after = module.new_state(KEY).apply(X)
    assert attached.tolist() == first.tolist()
    assert after.apply(X)[0].tolist() != first.tolist()


def test_it_runs_in_the_lifted_transforms_of_a_parent():
    class Repeat(br.Module):
        body: br.Module

        def __call__(self, xs):
            return br.scan(lambda carry, x: (carry + 1, self.body(x)), 0, xs)[1]

    module = Repeat(br.from_tree({"buffers": {"foo": jnp.array(1.0)}, "apply": add}))
    out, after = module.apply(jnp.arange(5.0))
    assert out.tolist() == [1, 2, 4, 7, 11]
    assert float(after.body.foo) == 11

    def learn(tree, config, x):
        return {"params": {"w": tree["params"]["w"] + x}}, x

    module = Repeat(br.from_tree({"params": {"w": jnp.array(1.0)}, "apply": learn}))
    with pytest.raises(TraceError, match="body changes its params 'w' inside a bridge"):
        module.apply(jnp.arange(5.0))


@pytest.mark.parametrize("scan", [br.scan, jax.lax.scan])
def test_a_child_with_state_inside_a_transform_of_the_function_is_refused(scan):
    def repeat(tree, config, xs):
        child = tree["submodules"]["child"]
        return tree, scan(lambda carry, x: (carry, child["apply"](child, config, x)[1]), 0, xs)[1]

    child = {"buffers": {"foo": jnp.array(1.0)}, "apply": add}
    module = br.from_tree({"apply": repeat, "submodules": {"child": child}})
    text = {
        br.scan: "child changes its buffers 'foo' inside a JAX transform that the apply of the root",
        jax.lax.scan: "child changes its buffers 'foo' inside a JAX transform that was started during",
    }
    with pytest.raises(TraceError, match=text[scan]):
        module.apply(jnp.arange(5.0))
    stateless = br.from_tree({"apply": repeat, "submodules": {"child": {"apply": double}}})
    assert stateless(jnp.arange(3.0)).tolist() == [0, 2, 4]


WRONG_RETURNS = {
    "output first": (
        lambda tree, config, x: (x, tree),
        "the root module: its apply returned a tuple of ArrayImpl, dict; type `return tree, output`,"
        " with several outputs as one tuple",
    ),
    "three": (
        lambda tree, config, x: (tree, x, x),
        "the root module: its apply returned a tuple of dict, ArrayImpl, ArrayImpl; type `return tree,"
        " output`, with several outputs as one tuple",
    ),
    "output alone": (
        lambda tree, config, x: x,
        "the root module: its apply returned a ArrayImpl; type `return tree, output`, with several"
        " outputs as one tuple",
    ),
    "another aux": (
        lambda tree, config, x: ({**tree, "aux": {"rate": 2}}, x),
        "the root module: its aux or apply is another one than before the call. While apply runs,"
        " params and buffers alone may change; edit the tree outside of a call: tree ="
        " bridge.to_tree(module)",
    ),
    "another apply": (
        lambda tree, config, x: ({**tree, "apply": abs}, x),
        "the root module: its aux or apply is another one than before the call. While apply runs,"
        " params and buffers alone may change; edit the tree outside of a call: tree ="
        " bridge.to_tree(module)",
    ),
    "another buffer": (
        lambda tree, config, x: ({"buffers": {"m": x}}, x),
        "the root module: its buffers are not those from before the call: 'n' is gone, 'm' is new",
    ),
    "another child": (
        lambda tree, config, x: ({"submodules": {}}, x),
        "the root module: its submodules are not those from before the call: 'child' is gone",
    ),
    "no tree": (
        lambda tree, config, x: ({"submodules": {"child": x}}, x),
        "child: a plain tree was wanted; this is a ArrayImpl",
    ),
    "another shape": (
        lambda tree, config, x: ({"buffers": {"n": x}}, x),
        "a state must keep its structure, shape and dtype from call to call, or nothing that is"
        " compiled fits twice:\n  n: was int32[], was assigned float32[2, 3]\nGive it its"
        " final form in __init__ (or by init), or cast what is assigned",
    ),
    "another config": (
        lambda tree, config, x: tree["submodules"]["child"]["apply"](
            tree["submodules"]["child"], {**config, "k": 1}, x
        ),
        "child: was called with another global config than the root module; it is read-only while apply"
        " runs: module.with_global_config(...) gives another one, to any module",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_RETURNS)
def test_what_apply_returns_is_checked(wrong, refuses):
    apply, text = WRONG_RETURNS[wrong]
    tree = {"buffers": {"n": 0}, "aux": {"rate": 1}, "submodules": {"child": {"apply": double}}}
    with refuses(StructureError, text):
        br.from_tree({**tree, "apply": apply}).apply(X)


ARRAY = jnp.ones(2)
WRONG_TREES = {
    "keys": ({"constants": {}}, "  'constants' is none of a tree's keys\n  'apply' is no function"),
    "no dict": ({"apply": abs, "params": [1]}, "  'params' is no dict"),
    "names": ({"apply": abs, "submodules": {None: abs}}, "  submodules None: a name is a string"),
    "twins": (
        {"apply": abs, "submodules": {0: abs, "0": abs}},
        "  two of its submodules have one name: 0, '0'",
    ),
    "nested": (
        {"apply": abs, "params": {"a": {"w": ARRAY}}},
        "  params 'a' is a dict: each array has a name of its own, 'name.inner'",
    ),
    "inside": (
        {"apply": abs, "params": {"a": ARRAY, "a.b": ARRAY}},
        "  'a.b' lies inside of another name, or another inside of it",
    ),
    "around": (
        {"apply": abs, "params": {"a.b": ARRAY, "a": ARRAY}},
        "  'a' lies inside of another name, or another inside of it",
    ),
    "two parts": (
        {"apply": abs, "params": {"a": ARRAY}, "buffers": {"a": ARRAY}},
        "  'a' is among its params and its buffers",
    ),
    "freeze": ({"apply": abs, "aux": {"freeze": ["w"]}}, "  its aux freezes 'w', which is no param"),
}


@pytest.mark.parametrize("wrong", WRONG_TREES)
def test_a_tree_is_checked(wrong, refuses):
    tree, problems = WRONG_TREES[wrong]
    with refuses(StructureError, f"the tree of child is none of a module:\n{problems}"):
        br.from_tree({"apply": double, "submodules": {"child": tree}})


def test_a_class_keeps_its_form(refuses):
    tree = br.to_tree(Seq([Dense()]).init(KEY))
    node = tree["submodules"]["layers.0"]
    node["params"] = {"v": node["params"]["w"]}
    node["aux"] = {"size": 3, "rate": 1}
    node["submodules"]["more"] = abs
    text = (
        "the tree of layers.0 is none of a module:\n  aux 'table' is gone\n  aux 'rate' is new\n"
        "  params 'w' is gone\n  params 'v' is new\n  submodules 'more' is new\nA Dense has a fixed"
        " form; replace its apply by a function to give it another"
    )
    with refuses(StructureError, text):
        br.from_tree(tree)


def test_what_is_no_module_or_array_is_refused(refuses):
    with refuses(
        FieldError,
        "to_tree takes a bridge.Module; it was given a dict. A model of a library becomes one by"
        " bridge.wrap(model)",
    ):
        br.to_tree({})
    with pytest.raises(FieldError, match="child is declared as a module and holds a int"):
        br.from_tree({"apply": double, "submodules": {"child": 3}})
    with pytest.raises(FieldError, match="the root module: w holds a str"):
        br.from_tree({"apply": double, "params": {"w": "no"}})
    shared = Dense()
    part = Seq([shared, Seq([shared])]).layers[1]
    with pytest.raises(SharingError, match="which is not in this module"):
        br.to_tree(part)
    with pytest.raises(AttributeError, match="this tree has no array, submodule or aux 'v'"):
        _ = br.from_tree({"apply": double}).v
