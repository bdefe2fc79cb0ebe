"""Which layers a torch model has, and its arrays as NumPy's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from bridge.adapters.torch._dialect import PROJECTIONS, ROWS, reparametrised, with_suffix
from bridge.capture.tensors import as_numpy as as_numpy
from bridge.core.layers import Layer, Row, row_of
from bridge.core.paths import Path


def layers(model: torch.nn.Module) -> tuple[Layer, ...]:
    """The layers of a torch model that a row knows; slot paths are the keys of its state_dict."""
    found: list[Layer] = []
    for name, module in model.named_modules():
        path = tuple(name.split(".")) if name else ()
        found += (
            replace(row.layer(path, module), path=(*path, *below)) for below, row in _rows(module)
        )
    return tuple(found)


def _rows(module: torch.nn.Module) -> Iterator[tuple[Path, Row]]:
    """The rows of a module, each with the part of it that it is for, where that is not all of it."""
    row = row_of(module, ROWS)
    if isinstance(module, torch.nn.RNNBase) and row is not None:
        for number in range(module.num_layers):
            for direction in ("", "_reverse")[: 1 + module.bidirectional]:
                name = f"l{number}{direction}"
                yield (name,), with_suffix(row, f"_{name}")
    elif row is not None:
        yield (), reparametrised(row, module.state_dict().keys())
    for part, row in PROJECTIONS.items():
        if row_of(module, (row,)):
            yield (part,), row
