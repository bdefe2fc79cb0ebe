"""Pickles made opcode by opcode: what is read, and what is refused before anything runs."""

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import bridge as br
from bridge.core.errors import CheckpointError, WeightsError
from bridge.weights.files import checkpoint, unpickling
from bridge.weights.sources import open_source
from tests.weights.files.torch_files import (
    called,
    in_a_row,
    mapping,
    name,
    storage,
    tensor,
    value,
    whole,
    zipped,
)

ROW = np.arange(15, dtype=np.float32)


def load(opcodes, known=()):
    return unpickling.load(io.BytesIO(whole(opcodes)), dict(known), lambda identity: identity)


@pytest.mark.parametrize("protocol", range(6))
def test_containers_numbers_and_strings_are_read_in_every_protocol(protocol):
    one = [None, True, 3, -(2**70), 2.5, "ä", {"a": (1, 2, 3, 4), 7: [], (1, "b"): ()}, [[1], [2]]]
    assert unpickling.load(io.BytesIO(pickle.dumps(one, protocol)), {}, str) == one


def test_a_list_within_itself_is_read():
    one = load(b"]q\x00h\x00a")
    assert one[0] is one


def test_a_strange_escape_in_a_string_is_no_warning():
    assert load(rb"S'\q'" + b"\n") == "\\q"


def test_a_pickle_leaves_the_file_behind_its_end():
    file = io.BytesIO(whole(value(3)) + whole(value("next")))
    assert [unpickling.load(file, {}, str) for _ in range(2)] == [3, "next"]


