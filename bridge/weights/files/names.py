"""What the names in torch's pickles mean: storages, dtypes, tensors, containers, and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bridge.weights.files import strided
from bridge.weights.files.strided import DTYPES, Storage, Stored
from bridge.weights.files.unpickling import Rebuild, hashable
from bridge.weights.tensors import Tensor

# torch's classes of storages; UntypedStorage counts bytes and leaves the dtype to the tensor.
STORAGES: Mapping[str, np.dtype] = {
    "torch DoubleStorage": np.dtype(np.float64),
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": strided.DTYPES["bfloat16"],
    "torch ComplexFloatStorage": np.dtype(np.complex64),
    "torch ComplexDoubleStorage": np.dtype(np.complex128),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
    "torch.storage UntypedStorage": np.dtype(np.uint8),
}


def known(stored: Stored) -> Mapping[str, Any]:
    """The names that the pickle of a checkpoint may use; its tensors lie in `stored`."""

    def tensor(
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
    ) -> Tensor:
        if not isinstance(storage, Storage):
            raise ValueError("a tensor lies in what is no storage")
        layout = strided.layout_of(storage.dtype, offset, shape, strides)
        return strided.tensor(stored, storage, layout, strided.changes_of(metadata))

    def typed(
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> Tensor:
        if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
            raise ValueError("a tensor lies in what is no storage, or has no dtype")
        layout = strided.layout_of(dtype, offset, shape, strides)
        return strided.tensor(stored, storage, layout, strided.changes_of(metadata))

    return {
        **_PLAIN,
        **STORAGES,
        **{f"torch {name}": dtype for name, dtype in DTYPES.items()},
        "torch._utils _rebuild_tensor": Rebuild(tensor),
        "torch._utils _rebuild_tensor_v2": Rebuild(tensor),
        "torch._utils _rebuild_tensor_v3": Rebuild(typed),
    }


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    return data


def _with_attributes(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor that has attributes of its own, without them."""
    is_known = isinstance(rebuild, Rebuild) and rebuild.function is not _with_attributes
    if not is_known or kind not in _KINDS or not isinstance(arguments, tuple):
        raise ValueError("a tensor is made in an unknown way")
    return rebuild.function(*arguments)


def _mapping(entries: Any = ()) -> OrderedDict[Any, Any]:
    pairs = entries.items() if isinstance(entries, dict) else entries
    return OrderedDict((hashable(key), value) for key, value in pairs)


def _members(items: Iterable[Any] = ()) -> set[Any]:
    return {hashable(item) for item in items}


def _encoded(text: Any, encoding: Any) -> bytes:
    # Python's older pickles have no bytes and spell them as text.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("its pickle spells bytes in an unknown way")
    return text.encode("latin1")


def _device(kind: Any, index: Any = None) -> Any:
    return kind


def _size(lengths: Any = ()) -> Any:
    return lengths


_KINDS = ("torch Tensor", "torch.nn.parameter Parameter")

# Functions of this file that touch nothing but their arguments.
_PLAIN: Mapping[str, Any] = {
    **{kind: kind for kind in _KINDS},
    "torch._utils _rebuild_parameter": Rebuild(_parameter),
    "torch._utils _rebuild_parameter_with_state": Rebuild(_parameter),
    "torch._tensor _rebuild_from_type_v2": Rebuild(_with_attributes),
    "torch Size": Rebuild(_size),
    "torch device": Rebuild(_device),
    "collections OrderedDict": Rebuild(_mapping),
    "collections Counter": Rebuild(_mapping),
    "builtins set": Rebuild(_members),
    "__builtin__ set": Rebuild(_members),
    "builtins complex": Rebuild(complex),
    "__builtin__ complex": Rebuild(complex),
    "_codecs encode": Rebuild(_encoded),
}
