"""A torch.nn.Module as a Module: its forward captured by torch.export, and run in JAX op by op."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import torch
import torch.utils._pytree as pytree

from bridge.capture.conversion import Conversion
from bridge.capture.exporting import Capture
from bridge.capture.parts import Places, skeleton
from bridge.capture.tensors import as_numpy
from bridge.core.errors import ModelError
from bridge.core.libraries import library_of
from bridge.core.node import Node
from bridge.lowering.module import TorchModule, module_of
from bridge.lowering.program import Exported


def wrap(
    model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], free: bool, mode: str | None
) -> TorchModule:
    """The Module of a torch model, captured with these example inputs; see `bridge.from_torch`."""
    _refuse(model, args, kwargs)
    modes = ("eval", "train") if mode is None else (mode,)
    captured = {one: Capture(model, args, kwargs, one, free).run() for one in modes}
    places = Places(model)
    programs = {one: Conversion(captured[one], places).program() for one in modes}
    part, tensors = skeleton(model, places.placed)
    arrays = {place: _array(place, tensor) for place, tensor in tensors.items()}
    return module_of(Exported.of(part, programs), arrays)


def _refuse(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises ModelError for what is no torch model with example inputs, with what to type instead."""
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    if isinstance(model, type) and issubclass(model, torch.nn.Module):
        raise ModelError(
            f"from_torch was given the class {name}; make it first: from_torch({name}(...), x)"
        )
    if isinstance(model, Node):
        raise ModelError(f"from_torch was given a {name}, which is a bridge.Module already")
    if not isinstance(model, torch.nn.Module):
        fix = "; wrap it with bridge.wrap(model)" if library_of(model) else ""
        raise ModelError(f"from_torch takes a torch.nn.Module; it was given a {name}{fix}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"from_torch takes the torch.nn.Module itself; {name} is a compiled TorchScript"
        )
    if torch.is_inference_mode_enabled():
        raise ModelError(
            "from_torch was called inside of torch.inference_mode(), where torch.export cannot work;"
            " call it outside of it"
        )
    arrays = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if hasattr(leaf, "__array__")]
    if any(not isinstance(leaf, torch.Tensor) for leaf in arrays):
        raise ModelError("the example inputs of from_torch are torch tensors: torch.zeros(2, 3)")
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(
            f"the example inputs do not fit the forward of this {name}: {error}. Type"
            f" from_torch(model, *example), with tensors as the model takes them"
        ) from None
    skeleton(model, {})


def _array(place: str, tensor: torch.Tensor) -> Any:
    """A tensor as an array of its own; raises ModelError where its values do not fit JAX's dtype."""
    values = as_numpy(tensor)
    array = jnp.array(values)
    if array.dtype == values.dtype:
        return array
    integers = values.dtype.kind in "iu"
    if integers and (values == values.astype(array.dtype)).all():
        return array
    raise ModelError(
        f"{place} is {values.dtype}, and JAX has {array.dtype} alone while x64 is off; type"
        f" jax.config.update('jax_enable_x64', True)"
        + (": its values do not fit 32 bits" if integers else ", or convert the model: model.float()")
    )
