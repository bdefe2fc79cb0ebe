import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

import bridge as br
from bridge.core import tensorfile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arrays.safetensors"


def write(path, arrays, metadata=()):
    with open(path, "wb") as file:
        tensorfile.write(file, arrays, dict(metadata))


def test_an_array_that_lies_transposed_in_memory_is_written_in_order(path):
    array = np.arange(15.0, dtype=np.float32).reshape(3, 5)
    write(path, {"a": array.T, "b": np.asfortranarray(array)})
    with safe_open(path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), array.T)
        np.testing.assert_array_equal(file.get_tensor("b"), array)


def test_data_is_aligned_for_mapping(path):
    shapes = {"a": (3,), "b": (16,), "c": (5, 32), "d": (), "e": (7, 16)}
    write(path, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    with open(path, "rb") as file:
        tensors = tensorfile.read_header(file).tensors
        pointers = [tensorfile.read(file, tensor).ctypes.data for tensor in tensors.values()]
    assert [name for name in shapes if tensors[name].start % 64 == 0] == ["a", "b", "c", "e"]
    assert all(pointer % 64 == 0 for pointer in pointers)


@pytest.mark.parametrize("name", tensorfile.DTYPES)
def test_safetensors_reads_every_dtype_by_the_same_name(path, name):
    write(path, {"a": np.ones((3, 5), tensorfile.DTYPES[name])}, {"by": "bridge"})
    with safe_open(path, "numpy") as file:
        assert file.get_slice("a").get_dtype() == name
        assert file.get_slice("a").get_shape() == [3, 5]
        assert file.metadata() == {"by": "bridge"}


def test_values_mean_what_they_mean_to_safetensors(path):
    torch = pytest.importorskip("torch")
    kinds = {
        "BF16": (ml_dtypes.bfloat16, torch.bfloat16),
        "F8_E4M3": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
        "F8_E5M2": (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    }
    write(path, {name: np.array([0.5, -3.0], ours) for name, (ours, _) in kinds.items()})
    with safe_open(path, "pt") as file:
        for name, (_, theirs) in kinds.items():
            tensor = file.get_tensor(name)
            assert (tensor.dtype, tensor.float().tolist()) == (theirs, [0.5, -3.0])


def header(text, data=b""):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(3,), offsets=(0, 12)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DAMAGED = {
    "empty": (b"", "its header should end at byte 8, and it has 0 bytes"),
    "text": (
        b"epoch,loss\n1,0.5\n",
        "its header should end at byte 8028841062551220333, and it",
    ),
    "cut in its header": (
        header({"a": entry()})[:20],
        "its header should end at byte 70, and it has",
    ),
    "cut in its data": (header({"a": entry()}, bytes(11)), "its tensors should end at byte 82,"),
    "longer than it says": (
        header({"a": entry()}, bytes(13)),
        "its tensors should end at byte 82,",
    ),
    "not JSON": (header(b"{]"), "Expecting property name enclosed in double quotes"),
    "not text": (header(b"\xff\xfe"), "'utf-8' codec can't decode byte 0xff"),
    "too deep": (header(b"[" * 100_000), "maximum recursion depth exceeded"),
    "a list": (header([1]), "its header is not of the form that the format has"),
    "metadata of numbers": (
        header({"__metadata__": 3}),
        "its header is not of the form that the format has",
    ),
    "no dtype": (
        header({"a": {}}),
        "the header does not say dtype, shape and place of 'a', and these alone",
    ),
    "no entry": (
        header({"a": 3}),
        "the header does not say dtype, shape and place of 'a', and these alone",
    ),
    "no shape": (header({"a": {**entry(), "shape": 3}}), "'int' object is not iterable"),
    "unknown dtype": (header({"a": entry("F4")}), "'a' is of the unknown dtype 'F4'"),
    "half a shape": (header({"a": entry(shape=[1.5])}), "the shape or the place of 'a' is not made of"),
    "negative": (header({"a": entry(shape=[-3])}), "the shape or the place of 'a' is not made of"),
    "wrong size": (header({"a": entry(offsets=(0, 8))}), "'a' needs 12 bytes and has 8"),
    "overlap": (
        header({"a": entry(), "b": entry(offsets=(4, 16))}, bytes(16)),
        "a tensor begins at byte 136, and the one before ends at 144",
    ),
    "gap": (
        header({"a": entry(offsets=(4, 16))}, bytes(16)),
        "a tensor begins at byte 74, and the one before ends at 70",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_with_the_reason(path, name):
    content, reason = DAMAGED[name]
    path.write_bytes(content)
    with pytest.raises(SafetensorError), safe_open(path, "numpy"):
        pass
    with pytest.raises(br.BridgeError) as caught, open(path, "rb") as file:
        tensorfile.read_header(file)
    assert str(caught.value).startswith(
        f"{path} is no safetensors file, or it is damaged or cut short: {reason}"
    )
    assert str(caught.value).endswith(". Take another copy of it")


def test_a_file_that_is_cut_short_meanwhile_is_refused(path):
    write(path, {"a": np.ones(1000, np.float32)})
    with open(path, "r+b") as file:
        tensor = tensorfile.read_header(file).tensors["a"]
        file.truncate(2000)
        with pytest.raises(br.BridgeError) as caught:
            tensorfile.read(file, tensor)
    assert str(caught.value) == f"{path} was cut short while it was read; load it again"
