"""Equinox's `.eqx` files: arrays in a row, in the order of the leaves of a model, without names."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import CheckpointError, WeightsError, listed
from bridge.weights.files.memory import Lying
from bridge.weights.tensors import Source, Tensor

# What numpy.save writes before an array: its magic, a version, a length, and a dictionary of this form.
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"{'descr': '([<>|]\w+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), } *\n"
)
_KINDS = "biufcV"  # booleans, numbers, and bytes for what NumPy has no name for
_NUMBERS = (bool, int, float, complex)


def read(path: Path, like: Any) -> Source:
    """The arrays of a file by the dotted paths that its leaves have in `like`.

    `like` is the model whose leaves equinox.tree_serialise_leaves wrote, or another one built the same
    way; its arrays may be jax.ShapeDtypeStructs. Raises WeightsError without it, and where a shape or a
    dtype is not that of its leaf, and CheckpointError where the file is damaged.
    """
    if like is None:
        raise WeightsError(
            f"{path}: a .eqx file holds arrays in a row, without names. Build the model that it was"
            f" saved from, and type model = equinox.tree_deserialise_leaves({str(path)!r}, model), then"
            f" module = bridge.from_equinox(model)"
        )
    leaves = [
        (jax.tree_util.keystr(place, simple=True, separator="."), leaf)
        for place, leaf in jax.tree_util.tree_flatten_with_path(like)[0]
        if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, *_NUMBERS))
    ]
    records = _all_records(path)
    if len(records) != len(leaves):
        raise WeightsError(f"{path} holds {len(records)} arrays, and like has {len(leaves)} leaves")
    fitted = {key: _fitted(record, leaf) for record, (key, leaf) in zip(records, leaves, strict=True)}
    problems = [f"{key}: {one}" for key, one in fitted.items() if isinstance(one, str)]
    if problems:
        raise WeightsError(f"{path} does not fit like:\n{listed(problems)}")
    return Source(
        {
            key: _tensor(path, place, is_turned)
            for (key, place), (_, is_turned) in zip(fitted.items(), records, strict=True)
            if not isinstance(place, str)
        }
    )


def numbered(path: Path) -> Source:
    """The arrays of a file by their numbers; raises CheckpointError where it is damaged."""
    return Source(
        {str(n): _tensor(path, *record) for n, record in enumerate(_all_records(path))},
        notes=("a .eqx file holds arrays in a row, without names: these are their numbers",),
    )


def _all_records(path: Path) -> list[tuple[tensorfile.Tensor, bool]]:
    try:
        return list(_records(path))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no .eqx file, or it is damaged or cut short: {error}. Take another copy of it"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _records(path: Path) -> Iterator[tuple[tensorfile.Tensor, bool]]:
    """Where each array lies, and whether its first axis is the quick one."""
    with path.open("rb") as file:
        total = file.seek(0, io.SEEK_END)
        end = 0
        while end < total:
            file.seek(end)
            dtype, is_turned, shape = _header(file)
            size = math.prod(shape) * dtype.itemsize
            start, end = file.tell(), file.tell() + size
            if not tensorfile.is_possible(shape, dtype):
                raise ValueError(f"it has an array of the shape {shape}")
            if end > total:
                raise ValueError(f"an array should end at byte {end}, and it has {total} bytes")
            yield tensorfile.Tensor(dtype, shape, start, size), is_turned


def _header(file: BinaryIO) -> tuple[np.dtype, bool, tuple[int, ...]]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("what numpy.save writes does not begin so")
    text = file.read(int.from_bytes(file.read(2), "little")).decode("latin1")
    parts = _HEADER.fullmatch(text)
    if parts is None:
        raise ValueError(f"it has an array of numbers that is none: {text[:60]!r}")
    try:
        dtype = np.dtype(parts[1])
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in _KINDS:
        raise ValueError(f"it has an array of {parts[1]}, which is no number")
    return dtype, parts[2] == "True", tuple(int(n) for n in re.findall(r"\d+", parts[3]))


def _fitted(record: tuple[tensorfile.Tensor, bool], leaf: Any) -> tensorfile.Tensor | str:
    """The place with the dtype of the leaf, or in what the two differ."""
    place, _ = record
    shape = np.shape(leaf)
    if place.shape != shape:
        return f"the file has the shape {place.shape}, like has {shape}"
    if isinstance(leaf, _NUMBERS):
        return place
    # NumPy has no name for bfloat16 and its like: they are saved as so many bytes.
    is_nameless = place.dtype.kind == "V" and place.dtype.itemsize == leaf.dtype.itemsize
    if place.dtype != leaf.dtype and not is_nameless:
        return f"the file has {place.dtype}, like has {leaf.dtype}"
    return tensorfile.Tensor(leaf.dtype, place.shape, place.start, place.size)


def _tensor(path: Path, place: tensorfile.Tensor, is_turned: bool) -> Tensor:
    if not is_turned:
        return Tensor.of_file(path, place)
    lying = Lying(path, tensorfile.Tensor(place.dtype, place.shape[::-1], place.start, place.size))
    return Tensor(place.shape, place.dtype, lambda: lying.read().T)
