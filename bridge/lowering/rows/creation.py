"""Arrays from numbers and sizes, copies and casts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.core.errors import LoweringError
from bridge.lowering.promotion import FLOAT, category, constant, narrowed, result_type


def full(size: Sequence[int], fill_value: Any, dtype: Any = None) -> jax.Array:
    """One number everywhere."""
    dtype = result_type(fill_value) if dtype is None else dtype
    return jnp.full(size, constant(fill_value, dtype))


def full_like(self: jax.Array, fill_value: Any, dtype: Any = None) -> jax.Array:
    """One number everywhere, in the shape of the input."""
    return full(self.shape, fill_value, self.dtype if dtype is None else dtype)


def empty(size: Sequence[int], *_strides: Sequence[int], dtype: Any = None) -> jax.Array:
    """Zeros: what an uninitialised tensor holds is nobody's promise."""
    return jnp.zeros(size, FLOAT if dtype is None else dtype)


def empty_like(self: jax.Array, dtype: Any = None) -> jax.Array:
    """Zeros in the shape of the input."""
    return jnp.zeros(self.shape, self.dtype if dtype is None else dtype)


def new_empty(
    self: jax.Array, size: Sequence[int], stride: Sequence[int], dtype: Any = None
) -> jax.Array:
    """Zeros of another shape, in the dtype of the input."""
    return jnp.zeros(size, self.dtype if dtype is None else dtype)


def scalar_tensor(s: Any, dtype: Any = None) -> jax.Array:
    """The number as an array without axes; float32 where nothing else is asked for."""
    return constant(s, FLOAT if dtype is None else dtype)


def arange(start: Any, end: Any, step: Any = 1, dtype: Any = None) -> jax.Array:
    """The numbers from `start` to before `end`."""
    numbers = (start, end, step)
    if dtype is None:
        dtype = FLOAT if any(isinstance(number, float) for number in numbers) else narrowed("int64")
    if any(isinstance(number, float) and not number.is_integer() for number in numbers):
        # PyTorch counts and computes in float64, and rounds once
        count = math.ceil((end - start) / step)
        return jnp.asarray(start + step * np.arange(count, dtype=np.float64), dtype)
    start, end, step = (int(number) if isinstance(number, float) else number for number in numbers)
    steps = jax.lax.iota(dtype, -((start - end) // step))
    steps = steps if step == 1 else steps * constant(step, dtype)
    return steps if isinstance(start, int) and start == 0 else steps + constant(start, dtype)


def logspace(start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: Any = None) -> jax.Array:
    """So many powers of the base, evenly from `start` to `end` in their exponents."""
    dtype = FLOAT if dtype is None else dtype
    if category(dtype) < 2:
        raise LoweringError(
            f"logspace of {dtype} cuts off what its floats round to; type"
            f" torch.logspace(start, end, steps).round().to(dtype) in the torch model"
        )
    exponents = np.linspace(start, end, steps)
    return jnp.asarray(np.power(np.asarray(base, exponents.dtype), exponents), dtype)


def _triangle(indices: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Callable[..., jax.Array]:
    """A row for the places of a triangle of a matrix, rows above columns."""

    def row(rows: int, columns: int, offset: int = 0, dtype: Any = None) -> jax.Array:
        return jnp.asarray(
            indices(rows, offset, columns), narrowed("int64") if dtype is None else dtype
        )

    return row


def cast(self: jax.Array, dtype: Any = None, non_blocking: bool = False) -> jax.Array:
    """The input in another dtype."""
    if dtype is None or self.dtype == dtype:
        return self
    if category(self.dtype) == 3 and category(dtype) < 3:
        return jnp.real(self).astype(dtype)
    if category(self.dtype) == 2 and category(dtype) == 1 and np.dtype(dtype).itemsize < 4:
        # a float outside of a small integer's range wraps around on CPU, where XLA would cut it
        self = self.astype(jnp.int32)
    return self.astype(dtype)


def copy(self: jax.Array, src: jax.Array, non_blocking: bool = False) -> jax.Array:
    """The source, in the shape and dtype of the input."""
    return jnp.broadcast_to(cast(src, self.dtype), self.shape)


def fill(self: jax.Array, value: Any) -> jax.Array:
    """One value everywhere, in the shape and dtype of the input."""
    if isinstance(value, jax.Array):
        return copy(self, value)
    return full_like(self, value)


def same(self: jax.Array) -> jax.Array:
    """The input itself: arrays do not change, so a copy is none."""
    return self


def local_scalar_dense(self: jax.Array) -> jax.Array:
    """The only element, without axes."""
    return jnp.reshape(self, ())


ROWS: Mapping[str, Callable] = {
    "aten.full.default": full,
    "aten.full_like.default": full_like,
    "aten.empty.memory_format": empty,
    "aten.empty_strided.default": empty,
    "aten.empty_permuted.default": empty,
    "aten.empty_like.default": empty_like,
    "aten.new_empty_strided.default": new_empty,
    "aten.scalar_tensor.default": scalar_tensor,
    "aten.arange.start_step": arange,
    "aten.logspace.default": logspace,
    "aten.tril_indices.default": _triangle(np.tril_indices),
    "aten.triu_indices.default": _triangle(np.triu_indices),
    "aten._to_copy.default": cast,
    "aten.copy.default": copy,
    "aten.fill.Scalar": fill,
    "aten.fill.Tensor": fill,
    "aten.clone.default": same,
    "aten.alias.default": same,
    "aten.lift_fresh.default": same,
    "aten.lift_fresh_copy.default": same,
    "aten.detach.default": jax.lax.stop_gradient,
    "aten._local_scalar_dense.default": local_scalar_dense,
}
