"""A loss with a penalty on parameters, for any model and without touching its code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

import bridge.core.paths as paths
from bridge.core.errors import FieldError
from bridge.core.frames import frame_of
from bridge.core.leaves import Lazy, is_array
from bridge.core.module import Module
from bridge.core.node import Node
from bridge.core.partition import Where, chosen, settled_where
from bridge.core.reaching import reached
from bridge.core.tree import entries


class Regularized(Module):
    """A module whose output is a number, with penalties on its parameters added to it."""

    module: Module
    penalty: Any
    where: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output plus the penalty of each chosen parameter."""
        out = self.module(*args, **kwargs)
        frame: Any = frame_of(self)
        if not (isinstance(out, (int, float)) or (is_array(out) and out.shape == ())):
            raise FieldError(
                f"{paths.name(frame.path)} adds penalties to one number, and its"
                f" {type(self.module).__name__} returned {_described(out)}. Give bridge.regularized a"
                f" module that returns the loss: one that holds the model, or a function of its"
                f" output after it"
            )
        return sum(self._penalties(frame.path), start=jnp.asarray(out))

    def _penalties(self, path: Any) -> Iterator[Any]:
        """The penalty of each chosen parameter; what is shared or tied counts once."""
        found = reached(self.module)
        trained = [entry for entry, _ in found if entry.trained]
        picked = _picked(self.module, self.where, trained)
        once = {owner: entry for entry, owner in found if entry.path in picked}
        for entry in once.values():
            term = self.penalty(entry.value)
            if jnp.shape(term) != ():
                raise FieldError(
                    f"{paths.name((*path, 'module', *entry.path))}: its penalty is"
                    f" {_described(term)}, and one number was wanted; sum it:"
                    f" lambda array: jnp.sum(...)"
                )
            yield term

    def extra_repr(self) -> str:
        """The penalty."""
        return getattr(self.penalty, "__name__", repr(self.penalty))


def regularized(module: Any, penalty: Callable[[Any], Any], where: Where | None = None) -> Regularized:
    """The module with `penalty(parameter)` of its parameters added to its output, which is one number.

    `where` chooses the parameters, as for `bridge.partition`, by their paths below the module; None
    chooses all. What is frozen has no penalty; what is shared or tied has one. The module may be part
    of a bigger tree, and several such parts add up. Raises PathError for a path that selects no
    trained parameter.

    >>> import bridge as br
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    ...     shift: br.Parameter
    ...
    ...     def __call__(self, x):
    ...         return self.slope * x + self.shift
    >>> line = Line(3.0, 1.0)
    >>> float(br.regularized(line, br.l2(2))(10.0)), float(br.regularized(line, abs, "slope")(10.0))
    (41.0, 34.0)
    """
    if not callable(penalty) or isinstance(penalty, (Node, type)):
        raise FieldError(
            f"regularized takes a function of an array that gives one number, such as bridge.l2(1e-4);"
            f" it was given {penalty!r}"
        )
    module, where = Module.adopt(module, "regularized"), settled_where(where)
    listed = list(entries(module))
    if not any(isinstance(entry.value, Lazy) for entry in listed):
        _picked(module, where, [entry for entry in listed if _may_be_trained(entry)])
    return Regularized(module, penalty, where)


@dataclasses.dataclass(frozen=True)
class _L2:
    """Half of a scale times the sum of squares; equal scales are equal, so nothing compiles twice."""

    scale: float

    def __call__(self, array: Any) -> Any:
        return 0.5 * self.scale * jnp.sum(array * array)

    def __repr__(self) -> str:
        return f"l2({self.scale})"


def l2(scale: float) -> Callable[[Any], Any]:
    """The penalty `0.5 * scale * sum(array ** 2)`, whose gradient is `scale * array`.

    >>> import bridge as br, jax.numpy as jnp
    >>> float(br.l2(2)(jnp.array([1.0, 2.0])))
    5.0
    """
    return _L2(scale)


def _may_be_trained(entry: Any) -> bool:
    return entry.kind.name == "parameter" and not entry.frozen


def _picked(module: Any, where: Where | None, trained: list[Any]) -> set[Any]:
    if where is not None:
        trained = chosen(module, where, trained, "trained parameter")
    return {entry.path for entry in trained}


def _described(value: Any) -> str:
    if is_array(value):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}"
