"""From op to op of a program: which arrays act on which value, and where blocks begin and end."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jax.extend.core import Jaxpr, Literal

from bridge.dataflow.axes import Dim, same
from bridge.dataflow.flow import KERNEL, LOOKED_UP, MATRIX, SCALE, Block, Cut, Feed, Link, Use
from bridge.dataflow.values import (
    AFFINE,
    SUMS,
    Op,
    Value,
    Weight,
    acted,
    broadcast,
    combined,
    constant,
    fits,
    fresh,
    joint,
    shape_of,
)

Handler = Callable[["Walk", Op], list[Value]]
Links = Sequence[tuple[str, Dim]]

# What leaves the numbers as they are.
_PLAIN = frozenset(
    {"convert_element_type", "copy", "copy_p", "stop_gradient", "optimization_barrier", "real"}
    | {"reduce_precision", "sharding_constraint", "name", "pvary", "device_put"}
)
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Walk:
    """Follows the values of a program from op to op.

    `handlers` know ops that are none of the common sorts, by name: each makes the values of an op.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self.blocks: list[Block] = []
        self.count = 0

    def run(self, jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        """The values that a jaxpr gives."""
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def value(atom: Any) -> Value:
            return constant(atom.val) if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            out = self._step(eqn, [value(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, out, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _step(self, eqn: Any, given: list[Value]) -> list[Value]:
        name, params = eqn.primitive.name, eqn.params
        op = Op(
            eqn,
            name,
            params,
            given,
            [shape_of(atom) for atom in eqn.invars],
            [shape_of(atom) for atom in eqn.outvars],
        )
        if name in self.handlers:
            return self.handlers[name](self, op)
        inner = next((params[key] for key in INNER if key in params), None)
        if inner is not None:
            return self.inside(inner, given)
        if name in _PLAIN:
            return [given[0]]
        if name.startswith(("reduce_", "arg")) and "axes" in params:
            kept = [d for i, d in enumerate(given[0].dims) if i not in params["axes"]]
            return [self.joined(op, kept) for _ in op.wanted]
        if len(op.wanted) == 1 and all(fits(shape, op.wanted[0]) for shape in op.shapes):
            return [self._elementwise(op)]
        return [self.joined(op, fresh(shape)) for shape in op.wanted]

    def inside(self, inner: Any, given: Sequence[Value]) -> list[Value]:
        """The values of a function that is called inside."""
        if isinstance(inner, Jaxpr):
            return self.run(inner, (), given)
        return self.run(inner.jaxpr, [constant(const) for const in inner.consts], given)

    # Values made of values.

    def _elementwise(self, op: Op) -> Value:
        """Each number of it is made of the numbers at its place."""
        full = [value for value in op.given if len(value.dims) == len(op.wanted[0])]
        for one, two in itertools.pairwise(full):
            for mine, theirs in zip(one.dims, two.dims, strict=True):
                same(mine, theirs)
        dims = tuple(
            broadcast([value.dims[i] for value in full], size) for i, size in enumerate(op.wanted[0])
        )
        fed = [value for value in op.given if value.fed]
        held = [value for value in op.given if value.held]
        if not fed:
            return Value(dims, combined(op))
        if (
            op.name == "select_n"
            and len({(v.block, v.cuts) for v in op.given[1:]}) == 1
            and fed[-1].block
        ):
            return replace(op.given[-1], dims=dims)  # one value, of which some places are marked
        if len(fed) > 1 and op.name in SUMS:
            summed = frozenset(b for v in fed for b in ({v.block} if v.block else v.summed))
            return replace(self.joined(op, dims), summed=summed)
        scaled = _scaled(fed) if op.name == "mul" else None
        if scaled is not None and scaled.block is not None:  # x * (f(x) * w) is (x * f(x)) * w
            scaled.block.start = None  # that value is nowhere in the program
            return replace(scaled, dims=dims)
        if len(fed) > 1 or op.name not in AFFINE:
            return self.joined(op, dims)
        if not held:
            return replace(fed[0], dims=dims)
        into = {one for one in fed[0].summed if one.uses[-1].role in (MATRIX, KERNEL)}
        if op.name in SUMS and len(into) == 1:  # x + y @ w + b is x + (y @ w + b)
            self._add(op, held, dims, into.pop(), frozenset())
            return replace(fed[0], dims=dims)
        block = fed[0].block or self._block(op, op.name, fed[0].feeders, op.given.index(fed[0]))
        cuts = fed[0].cuts if fed[0].block else frozenset()
        self._add(op, held, dims, block, cuts)
        return Value(dims, feeders=frozenset({Feed(block, cuts)}), block=block, cuts=cuts)

    def _add(
        self,
        op: Op,
        held: Iterable[Value],
        dims: tuple[Dim, ...],
        block: Block,
        cuts: frozenset[Cut],
    ) -> None:
        """Adds the arrays of an elementwise op to a block."""
        for weight in (weight for value in held for weight in value.held):
            number = next(i for i, value in enumerate(op.given) if weight in value.weights)
            links = [Link("", own, there) for own, there in zip(weight.dims, dims, strict=True)]
            self._use(block, acted(weight, op.name, number), links, cuts)

    def joined(self, op: Op, dims: Iterable[Dim]) -> Value:
        """A value that is no affine map of one other: with it a block ends."""
        name = op.name
        feeders = joint(name, op.given)
        held = [weight for value in op.given for weight in value.held]
        if not feeders:
            dims = tuple(dims)
            loose = (None,) * len(dims)  # no longer the axes that they had
            return Value(dims, tuple(replace(w, dims=loose, role=w.role or name) for w in held))
        if held:
            fed = next(i for i, value in enumerate(op.given) if value.fed)
            block = self._block(op, name, feeders, fed)
            for weight in held:
                self._use(block, replace(weight, role=weight.role or name), ())
            feeders = frozenset({Feed(block)})
        return Value(tuple(dims), feeders=feeders)

    def applied(self, role: str, op: Op, operand: int, links: Links, dims: Iterable[Dim]) -> Value:
        """A value that an operand without data makes of the others: a block begins.

        `links` say what each dimension of the operand is: a label, and the dimension of the program.
        """
        feeders = frozenset(feed for value in op.given for feed in value.feeders)
        block = self._block(op, role, feeders, 1 - operand)
        for weight in op.given[operand].held:
            own = [
                Link(label, mine, there)
                for mine, (label, there) in zip(weight.dims, links, strict=True)
            ]
            self._use(block, replace(weight, role=weight.role or role), own)
        return Value(tuple(dims), feeders=frozenset({Feed(block)}), block=block)

    def _block(self, op: Op, title: str, feeders: frozenset[Feed], operand: int) -> Block:
        self.blocks.append(Block(title, feeders, [], op.eqn, operand))
        return self.blocks[-1]

    def _use(
        self,
        block: Block,
        weight: Weight,
        links: Iterable[Link],
        cuts: frozenset[Cut] = frozenset(),
    ) -> None:
        self.count += 1
        looked_up = [Link(LOOKED_UP, weight.looked_up, None)] if weight.looked_up else []
        block.uses.append(
            Use(
                weight.array,
                weight.role,
                (*links, *looked_up),
                weight.backwards,
                weight.part,
                cuts,
                weight.offset,
                self.count,
            )
        )


def _scaled(fed: Sequence[Value]) -> Value | None:
    """Of two factors the one that arrays alone scale, and that is made of what the other is made of."""
    for one, other in itertools.permutations(fed, 2) if len(fed) == 2 else ():
        uses = one.block.uses if one.block else []
        made_of = {feed.origin for feed in one.block.feeders} if one.block else set()
        scales = bool(uses) and all(use.role == SCALE for use in uses)
        if scales and {feed.origin for feed in other.feeders} <= made_of:
            return one
    return None
