import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import safe_open

import bridge as br
from bridge.core.leaves import Leaves

SMALL = (
    *(jnp.bool_, jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.int32, jnp.uint32),
    *(jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64),
    *(jnp.float8_e5m2, jnp.float8_e5m2fnuz, jnp.float8_e4m3fn, jnp.float8_e4m3fnuz, jnp.float8_e8m0fnu),
)


class Dense(br.Module):
    kernel: br.Parameter
    bias: br.Parameter

    def __init__(self, inputs, outputs):
        self.kernel = br.ParamInit((inputs, outputs), jax.nn.initializers.lecun_normal())
        self.bias = br.ParamInit((outputs,), jax.nn.initializers.zeros)

    def __call__(self, x):
        return x @ self.kernel + self.bias


class Dropout(br.Module):
    rate: float = 0.5

    def __call__(self, x):
        if not self.training:
            return x
        return jnp.where(jax.random.bernoulli(self.rng, 1 - self.rate, x.shape), x / (1 - self.rate), 0)


class Net(br.Module):
    layers: list[br.Module]
    heads: dict[str, br.Module]
    tables: br.Parameter
    steps: br.State
    cache: Annotated[jax.Array, br.collection("cache")]
    noise: br.Key
    name: str

    def __init__(self, name="net"):
        shared = Dense(5, 5)
        self.layers = [Dense(3, 5), jax.nn.relu, shared, Dropout(), shared]
        self.heads = {"v1.5": Dense(5, 7)}
        self.tables = {
            "embed": br.ParamInit((11, 5), jax.nn.initializers.normal()),
            "head": br.ParamInit((11, 5), jax.nn.initializers.normal()),
        }
        self.steps = 0
        self.cache = Leaves.of({"b": {"mean": jnp.arange(3.0)}, "a": (jnp.ones(2), None)})
        self.noise = jax.random.key(3)
        self.name = name

    def __call__(self, x):
        self.steps = self.steps + 1
        for layer in self.layers:
            x = layer(x)
        return self.heads["v1.5"](x) @ jnp.ones((7,)) + (x @ self.tables["head"].T).sum()


class Point(NamedTuple):
    x: Any
    y: Any


def net(seed=0):
    module = Net().init(jax.random.key(seed), jnp.ones((2, 3)))
    return br.tie(module, "tables.head", "tables.embed")


def bits(leaf):
    data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(data).tobytes()


def check_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.shape, a.dtype, bits(a)) == (b.shape, b.dtype, bits(b))
        assert not getattr(b, "weak_type", False)


def round_trip(path, tree, like=None):
    br.save(path, tree)
    return br.load(path, tree if like is None else like)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.mark.parametrize("dtype", SMALL, ids=lambda dtype: jnp.dtype(dtype).name)
