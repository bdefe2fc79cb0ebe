"""A Module's weights under PyTorch's names."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.core.errors import ModelError
from bridge.core.module import Module


def state_dict(module: Any) -> dict[str, np.ndarray]:
    """The state_dict of a Module: arrays under PyTorch's names, in its layouts and dtypes, copied.

    It has every array that the torch model's own state_dict has, bit for bit, tied ones under all of
    their names. Raises ModelError for a Module with parts that `bridge.from_torch` did not make.

    >>> import bridge as br, torch
    >>> linear = torch.nn.Linear(3, 5)
    >>> weights = br.state_dict(br.from_torch(linear, torch.zeros(2, 3)))
    >>> {name: array.shape for name, array in weights.items()}
    {'weight': (5, 3), 'bias': (5,)}
    """
    from bridge.lowering.module import torch_tensors

    if not isinstance(module, Module):
        raise ModelError(f"state_dict takes a bridge.Module; it was given a {type(module).__name__}")
    return torch_tensors(module, persistent=True)
