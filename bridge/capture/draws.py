"""What a model draws at random while it is captured, where a program could not draw it again."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from bridge.core.errors import ModelError

_BELOW = (torch.Tensor.lt, torch.Tensor.__lt__, torch.lt)


class KnownDraws(TorchFunctionMode):
    """While it lasts, a model may ask whether `torch.rand([])` is below zero, which it never is.

    So layers are skipped (LayerDrop): `if torch.rand([]) < p`. With p = 0 the answer needs no value;
    with another one it raises ModelError.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: dict[int, torch.Tensor] = {}
        self.asked: dict[int, tuple[torch.Tensor, float]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What the function returns."""
        first = id(args[0]) if args else 0
        if func is torch.Tensor.__bool__ and first in self.asked:
            return _below_zero(self.asked[first][1])
        out = func(*args, **(kwargs or {}))
        if func is torch.rand:
            self.draws[id(out)] = out
        elif func in _BELOW and first in self.draws and isinstance(args[1], (int, float)):
            self.asked[id(out)] = out, args[1]
        else:  # it may have been changed in place
            for one in args:
                self.draws.pop(id(one), None)
                self.asked.pop(id(one), None)
        return out


def _below_zero(bound: float) -> bool:
    if bound > 0:
        raise ModelError(
            f"the model skips a part of itself where torch.rand([]) < {bound}, and a program runs all"
            f" of its parts; set that probability to zero (often `layerdrop`), or capture the model for"
            f" evaluation alone: bridge.from_torch(model, *example, mode='eval')"
        )
    return False


@contextlib.contextmanager
def refused_host_draws() -> Iterator[None]:
    """Raises ModelError where `random` or `np.random` was drawn from while it lasted."""
    before = _host_state()
    yield
    if _host_state() != before:
        raise ModelError(
            "the model draws from Python's random or from np.random in its forward; a program would"
            " have the same numbers in every call. Draw with torch.rand, or capture the model in a mode"
            " in which it draws nothing: bridge.from_torch(model, *example, mode='eval')"
        )


def _host_state() -> tuple[Any, ...]:
    name, keys, position, *rest = np.random.get_state()  # noqa: NPY002 - the one that models draw from
    return random.getstate(), name, np.asarray(keys).tobytes(), position, *rest
