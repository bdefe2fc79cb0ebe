"""Reading by index: gather, index, take, embedding-like look-ups, and what depends on the data.

PyTorch raises where an index is out of range. A compiled program cannot, so a traced index out of range
reads NaN (of integers the lowest number), never a neighbour; one that is known raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from bridge.core.errors import LoweringError
from bridge.lowering.promotion import narrowed


def check(index: jax.Array, size: int, dim: int, wrap: bool) -> None:
    """Raises LoweringError for a known index outside of an axis; `wrap` lets it count from the end."""
    if isinstance(index, Tracer) or not index.size:
        return
    known = np.asarray(index)
    least, greatest = int(known.min()), int(known.max())
    if least < (-size if wrap else 0) or greatest >= size:
        wrong = greatest if greatest >= size else least
        raise LoweringError(f"Index {wrong} is out of range for axis {dim}, which has size {size}")


def picked(array: jax.Array, indices: Sequence[Any], start: int = 0, *, wrap: bool) -> jax.Array:
    """What is at these indices, given for the axes from `start` on; NaN where one is out of range.

    There is an array for each axis, or None for a whole one; `wrap` lets them count from the end.
    """
    start = start % max(array.ndim, 1)
    for axis, index in enumerate(indices, start):
        if index is not None:
            check(index, array.shape[axis], axis, wrap)
    place = tuple(slice(None) if index is None else index for index in indices)
    place = (slice(None),) * start + place
    return array.at[place].get(mode="fill", wrap_negative_indices=wrap)


def is_mask(index: Any) -> bool:
    """Whether an index is a mask: torch reads bool and uint8 so."""
    return index is not None and index.dtype in (np.dtype(bool), np.dtype(np.uint8))


def index_tensor(self: jax.Array, indices: Sequence[jax.Array | None]) -> jax.Array:
    """What is at these indices, an array for each axis or None for a whole one.

    Raises:
        LoweringError: An index is a mask, which selects as many elements as the data say.
    """
    if any(is_mask(index) for index in indices):
        raise LoweringError(
            "x[mask] has as many elements as the data say, and JAX needs shapes beforehand; type"
            " torch.where(mask, x, other) and reduce that, in the torch model"
        )
    if all(index is None for index in indices):
        return self
    return picked(self, indices, wrap=True)


def index_select(self: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    """The places of one index along an axis."""
    if self.ndim == 0:
        return index_select(self.reshape(1), 0, index.reshape(-1)).reshape(())
    return picked(self, (index.reshape(-1),), dim, wrap=False)


def take(self: jax.Array, index: jax.Array) -> jax.Array:
    """What is at these places of the elements, counted row by row."""
    return picked(self.reshape(-1), (index,), wrap=True)


def gather(self: jax.Array, dim: int, index: jax.Array, sparse_grad: bool = False) -> jax.Array:
    """What is at each index along one axis, at the index's own place on the other axes."""
    if self.ndim == 0:
        return gather(self.reshape(1), 0, index.reshape(-1)).reshape(index.shape)
    index = index.reshape(-1) if index.ndim == 0 else index
    dim = dim % self.ndim
    check(index, self.shape[dim], dim, wrap=False)
    # torch.gather's docs: the index may be smaller than the input on the other axes
    limits = [size if axis == dim else index.shape[axis] for axis, size in enumerate(self.shape)]
    others = tuple(axis for axis in range(self.ndim) if axis != dim)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(dim,),
        start_index_map=(dim,),
        operand_batching_dims=others,
        start_indices_batching_dims=others,
    )
    return lax.gather(
        lax.slice(self, [0] * self.ndim, limits),
        index[..., None],
        numbers,
        slice_sizes=(1,) * self.ndim,
        mode="fill",
    )


def one_hot(self: jax.Array, num_classes: int = -1) -> jax.Array:
    """1 at each class and 0 elsewhere, along a new last axis; the lowest integer for no class at all.

    Raises:
        LoweringError: The number of classes is to be found in the data.
    """
    if num_classes < 0:
        raise LoweringError(
            "one_hot without num_classes counts the classes in the data, and JAX needs shapes"
            " beforehand; type F.one_hot(x, num_classes=n) in the torch model"
        )
    check(self, num_classes, -1, wrap=False)
    dtype = narrowed("int64")
    hot = jax.nn.one_hot(self, num_classes, dtype=dtype)
    outside = (self < 0) | (self >= num_classes)
    return jnp.where(outside[..., None], np.iinfo(dtype).min, hot)


def repeat_interleave(repeats: jax.Array, output_size: int | None = None) -> jax.Array:
    """Each place as often as its number says.

    Raises:
        LoweringError: The length of the result is to be found in the data.
    """
    if output_size is None and isinstance(repeats, Tracer):
        raise LoweringError(
            "repeat_interleave has a length that depends on the data, and JAX needs shapes beforehand;"
            " type x.repeat_interleave(repeats, dim, output_size=n) in the torch model"
        )
    length = int(np.asarray(repeats).sum()) if output_size is None else output_size
    places = jnp.arange(repeats.shape[0], dtype=repeats.dtype)
    return jnp.repeat(places, repeats, total_repeat_length=length)


def nonzero_static(self: jax.Array, size: int, fill_value: int = -1) -> jax.Array:
    """The places of the first `size` elements that are not zero, as (size axes), then `fill_value`."""
    dtype = narrowed("int64")
    if self.size == 0 or self.ndim == 0:
        return jnp.full((size, self.ndim), fill_value, dtype)
    return jnp.stack(jnp.nonzero(self, size=size, fill_value=fill_value), axis=-1).astype(dtype)


def _data_dependent(what: str, instead: str) -> Callable[..., Any]:
    def row(*args: Any, **kwargs: Any) -> Any:
        """Raises LoweringError."""
        raise LoweringError(
            f"{what} gives as many elements as the data say, and JAX needs shapes beforehand; type"
            f" {instead} in the torch model"
        )

    return row


ROWS: Mapping[str, Callable] = {
    "aten.index.Tensor": index_tensor,
    "aten.index_select.default": index_select,
    "aten.take.default": take,
    "aten.gather.default": gather,
    "aten.one_hot.default": one_hot,
    "aten.repeat_interleave.Tensor": repeat_interleave,
    "aten.nonzero_static.default": nonzero_static,
    "aten.nonzero.default": _data_dependent(
        "nonzero", "torch.nonzero_static(x, size=n), or torch.where(mask, x, other),"
    ),
    "aten.masked_select.default": _data_dependent("masked_select", "torch.where(mask, x, other)"),
}
