"""State_dicts in safetensors files, one or several with an index."""

import json
import os

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import bridge as br
from bridge.core import tensorfile
from bridge.weights.sources import open_source


def state(count=5):
    """Arrays of 40 bytes each."""
    return {f"layer.{n}": np.full((2, 5), n, np.float32) for n in range(count)}


def names(folder):
    return sorted(os.listdir(folder))


def read(path):
    return {key: tensor.read() for key, tensor in open_source(path).tensors.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, array in other.items():
        assert (one[key].dtype, one[key].shape) == (array.dtype, array.shape)
        assert one[key].tobytes() == np.asarray(array).tobytes()


def test_one_file_that_safetensors_and_transformers_read(tmp_path):
    path = tmp_path / "model.safetensors"
    given = {
        **state(),
        "half": np.array([np.nan, -0.0, 3], ml_dtypes.bfloat16),
        "turned": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "number": np.float16(3),
        "jax": jnp.ones(3),
    }
    br.save_state_dict(given, path)
    assert_equal(load_file(path), {key: np.asarray(array) for key, array in given.items()})
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert names(tmp_path) == ["model.safetensors"]


def test_shards_with_an_index_as_hugging_face_writes_them(tmp_path):
    path = tmp_path / "model.safetensors"
    br.save_state_dict(state(), path, shard_size=100)
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert names(tmp_path) == [*shards, "model.safetensors.index.json"]
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 200},
        "weight_map": {f"layer.{n}": shards[n // 2] for n in range(5)},
    }
    assert load_file(tmp_path / shards[1]).keys() == {"layer.2", "layer.3"}
    assert_equal(read(tmp_path), state())
    assert_equal(read(tmp_path / "model.safetensors.index.json"), state())


def test_transformers_reads_the_shards(tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = transformers.BertConfig(
        vocab_size=13, hidden_size=14, num_hidden_layers=2, num_attention_heads=2, intermediate_size=11
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    config.save_pretrained(tmp_path)
    br.save_state_dict(model.state_dict(), tmp_path / "model.safetensors", shard_size="3KB")
    assert len(names(tmp_path)) > 5
    loaded = transformers.BertModel.from_pretrained(tmp_path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_what_fits_into_one_file_is_one(tmp_path):
    br.save_state_dict(state(), tmp_path / "model.safetensors", shard_size=200)
    assert names(tmp_path) == ["model.safetensors"]


def test_an_array_larger_than_a_shard_has_one_by_itself(tmp_path):
    given = {
        "a": np.ones(3, np.float32),
        "large": np.ones(100, np.float32),
        "b": np.ones(3, np.float32),
    }
    br.save_state_dict(given, tmp_path / "model.safetensors", shard_size=50)
    files = [load_file(tmp_path / f"model-0000{n}-of-00003.safetensors") for n in (1, 2, 3)]
    assert [list(file) for file in files] == [["a"], ["large"], ["b"]]


@pytest.mark.parametrize(
    ("size", "count"),
    [("100B", 3), ("0.1KB", 3), ("0.05 KiB", 5), ("1kb", 1), ("5GB", 1), ("1TiB", 1)],
)
def test_sizes_in_units(tmp_path, size, count):
    br.save_state_dict(state(), tmp_path / "model.safetensors", shard_size=size)
    assert len(names(tmp_path)) == (1 if count == 1 else count + 1)


@pytest.mark.parametrize("size", [0, -3, True, 1.5, "5", "large", "1PB"])
def test_what_is_no_size(tmp_path, size):
    with pytest.raises(br.BridgeError) as caught:
        br.save_state_dict(state(), tmp_path / "model.safetensors", shard_size=size)
    assert str(caught.value) == (f'shard_size is a number of bytes, or as "5GB"; it was given {size!r}')
    assert names(tmp_path) == []


def test_a_checkpoint_takes_the_place_of_an_older_one(tmp_path):
    path = tmp_path / "model.safetensors"
    for name in ("notes.txt", "model-00001-of-00002.bin", "other.safetensors"):
        (tmp_path / name).write_text("kept")
    kept = names(tmp_path)
    for size, count in ((None, 1), (100, 4), (40, 6), (None, 1)):
        br.save_state_dict(state(), path, shard_size=size)
        assert len(names(tmp_path)) == len(kept) + count
        written = path if size is None else tmp_path / "model.safetensors.index.json"
        assert_equal(read(written), state())
    assert set(kept) <= set(names(tmp_path))


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    br.save_state_dict(state(), path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    write, calls = tensorfile.write, []

    def failing(*args):
        calls.append(args)
        write(*args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "write", failing)
    with pytest.raises(
        br.BridgeError, match=r"model-00002-of-00003\.safetensors cannot be written: No space"
    ):
        br.save_state_dict(state(), path, shard_size=100)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_what_cannot_be_saved_is_told_before_anything_is_written(tmp_path):
    path = tmp_path / "model.safetensors"
    given = {**state(1), "c": np.ones(3, np.complex128), "__metadata__": np.ones(3)}
    with pytest.raises(br.BridgeError) as caught:
        br.save_state_dict(given, path)
    assert str(caught.value) == (
        f"{path} was not written; these cannot be saved:\n"
        "  c: safetensors has no complex128; cast it: array.astype(...)\n"
        "  __metadata__: safetensors keeps this name for itself; use another one"
    )
    assert names(tmp_path) == []
    with pytest.raises(br.BridgeError, match=r"model\.pt: a state_dict goes into a \.safetensors file"):
        br.save_state_dict(state(), tmp_path / "model.pt")
    with pytest.raises(
        br.BridgeError, match="cannot be written: No such file or directory; there is no"
    ):
        br.save_state_dict(state(), tmp_path / "missing" / "model.safetensors")
