"""parameters and update: what an optimizer sees."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import StructureError
from bridge.core.leaves import Leaves
from bridge.core.parameters import ParameterTree


class Dense(br.Module):
    w: br.Parameter
    calls: br.State
    name: str

    def __init__(self, n_in, n_out, name="dense"):
        self.w, self.calls, self.name = jnp.ones((n_in, n_out)), 0, name


class Net(br.Module):
    encoder: br.Module
    layers: list[br.Module]
    table: dict[str, br.Module]
    weights: dict[str, tuple[br.Parameter, ...]]
    bundle: br.Parameter
    noise: br.Key
    bias: br.Parameter | None = None


def net(name="dense", width=5):
    return Net(
        Dense(3, width),
        [Dense(5, 7, name), abs],
        {"b": Dense(7, 2), "a": Dense(2, 2)},
        {"y": (1.0, 2.0), "x": ()},
        Leaves.of({"k": jnp.ones(11), "j": {"l": jnp.ones(13)}}),
        jax.random.key(0),
    )


def total(tree):
    return sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(tree))


def test_parameters_are_the_trained_arrays_in_the_structure_of_the_module():
    module = net()
    params = module.parameters()
    assert isinstance(params, ParameterTree)
    assert len(jax.tree.leaves(params)) == 8
    assert params.encoder.w is module.encoder.w
    assert params.layers[0].w is module.layers[0].w
    assert params.table["a"].w is module.table["a"].w
    assert params.weights["y"][1] is module.weights["y"][1]
    assert params.bundle["j"]["l"] is module.bundle["j"]["l"]
    assert (params.encoder.calls, params.noise, params.bias) == (None, None, None)


def test_parameters_are_not_callable_and_do_not_change(refuses):
    params = net().parameters()
    assert not callable(params)
    with refuses(AttributeError, "parameters never change; 'encoder' cannot be assigned"):
        params.encoder = None
    with refuses(AttributeError, "the leaves of Dense have no field 'name'"):
        _ = params.encoder.name


def test_fields_may_have_any_name():
    class Odd(br.Module):
        children: br.Parameter
        spec: br.Parameter

    params = Odd(2.0, 3.0).parameters()
    assert (float(params.children), float(params.spec)) == (2, 3)


def test_update_takes_what_is_not_none():
    module = net()
    doubled = module.update(jax.tree.map(lambda leaf: 2 * leaf, module.parameters()))
    assert total(doubled.parameters()) == 2 * total(module.parameters())
    assert jax.tree.structure(doubled) == jax.tree.structure(module)
    assert doubled.encoder.calls is module.encoder.calls
    assert module.update(module.parameters()) is module
    nothing = jax.tree.map(lambda leaf: None, module.parameters())
    assert module.update(nothing) is module


def test_update_keeps_modes_keys_and_freezing():
    module = net()
    params = jax.tree.map(lambda leaf: leaf + 1, module.parameters())
    running = module.train().freeze("encoder").new_state(jax.random.key(3))
    after = running.update(params)
    assert jax.tree.structure(after) == jax.tree.structure(running)
    assert float(after.encoder.w[0, 0]) == 2  # what is given is taken, frozen or not


def test_parameters_of_two_modes_are_one_structure():
    module = net()
    structure = jax.tree.structure(module.parameters())
    assert structure == jax.tree.structure(module.train().parameters())
    assert structure == jax.tree.structure(module.new_state(jax.random.key(0)).parameters())
    assert structure != jax.tree.structure(module.freeze("encoder").parameters())


def test_an_uninitialised_module_has_no_parameters():
    class Late(br.Module):
        w: br.Parameter

        def __init__(self):
            self.w = br.ParamInit((3,), jax.nn.initializers.zeros)

    assert jax.tree.leaves(Late().parameters()) == []


def test_update_of_something_else(refuses):
    with refuses(
        StructureError,
        "update takes what module.parameters() gives, a ParameterTree; it was given a dict",
    ):
        net().update({"encoder": 1})


HEAD = "these parameters do not fit the module:\n"
TAIL = "\nTake them from a module of the same structure: module.parameters()"


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (
            lambda: net("other").parameters(),
            "  layers.0: the module has a Dense, the parameters are those of a Dense with another name",
        ),
        (
            lambda: Dense(3, 5).parameters(),
            "  the root module: the module has a Net, the parameters are those of a Dense",
        ),
        (
            lambda: net(width=7).parameters(),
            "  encoder.w: the module has shape (3, 5), the parameters (3, 7)",
        ),
        (
            lambda: net().at["layers"].apply(lambda layers: layers[:1]).parameters(),
            "  layers: the containers differ",
        ),
        (
            lambda: net().at["weights"].set({"y": (1.0, 2.0, 3.0), "x": (5.0,)}).parameters(),
            "  weights.x.0: not in the module\n  weights.y.2: not in the module",
        ),
        (
            lambda: (
                net(width=7).at["layers.0"].set(Dense(7, 7)).at["table.a"].set(jnp.sin).parameters()
            ),
            "  encoder.w: the module has shape (3, 5), the parameters (3, 7)\n"
            "  layers.0.w: the module has shape (5, 7), the parameters (7, 7)\n"
            "  table.a: the module has a Dense, the parameters are those of a Function",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_listed_all_at_once(params, text, refuses):
    with refuses(StructureError, HEAD + text + TAIL):
        net().update(params())


def test_adam_sees_trained_leaves_only():
    module = net().freeze("table.*")
    params = module.parameters()
    optimizer = optax.adam(0.1)
    state = optimizer.init(params)
    assert len(jax.tree.leaves(state)) == 1 + 2 * 6
    updates, state = optimizer.update(params, state, params)
    after = module.update(optax.apply_updates(params, updates))
    np.testing.assert_allclose(after.encoder.w, 0.9 * module.encoder.w, rtol=1e-5)
    assert after.table["a"] is module.table["a"]


def test_labels_of_multi_transform():
    params = net().parameters()
    labels = jax.tree_util.tree_map_with_path(
        lambda keys, _: "a" if "encoder" in jax.tree_util.keystr(keys) else "b", params
    )
    optimizer = optax.multi_transform({"a": optax.sgd(1.0), "b": optax.set_to_zero()}, labels)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert float(updates.encoder.w[0, 0]) == -1
    assert total(updates) == -15


def test_repr_copy_and_pickle():
    params = net().parameters()
    assert repr(params) == "\n".join(
        [
            "leaves of Net (",
            "  encoder.w: float32[3, 5]",
            "  layers.0.w: float32[5, 7]",
            "  table.b.w: float32[7, 2]",
            "  table.a.w: float32[2, 2]",
            "  weights.y.0: float32[]",
            "  weights.y.1: float32[]",
            "  bundle.j.l: float32[13]",
            "  bundle.k: float32[11]",
            ")",
        ]
    )
    for again in (copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert jax.tree.structure(again) == jax.tree.structure(params)
        assert total(again) == total(params)
