"""Flax's msgpack files against Flax's own reader, and damaged ones."""

import json
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import bridge.weights.files.msgpack as reader
from bridge.core.errors import BridgeError, CheckpointError, WeightsError
from bridge.weights.sources import open_source

serialization = pytest.importorskip("flax.serialization")
msgpack = pytest.importorskip("msgpack")

MATRIX = np.arange(15, dtype=np.float32).reshape(3, 5)


def written(path, tree):
    path.write_bytes(serialization.to_bytes(tree))
    return path


@pytest.mark.parametrize("name", reader.DTYPES)
def test_every_dtype_is_flaxs(name, tmp_path):
    array = (np.arange(15).reshape(3, 5) % 2).astype(reader.DTYPES[name])
    path = written(tmp_path / "a.msgpack", {"a": array, "one": array[1, 1], "none": array[:0]})
    source = open_source(path)
    for key, expected in {"a": array, "one": array[1, 1], "none": array[:0]}.items():
        came = source.tensors[key].read()
        assert (came.dtype, came.shape) == (array.dtype, expected.shape)
        assert (source.tensors[key].dtype, source.tensors[key].shape) == (came.dtype, came.shape)
        assert came.tobytes() == expected.tobytes()


def test_a_tree_is_read_by_dotted_paths_with_its_numbers(tmp_path):
    tree = {
        "params": {
            "dense": {"kernel": jnp.ones((3, 5), jnp.bfloat16), "bias": np.zeros(5, np.float16)}
        },
        "list": [MATRIX, (MATRIX[0], 3)],
        "step": 70_000,
        "negative": [-1, -100, -1000, -100_000, -(2**40)],
        "rate": 0.5,
        "pair": 1 + 2j,
        "scalar": np.float32(7),
        "flag": True,
        "name": "x",
        "nothing": None,
    }
    path = written(tmp_path / "a.msgpack", tree)
    source = open_source(path)
    arrays = {key: tensor.read() for key, tensor in source.tensors.items()}
    assert {key: one.item() for key, one in arrays.items() if not one.shape} == {
        "list.1.1": 3,
        "step": 70_000,
        "negative.0": -1,
        "negative.1": -100,
        "negative.2": -1000,
        "negative.3": -100_000,
        "negative.4": -(2**40),
        "rate": 0.5,
        "pair": 1 + 2j,
        "scalar": 7.0,
        "flag": True,
    }
    np.testing.assert_array_equal(arrays["list.0"], MATRIX)
    np.testing.assert_array_equal(arrays["list.1.0"], MATRIX[0])
    assert arrays["params.dense.kernel"].dtype == ml_dtypes.bfloat16
    assert arrays["params.dense.bias"].tobytes() == bytes(10)


def test_a_field_of_the_name_module_stays(tmp_path):
    source = open_source(written(tmp_path / "a.msgpack", {"module": {"kernel": MATRIX}}))
    assert (list(source.tensors), source.notes) == (["module.kernel"], ())


@pytest.mark.parametrize("size", [0, 1, 31, 200, 300, 70_000])
def test_items_of_every_length_are_read(size, tmp_path):
    tree = {"text" * size: np.ones(size, np.int8), **{str(n): n for n in range(size)}}
    source = open_source(written(tmp_path / "a.msgpack", tree))
    assert list(source.tensors) == list(tree)
    assert source.tensors["text" * size].read().shape == (size,)


def test_an_array_in_pieces_is_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 28)
    path = written(tmp_path / "a.msgpack", {"a": {"b": MATRIX}, "one": MATRIX[0]})
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    source = open_source(path)
    assert (list(source.tensors), source.tensors["a.b"].shape) == (["a.b", "one"], (3, 5))
    np.testing.assert_array_equal(source.tensors["a.b"].read(), MATRIX)


def packed(tree):
    return msgpack.packb(tree, strict_types=True)


def array(shape=(3,), dtype="float32", content=bytes(12), more=b""):
    return msgpack.ExtType(1, packed([list(shape), dtype, content]) + more)


def chunked(**changed):
    pieces = {"shape": {"0": 3}, "chunks": {"0": array()}}
    return packed({"a": {"__msgpack_chunked_array__": True, **pieces, **changed}})


