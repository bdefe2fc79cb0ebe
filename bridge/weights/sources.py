"""Where weights come from: names and arrays, a live PyTorch model, or a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import WeightsError
from bridge.core.layers import Layer

SUPPORTED = (
    "a mapping of names to arrays or tensors, a torch.nn.Module, or the path of a .safetensors file"
)


@dataclass(frozen=True)
class Tensor:
    """One array of a source: its shape, its dtype, and how to read it.

    `read()` gives memory that nobody but the caller can write to, unless `shared`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    shared: bool = False


@dataclass(frozen=True)
class Source:
    """Arrays by their keys, and the layers they belong to where the source is a live model."""

    tensors: Mapping[str, Tensor]
    layers: tuple[Layer, ...] | None = None


def open_source(source: Any) -> Source:
    """The arrays of whatever `load_state_dict` takes; of a file the header alone is read.

    Raises WeightsError for what it does not take and for a missing file, CheckpointError for a file
    that is damaged.
    """
    if isinstance(source, (str, os.PathLike)):
        return _of_file(Path(source))
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
    return Tensor(array.shape, array.dtype, lambda: array, shared=not isinstance(value, jax.Array))


def _of_torch(model: Any) -> Source:
    from bridge.adapters.torch._layers import layers

    tensors = {key: _of_value(key, value) for key, value in model.state_dict().items()}
    return Source(tensors, tuple(_present(layer, tensors) for layer in layers(model)))


def _present(layer: Layer, tensors: Mapping[str, Tensor]) -> Layer:
    """A layer with those of its arrays that the source has."""
    return replace(layer, slots=tuple(s for s in layer.slots if ".".join(s.path) in tensors))


def _of_file(path: Path) -> Source:
    if path.suffix != ".safetensors":
        kind = "a folder" if path.is_dir() else f"a {path.suffix or 'nameless'} file"
        raise WeightsError(f"{path}: weights come from {SUPPORTED}; this is {kind}")
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    with path.open("rb") as file:
        header = tensorfile.read_header(file)
    return Source(
        {
            key: Tensor(place.shape, place.dtype, _reader(path, place))
            for key, place in header.tensors.items()
        }
    )


def _reader(path: Path, place: tensorfile.Tensor) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with path.open("rb") as file:
            return tensorfile.read(file, place)

    return read
