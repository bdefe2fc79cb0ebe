"""module.at, freeze and unfreeze: selection by path and by glob."""

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import FieldError, PathError, StructureError
from bridge.core.leaves import Leaves

normal = jax.nn.initializers.normal()


class Dense(br.Module):
    w: br.Parameter
    b: br.Parameter
    name: str = "dense"

    def __init__(self, n_in, n_out):
        self.w, self.b, self.name = jnp.ones((n_in, n_out)), jnp.zeros(n_out), "dense"

    def __call__(self, x):
        return x @ self.w + self.b


class Net(br.Module):
    layers: list[br.Module]
    table: dict[str, br.Module]
    weights: dict[str, list[br.Parameter]]
    steps: br.State
    label: str
    extra: br.Module | None = None

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def net():
    return Net(
        [Dense(3, 5), jax.nn.relu, Dense(5, 7)],
        {"v1.5": Dense(7, 2), "a\\b": Dense(2, 2)},
        {"x.y": [jnp.ones(11), jnp.ones(13)]},
        0,
        "label",
    )


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("layers.0", lambda m: m.layers[0]),
        ("layers", lambda m: m.layers),
        ("layers.2.w", lambda m: m.layers[2].w),
        ("table.v1\\.5.b", lambda m: m.table["v1.5"].b),
        ("table.a\\\\b", lambda m: m.table["a\\b"]),
        ("weights.x\\.y.1", lambda m: m.weights["x.y"][1]),
        ("weights", lambda m: m.weights),
        ("steps", lambda m: m.steps),
        ("label", lambda m: m.label),
        ("layers.0.name", lambda m: m.layers[0].name),
        ("extra", lambda m: None),
    ],
)
def test_get(path, found):
    module = net()
    assert module.at[path].get() is found(module)


def test_get_in_steps():
    module = net()
    assert module.at["layers"][2]["w"].get() is module.layers[2].w
    assert module.at["layers"][2].get() is module.layers[2]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("layers.*", ["layers.0", "layers.1", "layers.2"]),
        ("*.w", ["layers.0.w", "layers.2.w", "table.v1\\.5.w", "table.a\\\\b.w"]),
        ("layers.?.b", ["layers.0.b", "layers.2.b"]),
        ("layers.[02]", ["layers.0", "layers.2"]),
        ("weights.*", ["weights.x\\.y"]),
        ("s*s", ["steps"]),
    ],
)
def test_a_glob_selects_many_outermost_first(pattern, paths):
    module = net()
    assert list(module.at[pattern].get()) == paths
    for path, value in module.at[pattern].get().items():
        assert module.at[path].get() is value


@pytest.mark.parametrize("path", ["layers.0.w", "table.v1\\.5.w", "weights.x\\.y.0", "steps"])
def test_set_and_apply_of_an_array(path):
    module = net()
    old = module.at[path].get()
    for after in (module.at[path].set(old + 3), module.at[path].apply(lambda leaf: leaf + 3)):
        assert after.at[path].get().tolist() == (old + 3).tolist()
        assert module.at[path].get() is old
        assert jax.tree.structure(after) == jax.tree.structure(module)
        changed = [
            a is not b for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(module), strict=True)
        ]
        assert sum(changed) == 1


def test_set_of_modules_functions_and_statics():
    module = net()
    assert module.at["layers.1"].set(jnp.tanh).layers[1].function is jnp.tanh
    assert module.at["layers.2"].set(Dense(5, 3))(jnp.ones((2, 3))).shape == (2, 3)
    assert module.at["extra"].set(Dense(2, 3)).extra.w.shape == (2, 3)
    assert module.at["extra"].set(Dense(2, 3)).at["extra"].set(None).extra is None
    assert module.at["layers"].set([Dense(3, 2)]).layers[0].w.shape == (3, 2)
    assert module.at["layers"].apply(lambda layers: layers[:2]).layers == module.layers[:2]
    assert module.at["label"].set("other").label == "other"
    assert module.at["layers.0.name"].apply(str.upper).layers[0].name == "DENSE"
    assert jax.tree.structure(module.at["label"].set("label")) == jax.tree.structure(module)


