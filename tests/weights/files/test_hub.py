"""Checkpoints by their name on the hub, of which nothing is fetched here."""

import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from bridge.core.errors import MissingLibraryError, WeightsError
from bridge.weights.sources import open_source

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has these files, and remembers what was asked for."""
    asked = []
    save_file({"fc.weight": np.ones((5, 7), np.float32)}, tmp_path / "model.safetensors")

    def make(files, cached=True):
        def list_repo_files(repository, revision):
            asked.append((repository, revision))
            if files is None:
                raise ConnectionError("no route to the hub\nand more")
            return files

        def snapshot_download(repository, revision, **options):
            asked.append(options)
            if not cached:
                raise FileNotFoundError(repository)
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return make


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin", "README.md"], ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "pytorch_model.bin",
            ],
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
    ],
)
def test_one_form_of_the_weights_is_fetched(hub, files, wanted):
    asked = hub(files)
    source = open_source("hub:org/model@v2")
    assert [*source.tensors] == ["fc.weight"]
    assert asked == [("org/model", "v2"), {"allow_patterns": [*wanted, "config.json"]}]


def test_without_a_network_the_cache_is_read(hub):
    asked = hub(None)
    assert [*open_source("hub:org/model").tensors] == ["fc.weight"]
    assert asked == [("org/model", None), {"local_files_only": True}]


def test_what_the_hub_cannot_give_is_told(hub, monkeypatch):
    hub(None, cached=False)
    with pytest.raises(WeightsError) as caught:
        open_source("hub:org/model")
    assert str(caught.value) == (
        "hub:org/model cannot be fetched, and is not in the cache: no route to the hub"
    )
    hub(["README.md"])
    with pytest.raises(WeightsError) as caught:
        open_source("hub:org/model")
    assert str(caught.value) == ("hub:org/model: there is no file of weights there; it has README.md")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingLibraryError) as caught:
        open_source("hub:org/model")
    assert str(caught.value) == (
        "hub:org/model is fetched by huggingface_hub, which is not installed. Install it with:"
        ' pip install "bridge-jax[hub]"'
    )
