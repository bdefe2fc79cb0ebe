"""The nesting of what a torch model takes and gives, without the arrays in it."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.core.errors import LoweringError


@dataclass(frozen=True)
class Structure:
    """A nesting: a `leaf`, a `literal`, or a container of others.

    `kind` is "leaf", "literal", "tuple", "list", "dict" or "named" (a named tuple); `names` are the
    keys or fields, and first the title of a named tuple; `value` is that of a literal.
    """

    kind: str
    parts: tuple[Structure, ...] = ()
    names: tuple[Any, ...] = ()
    value: Any = None

    def build(self, leaves: Iterator[Any]) -> Any:
        """The nesting with its leaves taken in order."""
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "literal":
            return self.value
        parts = [part.build(leaves) for part in self.parts]
        if self.kind == "dict":
            return dict(zip(self.names, parts, strict=True))
        if self.kind == "named":
            return _named_tuple(*self.names)(*parts)
        return parts if self.kind == "list" else tuple(parts)

    @property
    def leaves(self) -> int:
        """How many leaves it has."""
        return (self.kind == "leaf") + sum(part.leaves for part in self.parts)

    def flatten(self, value: Any, where: str) -> Iterator[tuple[str, Any]]:
        """Each leaf of a value of this structure, with what it is called; raises LoweringError."""
        if self.kind == "leaf":
            if value is None:
                raise LoweringError(f"{where} is missing: the model was captured with an array there")
            yield where, value
        elif self.kind == "literal":
            if not _same(value, self.value):
                raise LoweringError(
                    f"{where} is {_short(value)}, and the model was captured with {_short(self.value)}."
                    f" What is no array is part of what was captured: call bridge.from_torch again"
                    f" with that value"
                )
        else:
            for name, part, inner in zip(
                self._steps(), self.parts, self._inside(value, where), strict=True
            ):
                yield from part.flatten(inner, f"{where}{name}")

    def _steps(self) -> list[str]:
        if self.kind == "dict":
            return [f"[{name!r}]" for name in self.names]
        return [f"[{index}]" for index in range(len(self.parts))]

    def _inside(self, value: Any, where: str) -> Sequence[Any]:
        if self.kind == "dict":
            if isinstance(value, Mapping) and set(value) == set(self.names):
                return [value[name] for name in self.names]
            wanted = f"a dict of {', '.join(map(repr, self.names))}"
            came = f"a dict of {', '.join(map(repr, value))}" if isinstance(value, Mapping) else None
        else:
            if isinstance(value, (tuple, list)) and len(value) == len(self.parts):
                return value
            wanted = f"a {'list' if self.kind == 'list' else 'tuple'} of {len(self.parts)}"
            came = f"one of {len(value)}" if isinstance(value, (tuple, list)) else None
        raise LoweringError(
            f"{where} is {came or f'a {type(value).__name__}'}, and the model was captured with"
            f" {wanted}"
        )


@functools.cache
def _named_tuple(title: str, *names: str) -> Callable[..., Any]:
    return collections.namedtuple(title, names)


def _same(value: Any, literal: Any) -> bool:
    if hasattr(value, "shape") or type(value) is not type(literal):
        return False
    return value == literal or (value != value and literal != literal)


def _short(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {value.dtype}{list(value.shape)}"
    return repr(value)


@dataclass(frozen=True)
class Signature:
    """The parameters of a torch forward: how a call's arguments get their names.

    `defaults` are those that are plain values. `rest` and `others` are the names of `*args` and
    `**kwargs`, None where the forward has none.
    """

    names: tuple[str, ...]
    keywords: tuple[str, ...]
    defaults: Mapping[str, Any]
    rest: str | None
    others: str | None

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The arguments by name; raises LoweringError for one too many."""
        bound = dict(zip(self.names, args, strict=False))
        if self.rest is not None:
            bound[f"*{self.rest}"] = tuple(args[len(self.names) :])
        elif len(args) > len(self.names):
            raise LoweringError(
                f"{where} takes {len(self.names)} positional arguments, {len(args)} came"
            )
        known = (*self.names, *self.keywords)
        for name, value in kwargs.items():
            if name in bound or (name not in known and self.others is None):
                problem = "came twice" if name in bound else "is none of its arguments"
                raise LoweringError(f"{where}: {name!r} {problem}; it takes {', '.join(known)}")
            bound[name] = value
        return {**{n: v for n, v in self.defaults.items() if n not in bound}, **bound}

    def unbind(self, bound: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments that `bind` makes this of; defaults are left out."""
        given = {
            name: value
            for name, value in bound.items()
            if name not in self.defaults or not _same(value, self.defaults[name])
        }
        leading = list(itertools.takewhile(given.__contains__, self.names))
        args = tuple(given.pop(name) for name in leading)
        return (*args, *given.pop(f"*{self.rest}", ())), given
