"""What is mapped and what is read, and who can write to it."""

import gc

import jax
import numpy as np
import pytest

from bridge.core import tensorfile
from bridge.weights.files.memory import Lying
from bridge.weights.sources import open_source
from tests.weights.files.torch_files import mapping, tensor, whole, zipped

COUNT = 50_000


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(np.arange(COUNT + 32, dtype=np.float32).tobytes())
    return path


def place(start, count=COUNT):
    return tensorfile.Tensor(np.dtype(np.float32), (count,), start, count * 4)


def mapped(path):
    """How many mappings of a file this process has."""
    gc.collect()
    with open("/proc/self/maps") as file:
        return sum(str(path) in line for line in file)


@pytest.mark.parametrize(("start", "is_mapped"), [(0, True), (64, True), (4, False), (36, False)])
def test_jax_takes_an_array_over_wherever_it_begins(path, start, is_mapped):
    array = Lying(path, place(start)).read()
    np.testing.assert_array_equal(array, np.arange(start // 4, start // 4 + COUNT))
    assert array.ctypes.data % tensorfile.ALIGNMENT == 0
    assert mapped(path) == is_mapped
    put = jax.device_put(array, jax.devices("cpu")[0])
    assert put.unsafe_buffer_pointer() == array.ctypes.data


def test_a_mapping_goes_with_its_array(path):
    array = Lying(path, place(64)).read()
    assert mapped(path) == 1
    part = array[3:5]
    del array
    assert mapped(path) == 1
    del part
    assert mapped(path) == 0


def test_a_small_array_is_read(path):
    Lying(path, place(64, 100)).read()
    assert mapped(path) == 0


def test_what_is_written_to_an_array_reaches_neither_the_file_nor_another_array(path):
    array = Lying(path, place(64)).read()
    array[:] = -1
    np.testing.assert_array_equal(Lying(path, place(64)).read(), np.arange(16, 16 + COUNT))
    assert path.read_bytes() == np.arange(COUNT + 32, dtype=np.float32).tobytes()


def test_a_donated_array_leaves_the_file(path):
    content = path.read_bytes()
    put = jax.device_put(Lying(path, place(64)).read())
    jax.jit(lambda numbers: numbers + 1, donate_argnums=0)(put).block_until_ready()
    assert path.read_bytes() == content


def test_a_tensor_of_torch_is_mapped_and_taken_over(tmp_path):
    row = np.arange(COUNT, dtype=np.float32)
    shape = {"shape": (COUNT // 5, 5), "strides": (5, 1), "count": COUNT}
    path = zipped(tmp_path / "a.pt", whole(mapping(a=tensor(**shape))), {"0": row.tobytes()})
    array = open_source(path).tensors["a"].read()
    assert mapped(path) == 1
    put = jax.device_put(array)
    assert put.unsafe_buffer_pointer() == array.ctypes.data
    np.testing.assert_array_equal(put, row.reshape(-1, 5))


def test_a_tensor_of_torch_that_does_not_lie_row_by_row_is_read_as_it_is(tmp_path):
    row = np.arange(COUNT, dtype=np.float32)
    shape = {"shape": (5, COUNT // 5), "strides": (1, 5), "count": COUNT}
    path = zipped(tmp_path / "a.pt", whole(mapping(a=tensor(**shape))), {"0": row.tobytes()})
    found = open_source(path).tensors["a"]
    assert found.lying is None
    np.testing.assert_array_equal(found.read(), row.reshape(-1, 5).T)


@pytest.mark.parametrize("start", [64, 36])
def test_every_number_is_shown_whether_it_is_mapped_or_read(path, start):
    shown = []
    array = Lying(path, place(start)).read(lambda part: shown.append(part.copy()))
    np.testing.assert_array_equal(np.concatenate(shown), array)
