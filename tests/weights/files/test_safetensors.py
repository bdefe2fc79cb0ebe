"""What a header may not say, beside what the tests of the format itself have."""

import json
import tracemalloc

import numpy as np
import pytest

from bridge.core import tensorfile
from bridge.core.errors import CheckpointError
from bridge.weights.files import safetensors


def file(path, header, content=b""):
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


ENTRY = '{"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}'


def entry(shape, size):
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}})


DAMAGED = {
    "a name twice": (f'{{"a": {ENTRY}, "a": {ENTRY}}}', "'a' stands twice in it"),
    "a dtype twice": (
        '{"a": {"dtype": "F32", "dtype": "F16", "shape": [3], "data_offsets": [0, 12]}}',
        "'dtype' stands twice in it",
    ),
    "a huge shape": (entry([2**40, 5], 12), "'a' needs 21990232555520 bytes and has 12"),
    "a huge shape that fits itself": (
        entry([2**40], 2**42),
        "its tensors should end at byte 4398046511197, and it has 105 bytes",
    ),
    "nothing, and much of it": (entry([0, 2**62], 0), "'a' has a shape that no array has"),
    "too many axes": (entry([1] * 65, 4), "'a' has a shape that no array has"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_header_that_lies_is_refused_with_the_reason_and_takes_no_memory(case, tmp_path):
    header, reason = DAMAGED[case]
    path = file(tmp_path / "a.safetensors", header, bytes(12))
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        safetensors.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason in str(caught.value)
    assert peak < 500_000


def test_a_header_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as one:
        one.write((200_000_000).to_bytes(8, "little"))
        one.truncate(300_000_000)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        safetensors.read(path)
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()
    assert "its header has 200000000 bytes, and the format allows 100000000" in str(caught.value)


def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as one:
        tensorfile.write(one, {"a": np.ones((3, 5), np.float32), "b": np.ones(7, np.int8)}, {})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            safetensors.read(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        safetensors.read(tmp_path / "gone")
    assert str(caught.value) == f"{tmp_path / 'gone'} cannot be read: No such file or directory"
