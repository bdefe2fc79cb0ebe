"""Files as torch.save writes them, made without torch; and pickles, opcode by opcode."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

ALIGNMENT = 64


def value(one) -> bytes:
    """The opcodes of a plain value."""
    return pickle.dumps(one, 2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def mapping(**entries: bytes) -> bytes:
    return b"}" + b"".join(value(key) + entry + b"s" for key, entry in entries.items())


def storage(kind="FloatStorage", key="0", count=15, view=b"") -> bytes:
    """A persistent id; a file in a row has a sixth part in it, None or a view."""
    identity = value("storage") + name("torch", kind) + value(key) + value("cpu") + value(count) + view
    return b"(" + identity + b"tQ"


def tensor(shape=(3, 5), strides=(5, 1), offset=0, **of_storage) -> bytes:
    return called(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage(**of_storage),
        value(offset),
        value(shape),
        value(strides),
        value(False),
        called(name("collections", "OrderedDict")),
    )


def whole(opcodes: bytes) -> bytes:
    return b"\x80\x02" + opcodes + b"."


def in_a_row(path: Path, pickled: bytes, storages: Mapping[str, np.ndarray]) -> Path:
    """A file of pickles and storages in a row, as torch wrote it before 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    before = [0x1950A86A20F9469CFC6C, 1001, system]
    pickles = b"".join(pickle.dumps(one, 2) for one in before) + pickled
    rows = b"".join(row.size.to_bytes(8, "little") + row.tobytes() for row in storages.values())
    path.write_bytes(pickles + pickle.dumps(list(storages), 2) + rows)
    return path


def zipped(path: Path, pickled: bytes, storages=(), members=(), compression=zipfile.ZIP_STORED) -> Path:
    """A file of a pickle, of storages by key, each aligned as torch aligns it, and of more members."""
    contents = {"data.pkl": pickled, **{f"data/{key}": row for key, row in dict(storages).items()}}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in {**contents, **dict(members)}.items():
            info = zipfile.ZipInfo(f"archive/{member}")
            info.compress_type = compression
            start = archive.fp.tell() + 30 + len(info.filename) + 4
            padding = -start % ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, content)
    return path
