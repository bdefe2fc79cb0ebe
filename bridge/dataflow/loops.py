"""Loops and branches in a program: what comes into a value that a loop carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge.dataflow.flow import Block, Feed
from bridge.dataflow.values import Op, Value, cut, joint, moved
from bridge.dataflow.walking import Handler, Walk


def _scan(walk: Walk, op: Op) -> list[Value]:
    body, (consts, carried) = op.params["jaxpr"], _counts(op.params)
    fixed, state, over = (
        op.given[:consts],
        op.given[consts : consts + carried],
        op.given[consts + carried :],
    )
    if any(value.held for value in over):  # layers stacked along an axis
        return _unrolled(walk, op, body, fixed, state, over)
    rows = [moved(value, lambda dims: dims[1:]) for value in over]
    out = _settled(walk, lambda state: walk.inside(body, (*fixed, *state, *rows)), state)
    along = next((value.dims[0] for value in over), None)
    return [*out[:carried], *(replace(v, dims=(along, *v.dims), block=None) for v in out[carried:])]


def _unrolled(
    walk: Walk, op: Op, body: Any, fixed: list[Value], state: list[Value], over: list[Value]
) -> list[Value]:
    """The values of a scan over arrays, one step after another."""
    length, outs = op.params["length"], list[list[Value]]()
    for step in reversed(range(length)) if op.params["reverse"] else range(length):
        rows = [moved(cut(value, 0, step, step + 1, length), lambda dims: dims[1:]) for value in over]
        out = walk.inside(body, (*fixed, *state, *rows))
        state = out[: len(state)]
        outs.append(out[len(state) :])
    stacked = [
        Value((None, *values[0].dims), feeders=joint("stack", values))
        for values in zip(*outs, strict=True)
    ]
    return [*state, *stacked]


def _while(walk: Walk, op: Op) -> list[Value]:
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    fixed, state = op.given[first : first + second], op.given[first + second :]
    body = op.params["body_jaxpr"]
    return _settled(walk, lambda state: walk.inside(body, (*fixed, *state)), state)


def _settled(walk: Walk, step: Callable[[list[Value]], list[Value]], state: list[Value]) -> list[Value]:
    """The values after a step whose own values come into it again."""
    carried = [Block("carried") for _ in state]
    known, count, fed, before = len(walk.blocks), walk.count, [v.fed for v in state], None
    out: list[Value] = []
    while fed != before:  # what is fed at first, and then through others
        del walk.blocks[known:]
        walk.count, before = count, list(fed)
        pairs = zip(state, carried, fed, strict=True)
        out = step([replace(v, feeders=frozenset({Feed(b)})) if f else v for v, b, f in pairs])
        fed = [f or value.fed for f, value in zip(fed, out, strict=False)]
    own = {
        block: _Loop(one.feeders, two.feeders)
        for block, one, two in zip(carried, state, out, strict=False)
    }
    for block in walk.blocks[known:]:
        block.feeders = _entered(block.feeders, own)
    return [replace(value, feeders=_entered(value.feeders, own)) for value in out]


def _cond(walk: Walk, op: Op) -> list[Value]:
    branches = [walk.inside(branch, op.given[1:]) for branch in op.params["branches"]]
    return [
        Value(values[0].dims, feeders=joint("select_n", values))
        for values in zip(*branches, strict=True)
    ]


@dataclass(frozen=True)
class _Loop:
    """What feeds a value that a loop carries: before the first step, and after each."""

    first: frozenset[Feed]
    again: frozenset[Feed]


def _entered(feeders: frozenset[Feed], loops: Mapping[Block, _Loop]) -> frozenset[Feed]:
    """Feeders, with those of what a loop carries in place of it."""
    found: set[Feed] = set()
    todo, seen = list(feeders), set[Block]()
    while todo:
        feed = todo.pop()
        loop = loops.get(feed.origin)
        if loop is None:
            found.add(feed)
        elif feed.origin not in seen:
            seen.add(feed.origin)
            todo += [replace(f, ops=f.ops | feed.ops) for f in (*loop.first, *loop.again)]
    return frozenset(found)


def _counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are the same in each step, and how many it carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    fixed, carried, _ = params["ft_in"].unpack()  # jax 0.12 and later
    return len(fixed.vals), len(carried.vals)


LOOPS: Mapping[str, Handler] = {"scan": _scan, "while": _while, "cond": _cond}
