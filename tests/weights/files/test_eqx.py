"""Equinox's files: arrays without names, which a model names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import BridgeError, CheckpointError, WeightsError
from bridge.weights.sources import open_source

eqx = pytest.importorskip("equinox")


def model(seed=0, width=5):
    key = jax.random.key(seed)
    mlp = eqx.nn.MLP(3, 2, width, 1, key=key)
    rows = {
        "half": jnp.ones((2, 3), jnp.bfloat16),
        "small": jnp.ones(7, jnp.float8_e4m3fn),
        "turned": np.asfortranarray(np.arange(15, dtype=np.float32).reshape(3, 5)),
        "rate": 0.5,
        "steps": 3,
        "flag": True,
        "none": None,
        "scalar": np.float16(7),
        "large": jnp.arange(40_000.0),
    }
    return {"mlp": mlp, "rows": rows}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.eqx"
    eqx.tree_serialise_leaves(path, model())
    return path


def test_arrays_are_named_by_the_leaves_of_the_model(path):
    like = model(seed=1)
    source = open_source(path, like)
    saved = model()
    assert "mlp.layers.0.weight" in source.tensors
    np.testing.assert_array_equal(
        source.tensors["mlp.layers.1.bias"].read(), saved["mlp"].layers[1].bias
    )
    for name, leaf in saved["rows"].items():
        if leaf is not None:
            came = source.tensors[f"rows.{name}"]
            np.testing.assert_array_equal(came.read(), leaf)
            assert came.read().dtype == came.dtype
    assert source.tensors["rows.half"].dtype == jnp.bfloat16
    assert source.tensors["rows.small"].dtype == jnp.float8_e4m3fn


def test_a_model_of_shapes_names_them_too(path):
    shapes = eqx.filter_eval_shape(model)
    assert set(open_source(path, shapes).tensors) == set(open_source(path, model()).tensors)


def test_without_a_model_it_is_refused_with_what_to_type(path):
    with pytest.raises(WeightsError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path}: a .eqx file holds arrays in a row, without names. Build the model that it was saved"
        f" from, and type model = equinox.tree_deserialise_leaves('{path}', model), then module ="
        " bridge.from_equinox(model)"
    )


def test_another_model_is_refused_with_every_difference(path):
    with pytest.raises(WeightsError) as caught:
        open_source(path, model(width=7))
    assert str(caught.value) == (
        f"{path} does not fit like:\n"
        "  mlp.layers.0.weight: the file has the shape (5, 3), like has (7, 3)\n"
        "  mlp.layers.0.bias: the file has the shape (5,), like has (7,)\n"
        "  mlp.layers.1.weight: the file has the shape (2, 5), like has (2, 7)"
    )
    other = model()
    other["rows"]["large"] = other["rows"]["large"].astype(jnp.int32)
    with pytest.raises(WeightsError, match=r"rows\.large: the file has float32, like has int32"):
        open_source(path, other)
    with pytest.raises(WeightsError, match="holds 12 arrays, and like has 4 leaves"):
        open_source(path, model()["mlp"])


def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path):
    like = {"a": jnp.ones((3, 5)), "b": jnp.ones(7, jnp.int8)}
    path = tmp_path / "a.eqx"
    eqx.tree_serialise_leaves(path, like)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(BridgeError):
            open_source(path, like)


def record(descr="'<f4'", shape="(3,)", content=bytes(12), version=b"\x01\x00"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + content


DAMAGED = {
    "objects": (record("'|O'", content=b"cos\nsystem\n"), "it has an array of |O, which is no number"),
    "text": (record("'<U3'"), "it has an array of <U3, which is no number"),
    "an unknown dtype": (record("'<x9'"), "it has an array of <x9, which is no number"),
    "structures": (
        record("[('a', '<f4')]"),
        "it has an array of numbers that is none: \"{'descr': [('a', '<f4')], 'fortran_order'",
    ),
    "another version": (record(version=b"\x03\x00"), "what numpy.save writes does not begin so"),
    "a huge shape": (record(shape=f"({2**40},)"), "an array should end at byte"),
    "an impossible shape": (record(shape=f"(0, {2**62})"), "it has an array of the shape (0,"),
    "a negative shape": (record(shape="(-3,)"), "it has an array of numbers that is none: "),
    "a call": (record(shape="print(3)"), "it has an array of numbers that is none: "),
    "no array": (b"PK\x03\x04 and so on", "what numpy.save writes does not begin so"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_with_the_reason(case, tmp_path):
    content, reason = DAMAGED[case]
    path = tmp_path / "a.eqx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_source(path, [jnp.ones(3)])
    assert str(caught.value).startswith(
        f"{path} is no .eqx file, or it is damaged or cut short: {reason}"
    )