RUN = name("posix", "system"), value("touch canary")
REFUSED = {
    "a call of the system": (called(*RUN), "it holds posix.system, which is no tensor, container"),
    "a call within a tensor": (
        mapping(a=called(name("torch._utils", "_rebuild_tensor_v2"), called(*RUN))),
        "it holds posix.system, which is no tensor, container",
    ),
    "a name of two parts": (
        value("os") + value("system") + b"\x93",
        "it holds os.system, which is no tensor, container",
    ),
    "getattr": (
        called(name("builtins", "getattr"), value("a"), value("upper")),
        "it holds builtins.getattr, which is no tensor, container",
    ),
    "a class that torch does not check": (
        name("torch.nn.modules.linear", "Linear"),
        "it holds torch.nn.modules.linear.Linear, which is no tensor, container",
    ),
    "a name below an allowed one": (
        name("collections", "OrderedDict.__init__"),
        "it holds collections.OrderedDict.__init__, which is no tensor, container",
    ),
    "a quantised storage": (
        mapping(a=tensor(kind="QInt8Storage")),
        "it holds torch.QInt8Storage, which is no tensor, container",
    ),
    "an instance by its class": (b"(iposix\nsystem\n", "its pickle uses INST"),
    "an object": (b"(" + name("torch", "Size") + b"o", "its pickle uses OBJ"),
    "a new object": (name("torch", "Size") + value(()) + b"\x81", "its pickle uses NEWOBJ"),
    "an extension": (b"\x82\x01", "its pickle uses EXT1"),
    "a buffer outside": (b"\x97", "its pickle uses NEXT_BUFFER"),
    "a call of a string": (called(value("system"), value("ls")), "its pickle calls a str"),
    "a call of a dtype": (called(name("torch", "float32")), "its pickle calls a "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_run_code_is_refused_by_name_and_does_not_run(case, tmp_path, monkeypatch):
    opcodes, reason = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    path = zipped(tmp_path / "a.pt", whole(opcodes))
    with pytest.raises(WeightsError) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert str(caught.value).endswith(
        ". Where you trust the file, load it with torch.load(..., weights_only=False) and give the"
        " state_dict"
    )
    assert not Path("canary").exists()


def test_the_call_of_the_system_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(whole(called(*RUN)))
    assert Path("canary").exists()


WITH_ATTRIBUTES = name("torch._tensor", "_rebuild_from_type_v2")
DEEP = b")" + b"\x85" * 100_000
DAMAGED = {
    "nothing": (b"", "pickle exhausted before seeing STOP"),
    "no end": (b"}", "pickle exhausted before seeing STOP"),
    "no opcode": (b"\xff.", "at position 2, opcode b'\\xff' unknown"),
    "an end too soon": (b"}}.", "its pickle ends before its object does"),
    "a mark at the end": (b"}(.", "its pickle ends before its object does"),
    "too few on the stack": (b"\x87.", "its pickle takes more from its stack than there is"),
    "a pop below a mark": (b"}(0.", "its pickle takes more from its stack than there is"),
    "no mark": (b"t.", "its pickle lacks a mark"),
    "a memory of nothing": (b"h\x07.", "its pickle remembers what it never had"),
    "an entry of a list": (b"]" + value("a") + value(1) + b"s.", "its pickle takes a list for a dict"),
    "state of a number": (value(3) + value({}) + b"b.", "its pickle takes a int for a dict"),
    "a key alone": (b"}(" + value("a") + b"u.", "its pickle has a key without a value"),
    "a list for a key": (b"}]Ns.", "its pickle has a list for a key"),
    "many tuples for a key": (b"}" + DEEP + b"Ns.", "its pickle has a tuple for a key"),
    "many tuples in a set": (
        called(name("builtins", "set"), b"]" + DEEP + b"a") + b".",
        "its pickle has a tuple for a key",
    ),
    "a gigabyte of bytes": (b"\x8e" + (1 << 30).to_bytes(8, "little") + b".", "expected 1073741824"),
    "a gigabyte of array": (b"\x96" + (1 << 30).to_bytes(8, "little") + b".", "expected 1073741824"),
    "a digit too many": (b"L" + b"9" * 5000 + b"L\n.", "Exceeds the limit (4300 digits)"),
    "a wrong call": (
        called(name("torch._utils", "_rebuild_tensor_v2"), value(3)) + b".",
        "its pickle calls a function wrongly: ",
    ),
    "a complex number that is too large": (
        called(name("builtins", "complex"), value(2**5000)) + b".",
        "its pickle calls a function wrongly: int too large to convert to float",
    ),
    "a tensor of no storage": (
        called(name("torch._utils", "_rebuild_tensor_v2"), *[value(3)] * 6) + b".",
        "a tensor lies in what is no storage",
    ),
    "a name that is a list": (
        value("a") + b"]" + b"q\x00h\x00h\x00\x86" * 60 + b"\x93.",
        "its pickle has a name that is no text",
    ),
    "attributes of attributes": (
        called(WITH_ATTRIBUTES, WITH_ATTRIBUTES, name("torch", "Tensor"), value(()), b"N") + b".",
        "a tensor is made in an unknown way",
    ),
    "a persistent id of one part": (value("x") + b"Q.", "its pickle names a storage in an unknown way"),
    "a persistent id of text": (b"Pstorage\n.", "its pickle names a storage in an unknown way"),
    "an unknown storage": (storage(key="1") + b".", "it lacks storage '1'"),
    "a storage that is too long": (
        storage(count=16) + b".",
        "storage '0' should have 64 bytes and has 60",
    ),
    "a huge storage": (
        storage(count=2**80) + b".",
        "storage '0' should have 4835703278458516698824704",
    ),
    "a negative storage": (storage(count=-1) + b".", "its pickle names a storage in an unknown way"),
    "a huge shape": (
        tensor((2**40, 5), (5, 1)) + b".",
        "a tensor of shape (1099511627776, 5) needs 21990232555520 bytes of storage '0', which has 60",
    ),
    "a huge offset": (tensor(offset=2**70) + b".", "a tensor of shape (3, 5) needs"),
    "one number too far": (
        tensor((3, 5), (5, 1), 1) + b".",
        "a tensor of shape (3, 5) needs 64 bytes of storage '0', which has 60",
    ),
    "a huge stride": (tensor((3, 5), (2**61, 1)) + b".", "a tensor of shape (3, 5) needs"),
    "a stride backwards": (
        tensor((3, 5), (5, -1), 4) + b".",
        "a tensor's shape, strides and offset are not all whole numbers",
    ),
    "half a number": (tensor((3, 2.5)) + b".", "a tensor's shape, strides and offset are not all"),
    "too few strides": (tensor((3, 5), (1,)) + b".", "a tensor's shape and strides are not as many"),
    "nothing, and much of it": (
        tensor((0, 2**63), (1, 1)) + b".",
        "a tensor has a shape that no array",
    ),
    "one number very often": (tensor((2**40, 2**40), (0, 0)) + b".", "a tensor has a shape that no"),
    "too many axes": (tensor((1,) * 65, (1,) * 65) + b".", "a tensor has a shape that no array has"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_pickle_is_refused_with_the_reason_and_takes_no_memory(case, tmp_path):
    opcodes, reason = DAMAGED[case]
    path = zipped(tmp_path / "a.pt", b"\x80\x02" + opcodes, {"0": ROW.tobytes()})
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{path} is damaged or cut short: " in str(caught.value)
    assert reason in str(caught.value)
    assert str(caught.value).endswith(". Take another copy of it")
    assert peak < 100 * len(opcodes) + 500_000


def test_a_place_in_the_memo_that_is_far_away_takes_no_memory():
    tracemalloc.start()
    assert load(value("a") + b"r\xff\xff\xff\x7f") == "a"
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_one_object_that_is_given_to_a_function_again_and_again_is_refused(monkeypatch):
    monkeypatch.setattr(unpickling, "LONGEST", 1000)
    copied = name("builtins", "set") + b"h\x00\x85R0"
    opcodes = b"(" + b"".join(value(n) for n in range(100)) + b"tq\x000" + b"]" + copied * 20
    with pytest.raises(ValueError, match="its pickle makes more objects than it can hold"):
        load(opcodes, {"builtins set": unpickling.Rebuild(set)})


def test_a_pickle_that_is_too_long_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(unpickling, "LONGEST", 100)
    path = zipped(tmp_path / "a.pt", whole(value("a" * 100)))
    with pytest.raises(WeightsError, match=r"its pickle has 1.. bytes, and tensors need no more than"):
        open_source(path)


def test_what_an_expanded_tensor_repeats_takes_no_memory(tmp_path):
    opcodes = mapping(a=tensor((2**40, 5), (0, 1)))
    path = zipped(tmp_path / "a.pt", whole(opcodes), {"0": ROW.tobytes()})
    array = open_source(path).tensors["a"].read()
    np.testing.assert_array_equal(array[2**39], ROW[:5])


def test_a_tensor_is_read_without_torch(tmp_path):
    opcodes = mapping(
        plain=tensor(),
        turned=tensor((5, 3), (1, 5)),
        part=tensor((2, 2), (5, 2), 6),
        one=tensor((), (), 7),
        odd=tensor((1, 3), (2**80, 5)),
        none=tensor((0, 5), (5, 1)),
    )
    path = zipped(tmp_path / "a.pt", whole(opcodes), {"0": ROW.tobytes()})
    source = open_source(path)
    matrix = ROW.reshape(3, 5)
    expected = {
        "plain": matrix,
        "turned": matrix.T,
        "part": matrix[1:, 1:5:2],
        "one": matrix[1, 2],
        "odd": matrix[:, :1].T,
        "none": matrix[:0],
    }
    for key, array in expected.items():
        np.testing.assert_array_equal(source.tensors[key].read(), array)
        assert source.tensors[key].shape == array.shape
    assert source.notes == ()


IN_A_ROW = {
    "more numbers": (-64, 16, "storage '0' should have 15 numbers and has 16, or fewer"),
    "fewer numbers": (-64, 14, "storage '0' should have 15 numbers and has 14, or fewer"),
    "very many numbers": (-57, 255, "storage '0' should have 15 numbers and has 18374686479671623695"),
}


def test_a_file_in_a_row_is_read_without_torch(tmp_path):
    path = in_a_row(tmp_path / "a.pth", whole(mapping(a=tensor(view=b"N"))), {"0": ROW})
    np.testing.assert_array_equal(open_source(path).tensors["a"].read(), ROW.reshape(3, 5))
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            open_source(path)


@pytest.mark.parametrize("case", IN_A_ROW)
def test_a_file_in_a_row_that_lies_about_its_storages_is_refused(case, tmp_path):
    place, byte, reason = IN_A_ROW[case]
    path = in_a_row(tmp_path / "a.pth", whole(mapping(a=tensor(view=b"N"))), {"0": ROW})
    content = bytearray(path.read_bytes())
    content[place - 4] = byte
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{path} is damaged or cut short: {reason}")


def test_storages_that_nothing_lies_in_are_refused(tmp_path):
    path = in_a_row(tmp_path / "a.pth", whole(mapping(a=tensor(view=b"N"))), {"0": ROW, "1": ROW})
    with pytest.raises(CheckpointError, match="it does not hold the storages that its tensors lie in"):
        open_source(path)
    content = path.read_bytes()
    for keys in (value([1, 2]) + b".", b"]" + DEEP + b"aNa."):
        path.write_bytes(content.replace(pickle.dumps(["0", "1"], 2)[2:], keys))
        with pytest.raises(CheckpointError, match="it does not hold the storages that its tensors lie"):
            open_source(path)


def test_a_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(whole(called(*RUN)))
    with pytest.raises(WeightsError, match=r"it holds posix\.system, which is no tensor"):
        open_source(path)
    path.write_bytes(b"".join(pickle.dumps(one, 4) for one in (1, 2, 3)))
    with pytest.raises(CheckpointError, match=r"it does not begin as torch\.save begins a file"):
        open_source(path)


def test_bytes_of_a_big_endian_machine_are_turned(tmp_path):
    numbers = np.array([1 + 2j, 3 - 4j], np.complex64)
    path = zipped(
        tmp_path / "a.pt",
        whole(
            mapping(
                real=tensor(), pair=tensor((2,), (1,), kind="ComplexFloatStorage", key="1", count=2)
            )
        ),
        {"0": ROW.astype(">f4").tobytes(), "1": numbers.astype(">c8").tobytes()},
        {"byteorder": b"big"},
    )
    tensors = open_source(path).tensors
    np.testing.assert_array_equal(tensors["real"].read(), ROW.reshape(3, 5))
    np.testing.assert_array_equal(tensors["pair"].read(), numbers)


OTHER_FILES = {
    "no torch file": ({"other": b"3"}, "it is a zip file, but none that torch.save has written"),
    "a program": ({"data.pkl": whole(b"}"), "constants.pkl": b""}, "it is a TorchScript program; its"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_another_zip_file_is_refused(case, tmp_path):
    members, reason = OTHER_FILES[case]
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(f"archive/{member}", content)
    with pytest.raises(WeightsError) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_a_zip_bomb_is_refused(tmp_path):
    bomb = {"0": bytes(10_000_000)}
    path = zipped(tmp_path / "a.pt", whole(b"}"), bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(WeightsError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path}: its member archive/data.pkl is compressed or encrypted, as torch.save never does"
    )


def test_a_member_that_lies_over_another_is_refused(tmp_path):
    path = zipped(tmp_path / "a.pt", whole(mapping(a=tensor())), {"0": ROW.tobytes()})
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    content[entry + 42 : entry + 46] = (0).to_bytes(4, "little")  # where the member begins
    path.write_bytes(content)
    with pytest.raises(br.BridgeError, match=r"archive/.* is not where the directory says"):
        open_source(path)


def test_a_member_that_a_later_zip_wrote_is_refused(tmp_path):
    path = zipped(tmp_path / "a.pt", whole(mapping(a=tensor())), {"0": ROW.tobytes()})
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 6] = 99  # the version that is needed to read it
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path} is damaged or cut short: zip file version 9.9. Take another copy of it"
    )


def test_two_members_of_one_name_are_refused(tmp_path):
    path = zipped(tmp_path / "a.pt", whole(mapping(a=tensor())), {"0": ROW.tobytes()}, {"data/1": b"x"})
    path.write_bytes(path.read_bytes().replace(b"archive/data/1", b"archive/data/0"))
    with pytest.raises(CheckpointError, match="it has two members archive/data/0"):
        open_source(path)


def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path):
    path = zipped(tmp_path / "a.pt", whole(mapping(a=tensor())), {"0": ROW.tobytes()})
    content = path.read_bytes()
    cut = tmp_path / "cut.pt"
    for size in range(len(content)):
        cut.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            open_source(cut)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"GGUF and so on")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    assert str(caught.value) == (
        f"{path} is no checkpoint of torch.save, or it is damaged: it begins with b'GGUF'"
    )
