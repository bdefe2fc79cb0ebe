"""Conditions on the sizes of inputs, which a captured program takes for granted."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any

from bridge.core.errors import LoweringError

_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_COMPARED = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY = {ast.USub: operator.neg, ast.Not: operator.not_}
_CALLED = {
    "max": max,
    "min": min,
    "abs": abs,
    "Max": max,
    "Min": min,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
}


def holds(guard: str, sizes: Mapping[str, int]) -> bool:
    """Whether a condition is true of these sizes; raises LoweringError for what is none.

    >>> holds("x0_0 % 2 == 0", {"x0_0": 6})
    True
    """
    try:
        return bool(_value(ast.parse(guard, mode="eval").body, sizes))
    except (SyntaxError, KeyError, TypeError):
        raise LoweringError(f"{guard!r} is no condition on sizes") from None
    except ZeroDivisionError:
        return False


def _value(node: ast.AST, sizes: Mapping[str, int]) -> Any:
    """The value of an expression of sizes and numbers; nothing else is evaluated."""
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand, sizes))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(one, sizes) for one in (left, *others)]
            pairs = zip(ops, values, values[1:], strict=False)
            return all(_COMPARED[type(op)](first, second) for op, first, second in pairs)
        case ast.BoolOp(op=op, values=values):
            found = (_value(one, sizes) for one in values)
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.Call(func=ast.Name() | ast.Attribute() as called, args=args, keywords=[]):
            return _CALLED[ast.unparse(called)](*(_value(one, sizes) for one in args))
    raise KeyError(type(node).__name__)
