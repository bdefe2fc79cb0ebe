"""Models of one example as models of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

import bridge.core.paths as paths
from bridge.core.errors import FieldError
from bridge.core.frames import frame_of
from bridge.core.lifted import vmap
from bridge.core.module import Module


class Batched(Module):
    """A module for one example, called with a batch of them."""

    module: Module
    axis: Any
    out_axis: int
    axis_name: str | None

    def __call__(self, *args: Any) -> Any:
        """What the module returns for each example, stacked."""
        frame: Any = frame_of(self)
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,) * len(args)
        if len(axes) != len(args) or all(axis is None for axis in axes):
            raise FieldError(
                f"{paths.name(frame.path)} was made with axis={self.axis!r} and called with"
                f" {len(args)} arguments; type bridge.batched(module, axis=(0, None, ...)), an axis for"
                f" each argument and None for what all examples share"
            )
        mapped = vmap(self.module, axes, self.out_axis, self.axis_name)
        if not frame.initialising:
            return mapped(*args)
        self.module(*(_first(arg, axis) for arg, axis in zip(args, axes, strict=True)))
        with frame.run.past_init():
            return mapped(*args)


def batched(
    module: Any,
    axis: int | Sequence[int | None] = 0,
    out_axis: int = 0,
    axis_name: str | None = None,
) -> Batched:
    """The module of one example as one of a batch: mapped over `axis` of its arguments.

    `axis` is one for all arguments, or one for each (None: every example has the same). Parameters are
    shared, random keys differ by example. A state that is written must come out the same for all, for
    which `axis_name` serves (`jax.lax.pmean(value, axis_name)`); a StructureError names it otherwise.
    `init` makes what is lazy from the first example.

    >>> import bridge as br, jax.numpy as jnp
    >>> class Dot(br.Module):
    ...     weight: br.Parameter
    ...
    ...     def __call__(self, x):
    ...         return self.weight @ x
    >>> br.batched(Dot(jnp.array([1.0, 2.0])))(jnp.array([[1.0, 1.0], [0.0, 3.0]]))
    Array([3., 6.], dtype=float32)
    """
    axis = axis if isinstance(axis, int) else tuple(axis)
    return Batched(Module.adopt(module, "batched"), axis, out_axis, axis_name)


def _first(value: Any, axis: int | None) -> Any:
    """The first example of a batch; all of a value that every example shares."""
    if axis is None:
        return value
    return jax.tree.map(lambda leaf: jax.lax.index_in_dim(leaf, 0, axis, keepdims=False), value)