def test_apply_by_glob():
    doubled = net().at["*.w"].apply(lambda w: 2 * w)
    assert [float(doubled.at[path].get().max()) for path in ("layers.0.w", "layers.2.w")] == [2, 2]
    assert float(doubled.at["weights.x\\.y.0"].get().max()) == 1
    pinned = net().at["layers.*"].apply(lambda layer: layer.train())
    assert [layer.mode for layer in pinned.layers] == ["train"] * 3


def test_an_array_to_be_made_again():
    module = net().at["layers.0.w"].set(br.ParamInit((3, 5), normal))
    assert "uninit" in repr(module)
    assert module.init(jax.random.key(0)).layers[0].w.shape == (3, 5)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "layers.7",
            "'layers.7' selects nothing in this module; the nearest are 'layers.2', 'layers.1',"
            " 'layers.0'",
        ),
        (
            "layers.0.v",
            "'layers.0.v' selects nothing in this module; the nearest are 'layers.0.w',"
            " 'layers.0.b', 'layers.0'",
        ),
        (
            "*.kernel",
            "'*.kernel' selects nothing in this module; there are 'layers', 'table', 'weights', ...",
        ),
        (
            "table.v1.5",
            "'table.v1.5' selects nothing in this module; the nearest are 'table.v1\\\\.5',"
            " 'table.v1\\\\.5.w', 'table.v1\\\\.5.b'",
        ),
    ],
)
@pytest.mark.parametrize("use", ["get", "set", "freeze"])
def test_a_path_that_selects_nothing(path, text, use, refuses):
    module = net()
    uses = {
        "get": lambda: module.at[path].get(),
        "set": lambda: module.at[path].set(1),
        "freeze": lambda: module.freeze(path),
    }
    with refuses(PathError, text):
        uses[use]()


@pytest.mark.parametrize(
    ("path", "value", "error", "text"),
    [
        (
            "layers.0.w",
            jnp.ones((5, 3)),
            StructureError,
            "layers.0.w is float32[3, 5], and float32[5, 3] was given. To change sizes, set the whole"
            " module: module.at[path].set(new_module)",
        ),
        (
            "weights.x\\.y.1",
            jnp.ones(13, jnp.bfloat16),
            StructureError,
            "weights.x\\.y.1 is float32[13], and bfloat16[13] was given. To change sizes, set the"
            " whole module: module.at[path].set(new_module)",
        ),
        (
            "layers.0.w",
            br.ParamInit((5, 3), normal),
            StructureError,
            "layers.0.w is float32[3, 5], and float32[5, 3] was given. To change sizes, set the whole"
            " module: module.at[path].set(new_module)",
        ),
        (
            "steps",
            "a",
            FieldError,
            "steps holds a str ('a'); a parameter, state or key is an array, a bridge.ParamInit, or a"
            " tree of them: annotate anything else as what it is",
        ),
        (
            "layers.0",
            3,
            FieldError,
            "Net.layers.0 is declared as a module and holds a int (3); give it a bridge.Module or a"
            " function",
        ),
        (
            "label",
            jnp.ones(3),
            FieldError,
            "Net.label is a static field and holds an array (float32[3]); arrays are leaves: annotate"
            " the field as bridge.Parameter or bridge.State",
        ),
        (
            "label",
            Dense(2, 3),
            FieldError,
            "Net.label is a static field and holds a module; annotate it as `label: bridge.Module`,"
            " `list[bridge.Module]` or `dict[str, bridge.Module]`",
        ),
        (
            "weights.x\\.y",
            [1.0],
            PathError,
            "weights.x\\.y holds several arrays; set them one by one, or by glob",
        ),
    ],
)
def test_what_cannot_be_set(path, value, error, text, refuses):
    with refuses(error, text):
        net().at[path].set(value)


