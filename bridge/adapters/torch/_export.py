"""A Module as a torch.nn.Module: a copy of the torch model with the Module's arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from bridge.capture.tensors import as_tensor, dtype_name
from bridge.core.errors import ModelError, StructureError, listed
from bridge.core.module import Module
from bridge.lowering.module import torch_tensors


def filled(
    module: Any, like: Any, export: Callable[[], Mapping[str, np.ndarray]] | None
) -> torch.nn.Module:
    """A copy of `like` with the arrays of a Module; see `bridge.to_torch`.

    `export` gives its state_dict where it is not a captured Module, which has more: its other buffers.
    """
    if not isinstance(module, Module):
        raise ModelError(f"to_torch takes a bridge.Module; it was given a {type(module).__name__}")
    if not isinstance(like, torch.nn.Module):
        raise ModelError(
            f"to_torch takes a torch model as like=, whose copy it fills; it was given a"
            f" {type(like).__name__}"
        )
    model = _copied(like)
    targets = dict(model.named_parameters(remove_duplicate=False))
    targets |= dict(model.named_buffers(remove_duplicate=False))
    if export is None:
        arrays, needed = torch_tensors(module, persistent=False), torch_tensors(module, persistent=True)
        wanted = targets.keys()
    else:
        arrays = needed = export()
        wanted = model.state_dict().keys()
    known = {name: array for name, array in arrays.items() if name in targets}
    problems = [f"{name}: the torch model has none" for name in needed if name not in targets]
    problems += [f"{name}: the Module has none" for name in wanted if name not in arrays]
    problems += [
        f"{name}: the torch model has {dtype_name(targets[name].dtype)}{list(targets[name].shape)},"
        f" the Module {array.dtype}{list(array.shape)}"
        for name, array in known.items()
        if (dtype_name(targets[name].dtype), tuple(targets[name].shape))
        != (str(array.dtype), array.shape)
    ]
    problems += _untied(targets, known)
    if problems:
        raise StructureError(f"the Module does not fit this {type(like).__name__}:\n{listed(problems)}")
    with torch.no_grad():
        for name, array in known.items():
            targets[name].copy_(as_tensor(array))
    return model


def _untied(targets: Mapping[str, torch.Tensor], arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The names that are one tensor in the torch model, and would have different numbers."""
    first: dict[int, str] = {}
    for name, array in arrays.items():
        other = first.setdefault(id(targets[name]), name)
        if other != name and array.tobytes() != arrays[other].tobytes():
            yield (
                f"{other} and {name}: are one in the torch model, and the Module holds two that differ"
            )


def _copied(model: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # torch's older weight_norm keeps a tensor that it computed
        raise ModelError(
            f"to_torch fills a copy of like, and this {type(model).__name__} cannot be copied by"
            f" copy.deepcopy: {str(error).splitlines()[0]}; give one that was just made, or load"
            f" bridge.state_dict(module, like=model) into it by its load_state_dict"
        ) from None