DAMAGED = {
    "nothing": (b"", "an item should end at byte 1, and there are 0"),
    "no item": (b"\xc1", "no item begins with the byte 0xc1"),
    "more than a tree": (packed({}) + b"\xc0", "its tree ends at byte 1, and it has 2 bytes"),
    "a dictionary without end": (
        b"\xdf\xff\xff\xff\xff",
        "an item should end at byte 6, and there are 5",
    ),
    "a list without end": (b"\xdd\xff\xff\xff\xff", "an item should end at byte 6, and there are 5"),
    "a long text": (b"\xdb\xff\xff\xff\xff", "an item should end at byte 4294967300, and there are 5"),
    "no text": (b"\xa1\xff", "'utf-8' codec can't decode byte 0xff"),
    "too deep": (b"\x91" * 100_000 + b"\xc0", "maximum recursion depth exceeded"),
    "a key twice": (b"\x82\xa1a\xc0\xa1a\xc0", "the key 'a' is no text, or stands there twice"),
    "a number for a key": (packed({3: 5}), "the key '3' is no text, or stands there twice"),
    "a long array": (
        packed({"a": array([2**40], content=bytes(12))}),
        "an array of shape (1099511627776,) and float32 has 12 bytes",
    ),
    "a huge shape": (packed({"a": array([2**62, 2**62])}), "an array has a shape that none has"),
    "nothing, and much of it": (packed({"a": array([0, 2**62])}), "an array has a shape that none has"),
    "a negative shape": (packed({"a": array([-1, -3])}), "an array has a shape that none has"),
    "half a shape": (packed({"a": array([1.5])}), "an array has a shape that none has"),
    "no shape": (packed({"a": msgpack.ExtType(1, b"\x93\xc0")}), "an array lacks its shape"),
    "no array": (packed({"a": msgpack.ExtType(1, b"\xc0")}), "an array lacks its shape"),
    "text for bytes": (
        packed({"a": array(content="a" * 12)}),
        "an array of shape (3,) and float32 has 0",
    ),
    "a long extension": (packed({"a": array(more=b"\xc0")}), "an extension goes on for 1 bytes"),
    "half a complex number": (
        packed({"a": msgpack.ExtType(2, packed([3]))}),
        "a complex number has not two parts",
    ),
    "a piece too few": (
        chunked(shape={"0": 4}),
        "an array of shape (4,) has pieces of 3 numbers",
    ),
    "pieces of two dtypes": (
        chunked(chunks={"0": array([1], "int32", bytes(4)), "1": array([2], content=bytes(8))}),
        "an array of shape (3,) has pieces of 3 numbers",
    ),
    "a piece that is none": (chunked(chunks={"0": 3}), "an array in pieces lacks its pieces"),
    "pieces without the first": (chunked(chunks={"1": array()}), "an array in pieces lacks its pieces"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_with_the_reason_and_takes_no_memory(case, tmp_path):
    content, reason = DAMAGED[case]
    path = tmp_path / "a.msgpack"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(
        f"{path} is no msgpack file of Flax, or it is damaged or cut short: {reason}"
    )
    assert str(caught.value).endswith(". Take another copy of it")
    assert peak < 100 * len(content) + 1_000_000


REFUSED = {
    "another extension": (
        packed({"a": msgpack.ExtType(5, b"os.system")}),
        "it holds an extension of msgpack with code 5, which Flax has not",
    ),
    "objects": (
        packed({"a": array(dtype="object")}),
        "it holds an array of 'object', which JAX has not",
    ),
    "structures": (
        packed({"a": array(dtype="f4,i4")}),
        "it holds an array of 'f4,i4', which JAX has not",
    ),
    "one path twice": (
        packed({"a": {"b": array()}, "a.b": array()}),
        "two of its arrays have the path a.b",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_array_of_jax_is_refused(case, tmp_path):
    content, reason = REFUSED[case]
    path = tmp_path / "a.msgpack"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        open_source(path)
    assert str(caught.value) == f"{path}: {reason}"


def test_a_tree_of_more_than_arrays_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LONGEST", 1000)
    with pytest.raises(WeightsError, match="it holds more beside its arrays than the tree of a model"):
        open_source(written(tmp_path / "a.msgpack", {"a": "b" * 1000}))
    assert open_source(written(tmp_path / "a.msgpack", {"a": np.ones(5000, np.int8)})).tensors


def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path):
    path = written(tmp_path / "a.msgpack", {"a": MATRIX, "b": [1, 2.0], "c": 3j})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(BridgeError):
            open_source(path)


def test_shards_of_flax_are_read_by_their_index(tmp_path):
    written(tmp_path / "one.msgpack", {"encoder": {"kernel": MATRIX}})
    written(tmp_path / "two.msgpack", {"encoder": {"bias": MATRIX[0]}})
    # transformers joins the names of Flax by slashes in its index.
    places = {"encoder/kernel": "one.msgpack", "encoder/bias": "two.msgpack"}
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    source = open_source(tmp_path)
    assert list(source.tensors) == ["encoder.kernel", "encoder.bias"]
    np.testing.assert_array_equal(source.tensors["encoder.kernel"].read(), MATRIX)
