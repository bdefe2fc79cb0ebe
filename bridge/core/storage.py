"""Modules, optimizers and keys in one file and back: `save` and `load`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from io import BufferedReader
from typing import Any, TypeVar

import jax
from jax.core import Tracer

import bridge.core.paths as paths
import bridge.core.tensorfile as tensorfile
from bridge.core.errors import CheckpointError
from bridge.core.filing import os_errors, replace_files
from bridge.core.fitting import UNINITIALISED, is_typed_key, misfits, named, told, uninitialised
from bridge.core.leaves import segments
from bridge.core.manifest import Manifest
from bridge.core.paths import Path
from bridge.core.tensorfile import Header

T = TypeVar("T")

_METADATA = "bridge"


def save(path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, str]) -> None:
    """Writes a tree and more `metadata` to one file; see `bridge.save`."""
    arrays, manifest = described(str(path), tree, _unwritable)
    texts = {**metadata, _METADATA: manifest.text()}
    replace_files([(path, lambda file: tensorfile.write(file, arrays, texts))])


def described(
    where: str, tree: Any, refused: Callable[[Path, Any], str | None] = lambda _path, _leaf: None
) -> tuple[dict[str, Any], Manifest]:
    """The arrays of a tree by path, keys as their bits, and what else is to be known of it.

    `refused` says why an array cannot be saved there. Raises CheckpointError with all that cannot.
    """
    leaves, _ = flat(tree)
    problems = [(place, f"it {UNINITIALISED}") for place in uninitialised(tree)]
    for place, leaf in leaves.items():
        why = _unsavable(leaf) or refused(place, leaf)
        problems += [(place, why)] if why else []
    if problems:
        raise CheckpointError(f"{where} was not written; these cannot be saved:\n{told(problems)}")
    arrays = {paths.join(place): _data(leaf) for place, leaf in leaves.items()}
    keys = {
        paths.join(place): str(jax.random.key_impl(leaf))
        for place, leaf in leaves.items()
        if is_typed_key(leaf)
    }
    return arrays, Manifest.of(tree, keys)


def load(path: str | os.PathLike[str], like: T, keep_static: str | Iterable[str]) -> T:
    """A tree of like's structure with the arrays of a file; see `bridge.load`."""
    wanted, treedef = flat(like)
    patterns = (keep_static,) if isinstance(keep_static, str) else tuple(keep_static)
    with os_errors("read", path), open(path, "rb") as file:
        header = tensorfile.read_header(file)
        if _METADATA not in header.metadata:
            raise CheckpointError(
                f"{path} is a safetensors file, but none that bridge.save has written; type"
                f" module = bridge.load_state_dict(module, {str(path)!r}) to load weights by name"
            )
        manifest = Manifest.parse(header.metadata[_METADATA], str(path))
        problems = misfits(header.tensors, manifest, like, wanted, patterns)
        if problems:
            raise CheckpointError(f"{path} does not fit like, and nothing was loaded:\n{problems}")
        arrays = [_array(file, header, manifest, place, leaf) for place, leaf in wanted.items()]
    return jax.tree.unflatten(treedef, arrays)


def metadata(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """What stands in a file beside its arrays, by name."""
    with os_errors("read", path), open(path, "rb") as file:
        return tensorfile.read_header(file).metadata


def flat(tree: Any) -> tuple[dict[Path, Any], Any]:
    """The leaves of a tree by path, and its structure; raises CheckpointError for two of one path."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves: dict[Path, Any] = {}
    for keys, leaf in keyed:
        place = segments(keys)
        if place in leaves:
            raise CheckpointError(
                f"two leaves of the tree have the path {named(place)}; give them different names"
            )
        leaves[place] = leaf
    return leaves, treedef


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_typed_key(leaf) else leaf


def _unsavable(leaf: Any) -> str | None:
    """Why a leaf cannot be saved and what to type; None where it can."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "it is a jax.ShapeDtypeStruct, which has no values; save what was really computed"
    if not isinstance(leaf, jax.Array):
        return f"it is a {type(leaf).__name__}; an array or a key was wanted: jax.numpy.asarray(...)"
    if isinstance(leaf, Tracer):
        return (
            "it is traced, by jax.jit or another transform; return it from there, and save what comes"
        )
    if leaf.is_deleted():
        return "its memory was donated to a compiled function; save what that function returned"
    return None


def _unwritable(place: Path, leaf: Any) -> str | None:
    """Why an array cannot stand in one file; None where it can."""
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return (
            "other processes hold parts of it; gather it first, with"
            " jax.experimental.multihost_utils.process_allgather(tree, tiled=True)"
        )
    if not is_typed_key(leaf) and leaf.dtype not in tensorfile.NAMES:
        return f"safetensors has no {leaf.dtype}; cast it: array.astype(...)"
    if place == ("__metadata__",):
        return "safetensors keeps this name for itself; use another one"
    return None


def _array(file: BufferedReader, header: Header, manifest: Manifest, place: Path, like: Any) -> Any:
    """An array of the file, on the device or mesh of like's."""
    name = paths.join(place)
    array = as_saved(tensorfile.read(file, header.tensors[name]), manifest.keys.get(name))
    return jax.device_put(array, sharding_of(like))


def as_saved(array: Any, impl: str | None) -> Any:
    """What was saved as an array: itself, or the keys whose bits it is."""
    return array if impl is None else jax.random.wrap_key_data(array, impl=impl)


def sharding_of(like: Any) -> Any:
    """Where an array was put on purpose; None where JAX may move it."""
    if isinstance(like, jax.ShapeDtypeStruct):
        return like.sharding
    is_placed = isinstance(like, jax.Array) and not isinstance(like, Tracer) and like.committed
    return like.sharding if is_placed else None
