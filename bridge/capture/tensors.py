"""Torch's tensors as NumPy's arrays, and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

from bridge.core.errors import LoweringError
from bridge.lowering.program import Form


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor, bit for bit; on the CPU they share the tensor's memory."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16: carry the bits, not the values
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def dtype_name(dtype: torch.dtype) -> str:
    """NumPy's name of a torch dtype; LoweringError for one that JAX does not have."""
    name = str(dtype).removeprefix("torch.")
    if name != "bfloat16" and not hasattr(np, name):
        raise LoweringError(f"the model uses {dtype}, which no JAX program has here; convert it first")
    return name


def form_of(tensor: torch.Tensor) -> Form:
    """The dtype and the sizes of a tensor; None for a size that is a symbol."""
    sizes = (size if isinstance(size, int) else size.node.maybe_as_int() for size in tensor.shape)
    return Form(dtype_name(tensor.dtype), tuple(sizes))


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The values of an array, bit for bit, in memory of their own."""
    array = np.array(array)
    if array.dtype == ml_dtypes.bfloat16:  # torch takes no array of it: carry the bits
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
