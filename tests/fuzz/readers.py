"""Readers of files against damage and malice: each file is read, or refused as an error of bridge."""

import io
import json
import os
import struct
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bridge as br
from bridge.core import tensorfile
from bridge.weights.sources import open_source
from tests.weights.files import torch_files
from tests.weights.files.torch_files import (
    called,
    in_a_row,
    mapping,
    name,
    tensor,
    value,
    whole,
    zipped,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6000"))
# The most that a reader may take for a file of some thousand bytes.
MEMORY = 20_000_000

ROW = np.arange(15, dtype=np.float32)
LIKE = {"a": jnp.ones((3, 5)), "b": jnp.ones(7, jnp.int8)}

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """An empty folder to stand in: what a file runs would leave something there."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    yield
    os.chdir(before)


def survives(path, content):
    """Opens and reads a file; whatever it says, it ends well or in an error of bridge."""
    Path(path).write_bytes(content)
    told = path
    tracemalloc.start()
    try:
        for one in open_source(path, LIKE).tensors.values():
            array = one.read()
            assert (array.shape, array.dtype) == (one.shape, one.dtype)
    except br.BridgeError as error:
        told = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        left = os.listdir()
        Path(path).unlink()
    assert path in told
    assert peak < MEMORY
    assert left == [path]


def a_zip():
    pickled = whole(mapping(a=tensor(), b=tensor((5, 3), (1, 5)), c=value([1, "x"])))
    return zipped(Path("made"), pickled, {"0": ROW.tobytes()}, {"byteorder": b"little"})


def a_row():
    return in_a_row(Path("made"), whole(mapping(a=tensor(view=b"N"))), {"0": ROW})


def a_safetensors():
    with open("made", "wb") as file:
        tensorfile.write(file, {name: np.asarray(one) for name, one in LIKE.items()}, {"by": "x"})


def a_msgpack():
    def array(shape, dtype, content):
        inner = b"\x93" + bytes([0x90 + len(shape), *shape, 0xA0 + len(dtype)]) + dtype.encode()
        inner += b"\xc4" + bytes([len(content)]) + content
        return b"\xc7" + bytes([len(inner)]) + b"\x01" + inner

    pieces = b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa10\x03\xa6chunks\x81\xa10"
    pieces += array([3], "int8", bytes(3))
    Path("made").write_bytes(
        b"\x83\xa1a"
        + array([3, 5], "float32", ROW.tobytes())
        + b"\xa1b"
        + pieces
        + b"\xa1c\x93\x01\xcb"
        + struct.pack(">d", 0.5)
        + b"\xd7\x02"
        + bytes(8)
    )


def an_eqx():
    with open("made", "wb") as file:
        for one in LIKE.values():
            np.save(file, np.asarray(one))


MADE = {
    "a.pt": a_zip,
    "b.pth": a_row,
    "c.safetensors": a_safetensors,
    "d.msgpack": a_msgpack,
    "e.eqx": an_eqx,
}
NUMBERS = st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)


@st.composite
def changes(draw):
    """Where a file is changed, as a share of it, what is taken away there, and what is put in."""
    return draw(st.floats(0, 1)), draw(st.integers(0, 9)), bytes(draw(st.lists(NUMBERS, max_size=9)))


@pytest.mark.parametrize("path", MADE)
@fuzzed
@given(edits=st.lists(changes(), min_size=1, max_size=5), end=st.just(1.0) | st.floats(0, 1))
def test_a_changed_file_is_read_or_refused(path, edits, end):
    MADE[path]()
    content = bytearray(Path("made").read_bytes())
    Path("made").unlink()
    for share, length, put in edits:
        place = int(share * len(content))
        content[place : place + length] = put
    survives(path, bytes(content[: int(end * len(content))]))


WHOLE = st.integers(-3, 70) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 2**80])
OPCODES = st.one_of(
    st.sampled_from([bytes([code]) for code in range(256)]),
    st.sampled_from([b"h\x00", b"q\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"e", b"u", b"R"]),
    st.sampled_from([torch_files.storage(), torch_files.storage(key="9"), tensor()]),
    st.builds(tensor, st.tuples(WHOLE, WHOLE), st.tuples(WHOLE, WHOLE), WHOLE),
    st.builds(lambda count: torch_files.storage(count=count), WHOLE),
    st.sampled_from(
        [
            name("collections", "OrderedDict"),
            name("torch", "float32"),
            name("torch", "Size"),
            name("torch", "device"),
            name("torch._utils", "_rebuild_tensor_v3"),
            name("torch._utils", "_rebuild_parameter"),
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("builtins", "set"),
            name("builtins", "complex"),
            name("_codecs", "encode"),
            name("posix", "system"),
            name("builtins", "eval"),
        ]
    ),
    st.builds(value, st.none() | st.booleans() | WHOLE | st.text(max_size=5) | st.binary(max_size=5)),
    st.builds(lambda text: called(name("posix", "system"), value(text)), st.just("touch canary")),
)


@fuzzed
@given(opcodes=st.lists(OPCODES, max_size=30), in_mapping=st.booleans())
def test_any_pickle_is_read_or_refused(opcodes, in_mapping):
    pickled = b"".join(opcodes)
    pickled = mapping(a=tensor()) + value("b") + pickled + b"s" if in_mapping else pickled
    content = zipped(Path("made"), whole(pickled), {"0": ROW.tobytes()}).read_bytes()
    Path("made").unlink()
    survives("a.pt", content)


ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F4", 3, None]),
        "shape": st.lists(WHOLE | st.floats() | st.none(), max_size=4),
        "data_offsets": st.lists(WHOLE, min_size=1, max_size=3),
    }
)


@fuzzed
@given(header=st.dictionaries(st.text(max_size=3), ENTRY | st.none() | st.integers(), max_size=4))
def test_any_header_is_read_or_refused(header):
    text = json.dumps(header).encode()
    survives("a.safetensors", len(text).to_bytes(8, "little") + text + ROW.tobytes())


@fuzzed
@given(content=st.lists(NUMBERS, max_size=40))
def test_any_msgpack_is_read_or_refused(content):
    survives("a.msgpack", bytes(content))


@fuzzed
@given(
    descr=st.sampled_from(["<f4", "|i1", "|O", "<V2", "<U3", "<f4,<f4", "<M8[s]", "x", 3]),
    shape=st.lists(WHOLE, max_size=3).map(tuple),
    order=st.booleans() | st.none(),
)
def test_any_array_of_numpy_is_read_or_refused(descr, shape, order):
    file = io.BytesIO()
    text = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode() + b"\n"
    file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + ROW.tobytes())
    survives("a.eqx", file.getvalue())
