"""Two checkpoints, array by array: what only one has, what differs, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bridge.weights.tensors import Source, Tensor

_BLOCK = 1 << 20  # numbers that are compared at a time: what they are cast to stays small


@dataclass(frozen=True)
class Gap:
    """How far two arrays of one shape are apart.

    `differing` numbers do, by `largest` at most, which is `relative` to the largest number that stands
    in either; both are infinite where one array has an infinite number or NaN, and the other has not.
    """

    differing: int
    largest: float
    relative: float


@dataclass(frozen=True)
class Difference:
    """An array that is not the same in both; `gap` is None where there are not two of one shape."""

    key: str
    a: Tensor | None
    b: Tensor | None
    gap: Gap | None

    def within(self, tolerance: float) -> bool:
        """Whether numbers alone differ, and by no more than this."""
        if self.a is None or self.b is None or self.gap is None or self.a.dtype != self.b.dtype:
            return False
        return self.gap.largest <= tolerance


def differences(a: Source, b: Source) -> Iterator[Difference]:
    """The arrays that are not the same; they are read as this goes on, one pair at a time."""
    for key, tensor in a.tensors.items():
        other = b.tensors.get(key)
        if other is None or tensor.shape != other.shape:
            yield Difference(key, tensor, other, None)
            continue
        apart = gap(tensor.read(), other.read())
        if apart.differing or tensor.dtype != other.dtype:
            yield Difference(key, tensor, other, apart)
    for key, tensor in b.tensors.items():
        if key not in a.tensors:
            yield Difference(key, None, tensor, None)


def gap(a: np.ndarray, b: np.ndarray) -> Gap:
    """How far two arrays of one shape are apart; NaN is the same as NaN.

    >>> gap(np.array([1.0, 8.0, np.nan]), np.array([1.0, 6.0, np.nan]))
    Gap(differing=1, largest=2.0, relative=0.25)
    """
    count, largest = 0, 0.0
    for one, other in _blocks(a, b):
        differ = _differ(one, other)
        if differ.any():
            count += int(differ.sum())
            largest = max(largest, _distance(one[differ], other[differ]))
    if not count:
        return Gap(0, 0.0, 0.0)
    scale = max(max(_size(one), _size(other)) for one, other in _blocks(a, b))
    return Gap(count, largest, largest / scale if scale else np.inf)


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rows = a.reshape(-1), b.reshape(-1)
    for first in range(0, rows[0].size, _BLOCK):
        yield rows[0][first : first + _BLOCK], rows[1][first : first + _BLOCK]


def _wide(numbers: np.ndarray) -> np.ndarray:
    """Numbers of any dtype as those that hold all of them and can be subtracted."""
    return numbers.astype(np.complex128 if numbers.dtype.kind == "c" else np.float64)


def _differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which numbers are not the same; those of one dtype are compared as they are."""
    if one.dtype != other.dtype:
        one, other = _wide(one), _wide(other)
    differ = one != other
    return differ & ~(np.isnan(one) & np.isnan(other)) if differ.any() else differ


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance of numbers that differ."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(_wide(one) - _wide(other))
    largest = float(np.where(np.isnan(apart), np.inf, apart).max())
    are_whole = one.dtype.kind in "biu" and other.dtype.kind in "biu"
    return max(largest, 1.0) if are_whole else largest  # a float may not hold how little they differ


def _size(numbers: np.ndarray) -> float:
    """The largest finite size of a number."""
    with np.errstate(over="ignore"):
        sizes = np.abs(_wide(numbers))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def untied(a: Source, b: Source) -> list[tuple[str, ...]]:
    """Keys of both that are tied in `a` and not in `b`."""
    home = {key: keys for keys in b.ties for key in keys}
    groups = (tuple(key for key in keys if key in b.tensors) for keys in a.ties)
    return [keys for keys in groups if len({home.get(key, key) for key in keys}) > 1]


def tells_ties(source: Source) -> bool:
    """Whether a file of this kind says which of its arrays are one."""
    return any(tensor.memory is not None for tensor in source.tensors.values())
