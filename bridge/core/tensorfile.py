"""The `.safetensors` format: a header read and checked, tensors read one by one, a file written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader, BufferedWriter, FileIO
from typing import Any

import ml_dtypes
import numpy as np

from bridge.core.errors import CheckpointError

# The names are those of safetensors; its four- and six-bit types are packed and have no NumPy form.
DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(scalar)
    for name, scalar in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "U16": np.uint16,
        "I16": np.int16,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "U32": np.uint32,
        "I32": np.int32,
        "F32": np.float32,
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
        "C64": np.complex64,
    }.items()
}
NAMES: Mapping[Any, str] = {dtype: name for name, dtype in DTYPES.items()}

# JAX takes over host memory on a CPU without a copy where it begins at a multiple of 64 bytes.
ALIGNMENT = 64
# So many bytes stay in a processor's cache, and take longer than a call of NumPy's.
PIECE = 1 << 19
_MOST_BYTES, _MOST_AXES = 2**63, 64  # of an array of NumPy
_LENGTH = 8
_LONGEST = 100_000_000  # as in safetensors: what a longer header would be parsed into takes gigabytes

Look = Callable[[np.ndarray], None]
ReadInto = BufferedReader | FileIO


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a file, and what its bytes mean."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says about itself: its metadata, and its tensors by name."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def read_header(file: BufferedReader) -> Header:
    """The header of an open file; raises CheckpointError where it or the file's size is not right."""
    try:
        return _header(file)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{file.name} is no safetensors file, or it is damaged or cut short: {error}. Take"
            f" another copy of it"
        ) from None


def _header(file: BufferedReader) -> Header:
    total = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(_LENGTH), "little")
    start = _LENGTH + length
    if total < _LENGTH or start > total:
        raise ValueError(f"its header should end at byte {start}, and it has {total} bytes")
    if length > _LONGEST:
        raise ValueError(f"its header has {length} bytes, and the format allows {_LONGEST}")
    spelled = unique_json(file.read(length).decode())
    metadata = spelled.pop("__metadata__", {}) if isinstance(spelled, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("its header is not of the form that the format has")
    tensors = {name: _tensor(name, entry, start) for name, entry in spelled.items()}
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != end:
            raise ValueError(
                f"a tensor begins at byte {tensor.start}, and the one before ends at {end}"
            )
        end += tensor.size
    if end != total:
        raise ValueError(f"its tensors should end at byte {end}, and it has {total} bytes")
    return Header(metadata, tensors)


def is_possible(shape: Sequence[Any], dtype: np.dtype) -> bool:
    """Whether an array can have a shape; a 0 in it does not excuse the other lengths."""
    if len(shape) > _MOST_AXES or any(type(n) is not int or n < 0 for n in shape):
        return False
    return math.prod(max(n, 1) for n in shape) * dtype.itemsize < _MOST_BYTES


def unique_json(text: str) -> Any:
    """What a JSON text says; raises ValueError for a key that stands twice in one object."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands twice in it")
        found[key] = value
    return found


def _tensor(name: str, entry: Any, start: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the header does not say dtype, shape and place of {name!r}, and these alone")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name!r} is of the unknown dtype {entry['dtype']!r}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, first, last)):
        raise ValueError(f"the shape or the place of {name!r} is not made of whole numbers")
    size = math.prod(shape) * dtype.itemsize
    if last - first != size:
        raise ValueError(f"{name!r} needs {size} bytes and has {last - first}")
    if not is_possible(shape, dtype):
        raise ValueError(f"{name!r} has a shape that no array has")
    return Tensor(dtype, shape, start + first, size)


def read(file: ReadInto, tensor: Tensor, look: Look | None = None) -> np.ndarray:
    """A tensor of an open file in memory of its own, which JAX can take over without a copy.

    `look` is shown each piece of the numbers while it is still in the processor's cache.
    """
    block = aligned(tensor.size)
    length = PIECE if look else tensor.size or 1
    for first in range(0, tensor.size, length):
        piece = block[first : first + length]
        fill(file, tensor.start + first, piece)
        if look:
            look(piece.view(tensor.dtype))
    return block.view(tensor.dtype).reshape(tensor.shape)


def fill(file: ReadInto, start: int, block: np.ndarray) -> None:
    """Reads the bytes of an open file from `start` on, as many as the block has."""
    file.seek(start)
    done = 0
    while done < block.size:
        count = file.readinto(block[done:].data)
        if not count:
            raise CheckpointError(f"{file.name} was cut short while it was read; load it again")
        done += count


def aligned(size: int) -> np.ndarray:
    """New memory of so many bytes, which JAX can take over without a copy."""
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % ALIGNMENT
    return buffer[first : first + size]


def write(file: BufferedWriter, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes arrays whose dtypes are in `NAMES`; they come to the host one at a time."""
    # The format allows no gaps, so the tensors that keep the next one aligned come first.
    names = sorted(arrays, key=lambda n: (arrays[n].nbytes % ALIGNMENT > 0, -_width(arrays[n]), n))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        array, start = arrays[name], end
        end += array.nbytes
        header[name] = {
            "dtype": NAMES[np.dtype(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(_LENGTH + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(_LENGTH, "little") + text)
    for name in names:
        file.write(_bytes_of(arrays[name]).data)


def _width(array: Any) -> int:
    return np.dtype(array.dtype).itemsize


def _bytes_of(array: Any) -> np.ndarray:
    """The bytes of an array in row-major order, whatever order it lies in."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
