"""Ops that move numbers about, or meet an array: what each makes of dimensions and blocks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

from bridge.dataflow.axes import Axis, Dim, dim, parts_of, reshaped, same
from bridge.dataflow.flow import BATCHED, CONTRACTED, FREE, KERNEL, LOOKED_UP, MATRIX, TABLE
from bridge.dataflow.values import Op, Value, Weight, cut, fresh, moved, put, with_dim
from bridge.dataflow.walking import Handler, Walk


def _dot_general(walk: Walk, op: Op) -> list[Value]:
    (left, right), (left_batch, right_batch) = op.params["dimension_numbers"]
    sides = [list(value.dims) for value in op.given]
    links: list[list[tuple[str, Dim]]] = [[(FREE, d) for d in dims] for dims in sides]
    for side, dims in enumerate(sides):  # the free axes of an array are new ones here
        if op.given[side].held:
            dims[:] = fresh(op.shapes[side])
            links[side] = [(FREE, d) for d in dims]
    for label, mine, theirs in ((CONTRACTED, left, right), (BATCHED, left_batch, right_batch)):
        for i, j in zip(mine, theirs, strict=True):
            same(sides[0][i], sides[1][j])
            links[0][i], links[1][j] = (label, sides[0][i]), (label, sides[1][j])
    out = [sides[0][i] for i in left_batch]
    for dims, used in zip(sides, ((*left, *left_batch), (*right, *right_batch)), strict=True):
        out += [d for i, d in enumerate(dims) if i not in used]
    held = [i for i, value in enumerate(op.given) if value.held]
    if len(held) != 1 or not op.given[1 - held[0]].fed:
        return [walk.joined(op, out)]
    return [walk.applied(MATRIX, op, held[0], links[held[0]], out)]


def _conv_general_dilated(walk: Walk, op: Op) -> list[Value]:
    numbers = op.params["dimension_numbers"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    data, kernel = op.given
    dims: list[Dim] = list(fresh(op.wanted[0]))
    dims[out[0]] = data.dims[lhs[0]]
    links: list[tuple[str, Dim]] = [("", None)] * len(rhs)
    links[rhs[0]] = FREE, dims[out[1]]
    links[rhs[1]] = CONTRACTED, data.dims[lhs[1]] if op.params["feature_group_count"] == 1 else None
    for i, (here, there) in enumerate(zip(rhs[2:], out[2:], strict=True)):
        links[here] = f"spatial {i}", None
        for axis in dims[there] or ():
            axis.labels.add(f"spatial {i}")
    if not kernel.held or not data.fed:
        return [walk.joined(op, dims)]
    return [walk.applied(KERNEL, op, 1, links, dims)]


def _gather(walk: Walk, op: Op) -> list[Value]:
    operand, indices = op.given
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(sizes)) if i not in dropped]
    dims: list[Dim] = list(fresh(op.wanted[0]))
    rest = iter(indices.dims)
    for i in range(len(dims)):
        if i not in numbers.offset_dims:
            dims[i] = next(rest, None)
    places = dict(zip(kept, numbers.offset_dims, strict=True))
    whole = {i: here for i, here in places.items() if sizes[i] == op.shapes[0][i]}
    if operand.held and indices.fed:
        links = [(FREE, dims[whole[i]]) if i in whole else (LOOKED_UP, None) for i in range(len(sizes))]
        return [walk.applied(TABLE, op, 0, links, dims)]

    def gathered(old: tuple[Dim, ...]) -> tuple[Dim, ...]:
        return tuple(
            next((old[i] for i, there in whole.items() if there == here), dims[here])
            for here in range(len(dims))
        )

    if operand.fed and not indices.fed and not indices.held:
        return [moved(operand, gathered)]
    if not operand.fed and not indices.fed:
        looked_up = numbers.start_index_map
        weights = [
            replace(w, looked_up=tuple(a for i in looked_up for a in w.dims[i] or ()))
            for w in operand.held
        ]
        return [moved(replace(operand, weights=tuple(weights)), gathered)]
    return [walk.joined(op, dims)]


def _transpose(walk: Walk, op: Op) -> list[Value]:
    order = op.params["permutation"]
    return [moved(op.given[0], lambda dims: tuple(dims[i] for i in order))]


def _reshape(walk: Walk, op: Op) -> list[Value]:
    old, new = op.shapes[0], op.wanted[0]
    return [moved(op.given[0], lambda dims: tuple(reshaped(dims, old, new)))]


def _squeeze(walk: Walk, op: Op) -> list[Value]:
    gone = op.params["dimensions"]
    return [moved(op.given[0], lambda dims: tuple(d for i, d in enumerate(dims) if i not in gone))]


def _broadcast_in_dim(walk: Walk, op: Op) -> list[Value]:
    old, new = op.shapes[0], op.wanted[0]

    def spread(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
        found: list[Dim] = [None if n > 1 else () for n in new]
        for i, there in enumerate(op.params["broadcast_dimensions"]):
            if old[i] == new[there]:
                found[there] = dims[i]
        return tuple(found)

    return [moved(op.given[0], spread)]


def _rev(walk: Walk, op: Op) -> list[Value]:
    def turned(weight: Weight) -> Weight:
        axes = {axis for i in op.params["dimensions"] for axis in parts_of(weight.dims[i])}
        return replace(weight, backwards=weight.backwards ^ axes)

    return [replace(op.given[0], weights=tuple(map(turned, op.given[0].weights)))]


def _slice(walk: Walk, op: Op) -> list[Value]:
    starts, stops = op.params["start_indices"], op.params["limit_indices"]
    steps = op.params["strides"] or (1,) * len(starts)
    value = op.given[0]
    for i, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True)):
        if step != 1:
            fresh = dim(len(range(start, stop, step)))
            value = moved(value, lambda dims, i=i, fresh=fresh: with_dim(dims, i, fresh))
        elif stop - start != op.shapes[0][i]:
            value = cut(value, i, start, stop, op.shapes[0][i])
    return [value]


def _split(walk: Walk, op: Op) -> list[Value]:
    axis, start, values = op.params["axis"], 0, list[Value]()
    for size in op.params["sizes"]:
        values.append(cut(op.given[0], axis, start, start + size, op.shapes[0][axis]))
        start += size
    return values


def _concatenate(walk: Walk, op: Op) -> list[Value]:
    along, size = op.params["dimension"], op.wanted[0][op.params["dimension"]]
    if not any(value.fed for value in op.given):
        weights, start = list[Weight](), 0
        for value, shape in zip(op.given, op.shapes, strict=True):
            for weight in value.held:
                whole = put(weight.dims[along], start, size)
                weights.append(replace(weight, dims=with_dim(weight.dims, along, whole)))
            start += shape[along]
        return [Value((None,) * len(op.wanted[0]), tuple(weights))]
    whole, start = Axis(size), 0
    for value, shape in zip(op.given, op.shapes, strict=True):
        pieces = parts_of(value.dims[along])
        if len(pieces) == 1:
            whole.piece(start, pieces[0])
        start += shape[along]
    for one, two in itertools.pairwise(op.given):
        for i, (mine, theirs) in enumerate(zip(one.dims, two.dims, strict=True)):
            if i != along:
                same(mine, theirs)
    dims = next(value.dims for value in op.given if value.fed)
    return [walk.joined(op, with_dim(dims, along, (whole,)))]


OPS: Mapping[str, Handler] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "gather": _gather,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast_in_dim,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
}
