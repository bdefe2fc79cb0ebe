"""PyTorch: a torch.nn.Module as a Module, and back; nothing here imports torch before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bridge.lowering.table import register_op

__all__ = ["from_torch", "register_op", "to_torch"]


def from_torch(
    model: Any,
    *example: Any,
    dynamic_batch: bool = True,
    mode: str | None = None,
    **keywords: Any,
) -> Any:
    """See `bridge.from_torch`."""
    from bridge.adapters.torch._wrap import wrap

    return wrap(model, example, keywords, dynamic_batch, mode)


def to_torch(
    module: Any, like: Any, export: Callable[[], Mapping[str, np.ndarray]] | None = None
) -> Any:
    """See `bridge.to_torch`; `export` gives the state_dict of a Module that was not captured."""
    from bridge.adapters.torch._export import filled

    return filled(module, like, export)
