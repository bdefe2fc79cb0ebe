"""Which layers a torch model has, and its arrays as NumPy's."""

from __future__ import annotations

from dataclasses import replace

import torch

from bridge.adapters.torch._dialect import PROJECTIONS, ROWS
from bridge.capture.tensors import as_numpy as as_numpy
from bridge.core.layers import Layer, row_of


def layers(model: torch.nn.Module) -> tuple[Layer, ...]:
    """The layers of a torch model that a row knows; slot paths are the keys of its state_dict."""
    found: list[Layer] = []
    for name, module in model.named_modules():
        path = tuple(name.split(".")) if name else ()
        row = row_of(module, ROWS)
        if row is not None:
            found.append(row.layer(path, module))
        for part, row in PROJECTIONS.items():
            if row_of(module, (row,)):
                found.append(replace(row.layer(path, module), path=(*path, part)))
    return tuple(found)
