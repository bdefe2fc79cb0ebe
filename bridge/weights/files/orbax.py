"""Folders that Orbax has written: their tree read at once, their arrays one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bridge.core.errors import CheckpointError, MissingLibraryError, WeightsError
from bridge.weights.tensors import Source, Tensor

_TREE = "_METADATA"


def is_orbax(folder: Path) -> bool:
    """Whether Orbax has written a folder, or folders one or two levels below it."""
    return any(next(folder.glob(f"{below}{_TREE}"), None) for below in ("", "*/", "*/*/"))


def read(folder: Path) -> Source:
    """The arrays of a checkpoint by their dotted paths.

    Orbax's own reader of trees is used, and nothing that a checkpoint names is imported. Raises
    MissingLibraryError without orbax-checkpoint, WeightsError where a folder has several checkpoints,
    and CheckpointError where it is damaged.
    """
    folder = _item(folder)
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError:
        raise MissingLibraryError(
            f"{folder} is a checkpoint of Orbax, which needs orbax-checkpoint. Install it with:"
            f' pip install "bridge-jax[orbax]"'
        ) from None
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = _told(folder, lambda: checkpointer.metadata(folder).item_metadata)
    if getattr(metadata, "tree", None) is None:  # Orbax logs why, and goes on
        raise CheckpointError(f"{folder} is a damaged checkpoint of Orbax: its {_TREE} has no tree")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(metadata.tree)

    def reader(index: int) -> Callable[[], np.ndarray]:
        marks: list[Any] = [ocp.PLACEHOLDER] * len(leaves)
        marks[index] = 0
        item = treedef.unflatten(marks)
        wanted = treedef.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves))

        def read() -> np.ndarray:
            arguments = ocp.args.PyTreeRestore(item=item, restore_args=wanted)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                tree = _told(folder, lambda: checkpointer.restore(folder, args=arguments))
            return np.asarray(treedef.flatten_up_to(tree)[index])

        return read

    return Source(
        {
            jax.tree_util.keystr(place, simple=True, separator="."): Tensor(
                tuple(leaf.shape), np.dtype(leaf.dtype), reader(index)
            )
            for index, (place, leaf) in enumerate(leaves)
            if getattr(leaf, "dtype", None) is not None
        }
    )


def _item(folder: Path) -> Path:
    """The folder itself, or the one folder in it that holds a tree."""
    if (folder / _TREE).is_file():
        return folder.absolute()
    found = sorted(place.parent for below in ("*/", "*/*/") for place in folder.glob(f"{below}{_TREE}"))
    if len(found) == 1:
        return found[0].absolute()
    names = ", ".join(str(one) for one in found)
    raise WeightsError(f"{folder} holds {len(found)} checkpoints of Orbax; give one of them: {names}")


def _told(folder: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, LookupError, TypeError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{folder} is a damaged checkpoint of Orbax, or one that its present release cannot read:"
            f" {reason}"
        ) from error