def test_at_without_a_path(refuses):
    with refuses(PathError, 'module.at wants a path: module.at["encoder.layers.0"]'):
        net().at.get()


# Freezing.

EVERYTHING = [
    "layers.0.w",
    "layers.0.b",
    "layers.2.w",
    "layers.2.b",
    "table.v1\\.5.w",
    "table.v1\\.5.b",
    "table.a\\\\b.w",
    "table.a\\\\b.b",
    "weights.x\\.y.0",
    "weights.x\\.y.1",
]


def trained(module):
    lines = repr(module.parameters()).splitlines()[1:-1]
    return sorted(line.split(":")[0].strip() for line in lines)


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ([], EVERYTHING),
        (["layers"], EVERYTHING[:4]),
        (["layers.*"], EVERYTHING[:4]),
        (["layers.0", "layers.2.b"], [*EVERYTHING[:2], "layers.2.b"]),
        (["*.w"], [path for path in EVERYTHING if path.endswith(".w")]),
        (["table.v1\\.5"], EVERYTHING[4:6]),
        (["weights.x\\.y.1"], EVERYTHING[-1:]),
    ],
)
def test_freeze_and_unfreeze(patterns, frozen):
    module = net()
    after = module.freeze(*patterns)
    assert trained(after) == sorted(set(EVERYTHING) - set(frozen))
    assert trained(after.unfreeze(*patterns)) == sorted(EVERYTHING)
    assert jax.tree.structure(after.unfreeze()) == jax.tree.structure(module)
    assert jax.tree.leaves(after) == jax.tree.leaves(module)
    assert jax.tree.structure(after) != jax.tree.structure(module)
    assert trained(module.freeze().unfreeze(*patterns)) == sorted(frozen)


def test_freezing_adds_up_and_survives_calls_and_changes():
    module = net().freeze("layers.0").freeze("layers.2.w")
    assert trained(module) == sorted(set(EVERYTHING) - set(EVERYTHING[:3]))
    _, called = jax.jit(lambda m: m.apply(jnp.ones((2, 3))))(module)
    changed = called.at["layers.0.w"].set(jnp.zeros((3, 5))).train().new_state(jax.random.key(0))
    assert trained(changed) == trained(module)


def test_frozen_before_init_is_frozen_after_it():
    class Late(br.Module):
        w: br.Parameter
        b: br.Parameter

        def __init__(self):
            self.w = br.ParamInit((3, 5), normal)
            self.b = br.ParamInit((5,), normal)

    assert trained(Late().freeze("w").init(jax.random.key(0))) == ["b"]


def test_a_module_without_parameters_freezes_to_itself():
    module = br.Function(abs)
    assert module.freeze() is module


def test_a_pattern_that_selects_no_parameter(refuses):
    with refuses(
        PathError,
        "'steps' selects no parameter; there are 'weights.x\\\\.y.0', 'weights.x\\\\.y.1',"
        " 'layers.0.w', ...",
    ):
        net().freeze("layers.0", "steps")


class Bundle(br.Module):
    params: br.Parameter


@pytest.mark.parametrize(
    "edit",
    [
        lambda module: module.at["*.kernel"].get(),
        lambda module: module.at["*.kernel"].apply(lambda kernel: 2 * kernel),
        lambda module: module.freeze("*.kernel"),
        lambda module: module.freeze("params.layer_*"),
        lambda module: module.freeze("*.kernel").parameters(),
    ],
)
def test_a_glob_over_a_librarys_tree_builds_it_no_oftener_for_more_arrays(edit, monkeypatch):
    built, tree = [], Leaves.tree
    monkeypatch.setattr(Leaves, "tree", lambda bundle: built.append(bundle) or tree(bundle))

    def count(layers):
        arrays = {f"layer_{i}": {"kernel": jnp.ones(2), "bias": jnp.ones(3)} for i in range(layers)}
        module = Bundle(Leaves.of(arrays))
        built.clear()
        edit(module)
        return len(built)

    assert count(11) == count(3)
