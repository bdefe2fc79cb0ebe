"""Which layers an NNX model has."""

from __future__ import annotations

from collections.abc import Sequence

from flax import nnx

from bridge.adapters.nnx._dialect import ROWS, general_linear
from bridge.core.layers import Layer, Row, row_of


def layers(model: nnx.Module) -> tuple[Layer, ...]:
    """The layers of an NNX model that a row knows; a shared one at its first path."""
    found: list[Layer] = []
    for keys, module in nnx.iter_modules(model):
        row = _row(module)
        if row is not None:
            found.append(row.layer(tuple(str(key) for key in keys), module))
    return tuple(found)


def _row(module: nnx.Module) -> Row | None:
    if isinstance(module, nnx.LinearGeneral):
        return general_linear(_count(module.axis), _count(module.out_features))
    return row_of(module, ROWS)


def _count(axes: int | Sequence[int]) -> int:
    return 1 if isinstance(axes, int) else len(axes)
