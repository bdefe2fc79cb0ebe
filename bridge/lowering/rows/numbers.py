"""Arithmetic on sizes: what a captured program computes of shapes, with Python's own numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

_OPERATORS = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.pow,
    operator.neg,
    operator.pos,
    operator.abs,
    operator.lshift,
    operator.rshift,
    operator.and_,
    operator.or_,
    operator.xor,
    operator.not_,
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
)


def _rounding(function: Callable[[Any], int], of_array: Callable[..., jax.Array]) -> Callable[..., Any]:
    """A rounding to an integer, of a number or of an array that stands for one."""

    def rounded(value: Any) -> Any:
        return of_array(value).astype(int) if isinstance(value, jax.Array) else function(value)

    return rounded


def _sum(values: Any) -> Any:
    return sum(values)


def _ite(condition: Any, then: Any, otherwise: Any) -> Any:
    return then if condition else otherwise


def _to_float(value: Any) -> Any:
    return value.astype(jnp.float32) if isinstance(value, jax.Array) else float(value)


ROWS: Mapping[str, Callable[..., Any]] = {
    "operator.getitem": operator.getitem,
    **{f"operator.{function.__name__}": function for function in _OPERATORS},
    "math.trunc": _rounding(math.trunc, jnp.trunc),
    "math.floor": _rounding(math.floor, jnp.floor),
    "math.ceil": _rounding(math.ceil, jnp.ceil),
    "builtins.round": _rounding(round, jnp.round),
    "torch.sym_float": _to_float,
    "torch.sym_int": _rounding(int, jnp.trunc),
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
    "torch.sym_sum": _sum,
    "torch.sym_ite": _ite,
    "torch.sym_sqrt": math.sqrt,
}
