"""Folders as Hugging Face writes them: one file, or shards with an index, and a config.json beside."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import CheckpointError, WeightsError, listed
from bridge.weights.tensors import Source, Tensor

INDEX = ".index.json"
CONFIG = "config.json"

# transformers writes these names; where several stand in a folder they hold the same weights, and it
# takes the first one.
NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "flax_model.msgpack",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.\w+)")


def chosen(folder: Path, suffixes: Iterable[str]) -> tuple[Path, ...]:
    """The file or the index that holds the weights of a folder, or all shards where there is no index.

    Raises WeightsError where there is none, or several of which no rule says which one is meant.
    """
    known = [folder / name for one in NAMES for name in (one, one + INDEX)]
    present = [path for path in known if path.is_file()]
    if not present:
        present = sorted(folder.glob(f"*{INDEX}"))
    if not present:
        groups = [sorted(folder.glob(f"*{suffix}")) for suffix in suffixes]
        shards = next((found for group in groups if (found := _shards(folder, group))), ())
        return shards or _only(folder, sorted(path for group in groups for path in group))
    return (present[0],) if present[0] in known else _only(folder, present)


def _only(folder: Path, present: Sequence[Path]) -> tuple[Path, ...]:
    if len(present) == 1:
        return tuple(present)
    if not present:
        raise WeightsError(f"{folder}: there is no file of weights in this folder")
    names = ", ".join(path.name for path in present)
    raise WeightsError(f"{folder}: give one of the files of weights in this folder: {names}")


def _shards(folder: Path, present: Sequence[Path]) -> tuple[Path, ...]:
    """All files, where they are the shards of one checkpoint; raises WeightsError where some lack."""
    parts = [_SHARD.fullmatch(path.name) for path in present]
    numbers = {int(part[2]) for part in parts if part}
    counts = {(part[1], int(part[3]), part[4]) for part in parts if part}
    if not all(parts) or len(counts) != 1:
        return ()
    ((_, count, _),) = counts
    if count != len(present) or numbers != set(range(1, len(present) + 1)):
        raise WeightsError(f"{folder}: it has {len(present)} of the {count} shards of a checkpoint")
    return tuple(present)


def indexed(index: Path, read: Callable[[Path], Source]) -> Source:
    """The arrays of the shards that an index names, each in the shard that the index says.

    Raises CheckpointError where a shard is missing, or where the index and the shards disagree.
    """
    places = _weight_map(index)
    names = sorted(set(places.values()))
    outside = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise CheckpointError(f"{index} names shards that are not beside it: {', '.join(outside)}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(names)} shards, and these are missing: {', '.join(missing)}"
        )
    shards = {name: read(index.parent / name) for name in names}
    joined = merged(index, shards)
    problems = [
        f"{key}: is not in {name}" for key, name in places.items() if key not in shards[name].tensors
    ]
    if problems:
        raise CheckpointError(f"{index} does not fit its shards:\n{listed(problems)}")
    return joined


def merged(place: Path, shards: Mapping[str, Source]) -> Source:
    """The arrays of several files; raises CheckpointError where two of them have the same key."""
    tensors: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    problems: list[str] = []
    for name, shard in shards.items():
        problems += [
            f"{key}: is in {homes[key]} and in {name}" for key in shard.tensors if key in tensors
        ]
        tensors.update(shard.tensors)
        homes.update(dict.fromkeys(shard.tensors, name))
    if problems:
        raise CheckpointError(f"{place}: the shards have keys in common:\n{listed(problems)}")
    return Source(tensors, notes=tuple(note for shard in shards.values() for note in shard.notes))


def _weight_map(index: Path) -> dict[str, str]:
    places = _json(index)
    places = places.get("weight_map") if isinstance(places, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index} is no index of shards: it has no weight_map of keys to files")
    if ".msgpack" in index.name:  # Flax's index joins names by slashes
        return {key.replace("/", "."): name for key, name in places.items()}
    return places


def config_of(folder: Path) -> Mapping[str, Any] | None:
    """The config.json of a folder, None without one; raises CheckpointError where it is damaged."""
    path = folder / CONFIG
    config = _json(path) if path.is_file() else None
    return config if isinstance(config, dict) else None


def _json(path: Path) -> Any:
    try:
        return tensorfile.unique_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON, or it is damaged: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
