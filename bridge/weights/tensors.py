"""What a source of weights holds: `Tensor`, and a `Source` of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.layers import Layer
from bridge.weights.files.memory import Lying


@dataclass(frozen=True)
class Tensor:
    """One array of a source: its shape, its dtype, and how to read it.

    `read()` gives memory that nobody but the caller can write to, unless `shared`. Memory that is
    mapped from a file counts as such, and nothing that is written to it reaches the file; but the file
    must not be overwritten in place while the array is in use. Tensors of one source whose `memory` is
    equal, and is not None, are one array under several keys. `lying()`, where there is one, says where
    in a file it lies row by row, for those who read it piece by piece.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    shared: bool = False
    memory: Hashable = None
    lying: Callable[[], Lying] | None = None

    @classmethod
    def of_file(cls, path: Path, place: tensorfile.Tensor) -> Tensor:
        """An array that lies at a place of a file, row by row."""
        lying = Lying(path, place)
        return cls(place.shape, place.dtype, lying.read, lying=lambda: lying)


@dataclass(frozen=True)
class Source:
    """Arrays by their keys, and what else a source tells about them.

    `layers` are those of a live model, `config` is the config.json beside a file, and `notes` says in
    sentences what of a file was taken, where that is not all of it as it stands there.
    """

    tensors: Mapping[str, Tensor]
    layers: tuple[Layer, ...] | None = None
    config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """The keys that name one and the same array, in groups of two and more."""
        groups: dict[Hashable, list[str]] = {}
        for key, tensor in self.tensors.items():
            if tensor.memory is not None:
                groups.setdefault(tensor.memory, []).append(key)
        return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)
