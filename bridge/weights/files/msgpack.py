"""Flax's `.msgpack` files: walked from item to item, arrays passed over and read later.

The format is that of msgpack with Flax's extensions, so neither package is needed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import CheckpointError, WeightsError
from bridge.weights.tensors import Source, Tensor

DTYPES: Mapping[str, np.dtype] = {
    dtype.name: dtype for dtype in (*tensorfile.DTYPES.values(), np.dtype(np.complex128))
}
# What stands beside the arrays; a tree of 100 000 of them has some 10 MB of names.
LONGEST = 1 << 26

# flax.serialization's codes of extensions, and its mark of an array in several pieces.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"

# The first byte of an item, as the specification of msgpack lists them: a plain value, or the sort of
# item and how many bytes its length has.
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_LONG = {0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4)}
_LONG |= {0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4)}
_LONG |= {0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4)}
_LONG |= {0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("dict", 2), 0xDF: ("dict", 4)}
_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def read(path: Path) -> Source:
    """The arrays and numbers of a file by their dotted paths.

    Raises WeightsError for what is none of dictionaries, lists, arrays, numbers and text, and
    CheckpointError where the file is damaged.
    """
    try:
        with path.open("rb") as file:
            walk = _Walk(file, path)
            root = walk.item()
            if walk.place != walk.end:
                raise ValueError(f"its tree ends at byte {walk.place}, and it has {walk.end} bytes")
            return Source(dict(_flat(root)))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no msgpack file of Flax, or it is damaged or cut short: {error}. Take another"
            " copy of it"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


class _Walk:
    """Goes through a file, or through one extension of it, item by item."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.place, self.end = 0, file.seek(0, 2)
        self.told = 0
        file.seek(0)

    def skip(self, size: int) -> int:
        """Where the next `size` bytes begin, which are passed over."""
        start, self.place = self.place, self.place + size
        if self.place > self.end:
            raise ValueError(f"an item should end at byte {self.place}, and there are {self.end}")
        return start

    def bytes(self, size: int) -> bytes:
        start = self.skip(size)
        self.told += size
        if self.told > LONGEST:
            raise WeightsError("it holds more beside its arrays than the tree of a model does")
        self.file.seek(start)
        return self.file.read(size)

    def item(self) -> Any:
        first = self.bytes(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return struct.unpack(_NUMBERS[first], self.bytes(struct.calcsize(_NUMBERS[first])))[0]
        if first in _FIXED:
            return self.extension(_FIXED[first])
        if first in _LONG:
            sort, width = _LONG[first]
            return _SORTS[sort](self, int.from_bytes(self.bytes(width), "big"))
        if first < 0xC0:
            sort, length = ("text", first & 31) if first >= 0xA0 else ("list", first & 15)
            return _SORTS["dict" if first < 0x90 else sort](self, length)
        raise ValueError(f"no item begins with the byte {first:#x}")

    def text(self, size: int) -> str:
        return self.bytes(size).decode()

    def list(self, count: int) -> Any:
        return [self.item() for _ in range(count)]

    def dict(self, count: int) -> Any:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.item()
            if not isinstance(key, str) or key in found:
                raise ValueError(f"the key {str(key)[:40]!r} is no text, or stands there twice")
            found[key] = self.item()
        return _joined(found) if found.get(_CHUNKED) is True else found

    def extension(self, size: int) -> Any:
        code = int.from_bytes(self.bytes(1), "big", signed=True)
        outer, self.end = self.end, self.skip(size) + size
        self.place = self.end - size
        if code in (_ARRAY, _SCALAR):
            value: Any = self.array()
        elif code == _COMPLEX:
            match self.item():
                case [int() | float() as real, int() | float() as imaginary]:
                    value = complex(real, imaginary)
                case _:
                    raise ValueError("a complex number has not two parts")
        else:
            raise WeightsError(f"it holds an extension of msgpack with code {code}, which Flax has not")
        if self.place != self.end:
            raise ValueError(f"an extension goes on for {self.end - self.place} bytes after its value")
        self.end = outer
        return value

    def array(self) -> Tensor:
        """An array of an extension: its shape, the name of its dtype, its bytes."""
        if self.bytes(1) != b"\x93" or not isinstance(shape := self.item(), list):
            raise ValueError("an array lacks its shape")
        name = self.item()
        dtype = DTYPES.get(name if isinstance(name, str) else "")
        if dtype is None:
            raise WeightsError(f"it holds an array of {str(name)[:40]!r}, which JAX has not")
        if not tensorfile.is_possible(shape, dtype):
            raise ValueError("an array has a shape that none has")
        sort, width = _LONG.get(self.bytes(1)[0], ("", 0))
        size = int.from_bytes(self.bytes(width), "big")
        if sort != "bytes" or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"an array of shape {tuple(shape)} and {dtype} has {size} bytes")
        place = tensorfile.Tensor(dtype, tuple(shape), self.skip(size), size)
        return Tensor.of_file(self.path, place)


_SORTS: Mapping[str, Callable[[_Walk, int], Any]] = {
    "bytes": _Walk.bytes,
    "text": _Walk.text,
    "list": _Walk.list,
    "dict": _Walk.dict,
    "extension": _Walk.extension,
}


def _joined(pieces: Mapping[str, Any]) -> Tensor:
    """An array that Flax keeps in several pieces, since msgpack holds no more than 2 GB in one."""
    shape, chunks = (_row(pieces.get(name)) for name in ("shape", "chunks"))
    if not chunks or not all(isinstance(one, Tensor) for one in chunks):
        raise ValueError("an array in pieces lacks its pieces")
    dtype = chunks[0].dtype
    sizes = [math.prod(one.shape) for one in chunks]
    is_possible = tensorfile.is_possible(shape, dtype) and math.prod(shape) == sum(sizes)
    if {one.dtype for one in chunks} != {dtype} or not is_possible:
        raise ValueError(f"an array of shape {tuple(shape)} has pieces of {sum(sizes)} numbers")

    def join() -> np.ndarray:
        whole = tensorfile.aligned(sum(sizes) * dtype.itemsize).view(dtype)
        done = 0
        for chunk, size in zip(chunks, sizes, strict=True):
            whole[done : done + size] = chunk.read().reshape(-1)
            done += size
        return whole.reshape(shape)

    return Tensor(tuple(shape), dtype, join)


def _row(entries: Any) -> list[Any]:
    """What Flax keeps as a dictionary of "0", "1", and so on."""
    if not isinstance(entries, dict) or set(entries) != {str(n) for n in range(len(entries))}:
        return []
    return [entries[str(n)] for n in range(len(entries))]


def _flat(tree: Any) -> Iterator[tuple[str, Tensor]]:
    seen: set[str] = set()
    for place, value in _leaves(tree, ()):
        key = ".".join(place)
        if key in seen:
            raise WeightsError(f"two of its arrays have the path {key}")
        seen.add(key)
        if isinstance(value, Tensor):
            yield key, value
        elif isinstance(value, (int, float, complex)):
            yield key, _number(value)


def _leaves(tree: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, list):
        tree = {str(n): one for n, one in enumerate(tree)}
    if not isinstance(tree, dict):
        yield place, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, (*place, key))


def _number(value: complex) -> Tensor:
    array = np.asarray(value)
    return Tensor((), array.dtype, array.copy)
