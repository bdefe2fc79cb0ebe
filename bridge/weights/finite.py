"""A warning of weights that hold NaN or infinite numbers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import WeightsWarning, listed


@dataclass
class Finding:
    """How many numbers of an array are NaN or infinite, looked at part by part."""

    nans: int = 0
    infinite: int = 0
    size: int = 0

    def look(self, array: np.ndarray) -> None:
        """Adds what is in a part of the array."""
        self.size += array.size
        if not _may_be_infinite(array.dtype):
            return
        row = array.ravel(order="K")  # a view, for any array that lies in one piece
        length = max(1, tensorfile.PIECE // row.itemsize)
        for first in range(0, row.size, length):
            block = row[first : first + length]
            if not _finite(block):
                nans = int(np.isnan(block).sum())
                self.nans += nans
                self.infinite += int(block.size - np.isfinite(block).sum()) - nans

    def __str__(self) -> str:
        if not self.nans and not self.infinite:
            return ""
        return f"{self.nans} NaN and {self.infinite} infinite of {self.size}"


def warn_of_non_finite(arrays: Mapping[str, np.ndarray | Finding], stacklevel: int = 1) -> None:
    """Warns once of all arrays, by name, in which some number is NaN or infinite.

    Of an array that was looked at before, its finding is given. The warning is that of the caller;
    each caller in between adds one to `stacklevel`.

    >>> import numpy as np, warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_of_non_finite({"fc.weight": np.array([1.0, np.nan, np.inf])})
    >>> print(caught[0].message)
    these weights hold numbers that are not finite; they were loaded as they are:
      fc.weight: 1 NaN and 1 infinite of 3
    """
    found = [f"{name}: {told}" for name, array in arrays.items() if (told := str(finding(array)))]
    if found:
        warnings.warn(
            "these weights hold numbers that are not finite; they were loaded as they are:\n"
            + listed(found),
            WeightsWarning,
            stacklevel + 1,
        )


def finding(array: np.ndarray | Finding) -> Finding:
    """What is not finite in an array, which may be known already."""
    if isinstance(array, Finding):
        return array
    found = Finding()
    found.look(array)
    return found


@functools.cache
def _may_be_infinite(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def _finite(block: np.ndarray) -> bool:
    if block.dtype.itemsize == 2:
        return _finite_bits(block)
    # The sum of squares is quicker than a test of each; it may be infinite for large numbers as well.
    if block.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            if np.dot(block, block) < np.inf:
                return True
    return bool(np.isfinite(block).all())


def _finite_bits(block: np.ndarray) -> bool:
    """Whether all 16-bit numbers are finite: NumPy's own test of them takes seven times as long.

    As integers, those that are not are the largest: with a sign among the positive, without among all.
    """
    positive, negative = _infinities(block.dtype)
    largest = np.maximum.reduce  # what max calls, without its own work
    return bool(largest(block.view(np.int16)) < positive and largest(block.view(np.uint16)) < negative)


@functools.cache
def _infinities(dtype: np.dtype) -> tuple[int, int]:
    """The bits of the two, as a number each."""
    positive, negative = np.array([np.inf, -np.inf], dtype).view(np.uint16)
    return int(positive), int(negative)
