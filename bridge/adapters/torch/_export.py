"""A captured Module as a torch.nn.Module: a copy of the torch model with the Module's arrays."""

from __future__ import annotations

import copy
from typing import Any

import torch

from bridge.capture.tensors import as_tensor, dtype_name
from bridge.core.errors import ModelError, StructureError, listed
from bridge.core.module import Module
from bridge.lowering.module import torch_tensors


def filled(module: Any, like: Any) -> torch.nn.Module:
    """A copy of `like` with the arrays of a captured Module; see `bridge.to_torch`."""
    if not isinstance(module, Module):
        raise ModelError(f"to_torch takes a bridge.Module; it was given a {type(module).__name__}")
    if not isinstance(like, torch.nn.Module):
        raise ModelError(
            f"to_torch takes a torch model as like=, whose copy it fills; it was given a"
            f" {type(like).__name__}"
        )
    arrays = torch_tensors(module, persistent=False)
    model = copy.deepcopy(like)
    targets = dict(model.named_parameters(remove_duplicate=False))
    targets |= dict(model.named_buffers(remove_duplicate=False))
    known = {name: array for name, array in arrays.items() if name in targets}
    needed = [name for name in torch_tensors(module, persistent=True) if name not in targets]
    problems = [f"{name}: the torch model has none" for name in needed]
    problems += [f"{name}: the Module has none" for name in targets if name not in arrays]
    problems += [
        f"{name}: the torch model has {dtype_name(targets[name].dtype)}{list(targets[name].shape)},"
        f" the Module {array.dtype}{list(array.shape)}"
        for name, array in known.items()
        if (dtype_name(targets[name].dtype), tuple(targets[name].shape))
        != (str(array.dtype), array.shape)
    ]
    if problems:
        raise StructureError(f"the Module does not fit this {type(like).__name__}:\n{listed(problems)}")
    with torch.no_grad():
        for name, array in known.items():
            targets[name].copy_(as_tensor(array))
    return model
