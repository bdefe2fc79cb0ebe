"""`bridge diff`: keys, shapes, dtypes, numbers and ties of two checkpoints."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import bridge.cli.comparing as comparing
from bridge.cli.comparing import Gap, gap
from tests.cli.conftest import state
from tests.weights.files.torch_files import mapping, tensor, whole, zipped


@pytest.fixture
def other(folder):
    """A file that differs from net.safetensors in every way."""
    arrays = state()
    arrays["0.weight"][2, 3] += 0.5
    arrays["0.bias"] = arrays["0.bias"].astype(np.float16).astype(np.float32)
    arrays["1.bias"] = arrays["1.bias"].astype(np.float16)
    arrays["2.bias"][1] = np.nan
    arrays["2.weight"] = arrays["2.weight"].T.copy()
    arrays["new.scale"] = arrays.pop("1.weight")
    save_file(arrays, folder / "other.safetensors")


def test_a_file_is_the_same_as_itself(bridge):
    assert bridge("diff", "net.safetensors", "net.safetensors") == (
        0,
        "0 arrays differ, 6 are the same.\n",
        "",
    )


def test_every_difference_has_its_row(bridge, other):
    code, out, err = bridge("diff", "net.safetensors", "other.safetensors")
    assert (code, err) == (1, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:-2]}
    assert out.splitlines()[0].split() == ["key", "A", "B", "differing", "largest", "relative"]
    assert rows["1.weight"] == ["7", "float32", "-"]
    assert rows["new.scale"] == ["-", "7", "float32"]
    assert rows["2.weight"] == ["3x7", "float32", "7x3", "float32"]
    assert rows["0.weight"][:6] == ["7x5", "float32", "7x5", "float32", "1", "0.5"]
    assert rows["1.bias"][:5] == ["7", "float32", "7", "float16", "7"]
    assert rows["2.bias"] == ["3", "float32", "3", "float32", "1", "inf", "inf"]
    assert out.endswith("\n\n7 arrays differ, 0 are the same.\n")


def test_json_has_the_differences_alone(bridge, other):
    code, out, _ = bridge("diff", "net.safetensors", "other.safetensors", "--json")
    told = json.loads(out)
    assert code == 1
    assert (told["same"], told["equal"], len(told["differences"])) == (False, 0, 7)
    by_key = {one["key"]: one for one in told["differences"]}
    assert by_key["new.scale"] == {
        "key": "new.scale",
        "a": None,
        "b": {"shape": [7], "dtype": "float32"},
    }
    assert by_key["2.bias"]["largest"] is None
    assert by_key["0.weight"]["largest"] == pytest.approx(0.5)


def test_what_is_within_the_tolerance_is_no_difference_but_another_dtype_is(bridge, folder):
    arrays = state()
    arrays["0.weight"] = arrays["0.weight"] + np.float32(1e-3)
    save_file(arrays, folder / "near.safetensors")
    command = "diff", "net.safetensors", "near.safetensors", "--tolerance"
    assert bridge(*command, "0.01") == (
        0,
        "0 arrays differ, 5 are the same, 1 within 0.01.\n",
        "",
    )
    assert bridge(*command, "0.0001")[0] == 1
    save_file({**arrays, "0.bias": arrays["0.bias"].astype(np.float64)}, folder / "near.safetensors")
    assert bridge(*command, "0.01")[0] == 1


def test_ties_of_one_file_alone_are_a_difference(bridge, folder, tied):
    last = tensor(shape=(5,), strides=(1,), offset=5)
    apart = mapping(head=tensor(), table=tensor(key="1"), last=last)
    matrix = np.arange(15, dtype=np.float32).tobytes()
    zipped(folder / "apart.pt", whole(apart), {"0": matrix, "1": matrix})
    code, out, _ = bridge("diff", tied, "apart.pt")
    assert code == 1
    assert (
        out
        == f"""\
head = table: tied in A, not in B
note: {tied}: the state_dict is "model" of the file; "optimizer" stayed unread
0 arrays differ, 3 are the same.
"""
    )
    assert json.loads(bridge("diff", tied, "apart.pt", "--json")[1])["tied_in_a"] == [["head", "table"]]


def test_a_file_that_cannot_tell_ties_is_no_difference_and_a_note(bridge, tied, folder):
    assert bridge("convert", tied, "flat.safetensors")[0] == 0
    code, out, _ = bridge("diff", tied, "flat.safetensors")
    assert code == 0
    assert "note: flat.safetensors: a file of this kind does not tell which arrays are tied\n" in out


def test_a_file_that_cannot_be_read_is_exit_code_2(bridge):
    assert bridge("diff", "net.safetensors", "nothing.pt") == (
        2,
        "",
        "nothing.pt: there is no such file\n",
    )
    assert bridge("diff", "net.safetensors", "net.safetensors", "--tolerance", "-1")[0] == 2


GAPS = {
    "NaN is NaN": ([np.nan, 1], [np.nan, 1], "float32", Gap(0, 0.0, 0.0)),
    "one NaN": ([np.nan, 1], [2, 1], "float32", Gap(1, np.inf, np.inf)),
    "infinite on both sides": ([np.inf, 8], [np.inf, 6], "float32", Gap(1, 2.0, 0.25)),
    "against each other": ([np.inf, 8], [-np.inf, 8], "float32", Gap(1, np.inf, np.inf)),
    "bfloat16": ([1, 8], [1, 4], "bfloat16", Gap(1, 4.0, 0.5)),
    "bool": ([True, True], [True, False], "bool", Gap(1, 1.0, 1.0)),
    "complex": ([3 + 4j, 5], [0, 5], "complex64", Gap(1, 5.0, 1.0)),
    "64 bits": ([2**62, 0], [2**62 + 1, 0], "int64", Gap(1, 1.0, 2.0**-62)),
    "unsigned": ([255], [0], "uint8", Gap(1, 255.0, 1.0)),
    "empty": ([], [], "float32", Gap(0, 0.0, 0.0)),
}


@pytest.mark.parametrize("case", GAPS)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_numbers_of_every_dtype_are_compared(case, block, monkeypatch):
    monkeypatch.setattr(comparing, "_BLOCK", block)
    one, other, dtype, expected = GAPS[case]
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    assert gap(np.array(one, kind), np.array(other, kind)) == expected


def test_arrays_of_two_dtypes_are_compared_as_numbers():
    half = np.array([0.1, 2.0], np.float16)
    found = gap(half, np.array([0.1, 2.0], np.float32))
    assert found.differing == 1
    assert found.largest == pytest.approx(2.4e-5, rel=0.02)


def test_an_array_that_lies_in_another_order_is_compared_by_place():
    one = np.arange(15.0).reshape(3, 5)
    assert gap(one, np.asfortranarray(one)).differing == 0
