"""partition and merge: two halves of one module."""

import jax
import jax.numpy as jnp
import pytest

import bridge as br
from bridge.core.errors import FieldError, PathError, StructureError
from bridge.core.leaves import Leaves


class Dense(br.Module):
    w: br.Parameter
    calls: br.State
    bias: br.Parameter | None = None


class Net(br.Module):
    encoder: br.Module
    layers: list[br.Module]
    bundle: br.Parameter


def net():
    dense = Dense(jnp.ones(5), 0)
    bundle = Leaves.of({"k": jnp.ones(7), "j": jnp.ones(11)})
    return Net(Dense(jnp.ones(3), 0), [dense, jnp.tanh, dense], bundle)


@pytest.mark.parametrize(
    ("where", "sizes"),
    [
        ("encoder", [3, 1]),
        ("encoder.w", [3]),
        ("*.calls", [1, 1]),
        (["encoder.w", "bundle.k"], [3, 7]),
        ("layers.2", [5, 1]),
        (lambda entry: entry.kind.name == "state", [1, 1]),
        (lambda entry: entry.value.size > 5, [7, 11]),
        (lambda entry: False, []),
    ],
)
def test_the_halves_and_back(where, sizes):
    module = net()
    chosen, rest = br.partition(module, where)
    assert sorted(leaf.size for leaf in jax.tree.leaves(chosen)) == sorted(sizes)
    assert len(jax.tree.leaves(rest)) == 6 - len(sizes)
    for again in (br.merge(chosen, rest), br.merge(rest, chosen)):
        assert jax.tree.structure(again) == jax.tree.structure(module)
        pairs = zip(jax.tree.leaves(again), jax.tree.leaves(module), strict=True)
        assert all(one is other for one, other in pairs)


def test_a_half_has_none_in_the_gaps():
    chosen, rest = br.partition(net(), "encoder.w")
    assert chosen.encoder.calls is None
    assert rest.encoder.w is None
    assert chosen.layers[0].w is None
    assert type(chosen) is Net


def test_gradients_of_one_half():
    chosen, rest = br.partition(net(), "encoder.w")
    grads = jax.grad(lambda half: (br.merge(half, rest).encoder.w ** 2).sum())(chosen)
    assert grads.encoder.w.tolist() == [2, 2, 2]


def test_what_is_to_be_made_stays_in_both_halves():
    class Late(br.Module):
        w: br.Parameter
        b: br.Parameter

    late = Late(br.ParamInit((3,), jax.nn.initializers.ones), 2.0)
    whole = br.merge(*br.partition(late, "b")).init(jax.random.key(0))
    assert whole.w.tolist() == [1, 1, 1]


def test_a_path_that_selects_no_array(refuses):
    with refuses(
        PathError,
        "'layers.1' selects no array; the nearest are 'layers.0.w', 'layers.0.calls'",
    ):
        br.partition(net(), "layers.1")


def test_halves_that_overlap(refuses):
    chosen, rest = br.partition(net(), "encoder")
    with refuses(
        StructureError,
        "both halves have an array at\n  encoder.w\n  encoder.calls\nTake both from one"
        " bridge.partition: each array is in one of them",
    ):
        br.merge(chosen, net())
    assert jax.tree.structure(br.merge(rest, chosen)) == jax.tree.structure(net())


def test_halves_of_different_modules(refuses):
    with refuses(
        StructureError,
        "these are not two halves of one module: a Net and a Dense of another structure. Take both"
        " from one bridge.partition",
    ):
        br.merge(net(), net().encoder)
    with refuses(FieldError, "merge takes two modules; it was given a dict"):
        br.merge(net(), {})
