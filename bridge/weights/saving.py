"""A state_dict in `.safetensors` files: one, or shards with an index, as Hugging Face writes them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import CheckpointError, listed
from bridge.core.filing import replace_files
from bridge.weights.files.folder import INDEX
from bridge.weights.sources import open_source
from bridge.weights.tensors import Source, Tensor

SUFFIX = ".safetensors"
_SIZE = re.compile(r"(?P<count>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?i?B)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_METADATA = {"format": "pt"}  # transformers reads no file without it


def save_state_dict(
    state: Mapping[str, Any] | Source,
    path: str | os.PathLike[str],
    shard_size: int | str | None = None,
) -> None:
    """Writes a mapping of names to arrays or tensors to a `.safetensors` file.

    With `shard_size`, in bytes or as "5GB", what is larger goes into several files beside that path,
    `model-00001-of-00003.safetensors` and so on, none larger unless one array is, and an index of them,
    `model.safetensors.index.json`. The names go into the files in their order.

    Files take the place of an older checkpoint of that name, sharded or not, when all of them are on
    disk; a failure leaves what was there. The format has no ties: arrays that are one are written under
    each of their names. Raises CheckpointError, before anything is written, for what cannot be.

    >>> import bridge as br, numpy as np, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> state = {"a": np.ones(3, np.float32), "b": np.ones((2, 5), np.float32)}
    >>> br.save_state_dict(state, os.path.join(folder, "model.safetensors"), shard_size=40)
    >>> sorted(os.listdir(folder))[:2]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    file = Path(path)
    if file.suffix != SUFFIX:
        raise CheckpointError(
            f"{file}: a state_dict goes into a {SUFFIX} file: give a path with that end"
        )
    tensors = open_source(state).tensors
    faults = {name: _unsavable(name, tensor) for name, tensor in tensors.items()}
    if problems := [f"{name}: {why}" for name, why in faults.items() if why]:
        raise CheckpointError(f"{file} was not written; these cannot be saved:\n{listed(problems)}")
    shards = [[*tensors]] if shard_size is None else _shards(tensors, _bytes(shard_size))
    if len(shards) == 1:
        files = [(file, _writer(tensors))]
    else:
        count = len(shards)
        homes = {f"{file.stem}-{n:05}-of-{count:05}{SUFFIX}": keys for n, keys in enumerate(shards, 1)}
        files = [
            (file.with_name(name), _writer({key: tensors[key] for key in keys}))
            for name, keys in homes.items()
        ]
        files.append((file.with_name(file.name + INDEX), _index(tensors, homes)))
    replace_files(files)
    for old in _older(file):
        if old not in dict(files):
            old.unlink()


def _unsavable(name: str, tensor: Tensor) -> str | None:
    if tensor.dtype not in tensorfile.NAMES:
        return f"safetensors has no {tensor.dtype}; cast it: array.astype(...)"
    if name == "__metadata__":
        return "safetensors keeps this name for itself; use another one"
    return None


def _bytes(size: int | str) -> int:
    """How many bytes a size is; raises CheckpointError for what is none."""
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found is not None:
        unit = found["unit"].lower()
        base = 1024 if "i" in unit else 1000  # as Hugging Face counts
        count = int(float(found["count"]) * base ** _POWERS[unit.rstrip("b").rstrip("i")])
    else:
        count = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if count < 1:
        raise CheckpointError(f'shard_size is a number of bytes, or as "5GB"; it was given {size!r}')
    return count


def _shards(tensors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """The names of each shard: as many as fit, in their order."""
    shards: list[list[str]] = [[]]
    room = most
    for name, tensor in tensors.items():
        size = _size(tensor)
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


def _size(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


@dataclass(frozen=True)
class _Unread:
    """An array of a source as the writer looks at it: read when its numbers are written."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    @property
    def nbytes(self) -> int:
        return _size(self.tensor)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.tensor.read()


def _writer(tensors: Mapping[str, Tensor]) -> Callable[[BufferedWriter], Any]:
    arrays = {name: _Unread(tensor) for name, tensor in tensors.items()}
    return lambda file: tensorfile.write(file, arrays, _METADATA)


def _index(
    tensors: Mapping[str, Tensor], homes: Mapping[str, list[str]]
) -> Callable[[BufferedWriter], Any]:
    places = {key: name for name, keys in homes.items() for key in keys}
    index = {
        "metadata": {"total_size": sum(map(_size, tensors.values()))},
        "weight_map": dict(sorted(places.items())),
    }
    text = (json.dumps(index, indent=2) + "\n").encode()
    return lambda file: file.write(text)


def _older(file: Path) -> list[Path]:
    """The files of a checkpoint of this name: alone, or shards and their index."""
    shard = re.compile(re.escape(file.stem) + r"-\d{5}-of-\d{5}" + re.escape(SUFFIX))
    alone = (file, file.with_name(file.name + INDEX))
    return [
        path
        for path in file.parent.iterdir()
        if path in alone or shard.fullmatch(path.name) is not None
    ]
