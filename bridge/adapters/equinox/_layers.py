"""Which layers an Equinox model has."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax

from bridge.adapters.equinox._dialect import ROWS
from bridge.core.layers import Layer, row_of
from bridge.core.leaves import segments


def layers(model: eqx.Module) -> tuple[Layer, ...]:
    """The layers of an Equinox model that a row knows."""
    keyed, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=_known)
    found: list[Layer] = []
    for keys, part in keyed:
        row = row_of(part, ROWS)
        if row is not None:
            found.append(row.layer(segments(keys), part))
    return tuple(found)


def _known(part: Any) -> bool:
    return row_of(part, ROWS) is not None
