"""`bridge convert`: another format, another dtype, shards; and files loaded into a model."""

import importlib
import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bridge as br
from tests.cli.conftest import state


def parts(folder):
    return [name for name in os.listdir(folder) if name.endswith(".part")]


def test_a_torch_file_becomes_safetensors_without_torch(bridge, tied, folder):
    code, out, err = bridge("convert", tied, "out.safetensors")
    assert (code, err) == (0, "")
    assert (
        out
        == f"""\
note: the state_dict is "model" of the file; "optimizer" stayed unread
note: head = table: one array, written once for each name, as the format has no ties
wrote out.safetensors: {os.path.getsize("out.safetensors")} bytes
"""
    )
    arrays = load_file("out.safetensors")
    matrix = np.arange(15, dtype=np.float32)
    np.testing.assert_array_equal(arrays["head"], matrix.reshape(3, 5))
    np.testing.assert_array_equal(arrays["table"], matrix.reshape(3, 5))
    np.testing.assert_array_equal(arrays["last"], matrix[5:10])


def test_floating_numbers_are_cast_and_others_stay(bridge, folder):
    save_file({"w": np.array([1.0, 2.5], np.float32), "n": np.array([7])}, folder / "in.safetensors")
    assert bridge("convert", "in.safetensors", "out.safetensors", "--dtype", "bfloat16")[0] == 0
    arrays = load_file("out.safetensors")
    assert (arrays["w"].dtype, arrays["n"].dtype) == (ml_dtypes.bfloat16, np.int64)
    np.testing.assert_array_equal(arrays["w"].astype(np.float32), [1.0, 2.5])


def test_a_number_that_a_dtype_cannot_hold_ends_with_1_and_leaves_the_old_file(bridge, folder):
    big = np.array([1, 70_000, np.inf], np.float32)
    save_file({"a": np.ones(3, np.float32), "big": big}, folder / "in.safetensors")
    (folder / "out.safetensors").write_bytes(b"old")
    code, out, err = bridge("convert", "in.safetensors", "out.safetensors", "--dtype", "float16")
    assert (code, out) == (1, "")
    assert err == (
        "big: 70000 is too large for float16, which ends at 65504: take a dtype of more range\n"
    )
    assert (folder / "out.safetensors").read_bytes() == b"old"
    assert parts(folder) == []


def test_shards_are_written_with_an_index(bridge, folder):
    out = bridge("convert", "net.safetensors", "out.safetensors", "--shard-size", "100B", "--json")[1]
    told = json.loads(out)
    assert told["files"][0] == "out.safetensors.index.json"
    assert len(told["files"]) == 1 + 4
    assert told["bytes"] == sum(map(os.path.getsize, told["files"]))
    assert bridge("diff", "net.safetensors", "out.safetensors.index.json")[0] == 0
    out = bridge("convert", "net.safetensors", "out.safetensors", "--shard-size", "100B")[1]
    assert out == f"wrote out.safetensors.index.json and 4 shards: {told['bytes'] / 1000:.1f} kB\n"


def test_a_file_is_loaded_into_a_model_and_saved(bridge, folder):
    pytest.importorskip("flax")
    code, out, err = bridge("convert", "net.safetensors", "net.bridge.safetensors", "--to", "zoo:net")
    assert (code, err) == (0, "building the net\n")
    assert (
        out
        == f"wrote net.bridge.safetensors: {os.path.getsize('net.bridge.safetensors') / 1000:.1f} kB\n"
    )
    zoo = importlib.import_module("zoo")
    loaded = br.load("net.bridge.safetensors", like=zoo.net())
    kernel = loaded.at["params.Dense_1.kernel"].get()
    np.testing.assert_array_equal(kernel, state()["2.weight"].T)


def test_a_model_is_loaded_by_a_plan_that_was_saved(bridge, folder):
    pytest.importorskip("flax")
    assert bridge("match", "net.safetensors", "zoo:net", "--save", "plan.json")[0] == 0
    command = "convert", "net.safetensors", "out.safetensors", "--to", "zoo:net"
    assert bridge(*command, "--plan", "plan.json", "--dtype", "bfloat16")[0] == 0
    assert {array.dtype for array in load_file("out.safetensors").values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }


