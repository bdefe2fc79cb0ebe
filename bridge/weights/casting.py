"""Numbers of one dtype in another, none of which may be lost."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bridge.core.errors import WeightsError


def cast(key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in a dtype, itself where it has it; the key is for a message.

    Raises WeightsError where a finite number would become infinite.

    >>> cast("fc.weight", np.ones(2, np.float32), np.dtype(np.float16))
    array([1., 1.], dtype=float16)
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        lost = ~np.isfinite(made) & np.isfinite(array)
        if lost.any():
            raise WeightsError(
                f"{key}: {float(array[lost][0]):g} is too large for {dtype}, which ends at"
                f" {float(jnp.finfo(dtype).max):g}: take a dtype of more range"
            )
    return made
