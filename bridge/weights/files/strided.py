"""Tensors as torch lays them into storages: a shape, strides and an offset over a row of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.weights.files.memory import Lying
from bridge.weights.tensors import Tensor

# torch.dtype's names; complex32, the quantised and the sub-byte ones have no NumPy form.
DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(scalar)
    for name, scalar in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
        "complex64": np.complex64,
        "complex128": np.complex128,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
    }.items()
}


@dataclass(frozen=True)
class Storage:
    """A row of bytes of a checkpoint; `first` is where a view of it begins."""

    key: str
    dtype: np.dtype
    size: int
    first: int = 0


@dataclass(frozen=True)
class Layout:
    """Where the numbers of a tensor lie in its storage; offset and strides count numbers, not bytes."""

    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """How many numbers lie from its first to its last one."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))

    @property
    def in_rows(self) -> bool:
        """Whether its numbers lie row by row, and no others between them."""
        step = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length > 1 and stride != step:
                return False
            step *= length
        return step > 0


@dataclass(frozen=True)
class Stored:
    """Where the storages of a file begin, by key; `swapped` where a number's bytes stand reversed."""

    path: Path
    starts: Mapping[str, int]
    swapped: bool


def tensor(stored: Stored, storage: Storage, layout: Layout, changes: tuple[str, ...]) -> Tensor:
    """A tensor of a storage, for which `stored` needs a beginning only when it is read.

    Raises ValueError where it does not lie within its storage.
    """
    _check(storage, layout)
    itemsize = layout.dtype.itemsize
    first = storage.first + layout.offset * itemsize

    def lying(shape: tuple[int, ...]) -> Lying:
        start, size = stored.starts[storage.key] + first, layout.span * itemsize
        return Lying(stored.path, tensorfile.Tensor(layout.dtype, shape, start, size))

    def read() -> np.ndarray:
        if not layout.span:
            return np.empty(layout.shape, layout.dtype)
        numbers = lying((layout.span,)).read()
        numbers = _native(numbers) if stored.swapped else numbers
        for name in changes:
            numbers = _CHANGES[name](numbers)
        strides = tuple(step * itemsize for step in layout.strides)
        return np.ndarray(layout.shape, layout.dtype, numbers, 0, strides)

    one = (stored.path, storage.key, first, layout, changes) if layout.span else None
    in_rows = layout.in_rows and not changes and not stored.swapped
    return Tensor(
        layout.shape,
        layout.dtype,
        read,
        memory=one,
        lying=(lambda: lying(layout.shape)) if in_rows else None,
    )


_CHANGES = {"conj": np.conj, "neg": np.negative}


def changes_of(metadata: Any) -> tuple[str, ...]:
    """Torch's lazy bits that are set: "conj" where the conjugates of the numbers are stored, "neg".

    Raises ValueError for metadata of another form.
    """
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(name in _CHANGES for name in metadata):
        raise ValueError("a tensor has metadata of an unknown form")
    return tuple(name for name, is_set in metadata.items() if is_set)


def layout_of(dtype: np.dtype, offset: Any, shape: Any, strides: Any) -> Layout:
    """A layout of what a pickle says; raises ValueError where it is not made of whole numbers."""
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
        raise ValueError("a tensor's shape and strides are not as many whole numbers")
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor's shape, strides and offset are not all whole numbers")
    # The stride of an axis of length 1 leads nowhere, and may be any number.
    steps = tuple(step if n > 1 else 0 for n, step in zip(shape, strides, strict=True))
    return Layout(dtype, offset, shape, steps)


def view(storage: Storage, offset: Any, count: Any) -> Storage:
    """A part of a storage, in numbers of its dtype."""
    if type(offset) is not int or type(count) is not int or offset < 0 or count < 0:
        raise ValueError("a view of a storage is not made of whole numbers")
    width = storage.dtype.itemsize
    if (offset + count) * width > storage.size:
        raise ValueError(f"a view reaches beyond storage {storage.key!r}")
    return replace(storage, first=offset * width, size=count * width)


def _check(storage: Storage, layout: Layout) -> None:
    itemsize = layout.dtype.itemsize
    needed = (layout.offset + layout.span) * itemsize if layout.span else 0
    if needed > storage.size:
        raise ValueError(
            f"a tensor of shape {layout.shape} needs {needed} bytes of storage {storage.key!r}, which"
            f" has {storage.size}"
        )
    if not tensorfile.is_possible(layout.shape, layout.dtype):
        raise ValueError("a tensor has a shape that no array has")


def _native(numbers: np.ndarray) -> np.ndarray:
    """Numbers whose bytes stood the other way round; each half of a complex number by itself."""
    width = numbers.dtype.itemsize // (2 if numbers.dtype.kind == "c" else 1)
    return numbers.view(f"u{width}").byteswap().view(numbers.dtype)
