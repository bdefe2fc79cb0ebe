"""The dtype of a result, by PyTorch's rules.

A dimensioned tensor decides before a zero-dimensional one, and that before a Python number; the later
ones only raise the category (bool, integer, floating, complex): torch's docs, "Tensor Attributes".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.core.errors import LoweringError

FLOAT = np.dtype("float32")
"""What PyTorch makes of integers and Python numbers where a floating result is wanted."""
COMPLEX = np.dtype("complex64")


def narrowed(dtype: Any) -> np.dtype:
    """The dtype that JAX has for one of PyTorch's: 32 bits of 64 while x64 is off."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def category(dtype: Any) -> int:
    """0 for bool, 1 for integers, 2 for floating, 3 for complex numbers."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return 0
    if jnp.issubdtype(dtype, jnp.integer):
        return 1
    return 2 if jnp.issubdtype(dtype, jnp.floating) else 3


def result_type(*values: Any) -> np.dtype:
    """The dtype of an op on these arrays and Python numbers."""
    arrays = [value for value in values if hasattr(value, "dtype")]
    numbers = [_of_number(value) for value in values if not hasattr(value, "dtype")]
    dimensioned = _promoted([array.dtype for array in arrays if array.ndim])
    scalars = _promoted([array.dtype for array in arrays if not array.ndim])
    return narrowed(_combined(_combined(dimensioned, scalars), _promoted(numbers)))


def promoted(*values: Any) -> tuple[jax.Array, ...]:
    """The values as arrays of one dtype, which is that of the result."""
    dtype = result_type(*values)
    return tuple(_cast(value, dtype) for value in values)


def floating(*values: Any) -> tuple[jax.Array, ...]:
    """The values as arrays of one floating or complex dtype: float32 for integers and bools."""
    dtype = float_type(result_type(*values))
    return tuple(_cast(value, dtype) for value in values)


def _cast(value: Any, dtype: np.dtype) -> jax.Array:
    return jnp.asarray(value, dtype) if hasattr(value, "dtype") else constant(value, dtype)


def constant(value: Any, dtype: Any) -> jax.Array:
    """The number as an array without axes; it wraps around in 8 and 16 bits, as in PyTorch.

    Raises:
        LoweringError: An integer needs the 64 bits that JAX does not have while x64 is off.
    """
    dtype = np.dtype(dtype)
    if not isinstance(value, int) or category(dtype) != 1:
        return jnp.asarray(value, dtype)
    limits = np.iinfo(dtype)
    if dtype.itemsize == 4 and not limits.min <= value <= limits.max:
        raise LoweringError(
            f"The program holds the integer {value}, which needs 64 bits; JAX has {dtype} now. "
            'Turn 64 bits on, before anything else: jax.config.update("jax_enable_x64", True)'
        )
    return jnp.asarray(np.asarray(value).astype(dtype))


def in_float32(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A row that computes 16-bit floats in float32 and rounds once, as PyTorch's kernels do."""

    @wraps(function)
    def row(self: jax.Array, *others: Any, **named: Any) -> jax.Array:
        if category(self.dtype) != 2 or self.dtype.itemsize > 2:
            return function(self, *others, **named)
        wide = (one.astype(jnp.float32) if hasattr(one, "dtype") else one for one in (self, *others))
        return function(*wide, **named).astype(self.dtype)

    return row


def float_type(dtype: Any) -> np.dtype:
    """The dtype itself where it is floating or complex, float32 elsewhere."""
    return np.dtype(dtype) if category(dtype) > 1 else FLOAT


def _of_number(value: Any) -> np.dtype:
    if isinstance(value, bool):
        return np.dtype(bool)
    if isinstance(value, int):
        return np.dtype("int64")
    return COMPLEX if isinstance(value, complex) else FLOAT


def _promoted(dtypes: list[Any]) -> Any:
    result = None
    for dtype in dtypes:
        result = np.dtype(dtype) if result is None else jnp.promote_types(result, dtype)
    return result


def _combined(higher: Any, lower: Any) -> Any:
    """The dtype of two levels: the lower one counts only where its category is higher."""
    if higher is None or lower is None:
        return lower if higher is None else higher
    if category(lower) <= category(higher):
        return higher
    if category(higher) == 2:  # floating with complex numbers: the complex dtype of that precision
        return jnp.promote_types(higher, COMPLEX) if higher.itemsize > 4 else COMPLEX
    return lower
