"""Checkpoints that are headers alone, and what a device has to read of one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding

from bridge.core.translation import Translation

PAGE = 4096
BF16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 10 * 10**9  # how Hugging Face cuts a checkpoint of this size


def write_sparse(folder: Path, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Path:
    """The index of a checkpoint in bfloat16 whose files have a header, and a hole in place of bytes."""
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for key, shape in shapes:
        size = math.prod(shape) * BF16.itemsize
        if end and end + size > SHARD_BYTES:
            shards.append({})
            end = 0
        shards[-1][key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        text = json.dumps(shard).encode()
        size = max(place["data_offsets"][1] for place in shard.values())
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + size)
        places |= dict.fromkeys(shard, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def runs(turned: Translation) -> tuple[np.ndarray, int]:
    """Where in the source the numbers lie that a translation takes, in rows of one length."""
    atoms = [atom for axis in turned.source for atom in axis]
    length = whole = 1
    while atoms and atoms[-1].size == atoms[-1].whole:
        length = whole = whole * atoms.pop().whole
    starts = np.zeros(1, np.int64)
    if atoms:
        inner = atoms.pop()
        starts, length, whole = starts + inner.start * whole, length * inner.size, whole * inner.whole
    for atom in reversed(atoms):
        places = np.arange(atom.start, atom.start + atom.size) * whole
        starts, whole = (places[:, None] + starts).ravel(), whole * atom.whole
    return starts, length


def pages(starts: np.ndarray, length: int) -> int:
    """How many pages hold rows of bytes that lie side by side or apart."""
    first = np.sort(starts) // PAGE
    last = (np.sort(starts) + length - 1) // PAGE
    return int((last - first + 1).sum() - (first[1:] == last[:-1]).sum())


def boxes(sharding: NamedSharding, shape: tuple[int, ...], devices: Iterable[Any]) -> list[Any]:
    """The parts of an array that some devices hold, each once."""
    indices = sharding.devices_indices_map(shape)
    held = (
        tuple(one.indices(n)[:2] for one, n in zip(indices[d], shape, strict=True)) for d in devices
    )
    return [tuple(slice(*ends) for ends in box) for box in dict.fromkeys(held)]
