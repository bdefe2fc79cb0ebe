"""A plan gone back: the arrays of a Module under the keys that they came from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import WeightsError, listed
from bridge.core.paths import Path
from bridge.weights.report import Match, Pair, by_path


@dataclass(frozen=True)
class _Share:
    """What a place gives to a key: its numbers less an offset; nothing where another key has all."""

    pair: Pair
    offset: float
    given: bool

    def of(self, array: np.ndarray) -> np.ndarray:
        """The numbers for the key, laid out as in the Module."""
        if not self.given:
            return np.zeros_like(array)
        return array - np.asarray(self.offset, array.dtype) if self.offset else array


def undone(
    match: Match, arrays: Mapping[Path, np.ndarray], echoes: frozenset[Path]
) -> dict[str, np.ndarray]:
    """The arrays of a Module as the source of a plan has them, contiguous, in memory of their own.

    Of a sum of two keys the first has all, the other is zero. `echoes` are places that repeat what
    another one holds. Raises WeightsError with every key that nothing fills, or two places otherwise.
    """
    shares: dict[str, list[_Share]] = {}
    for share in _shares(match):
        shares.setdefault(share.pair.key, []).append(share)
    found: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for key, given in shares.items():
        own = [share for share in given if share.pair.path not in echoes] or given
        try:
            found[key] = _joined(own, arrays)
        except WeightsError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise WeightsError(f"these keys cannot be filled from the Module:\n{listed(problems)}")
    return found | {key: found[owner].copy() for key, owner in match.ties.items() if owner in found}


def _shares(match: Match) -> Iterator[_Share]:
    for pairs in by_path(match.pairs).values():
        regions: dict[Any, list[Pair]] = {}
        for pair in pairs:
            regions.setdefault(pair.translation.region, []).append(pair)
        for added in regions.values():
            offset = sum(pair.offset for pair in added)
            yield from (_Share(pair, offset, number == 0) for number, pair in enumerate(added))


def _joined(shares: Sequence[_Share], arrays: Mapping[Path, np.ndarray]) -> np.ndarray:
    """The array of one key."""
    dtypes = {arrays[share.pair.path].dtype for share in shares}
    if len(dtypes) > 1:
        held = " and ".join(sorted(map(str, dtypes)))
        raise WeightsError(f"parts of it are {held} in the Module; cast them to one dtype")
    first, back = shares[0], shares[0].pair.translation.inverse()
    if len(shares) == 1 and back.fills and back.exhausts:
        return np.array(back(first.of(arrays[first.pair.path])), order="C")
    size = math.prod(back.target_shape)
    if size > sum(math.prod(share.pair.translation.target_shape) for share in shares):
        raise WeightsError(f"the Module holds fewer than its {size} numbers")
    joined = np.zeros(back.target_shape, next(iter(dtypes)))
    owner = np.full(back.target_shape, -1, np.int32)
    for number, share in enumerate(shares):
        back, array = share.pair.translation.inverse(), share.of(arrays[share.pair.path])
        came, place = np.zeros_like(joined), np.zeros(joined.shape, bool)
        back.put(array, came)
        back.put(np.ones(array.shape, bool), place)
        twice = place & (owner >= 0)
        if _bits(came[twice]) != _bits(joined[twice]):
            other = shares[int(owner[twice][0])].pair.path
            raise WeightsError(
                f"{paths.join(other)} and {paths.join(share.pair.path)} hold other numbers for it, and"
                f" it can have one of them; tie them: bridge.tie(module, ...)"
            )
        joined[place], owner[place] = came[place], number
    if lost := int((owner < 0).sum()):
        raise WeightsError(f"nothing in the Module holds {lost} of its {owner.size} numbers")
    return joined


def _bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
