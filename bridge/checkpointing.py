"""Numbered checkpoints of a run, through Orbax: asynchronous, sharded, whole or not there."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any, Self, TypeVar

import jax

import bridge.core.paths as paths
import bridge.core.storage as storage
from bridge.core.errors import CheckpointError, MissingLibraryError
from bridge.core.fitting import is_typed_key, misfits
from bridge.core.manifest import Manifest

T = TypeVar("T")

_ARRAYS, _MANIFEST = "arrays", "manifest"


class Checkpoints:
    """The checkpoints of a run in a folder, one for each step that was saved.

    `save` returns when the arrays are copied off the devices and writes in the background; a save that
    is ended early, by whatever, leaves the checkpoints before it as they are and is none itself. With
    `keep` only so many of the newest stay. Every process of a `jax.distributed` run makes one and saves
    together, each its own shards; arrays stand in Orbax's format under their paths. Close it, or use it
    in a `with`. Raises MissingLibraryError without orbax-checkpoint, CheckpointError for a folder that
    cannot be made.

    >>> import bridge as br, jax, jax.numpy as jnp, tempfile
    >>> class Scale(br.Module):
    ...     factor: br.Parameter
    >>> with br.Checkpoints(tempfile.mkdtemp(), keep=2) as run:
    ...     for step in range(3):
    ...         run.save(step, {"module": Scale(jnp.ones(3) * step), "key": jax.random.key(step)})
    ...     steps = run.steps
    ...     like = {"module": Scale(jnp.zeros(3)), "key": jax.random.key(0)}
    ...     last = run.restore(like)
    >>> steps, last["module"].factor
    ((1, 2), Array([2., 2., 2.], dtype=float32))
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int | None = None) -> None:
        ocp = _orbax()
        self.folder = os.path.abspath(folder)
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be a folder of checkpoints: {error.strerror}"
            ) from error
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
            item_handlers={
                _ARRAYS: ocp.StandardCheckpointHandler(),
                _MANIFEST: ocp.JsonCheckpointHandler(),
            },
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps whose checkpoints are whole, in order; waits for a save that is under way."""
        self.wait()
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, tree: Any) -> None:
        """Saves modules, optimizers and keys, and tuples, lists and dicts of them, as one step.

        Raises CheckpointError, with everything that cannot be saved, and for a step that is there.
        """
        ocp = _orbax()
        arrays, manifest = storage.described(f"step {step} in {self.folder}", tree)
        if step in self.steps:
            raise CheckpointError(
                f"{self.folder} has a checkpoint of step {step}, and nothing was saved; give the next"
                f" step, or another folder"
            )
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays),
                manifest=ocp.args.JsonSave({"text": manifest.text()}),
            ),
            force=True,  # every step that is given, also one before the latest
        )

    def restore(self, like: T, step: int | None = None) -> T:
        """A tree of like's structure with the arrays of a step, the latest where none is given.

        `like` holds arrays or `jax.ShapeDtypeStruct`s. Each array comes straight to where like's is, or
        its `sharding` says: another mesh than that of the save is well, and a process reads only what
        it holds. Raises CheckpointError, with everything that does not fit, before any array is read.
        """
        ocp = _orbax()
        step = self._found(step)
        where = f"step {step} in {self.folder}"
        wanted, treedef = storage.flat(like)
        args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
        text = self._manager.restore(step, args=args)[_MANIFEST]["text"]
        manifest = Manifest.parse(text, where)
        stored = self._manager.item_metadata(step)[_ARRAYS].tree
        problems = misfits(stored, manifest, like, wanted, ())
        if problems:
            raise CheckpointError(f"{where} does not fit like, and nothing was loaded:\n{problems}")
        places = {paths.join(place): leaf for place, leaf in wanted.items()}
        abstract = {name: _abstract(leaf, stored[name]) for name, leaf in places.items()}
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
        arrays = self._manager.restore(step, args=args)[_ARRAYS]
        made = [storage.as_saved(arrays[name], manifest.keys.get(name)) for name in places]
        return jax.tree.unflatten(treedef, made)

    def wait(self) -> None:
        """Returns when everything that was saved is on disk; raises what went wrong there."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets the folder go."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, step: int | None) -> int:
        steps = self.steps
        if step in steps or (step is None and steps):
            return steps[-1] if step is None else step
        there = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(
            f"{self.folder} has no checkpoint{'' if step is None else f' of step {step}'}; the steps"
            f" that are there: {there}"
        )


def _abstract(leaf: Any, stored: Any) -> jax.ShapeDtypeStruct:
    """What Orbax is to read for a leaf of like, and where it is to put it."""
    if is_typed_key(leaf) and isinstance(leaf, jax.Array):
        leaf = jax.random.key_data(leaf)
    sharding = storage.sharding_of(leaf) if not is_typed_key(leaf) else None
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(tuple(stored.shape), stored.dtype, sharding=sharding)


def _orbax() -> ModuleType:
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError:
        raise MissingLibraryError(
            "bridge.Checkpoints needs orbax-checkpoint. Install it with:"
            ' pip install "bridge-jax[orbax]"'
        ) from None
    return ocp
