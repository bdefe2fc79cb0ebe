"""How far two values are whose axes may come in another order."""

from __future__ import annotations

import math

import numpy as np


def distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The relative L2 distance; infinite where anything is not a number."""
    one, two = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    far = float(np.linalg.norm(one - two) / max(np.linalg.norm(two), 1e-30))
    return math.inf if math.isnan(far) else far


def unordered_distance(mine: np.ndarray, theirs: np.ndarray, padded: bool = False) -> float:
    """The distance of the sorted numbers; infinite where there are more of them on one side.

    Where one of the two may be `padded`, and the other not yet, it has zeros more.
    """
    one, two = np.ravel(mine), np.ravel(theirs)
    if padded:
        longest = max(one.size, two.size)
        one, two = (np.concatenate([v, np.zeros(longest - v.size, v.dtype)]) for v in (one, two))
    return distance(np.sort(one), np.sort(two)) if one.size == two.size else math.inf
