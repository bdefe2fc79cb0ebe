"""Modules, optimizers and keys in one file and back: `save` and `load`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar, overload

import bridge.core.storage as storage
from bridge.core.errors import CheckpointError

T = TypeVar("T")

PROGRAM = "bridge.program"


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a module, an optimizer, a key, or tuples, lists and dicts of them to one file.

    The file is a `.safetensors` file whose tensors are named by their paths, with the static side as
    JSON in its metadata, and with the program of a module that `from_torch` captured. It takes the
    place of an older one at once, when all of it is on disk, so whatever ends a save early leaves the
    old file. Raises CheckpointError, with everything that cannot be saved, before anything is written.

    >>> import bridge as br, jax, jax.numpy as jnp, os, tempfile
    >>> class Scale(br.Module):
    ...     factor: br.Parameter
    >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
    >>> br.save(path, {"module": Scale(jnp.ones(3)), "key": jax.random.key(0)})
    >>> like = {"module": Scale(jnp.zeros(3)), "key": jax.random.key(1)}
    >>> br.load(path, like)["module"].factor
    Array([1., 1., 1.], dtype=float32)
    """
    from bridge.lowering.module import captured

    exported = captured(tree)
    storage.save(path, tree, {} if exported is None else {PROGRAM: exported.text})


@overload
def load(path: str | os.PathLike[str], like: None = None) -> Any: ...
@overload
def load(path: str | os.PathLike[str], like: T, keep_static: str | Iterable[str] = ()) -> T: ...
def load(path: str | os.PathLike[str], like: Any = None, keep_static: str | Iterable[str] = ()) -> Any:
    """A tree of like's structure with the arrays of a file that `save` has written.

    `like` holds arrays or `jax.ShapeDtypeStruct`s, as `jax.eval_shape` gives them. Where an array of
    like was put on a device or a mesh, the loaded one is put there too. Mode, freezing and global
    config are like's.
    `keep_static` are paths or globs of static fields and classes that may differ from the file's and
    stay as they are in like. A module that `from_torch` captured needs no like, and no torch: its file
    holds its program. Raises CheckpointError, with everything that does not fit, before any array is
    read.
    """
    if like is not None:
        return storage.load(path, like, keep_static)
    from bridge.lowering.module import template
    from bridge.lowering.program import Exported

    text = storage.metadata(path).get(PROGRAM)
    if text is None:
        raise CheckpointError(
            f"{path} holds arrays and no program, so the module that they belong to has to be given:"
            f" bridge.load({str(path)!r}, like=module). Only a module that bridge.from_torch captured,"
            f" saved by itself, is loaded without"
        )
    return storage.load(path, template(Exported.parse(text)), keep_static)
