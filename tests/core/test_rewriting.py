"""replace, map and states: other values in the fields, every part changed, what is carried."""

import copy

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import FieldError, SharingError, StructureError


class Dense(br.Module):
    w: br.Parameter
    name: str = "dense"

    def __call__(self, x):
        return x @ self.w


class Block(br.Module):
    layer: br.Module
    calls: br.State = 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return self.layer(x)


class Net(br.Module):
    layers: list[br.Module]
    table: dict[str, br.Module]
    noise: br.Key
    extra: br.Module | None = None


class Wrapper(br.Module):
    layer: br.Module

    def __call__(self, x):
        return 2 * self.layer(x)


def dense(n_in=3, n_out=5):
    return Dense(jnp.ones((n_in, n_out)))


def net():
    shared = dense()
    table = {"b": Block(shared), "a": Block(dense(5, 7))}
    return Net([shared, jax.nn.relu, Block(dense(5, 5))], table, jax.random.key(0))


def tied():
    pair = Net([dense(), Block(dense())], {}, jax.random.key(0))
    return br.tie(pair, "layers.1.layer.w", "layers.0.w")


def message(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_replace_changes_fields_together_and_nothing_else():
    old = dense()
    new = old.replace(w=jnp.zeros((3, 7), jnp.bfloat16), name="wide")
    assert (new.w.shape, new.w.dtype, new.name) == ((3, 7), jnp.bfloat16, "wide")
    assert (old.w.shape, old.name) == ((3, 5), "dense")
    assert old.replace(name="wide").w is old.w
    kept = old.train().freeze().new_state(jax.random.key(0)).replace(w=jnp.zeros((3, 5)))
    assert kept.parameters().w is None
    assert kept.mode == "train"
    assert jax.tree.structure(kept.replace(w=old.w)) == jax.tree.structure(kept)


def test_replace_checks_values_as_init_does():
    assert net().replace(extra=jax.nn.relu).extra(-1.0) == 0
    assert net().replace(table={}, layers=[]).layers == ()
    assert message(FieldError, dense().replace, w_=1.0, nam="x") == (
        "Dense.w_ is not declared. Did you mean 'w'? Declare it in the class body, for example"
        " `w_: bridge.Parameter` (trained), `w_: bridge.State` (carried), `w_: bridge.Module` (a child)"
        " or `w_: int` (static)\n"
        "Dense.nam is not declared. Did you mean 'name'? Declare it in the class body, for example"
        " `nam: bridge.Parameter` (trained), `nam: bridge.State` (carried),"
        " `nam: bridge.Module` (a child) or `nam: int` (static)"
    )
    assert message(FieldError, dense().replace, name=jnp.ones(2)) == (
        "Dense.name is a static field and holds an array (float32[2]); arrays are leaves: annotate the"
        " field as bridge.Parameter or bridge.State"
    )
    assert "Dense.name is a static field and holds a module" in message(
        FieldError, dense().replace, name=dense()
    )
    assert "Dense.w holds a str ('x')" in message(FieldError, dense().replace, w="x")


def test_replace_shares_what_is_given_twice_and_refuses_to_lose_what_is_shared():
    module = net()
    shared = module.replace(extra=module.layers[2].layer)
    assert len(jax.tree.leaves(shared)) == len(jax.tree.leaves(module))
    assert message(SharingError, module.replace, layers=[]) == (
        "table.b.layer is shared with a place 3 levels above it, at 'layers.0', which is not in this"
        " module. Call or read it through the module that holds both"
    )
    alias = module.table["b"].layer
    assert message(SharingError, module.replace, extra=alias) == (
        "Net.extra was given what stands for a shared module in another tree; give it the module"
        " itself: whole.at[path].get()"
    )


def test_map_changes_each_part_once_innermost_first_and_the_root_last():
    seen = []

    def change(part):
        seen.append(type(part).__name__)
        return part.replace(w=part.w + 1) if isinstance(part, Dense) else part

    module = net()
    after = module.map(change)
    assert seen == ["Dense", "Function", "Dense", "Block", "Block", "Dense", "Block", "Net"]
    assert [float(leaf.max()) for leaf in jax.tree.leaves(after.parameters())] == [2, 2, 2]
    assert jax.tree.structure(after) == jax.tree.structure(module)
    assert after.at["table.b.layer"].get() is after.layers[0]
    assert module.map(lambda part: part) is module


def test_map_keeps_what_is_shared_inside_the_parts_that_it_changes():
    def emptied(part):
        return jax.tree.map(lambda leaf: leaf, part)  # new objects everywhere

    module = net()
    after = module.map(emptied)
    assert jax.tree.structure(after) == jax.tree.structure(module)
    tied = br.tie(
        Net([dense(), Block(dense())], {}, jax.random.key(0)), "layers.1.layer.w", "layers.0.w"
    )
    after = tied.map(lambda part: part.freeze() if isinstance(part, Block) else part)
    assert len(jax.tree.leaves(after)) == len(jax.tree.leaves(tied))
    assert after.at["layers.1.layer.w"].get() is after.layers[0].w


def test_map_puts_other_modules_in_the_place_of_parts():
    def change(part):
        return Wrapper(part) if isinstance(part, Dense) else part

    module = net().map(change)
    assert module.at["table.b.layer"].get() is module.layers[0]
    assert float(module.layers[0](jnp.ones(3)).max()) == 6
    assert isinstance(dense().map(Wrapper), Wrapper)
    shared = dense(5, 5)
    one = net().map(lambda part: shared if isinstance(part, Dense) else part)
    assert len(jax.tree.leaves(one.parameters())) == 1


def test_map_refuses_to_move_what_is_shared_with_another_place():
    def block(part):
        return Wrapper(part) if isinstance(part, Block) else part

    assert message(SharingError, net().map, block) == (
        "table.b.layer is shared with layers.0, and what map was given moved or dropped it in table.b;"
        " change the shared part itself, or set table.b by module.at[path].set(new)"
    )
    shared = dense()
    owner = Net([Block(shared), shared], {}, jax.random.key(0))
    assert "layers.0.layer is shared with layers.1" in message(SharingError, owner.map, block)
    tied = br.tie(
        Net([dense(), Block(dense())], {}, jax.random.key(0)), "layers.1.layer.w", "layers.0.w"
    )
    assert "layers.1.layer.w is shared with layers.0.w" in message(SharingError, tied.map, block)


def test_a_part_that_is_shared_with_a_place_outside_is_changed_in_its_place():
    def changed(block):
        return block.map(lambda part: part.replace(calls=3) if isinstance(part, Block) else part)

    module = net().at["table.b"].apply(changed)
    assert int(module.table["b"].calls) == 3
    assert module.at["table.b.layer"].get() is module.layers[0]
    assert message(SharingError, net().table["b"].map, Wrapper) == (
        "layer is shared with a place outside, and what map was given moved or dropped it in the root"
        " module; change the shared part itself, or set the root module by module.at[path].set(new)"
    )


def test_map_says_what_it_wants():
    assert message(FieldError, net().map, 3) == (
        "map takes a function of a module that gives a module; it was given a int. A wrapped model's"
        " own method of that name is called by module.apply(..., method='map')"
    )
    assert message(FieldError, net().map, lambda part: None) == (
        "layers.0: what map was given made a NoneType of this Dense; it gives a module, the part"
        " itself where nothing changes"
    )


def test_states_and_parameters_are_two_halves_that_update_takes():
    trained = net().replace(noise=jax.random.key(3))
    trained = trained.map(lambda part: part.replace(calls=5) if isinstance(part, Block) else part)
    trained = trained.update(jax.tree.map(lambda leaf: 7 * leaf, trained.parameters()))
    states, params = trained.states(), trained.parameters()
    assert states.layers[0].w is None
    assert states.table["a"].calls is trained.table["a"].calls
    assert states.noise is trained.noise
    assert not callable(states)
    assert len(jax.tree.leaves(states)) + len(jax.tree.leaves(params)) == len(jax.tree.leaves(trained))
    fresh = net().update(states)
    assert [int(block.calls) for block in (fresh.layers[2], fresh.table["a"])] == [5, 5]
    assert float(fresh.layers[0].w.max()) == 1
    whole = fresh.update(params)
    assert jax.tree.leaves(whole) == jax.tree.leaves(trained)
    assert jax.tree.structure(copy.deepcopy(states)) == jax.tree.structure(states)
    assert "no field 'nothing'" in message(AttributeError, getattr, states, "nothing")
    assert "calls: int32[]" in repr(states)
    with pytest.raises(StructureError):
        dense().update(states)


def test_states_have_none_for_what_is_frozen_or_not_made_yet():
    late = Block(Dense(br.ParamInit((3, 5), jax.nn.initializers.ones)))
    assert len(jax.tree.leaves(late.states())) == 1
    frozen = Block(dense()).freeze()
    assert frozen.states().layer.w is None
    assert frozen.parameters().layer.w is None


@pytest.mark.parametrize("name", ["replace", "map", "states"])
def test_the_names_of_these_methods_are_no_fields(name):
    with pytest.raises(FieldError, match=f"cannot be a field: every bridge.Module has '{name}' of its"):
        type("Bad", (br.Module,), {"__annotations__": {name: int}})
