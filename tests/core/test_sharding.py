"""Rules that split the arrays of a tree over a mesh."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bridge as br
from bridge.core.errors import FieldError, PathError

MESH = jax.make_mesh((4, 2), ("data", "model"))


class Dense(br.Module):
    kernel: br.Parameter
    bias: br.Parameter


class Net(br.Module):
    encoder: br.Module
    head: br.Module
    step: br.State


def net(width=8):
    dense = Dense(jnp.ones((6, width)), jnp.zeros(width))
    return Net(dense, Dense(jnp.ones((6, 4)), jnp.zeros(4)), jnp.zeros((), jnp.int32))


def refused(error, rules, tree=None, mesh=MESH):
    with pytest.raises(error) as caught:
        br.ShardingRules(mesh, rules).of(net() if tree is None else tree)
    return str(caught.value)


def test_the_first_rule_that_selects_a_path_has_it():
    rules = br.ShardingRules(
        MESH,
        {"head": P(), "*.kernel": P("model", "data"), "encoder.bias": P(("data", "model")), "*": P()},
    )
    places = rules.of(net())
    assert isinstance(places, Net)
    assert places.encoder.kernel == NamedSharding(MESH, P("model", "data"))
    assert places.encoder.bias == NamedSharding(MESH, P(("data", "model")))
    assert places.head.kernel == places.head.bias == places.step == NamedSharding(MESH, P())


def test_a_tree_of_shardings_is_what_jax_takes():
    rules = br.ShardingRules(MESH, {"*kernel": P(None, "model"), "*": P()})
    places = rules.of(jax.eval_shape(net))
    made = jax.jit(net, out_shardings=places)()
    moved = jax.device_put(net(), places)
    for tree in (made, moved):
        assert [leaf.sharding for leaf in jax.tree.leaves(tree)] == jax.tree.leaves(places)


def test_modules_in_a_dict_and_typed_keys_have_rules_as_well():
    tree = {"module": net(), "key": jax.random.key(0)}
    places = br.ShardingRules(MESH, {"module.*.bias": P("model"), "*": P()}).of(tree)
    assert places["module"].head.bias == NamedSharding(MESH, P("model"))
    assert jax.device_put(tree, places)["key"].sharding == NamedSharding(MESH, P())


def test_everything_that_does_not_fit_is_in_one_error():
    rules = {
        "encoder.kernel": P("data"),
        "encoder.bias": P("model", "data"),
        "head.kernel": P(None, ("data", "model")),
        "hed": P(),
    }
    assert refused(PathError, rules) == (
        "the sharding rules do not fit the tree:\n"
        "  encoder.kernel: has shape (6, 8); the rule 'encoder.kernel' splits axis 0 over 4 devices,"
        " those of data: 6 is no multiple\n"
        "  encoder.bias: has shape (8,); the rule 'encoder.bias' splits 2 axes:"
        f" {P('model', 'data')}\n"
        "  head.kernel: has shape (6, 4); the rule 'head.kernel' splits axis 1 over 8 devices, those of"
        " data and model: 4 is no multiple\n"
        "  head.bias: no rule selects it\n"
        "  step: no rule selects it\n"
        "  'hed' selects no array; the nearest are 'head.bias'\n"
        'A rule "*": PartitionSpec() at the end keeps what is left whole on every device'
    )


@pytest.mark.parametrize(
    ("mesh", "rules", "text"),
    [
        (
            (4, 2),
            {},
            "ShardingRules takes a mesh, such as jax.make_mesh((2, 4), ('data', 'model')); a tuple was"
            " given",
        ),
        (
            MESH,
            {"*": ("data",)},
            "the rule '*' is a tuple; a jax.sharding.PartitionSpec was wanted, whose entries are axes"
            " of the mesh or None",
        ),
        (
            MESH,
            {"*": P("data", ("modle", "x"))},
            "the rule '*' splits over 'modle', 'x'; the mesh has the axes 'data', 'model'",
        ),
    ],
)
def test_what_is_no_mesh_and_no_rule(mesh, rules, text):
    assert refused(FieldError, rules, mesh=mesh) == text
