"""Which results of a computation are arguments of it that were only passed through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Literal

# What gives a new array for each that it passes through, and under which name it keeps its program:
# jax.jit, jax.checkpoint, jax.custom_vjp, jax.custom_jvp.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
}


def told_apart(again: Callable[[Any], Any], before: Any, after: Any) -> Any:
    """The tree `after`, which `again(before)` gives, with the old array for each that is as it was.

    What a call of jax.jit or jax.checkpoint passes through is as it was. Where that has to be known of
    values that are traced themselves, `again` is traced once more for it.

    >>> import jax
    >>> step = jax.jit(lambda tree: {"kept": tree["kept"], "count": tree["count"] + 1})
    >>> before = {"kept": jax.numpy.ones(3), "count": jax.numpy.zeros(())}
    >>> after = step(before)
    >>> after["kept"] is before["kept"], told_apart(step, before, after)["kept"] is before["kept"]
    (False, True)
    """
    olds, structure = jax.tree.flatten(before)
    news, other = jax.tree.flatten(after)
    if structure != other:
        return after
    if any(isinstance(new, Tracer) for new in news):
        same = _passed_on(
            lambda olds: jax.tree.leaves(again(jax.tree.unflatten(structure, olds))), olds
        )
    else:
        same = [_equal(old, new) for old, new in zip(olds, news, strict=True)]
    told = zip(olds, news, same, strict=True)
    return jax.tree.unflatten(structure, [old if is_old else new for old, new, is_old in told])


def _passed_on(function: Callable[[list[Any]], list[Any]], arrays: list[Any]) -> list[bool]:
    """Whether each result of a function of arrays is the array in its place."""
    origins = _origins(jax.make_jaxpr(function)(arrays).jaxpr, range(len(arrays)))
    return [origin == number for number, origin in enumerate(origins)]


def _origins(jaxpr: Jaxpr, arguments: Iterable[int | None]) -> list[int | None]:
    """For each result the number of the argument that it is, None where it is computed."""
    known = dict(zip(jaxpr.invars, arguments, strict=True))

    def origins(variables: Any) -> list[int | None]:
        return [None if isinstance(one, Literal) else known.get(one) for one in variables]

    for equation in jaxpr.eqns:
        if equation.primitive.name in _CALLS:
            inner = equation.params[_CALLS[equation.primitive.name]]
            inner = getattr(inner, "jaxpr", inner)  # jax.checkpoint has it without its constants
            known.update(zip(equation.outvars, _origins(inner, origins(equation.invars)), strict=True))
    return origins(jaxpr.outvars)


def _equal(old: Any, new: Any) -> bool:
    """Whether two arrays hold the same bits."""
    if old is new:
        return True
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if jax.numpy.issubdtype(old.dtype, jax.dtypes.prng_key):
        old, new = jax.random.key_data(old), jax.random.key_data(new)
    return np.asarray(old).tobytes() == np.asarray(new).tobytes()
