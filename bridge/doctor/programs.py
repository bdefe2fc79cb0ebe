"""A model's program as ops that make values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from bridge.core.paths import Path
from bridge.core.rng import is_key
from bridge.dataflow.tracing import Traced
from bridge.doctor.stretches import RANDOM, Stretch

# A larger value that is always the same is not worked out.
_LARGEST = 1 << 22


class Program:
    """A traced program: which op makes which value, and what is always the same."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        jaxpr = traced.closed.jaxpr
        self._makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        self._paths = dict(zip(jaxpr.invars, traced.arrays, strict=False))
        self._known = _folded(jaxpr, traced.closed.consts)

    def stretch(self, eqn: Any, operand: int, starts: set[int]) -> tuple[Stretch, list[Any]]:
        """What makes an operand of an op, back to the ops whose identity is in `starts`, and those.

        Without an op, what makes the output.
        """
        todo = list(self.traced.closed.jaxpr.outvars) if eqn is None else [eqn.invars[operand]]
        found, first = dict[int, Any](), list[Any]()
        paths = dict[Path, None]()
        while todo:
            var = todo.pop()
            if isinstance(var, Literal) or var in self._known:
                continue
            if var in self._paths:
                paths[self._paths[var]] = None
            maker = self._makers.get(var)
            if maker is None or id(maker) in found:
                continue
            found[id(maker)] = maker
            if id(maker) in starts:
                first.append(maker)
            else:
                todo.extend(maker.invars)
        order = [eqn for eqn in self.traced.closed.jaxpr.eqns if id(eqn) in found]
        operands = [
            (eqn, number, value)
            for eqn in order
            for number, atom in enumerate(eqn.invars)
            if (value := self._value(atom)) is not None
        ]
        return Stretch(order, operands, tuple(paths)), first

    def _value(self, atom: Any) -> np.ndarray | None:
        if isinstance(atom, Literal):
            return _number(atom.val)
        return self._known.get(atom)


def _folded(jaxpr: Any, consts: Sequence[Any]) -> dict[Any, np.ndarray]:
    """The values that are the same in every call."""
    known = {v: c for v, c in zip(jaxpr.constvars, consts, strict=True) if _number(c) is not None}
    for eqn in jaxpr.eqns:
        given = [atom.val if isinstance(atom, Literal) else known.get(atom) for atom in eqn.invars]
        sizes = [np.prod(var.aval.shape, dtype=int) for var in eqn.outvars]
        is_drawn = eqn.primitive.name.startswith(RANDOM) or eqn.effects
        if is_drawn or max(sizes, default=0) > _LARGEST or any(value is None for value in given):
            continue
        out = eqn.primitive.bind(*given, **eqn.params)
        known.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
    return {var: value for var, one in known.items() if (value := _number(one)) is not None}


def _number(value: Any) -> np.ndarray | None:
    if is_key(value):
        return None
    array = np.asarray(value)
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array
