"""PyTorch: a torch.nn.Module as a Module, and back; nothing here imports torch before it is needed."""

from __future__ import annotations

from typing import Any

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


def to_torch(module: Any, like: Any) -> Any:
    """See `bridge.to_torch`."""
    from bridge.adapters.torch._export import filled

    return filled(module, like)