def test_a_file_that_does_not_fit_a_model_ends_with_1_and_writes_nothing(bridge, folder):
    pytest.importorskip("flax")
    save_file({**state(), "head.weight": np.ones((11, 3), np.float32)}, folder / "more.safetensors")
    command = "convert", "more.safetensors", "out.safetensors", "--to", "zoo:net"
    code, out, err = bridge(*command)
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "building the net",
        "1 problem:",
        "  head.weight: left over: nothing in the Module takes it; type strict=False to leave it out",
        "Without a partner:",
        "  head.weight (11, 3): nearest are params.Dense_1.kernel (7, 3), params.Dense_1.bias (3,),"
        " params.Dense_0.kernel (5, 7)",
        "On the command line rename={a: b} is --rename a=b, and strict=False is convert --no-strict.",
    ]
    assert not (folder / "out.safetensors").exists()
    assert bridge(*command, "--no-strict")[0] == 0


def test_a_file_of_other_dtypes_than_the_model_ends_with_1(bridge, folder):
    pytest.importorskip("flax")
    half = {key: array.astype(np.float16) for key, array in state().items()}
    save_file(half, folder / "half.safetensors")
    code, _, err = bridge("convert", "half.safetensors", "out.safetensors", "--to", "zoo:net")
    assert code == 1
    assert "0.weight: holds float16; params.Dense_0.kernel holds float32" in err


def test_numbers_that_are_not_finite_are_warned_of_in_a_sentence(bridge, folder):
    pytest.importorskip("flax")
    arrays = state()
    arrays["2.bias"][1] = np.nan
    save_file(arrays, folder / "nan.safetensors")
    code, _, err = bridge("convert", "nan.safetensors", "out.safetensors", "--to", "zoo:net")
    assert code == 0
    assert err == (
        "building the net\n"
        "warning: these weights hold numbers that are not finite; they were loaded as they are:\n"
        "  params.Dense_1.bias: 1 NaN and 0 infinite of 3\n"
    )


WRONG = {
    "out.pt": "bridge writes .safetensors files; 'out.pt' is none",
    "out.safetensors --plan plan.json": "--plan is for models: give --to module:factory as well",
    "out.safetensors --rename a=b": "--rename is for models: give --to module:factory as well",
    "out.safetensors --no-strict": "--no-strict is for models: give --to module:factory as well",
    "out.safetensors --to zoo:net --plan p --rename a=b": (
        "a plan says where everything goes: leave --rename out"
    ),
    "out.safetensors --to zoo:net --shard-size 5GB": (
        "--shard-size is for checkpoints; a model is saved to one file"
    ),
    "out.safetensors --dtype int8": (
        "--dtype is one of float64, float32, float16, bfloat16; 'int8' was given"
    ),
    "out.safetensors --dtype module": (
        "--dtype is one of float64, float32, float16, bfloat16; 'module' was given"
    ),
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage_is_a_sentence_and_exit_code_2(arguments, bridge):
    code, out, err = bridge("convert", "net.safetensors", *arguments.split())
    assert (code, out) == (2, "")
    assert " ".join(err.split()).endswith(f"Error: Invalid value: {WRONG[arguments]}")


REFUSED = {
    "net.safetensors no/out.safetensors": "no/out.safetensors cannot be written: No such file",
    "net.safetensors out.safetensors --shard-size many": "it was given 'many'\n",
    "nothing.pt out.safetensors": "nothing.pt: there is no such file\n",
    "net.safetensors out.safetensors --to zoo:broken": "zoo:broken raised ValueError",
    "net.safetensors out.safetensors --to zoo:net --plan zoo.py": (
        "zoo.py is no plan that Match.save has written: it is no JSON, or damaged"
    ),
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_begin_is_a_sentence_and_exit_code_2(arguments, bridge, folder):
    code, out, err = bridge("convert", *arguments.split())
    assert (code, out) == (2, "")
    assert REFUSED[arguments] in err
    assert not (folder / "out.safetensors").exists()
