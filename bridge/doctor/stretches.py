"""A stretch of a program between two layers, and what of it may set two models apart."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from bridge.core.paths import Path

RANDOM = ("random_", "threefry", "rng_")
_PADDED = ("conv_general_dilated", "reduce_window", "pad", "select_and_gather_add")
_LIKE_MINUS_INFINITY = -1e4
_ROOTS = frozenset({"rsqrt", "sqrt"})
_BENDS = {
    "tanh": "tanh",
    "erf": "erf",
    "erfc": "erf",
    "logistic": "logistic",
    "log1p": "softplus",
    "expm1": "elu",
    "sin": "sin",
    "cos": "cos",
    "cbrt": "cbrt",
}


@dataclass(frozen=True)
class Stretch:
    """The ops between the layers before and a value, those layers' own first ops included.

    `operands` are those of them that are the same in every call: the op, which of its operands, and the
    value. `arrays` are the places of the model's arrays that act there.
    """

    eqns: Sequence[Any]
    operands: Sequence[tuple[Any, int, np.ndarray]]
    arrays: Sequence[Path]

    @property
    def known(self) -> list[np.ndarray]:
        """The operands that are the same in every call."""
        return [value for *_, value in self.operands]

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The ops by name."""
        return frozenset(eqn.primitive.name for eqn in self.eqns)

    @functools.cached_property
    def nonlinear(self) -> frozenset[str]:
        """What bends the values: `tanh`, `erf`, `logistic`, `relu`, ..."""
        found = {_BENDS[name] for name in self.names & _BENDS.keys()}
        clamped = (
            eqn
            for eqn, _, value in self.operands
            if eqn.primitive.name == "max" and value.size and not value.any()
        )
        if not all(map(self._is_variance, clamped)):
            found.add("relu")
        return frozenset(found)

    def _is_variance(self, eqn: Any) -> bool:
        """Whether an op makes nothing but a variance, whose root is taken."""
        users = [one for one in self.eqns if eqn.outvars[0] in one.invars]
        return bool(users) and all(
            one.primitive.name in _ROOTS or self._is_variance(one) for one in users if one is not eqn
        )

    @functools.cached_property
    def added(self) -> frozenset[float]:
        """The small numbers that are added to something."""
        found = (float(v.flat[0]) for name, v in self._numbers() if name in ("add", "add_any"))
        return frozenset(_rounded(one) for one in found if 0 < one < 0.1)

    @functools.cached_property
    def scaled(self) -> frozenset[float]:
        """The numbers by which something is multiplied, but for those that only take a mean."""
        found = set[float]()
        for eqn, number, value in self.operands:
            if value.size and (value == value.flat[0]).all() and value.flat[0]:
                name, one = eqn.primitive.name, float(value.flat[0])
                found |= (
                    {one} if name == "mul" else {1 / one} if name == "div" and number == 1 else set()
                )
        means = {_rounded(1 / n) for n in self.sizes}
        return frozenset(_rounded(one) for one in found) - means - {1.0, -1.0}

    @functools.cached_property
    def masked(self) -> bool:
        """Whether some places are put out of reach, as an attention mask does."""
        names = ("select_n", "add", "add_any", "sub")
        return any(
            eqn.primitive.name in names and value.size and value.min() <= _LIKE_MINUS_INFINITY
            for eqn, _, value in self.operands
            if np.issubdtype(value.dtype, np.floating)
        )

    @functools.cached_property
    def padding(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """What convolutions, windows and paddings put around the values, each; nothing where none."""
        found = [_pads(eqn) for eqn in self.eqns if eqn.primitive.name.startswith(_PADDED)]
        return tuple(pads for pads in found if any(map(any, pads)))

    @functools.cached_property
    def dtypes(self) -> frozenset[str]:
        """The dtypes of floating numbers in which something is computed."""
        dtypes = {atom.aval.dtype for eqn in self.eqns for atom in eqn.outvars}
        return frozenset(str(dtype) for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating))

    @property
    def random(self) -> bool:
        """Whether anything is drawn at random."""
        return any(name.startswith(RANDOM) for name in self.names)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """The numbers strictly between 0 and 1 that are always the same, as interpolation has them."""
        numbers = [v.ravel() for v in self.known if np.issubdtype(v.dtype, np.floating) and v.size > 1]
        found = np.unique(np.concatenate([*numbers, np.zeros(0)]).astype(np.float64).round(5))
        return found[(found > 0) & (found < 1)]

    @functools.cached_property
    def sizes(self) -> frozenset[int]:
        """The lengths of all axes but those of 1."""
        return frozenset(n for eqn in self.eqns for a in eqn.invars for n in a.aval.shape if n > 1)

    def _numbers(self) -> Iterator[tuple[str, np.ndarray]]:
        """The ops with an operand that is one number everywhere, and it."""
        for eqn, _, value in self.operands:
            if value.size and value.dtype != bool and (value == value.flat[0]).all():
                yield eqn.primitive.name, value


def _pads(eqn: Any) -> tuple[tuple[int, int], ...]:
    if eqn.primitive.name == "pad":
        pads = [(low, high) for low, high, _ in eqn.params["padding_config"]]
        return tuple(pair for pair in pads if any(pair))
    sizes = eqn.params.get("window_dimensions")
    pads = eqn.params.get("padding", ())
    if sizes is None:
        return tuple(map(tuple, pads))
    return tuple(tuple(pair) for pair, size in zip(pads, sizes, strict=True) if size > 1)


def _rounded(number: float) -> float:
    return float(f"{number:.5g}")