def test_every_bit_pattern_of_a_dtype_survives(path, dtype):
    pattern = np.random.default_rng(0).integers(0, 256, 8 * 13, dtype=np.uint8)
    pattern = pattern % 2 if dtype == jnp.bool_ else pattern
    array = jnp.asarray(pattern.view(jnp.dtype(dtype)))
    check_same(array, round_trip(path, array, jax.ShapeDtypeStruct(array.shape, array.dtype)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_payloads_of_nan_and_the_sign_of_zero_survive(path, dtype):
    width = jnp.dtype(dtype).itemsize
    patterns = {2: [0x7FC1, 0xFFA5, 0x8000], 4: [0x7FC00001, 0xFFA54321, 0x80000000]}[width]
    array = jax.device_put(np.array(patterns, f"u{width}").view(jnp.dtype(dtype)))
    loaded = round_trip(path, [array])[0]
    assert np.asarray(loaded).view(f"u{width}").tolist() == patterns


def test_float64_survives_where_jax_has_it_and_is_refused_where_not(path):
    with jax.enable_x64(True):
        array = jnp.array([1 / 3, -0.0], jnp.float64)
        check_same(array, round_trip(path, array))
    with pytest.raises(br.BridgeError) as caught:
        br.load(path, jax.ShapeDtypeStruct((2,), np.float64))
    assert str(caught.value) == (
        f"{path} does not fit like, and nothing was loaded:\n"
        "  the tree itself: it is float64, which JAX has only after"
        ' jax.config.update("jax_enable_x64", True)\n'
        "Build like as the saved tree was built"
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (1,), (2, 3, 5)])
def test_every_shape_survives(path, shape):
    array = jax.random.normal(jax.random.key(0), shape)
    check_same({"a": array}, round_trip(path, {"a": array}))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_a_typed_key_keeps_its_implementation(path, impl, shape):
    key = jax.random.key(7, impl=impl)
    key = jax.random.split(key, shape) if shape else key
    loaded = round_trip(path, key, jax.eval_shape(lambda: key))
    check_same(key, loaded)
    assert jax.random.key_impl(loaded) == impl


def test_a_legacy_key_stays_an_array(path):
    key = jax.random.PRNGKey(7)
    check_same((key,), round_trip(path, (key,)))


@pytest.mark.parametrize("like", ["concrete", "abstract"])
def test_a_module_survives_with_all_that_it_holds(path, like):
    module = net().new_state({"dropout": jax.random.key(1), "default": jax.random.PRNGKey(2)})
    module = module.freeze("layers.0.*")
    template = net(5).new_state({"dropout": jax.random.key(4), "default": jax.random.PRNGKey(5)})
    template = template.freeze("layers.0.*")
    template = jax.eval_shape(lambda: template) if like == "abstract" else template
    check_same(module, round_trip(path, module, template))


def test_the_names_in_the_file_are_paths(path):
    module = net().new_state(jax.random.key(1))
    br.save(path, {"module": module, "key": jax.random.key(2)})
    with safe_open(path, "numpy") as file:
        assert sorted(file.keys()) == [
            "key",
            "module._rng",
            "module.cache.a.0",
            "module.cache.b.mean",
            "module.heads.v1\\.5.bias",
            "module.heads.v1\\.5.kernel",
            "module.layers.0.bias",
            "module.layers.0.kernel",
            "module.layers.2.bias",
            "module.layers.2.kernel",
            "module.noise",
            "module.steps",
            "module.tables.embed",
        ]
        described = json.loads(file.metadata()["bridge"])
    assert described["version"] == 1
    assert described["shared"] == {
        "module.layers.4": "module.layers.2",
        "module.tables.head": "module.tables.embed",
    }
    assert described["keys"] == dict.fromkeys(["key", "module._rng", "module.noise"], "threefry2x32")
    assert described["modules"] == {
        "module": {"__class__": "Net", "name": "net"},
        "module.heads.v1\\.5": {"__class__": "Dense"},
        "module.layers.0": {"__class__": "Dense"},
        "module.layers.1": {"__class__": "Function", "function": "<function relu>"},
        "module.layers.2": {"__class__": "Dense"},
        "module.layers.3": {"__class__": "Dropout", "rate": 0.5},
    }
    assert described["kinds"]["module.cache.b.mean"] == "state (cache)"
    assert described["kinds"]["module.layers.0.kernel"] == "parameter"
    assert described["kinds"]["module.noise"] == "key"
    assert described["kinds"]["module.steps"] == "state"


def test_mode_and_freezing_are_those_of_like(path):
    module = net()
    loaded = round_trip(path, module, net(5).freeze("layers.*").train())
    check_same(loaded, module.freeze("layers.*").train())


def test_containers_stay_what_they_are(path):
    tree = {
        "list": [jnp.ones(2), (jnp.zeros(3), None)],
        "point": Point(jnp.arange(5), {1: jnp.ones(())}),
        "ema": net().parameters(),
        "none": None,
        "empty": {},
    }
    check_same(tree, round_trip(path, tree))


def test_equal_trees_make_equal_files(tmp_path):
    br.save(tmp_path / "a", {"x": net(), "y": jnp.ones(3)})
    br.save(tmp_path / "b", {"y": jnp.ones(3), "x": net()})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_sharded_array_is_gathered_and_comes_back_sharded(path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("rows",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    array = jnp.arange(30.0).reshape(6, 5)
    sharded = jax.device_put(array, rows)
    keys = jax.device_put(jax.random.split(jax.random.key(0), 2), rows)
    loaded = round_trip(path, (sharded, keys))
    check_same(loaded, (sharded, keys))
    assert loaded[0].sharding == rows
    assert loaded[1].sharding == keys.sharding
    assert br.load(path, (jax.ShapeDtypeStruct((6, 5), jnp.float32, sharding=rows), keys))[0].committed
    plain = br.load(path, (array, keys))[0]
    assert not plain.committed
    check_same(plain, array)


def test_what_is_on_a_device_on_purpose_stays_there(path):
    array = jax.device_put(jnp.arange(3.0), jax.devices()[1])
    assert round_trip(path, array).devices() == {jax.devices()[1]}


def test_a_donated_tree_still_serves_as_like(path):
    array = jnp.arange(3.0)
    br.save(path, array)
    like = jnp.zeros(3)
    like.delete()
    check_same(br.load(path, like), array)


TRANSFORMS = {
    "adam": lambda: optax.adam(1e-2),
    "clipped adamw": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "groups": lambda: {"layers.*": optax.sgd(1e-2, momentum=0.9), "*": optax.adam(1e-2)},
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 2),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_training_goes_on_as_if_nothing_had_been_saved(path, name):
    traces = []

    @jax.jit
    def step(module, optimizer, key):
        traces.append(1)
        key, now = jax.random.split(key)

        def loss(module):
            out, module = module.apply(jnp.ones((2, 3)), rng=now, mode="train")
            return (out**2).mean(), module

        (_, module), grads = br.value_and_grad(loss, has_aux=True)(module)
        return *optimizer.step(grads, module), key

    def begin(seed):
        module = net(seed)
        return module, br.Optimizer(TRANSFORMS[name]()).init(module), jax.random.key(seed)

    run = begin(0)
    for _ in range(3):
        run = step(*run)
    before = len(traces)
    names = ("module", "optimizer", "key")
    br.save(path, dict(zip(names, run, strict=True)))
    loaded = br.load(path, dict(zip(names, run, strict=True)))
    check_same(loaded, dict(zip(names, run, strict=True)))
    again = tuple(loaded[name] for name in names)
    for _ in range(2):
        run, again = step(*run), step(*again)
    check_same(run, again)
    assert len(traces) == before
    fresh = br.load(path, jax.eval_shape(lambda: dict(zip(names, begin(1), strict=True))))
    assert [bits(leaf) for leaf in jax.tree.leaves(fresh)] == [
        bits(leaf) for leaf in jax.tree.leaves(loaded)
    ]


SAVER = """
import os, sys, jax.numpy as jnp, bridge as br
from bridge.core import tensorfile

real, done = tensorfile._bytes_of, []

def slow(array):
    if len(done) == 1:
        print("in the middle", flush=True)
        sys.stdin.read()
    done.append(1)
    return real(array)

tensorfile._bytes_of = slow
br.save(sys.argv[1], {"a": jnp.full((300, 700), 2.0), "b": jnp.full((300, 700), 2.0)})
"""


def test_a_killed_save_leaves_the_old_file_and_the_next_one_works(path):
    old = {"a": jnp.ones((300, 700)), "b": jnp.ones((300, 700))}
    br.save(path, old)
    before = path.read_bytes()
    command = [sys.executable, "-c", textwrap.dedent(SAVER), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as saver:
        assert saver.stdout.readline() == b"in the middle\n"
        saver.send_signal(signal.SIGKILL)
    (left,) = set(path.parent.iterdir()) - {path}
    assert left.stat().st_size > 300 * 700 * 4
    assert path.read_bytes() == before
    check_same(br.load(path, old), old)
    new = jax.tree.map(lambda leaf: 3 * leaf, old)
    check_same(round_trip(path, new), new)
    assert set(path.parent.iterdir()) == {path, left}


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    br.save(path, jnp.ones(3))
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(br.BridgeError) as caught:
        br.save(path, jnp.zeros(5))
    assert str(caught.value) == f"{path} cannot be written: No space left on device"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link(path, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(path)
    br.save(link, jnp.ones(3))
    assert link.is_symlink()
    check_same(br.load(path, jnp.zeros(3)), jnp.ones(3))


def test_a_new_file_has_the_usual_permissions(path):
    path.with_name("plain").touch()
    br.save(path, jnp.ones(3))
    assert path.stat().st_mode == path.with_name("plain").stat().st_mode


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "gone" / "run.safetensors"
    with pytest.raises(br.BridgeError) as caught:
        br.save(path, jnp.ones(3))
    assert str(caught.value) == (
        f"{path} cannot be written: No such file or directory; there is no folder {path.parent}:"
        " make it first"
    )


def test_everything_that_cannot_be_saved_is_told_before_anything_is_written(path):
    donated = jnp.ones(3)
    donated.delete()
    tree = {
        "__metadata__": jnp.ones(2),
        "donated": donated,
        "epoch": 3,
        "int4": jnp.ones(3, jnp.int4),
        "module": Dense(3, 5),
        "optimizer": br.Optimizer(optax.sgd(1.0)),
        "shape": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    with pytest.raises(br.BridgeError) as caught:
        br.save(path, tree)
    first = (
        "it is not initialised; type module = module.init(key, *sample), or"
        " optimizer = optimizer.init(module)"
    )
    assert str(caught.value) == (
        f"{path} was not written; these cannot be saved:\n"
        f"  module.kernel: {first}\n"
        f"  module.bias: {first}\n"
        f"  optimizer.opt_state: {first}\n"
        "  __metadata__: safetensors keeps this name for itself; use another one\n"
        "  donated: its memory was donated to a compiled function; save what that function returned\n"
        "  epoch: it is a int; an array or a key was wanted: jax.numpy.asarray(...)\n"
        "  int4: safetensors has no int4; cast it: array.astype(...)\n"
        "  shape: it is a jax.ShapeDtypeStruct, which has no values; save what was really computed"
    )
    assert not path.exists()


def test_saving_inside_a_compiled_function_is_refused(path):
    @jax.jit
    def step(x):
        br.save(path, {"x": x})
        return x

    with pytest.raises(br.BridgeError) as caught:
        step(jnp.ones(3))
    assert str(caught.value) == (
        f"{path} was not written; these cannot be saved:\n"
        "  x: it is traced, by jax.jit or another transform; return it from there, and save what comes"
    )
    assert not path.exists()


class Twins:
    def __init__(self, *both):
        self.both = both


_TWIN = jax.tree_util.GetAttrKey("twin")
jax.tree_util.register_pytree_with_keys(
    Twins, lambda t: ([(_TWIN, part) for part in t.both], None), lambda _, parts: Twins(*parts)
)


def test_two_leaves_of_one_path_are_refused(path):
    with pytest.raises(br.BridgeError) as caught:
        br.save(path, Twins(jnp.ones(2), jnp.zeros(2)))
    assert str(caught.value) == "two leaves of the tree have the path twin; give them different names"
