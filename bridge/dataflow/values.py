"""A value of a program while it is read: its dimensions, the arrays in it, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from bridge.core.rng import is_key
from bridge.dataflow.axes import Axis, Dim, dim, parts_of
from bridge.dataflow.flow import CENTRE, SCALE, SHIFT, VARIANCE, Array, Block, Cut, Feed

SUMS = frozenset({"add", "add_any"})
AFFINE = SUMS | {"sub", "mul", "div", "neg"}
# Joining values by these is the same whichever comes first, and no two libraries differ in them.
_QUIET = frozenset(
    {"add", "add_any", "mul", "select_n", "dot_general", "concatenate", "gather", "stack"}
)


@dataclass(frozen=True, eq=False)
class Weight:
    """An array in a value that no data is in: the dimensions that it has there, and its role so far.

    Its axes are its own and never those of another array: which they are is said where data meets them.
    """

    array: Array
    dims: tuple[Dim, ...]
    role: str = ""
    backwards: frozenset[Axis] = frozenset()
    looked_up: Dim = ()
    part: frozenset[Cut] = frozenset()
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Value:
    """A value in the program: its dimensions, and where it comes from.

    `block` is the block that it is the output of, as long as only affine maps are between; `summed` are
    those of the values that it is a sum of.
    """

    dims: tuple[Dim, ...]
    weights: tuple[Weight, ...] = ()
    feeders: frozenset[Feed] = frozenset()
    block: Block | None = None
    cuts: frozenset[Cut] = frozenset()
    summed: frozenset[Block] = frozenset()
    number: float | None = None

    @property
    def fed(self) -> bool:
        """Whether anything that the program is called with is in it."""
        return bool(self.feeders)

    @property
    def held(self) -> tuple[Weight, ...]:
        """The arrays in it, where nothing else is."""
        return () if self.feeders else self.weights


def of_array(array: Array) -> Value:
    """An array as a value; whole numbers are counts and places, and no weights."""
    weights = (Weight(array, array.dims),) if jnp.issubdtype(array.dtype, jnp.inexact) else ()
    return Value((None,) * len(array.dims), weights)


def constant(value: Any) -> Value:
    """A value that neither arrays nor inputs are in."""
    shape = getattr(value, "shape", ())
    is_number = not (shape or is_key(value) or jnp.iscomplexobj(value))
    return Value((None,) * len(shape), number=float(value) if is_number else None)


@dataclass
class Op:
    """An op of the program, and what it is given."""

    eqn: Any
    name: str
    params: Mapping[str, Any]
    given: list[Value]
    shapes: list[tuple[int, ...]]
    wanted: list[tuple[int, ...]]


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr; () for what is no array."""
    return tuple(getattr(atom.aval, "shape", ()))


def fresh(shape: Sequence[int]) -> tuple[Dim, ...]:
    """Dimensions that are no other's."""
    return tuple(dim(size) for size in shape)


def joint(name: str, values: Sequence[Value]) -> frozenset[Feed]:
    """What feeds a value that an op makes of others."""
    feeders: set[Feed] = set()
    for number, value in enumerate(values):
        label = f"{name}.{number}" if name in ("sub", "div") else name
        if name in _QUIET:
            feeders |= value.feeders
        else:
            feeders |= {
                feed if label in feed.ops else replace(feed, ops=feed.ops | {label})
                for feed in value.feeders
            }
    return frozenset(feeders)


def fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether an array of a shape is broadcast to another by itself."""
    return not shape or (
        len(shape) == len(wanted) and all(n in (1, m) for n, m in zip(shape, wanted, strict=True))
    )


def broadcast(dims: Sequence[Dim], size: int) -> Dim:
    """The dimension of a result, among those of the values that it is made of."""
    return () if size == 1 else next((d for d in dims if d), None)


def moved(value: Value, move: Callable[[tuple[Dim, ...]], tuple[Dim, ...]]) -> Value:
    """A value whose dimensions go elsewhere, and with them those of the arrays in it."""
    weights = tuple(replace(weight, dims=move(weight.dims)) for weight in value.weights)
    return replace(value, dims=move(value.dims), weights=weights)


def with_dim(dims: tuple[Dim, ...], i: int, dimension: Dim) -> tuple[Dim, ...]:
    """The dimensions with another one in one place."""
    return (*dims[:i], dimension, *dims[i + 1 :])


def cut(value: Value, i: int, start: int, stop: int, size: int) -> Value:
    """A value of which some places along a dimension are taken."""
    if value.held:
        weights = []
        for weight in value.held:
            kept, cut = _taken(weight.dims[i], start, stop, size)
            part = weight.part | {cut} if cut else weight.part
            weights.append(replace(weight, dims=with_dim(weight.dims, i, kept), part=part))
        return replace(value, weights=tuple(weights))
    kept, cut = _taken(value.dims[i], start, stop, size)
    value = replace(value, dims=with_dim(value.dims, i, kept))
    if value.block is None or cut is None:
        return value
    cuts = value.cuts | {cut}
    return replace(value, cuts=cuts, feeders=frozenset({Feed(value.block, cuts)}))


def put(dimension: Dim, start: int, size: int) -> Dim:
    """A longer dimension, of which some places are a dimension."""
    whole = Axis(size)
    pieces = parts_of(dimension)
    if len(pieces) == 1:
        whole.piece(start, pieces[0])
    return (whole,)


def _taken(dimension: Dim, start: int, stop: int, size: int) -> tuple[Dim, Cut | None]:
    """Some places of a dimension, and where its outermost axis was cut for it."""
    axes = parts_of(dimension)
    rest = size // axes[0].size if axes else 1
    if not axes or start % rest or stop % rest:
        return None if dimension is None else dim(stop - start), None
    first, last = start // rest, stop // rest
    outer = axes[0].cut(first, last)
    return (*((outer,) if outer.size > 1 else ()), *axes[1:]), (axes[0], first, last)


def combined(op: Op) -> tuple[Weight, ...]:
    """The arrays in a value that no data is in, after an op on them."""
    rank = len(op.wanted[0])
    held = [value for value in op.given if value.held]
    numbers = [value.number for value in op.given if not value.held and value.number is not None]
    offset = numbers[0] if op.name in SUMS and numbers else 0.0
    found: list[Weight] = []
    for number, value in enumerate(op.given):
        for weight in value.held:
            role = weight.role
            if len(held) > 1:
                role = acted(weight, op.name, number).role
            elif op.name not in AFFINE and op.name != "select_n":
                role = role or _ROLES.get(op.name, op.name)
            dims = weight.dims if len(weight.dims) == rank else (None,) * rank
            found.append(replace(weight, role=role, dims=dims, offset=weight.offset + offset))
    return tuple(found)


_ROLES = {
    "mul": SCALE,
    "div": SCALE,
    "add": SHIFT,
    "add_any": SHIFT,
    "sub": SHIFT,
    "rsqrt": VARIANCE,
    "sqrt": VARIANCE,
}


def acted(weight: Weight, name: str, number: int) -> Weight:
    """An array after an op with another value, which gives it a role if it had none."""
    role = CENTRE if name == "sub" and number == 1 else _ROLES.get(name, name)
    return replace(weight, role=weight.role or role)
