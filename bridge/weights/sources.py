"""Where weights come from: names and arrays, a live PyTorch model, or a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bridge.core.errors import WeightsError
from bridge.core.layers import Layer
from bridge.weights.files import checkpoint, eqx, folder, hub, msgpack, orbax, safetensors, state_dict
from bridge.weights.tensors import Source, Tensor

SUPPORTED = (
    "a mapping of names to arrays or tensors, a torch.nn.Module, or the path of a .safetensors, .pt,"
    " .pth, .bin or .msgpack file, of the index of a sharded one, or of a folder"
)


def _of_checkpoint(path: Path) -> Source:
    return state_dict.found(checkpoint.read(path), path)


READERS: Mapping[str, Callable[[Path], Source]] = {
    ".safetensors": safetensors.read,
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".tar"), _of_checkpoint),
    ".msgpack": msgpack.read,
}


def open_source(source: Any, like: Any = None) -> Source:
    """The arrays of whatever `load_state_dict` takes; of a file the header alone is read.

    A Source comes back as it is. `"hub:org/model"` is fetched from the Hugging Face hub. No code of a
    file is ever run. `like` is the equinox model that a .eqx file, which has no names, was saved from.

    Raises WeightsError for what it does not take and for a missing file, CheckpointError for a file
    that is damaged.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, str) and source.startswith(hub.PREFIX):
        return _of_path(hub.fetched(source), like)
    if isinstance(source, (str, os.PathLike)):
        return _of_path(Path(source), like)
    if isinstance(source, Mapping):
        return Source({str(key): _of_value(str(key), value) for key, value in source.items()})
    torch = sys.modules.get("torch")  # without it, nothing of torch's can have come in
    if torch is not None and isinstance(source, torch.nn.Module):
        return _of_torch(source)
    raise WeightsError(f"weights come from {SUPPORTED}; a {type(source).__name__} was given")


def _of_value(key: str, value: Any) -> Tensor:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        from bridge.adapters.torch._layers import as_numpy

        array = as_numpy(value)
    elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
    else:
        raise WeightsError(
            f"{key}: holds a {type(value).__name__}; weights are arrays of NumPy or JAX, or tensors"
        )
    # A jax.Array never changes; what else there is, its owner can write to.
    is_shared = not isinstance(value, jax.Array)
    place = (array.ctypes.data, array.shape, array.strides, array.dtype) if array.size else None
    return Tensor(array.shape, array.dtype, lambda: array, is_shared, place)


def _of_torch(model: Any) -> Source:
    from bridge.adapters.torch._layers import layers

    tensors = {key: _of_value(key, value) for key, value in model.state_dict().items()}
    return Source(tensors, tuple(_present(layer, tensors) for layer in layers(model)))


def _present(layer: Layer, tensors: Mapping[str, Tensor]) -> Layer:
    """A layer with those of its arrays that the source has."""
    return replace(layer, slots=tuple(s for s in layer.slots if ".".join(s.path) in tensors))


def _of_path(path: Path, like: Any) -> Source:
    if path.is_dir():
        if orbax.is_orbax(path):
            return orbax.read(path)
        files = folder.chosen(path, READERS)
        source = folder.merged(path, {one.name: _of_file(one) for one in files})
        return replace(_unwrapped(source, files[0]), config=folder.config_of(path))
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    if path.suffix == ".eqx":
        return eqx.read(path, like)
    return replace(_unwrapped(_of_file(path), path), config=folder.config_of(path.parent))


def _unwrapped(source: Source, path: Path) -> Source:
    """The source without the prefix of a wrapper, which torch's models have and Flax's do not."""
    return source if ".msgpack" in path.suffixes else state_dict.unwrapped(source)


def _of_file(path: Path) -> Source:
    if path.name.endswith(folder.INDEX):
        return folder.indexed(path, _of_plain_file)
    return _of_plain_file(path)


def _of_plain_file(path: Path) -> Source:
    if path.suffix not in READERS:
        kind = f"a {path.suffix or 'nameless'} file"
        raise WeightsError(f"{path}: weights come from {SUPPORTED}; this is {kind}")
    return READERS[path.suffix](path)
