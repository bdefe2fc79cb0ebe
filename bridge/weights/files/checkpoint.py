"""Files of torch.save, `.pt`, `.pth` and `.bin`: read without torch, and without running code."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bridge.core.errors import CheckpointError, WeightsError
from bridge.weights.files import strided, unpickling
from bridge.weights.files.names import known
from bridge.weights.files.strided import Storage, Stored

# torch.serialization's MAGIC_NUMBER and PROTOCOL_VERSION, which stand before all else in older files.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LOCAL_HEADER = 30
_COUNT = 8  # bytes of the number that stands before each storage
_PLAIN_IDENTITY = 5  # parts of a persistent id; before torch 0.4 a sixth one told a view of a storage


def read(path: Path) -> Any:
    """What torch.save was given, with a `Tensor` in the place of each tensor; none is read yet.

    Takes tensors, parameters, containers, numbers and strings. Raises WeightsError for whatever else is
    in the file, with its name, and CheckpointError where the file is damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
            if start.startswith(_ZIP):
                return _zipped(path, file)
            if start.startswith(_PICKLE):
                return _in_a_row(path, file)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (ValueError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short: {error}. Take another copy of it"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    raise CheckpointError(
        f"{path} is no checkpoint of torch.save, or it is damaged: it begins with {start!r}"
    )


def _zipped(path: Path, file: BinaryIO) -> Any:
    """The format since torch 1.6: a zip file of one pickle and of a member for each storage."""
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise WeightsError("it is a TorchScript program; its weights are those of its state_dict()")
        members = _members(file, archive)
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise WeightsError("it is a zip file, but none that torch.save has written")
    (root,) = roots
    order = _bytes(file, *members[f"{root}byteorder"]) if f"{root}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is {order[:10]!r}")
    place, size = members[f"{root}data.pkl"]
    pickled = io.BytesIO(_bytes(file, place, size))
    inside = {
        name[len(root) + 5 :]: at for name, at in members.items() if name.startswith(f"{root}data/")
    }
    stored = Stored(path, {key: start for key, (start, _) in inside.items()}, order == b"big")

    def check(storage: Storage) -> Storage:
        if storage.key not in inside:
            raise ValueError(f"it lacks storage {storage.key!r}")
        if inside[storage.key][1] != storage.size:
            raise ValueError(
                f"storage {storage.key!r} should have {storage.size} bytes and has"
                f" {inside[storage.key][1]}"
            )
        return storage

    return unpickling.load(pickled, known(stored), lambda identity: check(_storage(identity)[0]))


def _members(file: BinaryIO, archive: zipfile.ZipFile) -> dict[str, tuple[int, int]]:
    """Where the content of each member begins, and how long it is; all in a row, none over another."""
    found: dict[str, tuple[int, int]] = {}
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        name = member.filename
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise WeightsError(
                f"its member {name} is compressed or encrypted, as torch.save never does"
            )
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        if member.header_offset < end or not header.startswith(_ZIP) or len(header) < _LOCAL_HEADER:
            raise ValueError(f"its member {name} is not where the directory says")
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = member.header_offset + _LOCAL_HEADER + names
        end = start + member.file_size
        if member.compress_size != member.file_size or end > archive.start_dir:
            raise ValueError(f"its member {name} is not as long as the directory says")
        if name in found:
            raise ValueError(f"it has two members {name}")
        found[name] = (start, member.file_size)
    return found


def _bytes(file: BinaryIO, start: int, size: int) -> bytes:
    if size > unpickling.LONGEST:
        raise WeightsError(f"its pickle has {size} bytes, and tensors need no more than some millions")
    file.seek(start)
    return file.read(size)


def _in_a_row(path: Path, file: BinaryIO) -> Any:
    """The format before torch 1.6: pickles in a row, then the storages."""
    total = file.seek(0, io.SEEK_END)
    pickles = io.BytesIO(_bytes(file, 0, min(total, unpickling.LONGEST)))
    if [unpickling.load(pickles, {}, _no_identity) for _ in range(3)][:2] != [_MAGIC, _PROTOCOL]:
        raise ValueError("it does not begin as torch.save begins a file")
    starts: dict[str, int] = {}
    sizes: dict[str, tuple[int, int]] = {}

    def remember(identity: Any) -> Storage:
        storage, count = _storage(identity)
        if sizes.setdefault(storage.key, (count, storage.size)) != (count, storage.size):
            raise ValueError(f"storage {storage.key!r} is of two sizes")
        match identity:
            case (*_, (_, offset, length)) if len(identity) > _PLAIN_IDENTITY:
                return strided.view(storage, offset, length)
        return storage

    stored = Stored(path, starts, swapped=False)  # torch turns what it writes in this format
    root = unpickling.load(pickles, known(stored), remember)
    keys = unpickling.load(pickles, {}, _no_identity)
    named = isinstance(keys, list) and len(keys) == len(sizes)
    if not named or not all(isinstance(key, str) and key in sizes for key in keys):
        raise ValueError("it does not hold the storages that its tensors lie in")
    place = pickles.tell()
    for key in keys:  # each storage follows upon the count of its numbers
        file.seek(place)
        count, size = sizes[key]
        came = int.from_bytes(file.read(_COUNT), "little")
        if came != count or place + _COUNT + size > total:
            raise ValueError(f"storage {key!r} should have {count} numbers and has {came}, or fewer")
        starts[key] = place + _COUNT
        place = starts[key] + size
    return root


def _storage(identity: Any) -> tuple[Storage, int]:
    """The storage that a persistent id names, and how many numbers it says that there are."""
    match identity:
        case ("storage", np.dtype() as dtype, str(key), _, int(count), *_) if count >= 0:
            return Storage(key, dtype, count * dtype.itemsize), count
    raise ValueError("its pickle names a storage in an unknown way")


def _no_identity(_: Any) -> Any:
    raise ValueError("its pickle has a persistent id where there is none")
