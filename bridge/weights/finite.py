"""A warning of weights that hold NaN or infinite numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bridge.core.errors import WeightsWarning, listed

# So many numbers at a time stay in a processor's cache together with what is found of them.
_BLOCK = 1 << 15


def warn_of_non_finite(arrays: Mapping[str, np.ndarray], stacklevel: int = 1) -> None:
    """Warns once of all arrays, by name, in which some number is NaN or infinite.

    The warning is that of the caller; each caller in between adds one to `stacklevel`.

    >>> import numpy as np, warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_of_non_finite({"fc.weight": np.array([1.0, np.nan, np.inf])})
    >>> print(caught[0].message)
    these weights hold numbers that are not finite; they were loaded as they are:
      fc.weight: 1 NaN and 1 infinite of 3
    """
    found = [f"{name}: {told}" for name, array in arrays.items() if (told := _told(array))]
    if found:
        warnings.warn(
            "these weights hold numbers that are not finite; they were loaded as they are:\n"
            + listed(found),
            WeightsWarning,
            stacklevel + 1,
        )


def _told(array: np.ndarray) -> str:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return ""
    row = array.ravel(order="K")  # a view, for any array that lies in one piece
    blocks = [row[first : first + _BLOCK] for first in range(0, row.size, _BLOCK)]
    bad = [block for block in blocks if not _finite(block)]
    nans = sum(int(np.isnan(block).sum()) for block in bad)
    infinite = sum(int(block.size - np.isfinite(block).sum()) for block in bad) - nans
    return f"{nans} NaN and {infinite} infinite of {row.size}" if bad else ""


def _finite(block: np.ndarray) -> bool:
    if block.dtype.kind != "f" or block.dtype.itemsize < 4:
        return bool(np.isfinite(block).all())
    # Any number times 0 is 0, but for these; a product is quicker than a test of each.
    with np.errstate(invalid="ignore"):
        return bool(np.dot(block, np.zeros(block.size, block.dtype)) == 0)
