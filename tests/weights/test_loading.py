"""A Module with weights in it: values, dtypes, copies, and where they come from."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

import bridge as br
from bridge.core.errors import WeightsWarning


class Dense(br.Module):
    weight: br.Parameter
    bias: br.Parameter

    def __init__(self, inputs=5, outputs=7, dtype=jnp.float32):
        self.weight = br.ParamInit((outputs, inputs), jax.nn.initializers.zeros, dtype)
        self.bias = br.ParamInit((outputs,), jax.nn.initializers.zeros, dtype)


def weights(inputs=5, outputs=7, dtype=np.float32):
    random = np.random.default_rng(0)
    return {
        "weight": random.normal(size=(outputs, inputs)).astype(dtype),
        "bias": random.normal(size=outputs).astype(dtype),
    }


def aligned(array):
    """The array at an address that jax takes over without a copy."""
    buffer = np.empty(array.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def bits(array):
    return np.asarray(array).view(np.uint8).tobytes()


def refused(*args, **options):
    with pytest.raises(br.BridgeError) as caught:
        br.load_state_dict(*args, **options)
    return str(caught.value)


def test_the_callers_dict_is_not_touched():
    source = weights()
    before = {key: array.copy() for key, array in source.items()}
    br.load_state_dict(Dense(), source, rename={"weight": "weight"})
    assert source.keys() == before.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(source[key], array)


@pytest.mark.parametrize("library", ["own", "equinox", "linen"])
def test_a_later_write_to_the_callers_array_does_not_reach_the_module(library):
    size = 1024  # small arrays are copied by jax itself
    source = {key: aligned(array) for key, array in weights(size, size).items()}
    if library == "own":
        module = Dense(size, size)
    elif library == "equinox":
        eqx = pytest.importorskip("equinox")
        module = br.from_equinox(eqx.nn.Linear(size, size, key=jax.random.key(0)))
    else:
        nn = pytest.importorskip("flax.linen")
        module = br.from_linen(nn.Dense(size)).init(jax.random.key(0), np.ones((1, size), np.float32))
    module = br.load_state_dict(module, source)
    before = [np.array(leaf) for leaf in jax.tree.leaves(module)]
    for array in source.values():
        array += 1
    for leaf, kept in zip(jax.tree.leaves(module), before, strict=True):
        np.testing.assert_array_equal(leaf, kept)


def test_a_later_write_to_a_live_torch_model_does_not_reach_the_module():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(1024, 1024)
    module = br.load_state_dict(Dense(1024, 1024), layer, rename={"weight": "weight"})
    before = np.array(module.weight)
    with torch.no_grad():
        layer.weight.add_(1)
    np.testing.assert_array_equal(module.weight, before)


@pytest.mark.parametrize("kind", ["file", "mapping"])
def test_bfloat16_keeps_its_bits(tmp_path, kind):
    source = weights(dtype=ml_dtypes.bfloat16)
    source["bias"][:3] = np.array([np.nan, -0.0, np.inf], ml_dtypes.bfloat16)
    save_file(source, tmp_path / "model.safetensors")
    given = tmp_path / "model.safetensors" if kind == "file" else source
    with pytest.warns(WeightsWarning):
        module = br.load_state_dict(Dense(dtype=jnp.bfloat16), given)
    assert module.bias.dtype == jnp.bfloat16
    assert {key: bits(getattr(module, key)) for key in source} == {
        key: bits(array) for key, array in source.items()
    }


def test_bfloat16_tensors_keep_their_bits():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(5, 7).bfloat16()
    module = br.load_state_dict(Dense(dtype=jnp.bfloat16), layer)
    assert bits(module.weight) == layer.weight.detach().view(torch.uint8).numpy().tobytes()


def test_nothing_is_cast_by_itself():
    assert refused(Dense(), weights(dtype=np.float16)) == (
        "these weights do not fit the Module:\n"
        '  weight: holds float16; weight holds float32: type dtype="source" to keep float16,'
        ' dtype="module" to cast\n'
        '  bias: holds float16; bias holds float32: type dtype="source" to keep float16,'
        ' dtype="module" to cast'
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("source", np.float16), ("module", np.float32), (jnp.bfloat16, jnp.bfloat16)],
)
def test_a_dtype_that_is_asked_for(dtype, expected):
    source = weights(dtype=np.float16)
    module = br.load_state_dict(Dense(), source, dtype=dtype)
    assert module.weight.dtype == expected
    np.testing.assert_array_equal(module.weight, source["weight"].astype(expected))


def test_a_number_of_another_sort_is_never_cast():
    source = {**weights(), "bias": np.arange(7, dtype=np.int32)}
    for dtype in (None, "source", "module", np.float32):
        assert refused(Dense(), source, dtype=dtype) == (
            "these weights do not fit the Module:\n"
            "  bias: holds int32; bias holds float32, another sort of number"
        )


def test_double_precision_is_not_cut_silently():
    assert refused(Dense(), weights(dtype=np.float64), dtype="source") == (
        "these weights do not fit the Module:\n"
        "  weight: float64 needs jax.config.update('jax_enable_x64', True); or type dtype=\"module\" to"
        " cast to float32\n"
        "  bias: float64 needs jax.config.update('jax_enable_x64', True); or type dtype=\"module\" to"
        " cast to float32"
    )


def test_left_over_keys_are_refused_or_left_out():
    source = {**weights(), "head.weight": np.zeros((2, 3), np.float32)}
    assert refused(Dense(), source) == (
        "these weights do not fit the Module:\n"
        "  head.weight: left over: nothing in the Module takes it; type strict=False to leave it out"
    )
    module = br.load_state_dict(Dense(), source, strict=False)
    np.testing.assert_array_equal(module.weight, source["weight"])
    assert list(br.match(Dense(), source).left_over) == ["head.weight"]


def test_a_missing_key_is_an_error_without_strict_as_well():
    source = weights()
    del source["bias"]
    assert refused(Dense(), source, strict=False) == (
        "these weights do not fit the Module:\n"
        "  bias: missing: nothing in the source is like its array with axes=7;"
        " if it has another form there, type rename={name: 'bias'}"
    )


MESH = jax.make_mesh((4, 2), ("data", "model"))
SPLIT, WHOLE = (NamedSharding(MESH, spec) for spec in (PartitionSpec(None, "model"), PartitionSpec()))
RULES = br.ShardingRules(MESH, {"w*": SPLIT.spec, "*": WHOLE.spec})


def on_mesh(inputs):
    """An initialised layer, and the tree of where its arrays go."""
    module = Dense(inputs, 7).init(jax.random.key(0))
    return module, RULES.of(module)


@pytest.mark.parametrize("form", ["function", "rules", "tree"])
def test_sharding_says_where_the_arrays_go(form):
    module, tree = on_mesh(8)
    forms = {"function": {"weight": SPLIT, "bias": WHOLE}.__getitem__, "rules": RULES, "tree": tree}
    for into in (module, Dense(8, 7)):
        loaded = br.load_state_dict(into, weights(8), sharding=forms[form])
        assert (loaded.weight.sharding, loaded.bias.sharding) == (SPLIT, WHOLE)
        np.testing.assert_array_equal(loaded.weight, weights(8)["weight"])


def test_one_sharding_is_that_of_every_array():
    loaded = br.load_state_dict(Dense(8, 7), weights(8), sharding=WHOLE)
    assert loaded.weight.sharding == loaded.bias.sharding == WHOLE


@pytest.mark.parametrize("is_abstract", [False, True])
def test_weights_go_to_where_the_modules_own_were_put(is_abstract):
    module, tree = on_mesh(8)
    placed = jax.device_put(module, tree)
    if is_abstract:
        placed = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), placed
        )
    loaded = br.load_state_dict(placed, weights(8))
    assert (loaded.weight.sharding, loaded.bias.sharding) == (SPLIT, WHOLE)
    assert not br.load_state_dict(module, weights(8)).weight.committed


@pytest.mark.parametrize(
    ("sharding", "text"),
    [
        (
            3,
            "sharding= takes bridge.ShardingRules(mesh, {...}), a jax.sharding.Sharding, a tree of them"
            " like the module, or a function of the path; a int was given",
        ),
        (
            lambda path: path,
            "weight: sharding= gives a str for it; a jax.sharding.Sharding was wanted, such as"
            " NamedSharding(mesh, PartitionSpec())",
        ),
        (
            br.Sequential(),
            "weight: sharding= gives nothing for it; a jax.sharding.Sharding was wanted, such as"
            " NamedSharding(mesh, PartitionSpec())",
        ),
        (
            br.ShardingRules(MESH, {"*": PartitionSpec("data")}),
            "the sharding rules do not fit the tree:\n"
            "  weight: has shape (7, 8); the rule '*' splits axis 0 over 4 devices, those of data: 7 is"
            " no multiple\n"
            "  bias: has shape (7,); the rule '*' splits axis 0 over 4 devices, those of data: 7 is no"
            " multiple\n"
            'A rule "*": PartitionSpec() at the end keeps what is left whole on every device',
        ),
    ],
    ids=["a number", "no sharding", "another tree", "rules that do not fit"],
)
def test_a_sharding_that_says_nothing(sharding, text):
    assert refused(Dense(8, 7), weights(8), sharding=sharding) == text


def test_what_a_user_froze_stays_frozen():
    module = br.load_state_dict(Dense().init(jax.random.key(0)).freeze("bias"), weights())
    assert module.parameters().bias is None
    assert module.parameters().weight is not None


SUPPORTED = (
    "weights come from a mapping of names to arrays or tensors, a torch.nn.Module, or the path of a"
    " .safetensors, .pt, .pth, .bin or .msgpack file, of the index of a sharded one, or of a folder;"
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.onnx", "{path}: " + SUPPORTED + " this is a .onnx file"),
        ("model", "{path}: " + SUPPORTED + " this is a nameless file"),
    ],
)
def test_a_path_that_cannot_be_read(tmp_path, name, text):
    path = tmp_path / name
    assert refused(Dense(), path) == f"{path}: there is no such file"
    path.touch()
    assert refused(Dense(), path) == text.format(path=path)


def test_a_file_of_torch_is_loaded(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    tensors = {key: torch.from_numpy(array) for key, array in weights().items()}
    torch.save({"state_dict": tensors, "epoch": 3}, path)
    module = br.load_state_dict(Dense(), path)
    np.testing.assert_array_equal(module.weight, weights()["weight"])


def test_a_folder_without_weights(tmp_path):
    assert refused(Dense(), tmp_path) == (f"{tmp_path}: there is no file of weights in this folder")


def test_a_damaged_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:-3])
    assert "is no safetensors file, or it is damaged or cut short" in refused(Dense(), path)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (3, SUPPORTED + " a int was given"),
        (
            {"weight": [1.0]},
            "weight: holds a list; weights are arrays of NumPy or JAX, or tensors",
        ),
    ],
)
def test_what_is_no_source(source, text):
    assert refused(Dense(), source) == text


def test_arrays_of_jax_and_tensors_beside_each_other():
    torch = pytest.importorskip("torch")
    source = weights()
    mixed = {"weight": jnp.asarray(source["weight"]), "bias": torch.from_numpy(source["bias"])}
    module = br.load_state_dict(Dense(), mixed)
    np.testing.assert_array_equal(module.weight, source["weight"])
    np.testing.assert_array_equal(module.bias, source["bias"])


@pytest.mark.parametrize(
    ("value", "told"), [(np.nan, "1 NaN and 0 infinite"), (np.inf, "0 NaN and 1 infinite")]
)
def test_numbers_that_are_not_finite_are_warned_of(value, told):
    held = weights()
    held["weight"] = held["weight"].copy()
    held["weight"].flat[3] = value
    module = Dense().init(jax.random.key(0))
    with pytest.warns(WeightsWarning) as caught:
        module = br.load_state_dict(module, held)
    assert str(caught[0].message) == (
        "these weights hold numbers that are not finite; they were loaded as they are:\n"
        f"  weight: {told} of {held['weight'].size}"
    )
    assert caught[0].filename == __file__
