"""A model as a program of its arrays and inputs, which can be read and run with other arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from bridge.core.leaves import Tied
from bridge.core.paths import Path
from bridge.core.rng import is_key
from bridge.core.tree import entries, map_entries
from bridge.dataflow.flow import Flow
from bridge.dataflow.reading import read
from bridge.dataflow.walking import INNER


@dataclass(frozen=True)
class Traced:
    """The forward of a model in eval mode: its program, the places of its arrays, and its inputs."""

    closed: ClosedJaxpr
    arrays: Mapping[Path, Any]
    args: tuple[Any, ...]

    @property
    def inputs(self) -> list[Any]:
        """The arrays among the arguments."""
        return jax.tree.leaves(self.args)

    @functools.cached_property
    def flow(self) -> Flow:
        """What the program does with its arrays."""
        names = [f"input {number}" for number in range(len(self.inputs))]
        return read(self.closed, self.arrays, names)

    def holding(self, paths: Collection[Path]) -> Traced:
        """The same with the arrays at some places as constants of the program."""
        kept = {path: array for path, array in self.arrays.items() if path not in paths}

        def run(arrays: list[Any], inputs: Sequence[Any]) -> list[Any]:
            given = {**self.arrays, **dict(zip(kept, arrays, strict=True))}
            return _run(self.closed.jaxpr, self.closed.consts, [*given.values(), *inputs], {}, {})

        return Traced(jax.make_jaxpr(run)(list(kept.values()), self.inputs), kept, self.args)

    def observe(self, starts: Iterable[Any]) -> Callable[[Mapping[Path, Any]], dict[Any, np.ndarray]]:
        """A function of arrays that gives the operands of ops of the program: `(op, operand)` -> value.

        Of an op inside of a loop or a branch there is none.
        """
        wanted: dict[int, list[int]] = {}
        for eqn, operand in starts:
            wanted.setdefault(id(eqn), []).append(operand)

        def run(arrays: list[Any], inputs: Sequence[Any]) -> dict[str, Any]:
            seen: dict[str, Any] = {}
            out = _run(self.closed.jaxpr, self.closed.consts, [*arrays, *inputs], wanted, seen)
            return {**seen, OUTPUT: [jnp.ravel(value) for value in out]}

        compiled = jax.jit(run)

        def observed(arrays: Mapping[Path, Any]) -> dict[Any, np.ndarray]:
            found = compiled([arrays[path] for path in self.arrays], self.inputs)
            out = np.concatenate([np.asarray(value) for value in found.pop(OUTPUT)])
            return {**{name: np.asarray(value) for name, value in found.items()}, OUTPUT: out}

        return observed


OUTPUT = "output"


def place(eqn: Any, operand: int) -> str:
    """The name of an operand of an op among what is observed."""
    return f"{id(eqn)}.{operand}"


def trace(module: Any, inputs: Sequence[Any], rng: Any = None) -> Traced:
    """The program of a Module's forward in eval mode on these inputs."""
    arrays = {
        entry.path: entry.value
        for entry in entries(module)
        if not isinstance(entry.value, Tied) and not is_key(entry.value)
    }
    args = tuple(inputs)
    leaves, structure = jax.tree.flatten(args)

    def forward(values: list[Any], leaves: list[Any]) -> Any:
        given = dict(zip(arrays, values, strict=True))
        held = map_entries(module, lambda path, value: given.get(path, value))
        return held.apply(*jax.tree.unflatten(structure, leaves), rng=rng, mode="eval")[0]

    closed = jax.make_jaxpr(forward)(list(arrays.values()), leaves)
    return Traced(_inlined(closed), arrays, args)


def _inlined(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program without calls of functions inside: each op of it stands there once."""

    def run(*args: Any) -> list[Any]:
        return _run(closed.jaxpr, closed.consts, args, {}, {})

    return jax.make_jaxpr(run)(*closed.in_avals)


def _run(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    wanted: Mapping[int, Sequence[int]],
    seen: dict[str, Any],
) -> list[Any]:
    """Runs a program op by op, and keeps the operands that are wanted."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for eqn in jaxpr.eqns:
        given = [atom.val if isinstance(atom, Literal) else values[atom] for atom in eqn.invars]
        for operand in wanted.get(id(eqn), ()):
            seen[place(eqn, operand)] = given[operand]
        inner = next((eqn.params[key] for key in INNER if key in eqn.params), None)
        if inner is None or eqn.primitive.name == "scan":
            out = eqn.primitive.bind(*given, **eqn.params)
            out = out if eqn.primitive.multiple_results else [out]
        elif isinstance(inner, Jaxpr):
            out = _run(inner, (), given, wanted, seen)
        else:
            out = _run(inner.jaxpr, inner.consts, given, wanted, seen)
        values.update(zip(eqn.outvars, out, strict=True))
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in jaxpr.outvars]
