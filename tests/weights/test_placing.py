"""Arrays that several devices hold: each part is read to its place."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import bridge as br
from bridge.core.errors import WeightsWarning
from bridge.core.notation import read
from bridge.weights import placing
from bridge.weights.files import memory
from bridge.weights.report import Match, Pair
from tests.weights.files.torch_files import mapping, tensor, whole, zipped

MESH = jax.make_mesh((4, 2), ("x", "y"))
SPEC = jax.sharding.PartitionSpec


class Whole(br.Module):
    w: br.Parameter


def plan(**axes):
    """A plan that fills one array from several keys, of which the second has 1 added to it."""
    pairs = (
        Pair(key, ("w",), read(*sides), "by hand", float(key == "b")) for key, sides in axes.items()
    )
    return Match(tuple(pairs), {}, {}, {}, (), ())


PLANS = {
    "transposed": plan(a=("out=16 in=8", "in=8 out=16")),
    "backwards": plan(a=("out=16 -in=8", "in=8 -out=16")),
    "an axis of two": plan(a=("(heads=2 d=8) in=8", "in=8 (d=8 heads=2)")),
    "an axis that is cut within a head": plan(a=("(d=8 heads=2) in=8", "in=8 (heads=2 d=8)")),
    "two parts": plan(a=("out=16 in=3", "in[0:3]of8 out=16"), b=("in=5 out=16", "in[3:8]of8 out=16")),
    "a sum": plan(a=("out=16 in=8", "in=8 out=16"), b=("in=8 out=16", "in=8 out=16")),
    "stacked": plan(
        **{key: ("out=16", f"{n}of8 out=16") for n, key in enumerate("abcdefgh")},
    ),
}


@pytest.mark.parametrize("form", ["arrays", "a file, mapped", "a file, read row by row"])
@pytest.mark.parametrize("spec", [SPEC("x"), SPEC(None, "y"), SPEC("y", "x"), SPEC(), SPEC(("x", "y"))])
@pytest.mark.parametrize("name", PLANS)
def test_the_parts_are_those_of_the_whole(name, spec, form, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    arrays = {
        one.key: random.normal(size=one.translation.source_shape).astype(np.float32)
        for one in PLANS[name].pairs
    }
    source = arrays if form == "arrays" else tmp_path / "model.safetensors"
    save_file(arrays, tmp_path / "model.safetensors")
    monkeypatch.setattr(placing, "_LEAST", 0)
    monkeypatch.setattr(memory, "_LONG", 0 if form.endswith("row by row") else 1 << 30)
    module, sharding = Whole(jnp.zeros((8, 16))), jax.sharding.NamedSharding(MESH, spec)
    undivided = br.load_state_dict(module, arrays, plan=PLANS[name])
    parts = br.load_state_dict(module, source, plan=PLANS[name], sharding=sharding)
    assert parts.w.sharding == sharding
    np.testing.assert_array_equal(parts.w, undivided.w)


def test_a_later_write_to_the_callers_array_does_not_reach_the_parts():
    source = {"w": np.zeros((1024, 64), np.float32)}
    sharding = jax.sharding.NamedSharding(MESH, SPEC("x"))
    module = br.load_state_dict(Whole(jnp.zeros((1024, 64))), source, sharding=sharding)
    source["w"] += 1
    assert not np.asarray(module.w).any()


def test_numbers_that_are_not_finite_are_counted_once():
    source = {"w": np.zeros((8, 16), np.float32)}
    source["w"][1, 2] = np.nan
    source["w"][7, 3] = np.inf
    sharding = jax.sharding.NamedSharding(MESH, SPEC("x"))  # each part is on two devices
    with pytest.warns(WeightsWarning, match="w: 1 NaN and 1 infinite of 128"):
        br.load_state_dict(Whole(jnp.zeros((8, 16))), source, sharding=sharding)


def file_of_torch(folder, array):
    form = {"shape": array.shape, "strides": (array.shape[1], 1), "count": array.size}
    return zipped(folder / "model.pt", whole(mapping(w=tensor(**form))), {"0": array.tobytes()})


def file_of_flax(folder, array):
    serialization = pytest.importorskip("flax.serialization")
    path = folder / "model.msgpack"
    path.write_bytes(serialization.to_bytes({"w": array}))
    return path


def sharded_files(folder, array):
    parts = {"a": array[:1], "w": array}
    br.save_state_dict(parts, folder / "model.safetensors", shard_size=array.nbytes)
    return folder


def one_file(folder, array):
    save_file({"w": array}, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("write", [one_file, sharded_files, file_of_torch, file_of_flax])
def test_the_host_never_holds_all_of_a_transposed_array(write, tmp_path):
    size = 2048
    array = np.arange(size * size, dtype=np.float32).reshape(size, size)
    path = write(tmp_path, array)
    turned = plan(w=(f"out={size} in={size}", f"in={size} out={size}"))
    sharding = jax.sharding.NamedSharding(MESH, SPEC("x", "y"))
    module = Whole(jax.device_put(jnp.zeros((size, size)), sharding))
    tracemalloc.start()
    loaded = br.load_state_dict(module, path, plan=turned, sharding=sharding, strict=False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(loaded.w, array.T)
    # The parts are the array; on a CPU JAX takes them over as they are.
    assert most < 1.3 * array.nbytes


@pytest.mark.parametrize("sharding", [None, jax.sharding.NamedSharding(MESH, SPEC("x"))])
@pytest.mark.parametrize("name", ["transposed", "a sum"])
def test_a_number_that_the_dtype_cannot_hold_is_refused(name, sharding):
    source = {
        pair.key: np.ones(pair.translation.source_shape, np.float32) for pair in PLANS[name].pairs
    }
    source["a"][0, 1] = 70_000
    module = Whole(jnp.zeros((8, 16), jnp.float16))
    with pytest.raises(br.BridgeError) as error:
        br.load_state_dict(module, source, dtype="module", plan=PLANS[name], sharding=sharding)
    keys, value = ("a", 70_000) if name == "transposed" else ("a, b", 70_002)
    assert str(error.value) == (
        f"{keys}: {value} is too large for float16, which ends at 65504: take a dtype of more range"
    )
