"""A Module's weights under PyTorch's names: as a model has them, as a plan says, or by themselves."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import bridge as br
from bridge.core.layers import Layer, Slot
from bridge.core.leaves import Leaves
from bridge.core.notation import read
from bridge.core.opaque import Opaque
from bridge.core.wrapped import Wrapped
from bridge.weights.report import Match, Pair


class Stub(Wrapped):
    """A model of no library: arrays by path, and the layers that they belong to."""


class Weights(br.Module):
    """Arrays by themselves."""

    one: br.Parameter
    other: br.Parameter

    def __init__(self, size=3, dtype=jnp.float32, other=None):
        self.one = jnp.arange(size, dtype=dtype)
        self.other = jnp.arange(size, dtype=other or dtype)


def plan(*pairs, ties=None):
    """A plan of pairs of key, path, the axes of both sides, and what is added."""
    made = (
        Pair(key, tuple(path.split(".")), read(*sides), "by hand", *offset)
        for key, path, sides, *offset in pairs
    )
    return Match(tuple(made), {}, {}, {}, (), (), ties or {})


ROW = ("a=3", "a=3")


def refused(*args, **options):
    with pytest.raises(br.BridgeError) as caught:
        br.state_dict(*args, **options)
    return str(caught.value)


def test_of_a_sum_the_first_key_has_all_and_what_was_added_is_taken_away():
    like = plan(
        ("ih", "one", ROW),
        ("hh", "one", ROW, 2.0),
        ("plain", "other", ROW, -1.0),
    )
    exported = br.state_dict(Weights(), like=like)
    np.testing.assert_array_equal(exported["ih"], [-2, -1, 0])
    np.testing.assert_array_equal(exported["hh"], [0, 0, 0])
    np.testing.assert_array_equal(exported["plain"], [1, 2, 3])
    again = br.load_state_dict(Weights(), exported, plan=like)
    np.testing.assert_array_equal(again.one, Weights().one)


def test_a_key_of_which_nothing_holds_a_part():
    like = plan(("packed", "one", ("(0of3 a=3)", "a=3")), ("packed", "other", ("(2of3 a=3)", "a=3")))
    assert refused(Weights(), like=like) == (
        "these keys cannot be filled from the Module:\n"
        "  packed: the Module holds fewer than its 9 numbers"
    )
    like = plan(("packed", "one", ("(0of2 a=3)", "a=3")), ("packed", "other", ("(0of2 a=3)", "a=3")))
    assert refused(Weights(), like=like) == (
        "these keys cannot be filled from the Module:\n"
        "  packed: nothing in the Module holds 3 of its 6 numbers"
    )


def test_a_key_that_two_places_would_fill_with_different_numbers():
    like = plan(("shared", "one", ROW), ("shared", "other", ROW))
    np.testing.assert_array_equal(br.state_dict(Weights(), like=like)["shared"], [0, 1, 2])
    trained = Weights().at["other"].set(jnp.ones(3))
    assert refused(trained, like=like) == (
        "these keys cannot be filled from the Module:\n"
        "  shared: one and other hold other numbers for it, and it can have one of them; tie them:"
        " bridge.tie(module, ...)"
    )
    assert refused(Weights(other=jnp.float16), like=like) == (
        "these keys cannot be filled from the Module:\n"
        "  shared: parts of it are float16 and float32 in the Module; cast them to one dtype"
    )


def test_a_plan_that_does_not_fit():
    assert refused(Weights(), like=plan(("a", "one", ("a=5", "a=5")))) == (
        "this plan does not fit the Module:\n"
        "  one: has shape (3,); the plan makes a into (5,)\n"
        "  other: the plan leaves it without weights"
    )
    like = plan(("a", "one", ROW), ("b", "other", ROW))
    assert refused(Weights(), like=like, rename={}) == (
        "a plan says where everything goes: leave rename out"
    )
    assert refused(Weights(), rename={}) == (
        "rename is for the names of like, and there is none: type like=..."
    )


def test_a_plan_from_its_file(tmp_path):
    like = plan(("a", "one", ROW), ("b", "other", ROW), ties={"c": "a"})
    like.save(tmp_path / "plan.json")
    exported = br.state_dict(Weights(), like=tmp_path / "plan.json")
    assert list(exported) == ["a", "b", "c"]
    assert exported["c"] is not exported["a"]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_the_numbers_are_the_modules_bit_for_bit(tmp_path, dtype):
    values = np.array([np.nan, -0.0, 1e-40], np.float32).astype(dtype)
    module = Weights(dtype=dtype).at["one"].set(jnp.asarray(values))
    like = plan(("a", "one", ROW), ("b", "other", ROW))
    exported = br.state_dict(module, like=like)
    assert exported["a"].dtype == dtype
    assert exported["a"].tobytes() == values.tobytes()
    br.save_state_dict(exported, tmp_path / "model.safetensors")
    loaded = br.state_dict(module, like=tmp_path / "model.safetensors", rename={"a": "one"})
    assert loaded["a"].tobytes() == values.tobytes()


def test_what_comes_back_is_nobody_elses():
    module, source = Weights(), {"one": np.zeros(3, np.float32), "other": np.zeros(3, np.float32)}
    source["position_ids"] = np.arange(5)
    for like in (None, source, plan(("a", "one", ROW), ("b", "other", ROW))):
        for array in br.state_dict(module, like=like).values():
            assert array.flags.c_contiguous
            array += 1
    np.testing.assert_array_equal(module.one, [0, 1, 2])
    np.testing.assert_array_equal(source["position_ids"], np.arange(5))


def test_keys_that_the_module_does_not_hold():
    like = {key: np.zeros(3, np.float32) for key in ("one", "other", "head")}
    assert refused(Weights(), like=like) == (
        "the Module does not hold what like has; a plan, like=bridge.match(module, like), is followed"
        " without what strict=False leaves out:\n"
        "  head: left over: nothing in the Module takes it; type strict=False to leave it out"
    )
    match = br.match(Weights(), like)
    assert list(br.state_dict(Weights(), like=match)) == ["one", "other"]


def test_arrays_that_are_tied_in_like_have_both_names():
    shared = np.zeros(3, np.float32)
    like = {"embed": shared, "other": np.ones(3, np.float32), "head": shared}
    exported = br.state_dict(Weights(), like=like, rename={"embed": "one"})
    assert list(exported) == ["embed", "other", "head"]
    np.testing.assert_array_equal(exported["head"], exported["embed"])


def test_a_tied_array_has_the_name_of_its_owner():
    tied = br.tie(Weights(), "other", "one")
    assert list(br.state_dict(tied)) == ["one"]


def test_names_of_its_own_are_paths_and_torchs_parts():
    hk, nn = pytest.importorskip("haiku"), pytest.importorskip("flax.linen")

    class Net(br.Module):
        core: br.Module
        head: br.Module
        scale: br.Parameter
        steps: br.State

        def __init__(self):
            self.core = br.from_haiku(
                lambda x: hk.nets.MLP([7, 5])(hk.BatchNorm(True, True, 0.9)(x, True))
            )
            self.head = br.from_linen(nn.Sequential([nn.Dense(3), nn.LayerNorm()]))
            self.scale, self.steps = jnp.ones(2), jnp.zeros((), jnp.int32)

        def __call__(self, x):
            return self.head(self.core(x))

    net = Net().init(jax.random.key(0), np.ones((2, 11), np.float32))
    exported = br.state_dict(net)
    assert {key: array.shape for key, array in exported.items()} == {
        "core.batch_norm.weight": (11,),
        "core.batch_norm.bias": (11,),
        "core.batch_norm.running_mean": (11,),
        "core.batch_norm.running_var": (11,),
        "core.mlp.linear_0.weight": (7, 11),
        "core.mlp.linear_0.bias": (7,),
        "core.mlp.linear_1.weight": (5, 7),
        "core.mlp.linear_1.bias": (5,),
        "head.layers_0.weight": (3, 5),
        "head.layers_0.bias": (3,),
        "head.layers_1.weight": (3,),
        "head.layers_1.bias": (3,),
        "scale": (2,),
    }
    kernel = net.at["core.params.mlp/~/linear_0.w"].get()
    np.testing.assert_array_equal(exported["core.mlp.linear_0.weight"], np.asarray(kernel).T)
    again = br.load_state_dict(net, exported)
    assert jax.tree.structure(again) == jax.tree.structure(net)


def test_the_running_statistics_of_haiku_are_those_that_it_evaluates_with():
    hk = pytest.importorskip("haiku")
    x = np.random.default_rng(0).normal(3, 2, (13, 7)).astype(np.float32)
    norm = br.from_haiku(hk.BatchNorm)(True, True, 0.9).init(jax.random.key(0), x, True)
    _, norm = norm.apply(x, True)
    exported = br.state_dict(norm)
    average = norm.at["state.batch_norm/~/mean_ema.average"].get()
    np.testing.assert_array_equal(exported["batch_norm.running_mean"], np.ravel(average))
    np.testing.assert_allclose(exported["batch_norm.running_mean"], x.mean(0), rtol=1e-4)


def test_layers_that_torch_does_not_have():
    hk, eqx = pytest.importorskip("haiku"), pytest.importorskip("equinox")
    x, h = np.ones((2, 5), np.float32), np.ones((2, 7), np.float32)
    gru = br.from_haiku(hk.GRU)(7).init(jax.random.key(0), x, h)
    assert refused(gru).startswith(
        "torch.nn cannot hold this Module by itself:\n"
        "  params.gru: gru cannot be loaded: reset is after the matrix there and before the matrix"
    )
    norm = br.from_equinox(eqx.nn.RMSNorm(7))
    assert refused(norm) == (
        "torch.nn cannot hold this Module by itself:\n  params: torch's rms norm has no bias"
    )


def test_two_layers_that_would_have_one_name():
    tree = {name: {"w": jnp.zeros((5, 7))} for name in ("a/b", "a/~/b")}
    layers = (
        Layer((name,), "linear", (Slot("weight", ("params", name, "w"), "in out"),)) for name in tree
    )
    module = Stub(Opaque(None), Leaves.of(tree), Leaves.of({}), tuple(layers))
    assert refused(module) == (
        "torch.nn cannot hold this Module by itself:\n  a.b.weight: two layers would have this name"
    )


def test_a_recurrent_layer_without_a_bias_that_torch_has():
    nnx = pytest.importorskip("flax.nnx")
    cell = br.from_nnx(nnx.GRUCell(5, 7, rngs=nnx.Rngs(0)))
    assert refused(cell) == (
        "these keys cannot be filled from the Module:\n"
        "  bias_hh: nothing in the Module holds 7 of its 21 numbers"
    )


def test_a_module_of_arrays_in_a_mesh():
    mesh = jax.make_mesh((4,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    module = jax.device_put(Weights(8), sharding)
    np.testing.assert_array_equal(br.state_dict(module)["one"], np.arange(8))
