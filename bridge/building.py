"""A module by assignments: `Builder`."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable
from typing import Any

from bridge.core.errors import FieldError
from bridge.core.kinds import Parameter, State
from bridge.core.leaves import ParamInit, is_array
from bridge.core.libraries import library_of
from bridge.core.lifted import content
from bridge.core.module import Module
from bridge.core.node import Node
from bridge.core.spec import settle, token
from bridge.wrapping import wrap


class Builder:
    """What is assigned to it becomes the fields of a module, which `build` gives a forward.

    An array or a `ParamInit` is a parameter; a Module is a child, and so is a model of another library
    (by `bridge.wrap`) or a plain function; lists and dicts of them are what is in them. Everything
    else, Python's numbers too, is static. `register_parameter`, `register_buffer` and `register_aux`
    say it where that is not meant. Two builds of one recipe have one treedef: they compile once.

    >>> import bridge as br, jax.numpy as jnp
    >>> builder = br.Builder("Scale")
    >>> builder.weight = jnp.array([2.0, 3.0])
    >>> builder.register_buffer("calls", 0)
    >>> builder.act, builder.times = jnp.negative, 5
    >>> def forward(self, x):
    ...     self.calls = self.calls + 1
    ...     return self.act(self.times * self.weight * x)
    >>> module = builder.build(forward)
    >>> out, module = module.apply(1.0)
    >>> out.tolist(), int(module.calls)
    ([-10.0, -15.0], 1)
    """

    def __init__(self, name: str = "Built") -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_fields", {})

    def __setattr__(self, name: str, value: Any) -> None:
        value = _wrapped(value)
        self._register(name, _kind(value, f"{self._name}.{name}"), value)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._fields[name][1]
        except KeyError:
            raise AttributeError(f"the builder of {self._name} has no {name!r} yet") from None

    def register_parameter(self, name: str, value: Any) -> None:
        """Makes an array, a number or a tree of them a parameter."""
        self._register(name, Parameter, value)

    def register_buffer(self, name: str, value: Any) -> None:
        """Makes an array, a number or a tree of them a state: carried, never trained."""
        self._register(name, State, value)

    def register_aux(self, name: str, value: Any) -> None:
        """Makes a value static: part of the treedef."""
        self._register(name, Any, value)

    def _register(self, name: str, kind: Any, value: Any) -> None:
        if name.startswith("_") or name == "forward" or hasattr(Builder, name) or hasattr(Module, name):
            raise FieldError(
                f"{self._name}.{name} cannot be a field: a Builder or a Module has {name!r} of its own;"
                f" give the field another name"
            )
        self._fields[name] = (kind, value)

    def build(self, forward: Callable[..., Any]) -> Any:
        """The module of what was assigned so far; `forward(self, *args)` reads it as its fields."""
        if not isinstance(forward, types.FunctionType):
            raise FieldError(
                f"Builder.build takes a function of the module and its inputs, `def forward(self, x)`;"
                f" it was given a {type(forward).__name__}"
            )
        kinds = tuple((name, kind) for name, (kind, _) in self._fields.items())
        with _lock:
            cls = _class(self._name, kinds, _Same(forward))
        return cls(**{name: value for name, (_, value) in self._fields.items()})

    def __repr__(self) -> str:
        return f"Builder of {self._name}({', '.join(self._fields)})"


_lock = threading.Lock()


class _Same:
    """A function that equals another one of the same code, defaults and values closed over."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function, self.form = function, _form(function, {})

    def __hash__(self) -> int:
        return hash(self.form)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.form == other.form


def _form(value: Any, seen: dict[int, int]) -> Any:
    """A hashable that is equal for what means the same in a function."""
    if id(value) in seen:  # a function may close over itself
        return seen[id(value)]
    if isinstance(value, types.FunctionType):
        seen[id(value)] = len(seen)
        parts = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
        parts += [content(cell) for cell in value.__closure__ or ()]
        return value.__code__, id(value.__globals__), tuple(_form(part, seen) for part in parts)
    try:
        return token(settle(value), "")
    except FieldError:  # an array, say: the function keeps it, so its id stays its own
        return id(value)


@functools.cache
def _class(name: str, kinds: tuple[tuple[str, Any], ...], forward: _Same) -> Any:
    """The class of a recipe, made once: a class of its own would be a treedef of its own."""
    body = {"__module__": __name__, "__annotations__": dict(kinds), "forward": forward.function}
    return type(Module)(name, (Module,), body)


def _wrapped(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_wrapped, value))
    if type(value) is dict:
        return {key: _wrapped(item) for key, item in value.items()}
    return value if isinstance(value, Node) or library_of(value) is None else wrap(value)


def _kind(value: Any, where: str) -> Any:
    """What a value is, by what is in it: a child, a parameter, or else static."""
    if type(value) in (list, tuple, dict):
        items = value.values() if type(value) is dict else value
        kinds = {_kind(item, where) for item in items if item is not None}
        if len(kinds) > 1:
            raise FieldError(
                f"{where} mixes modules, arrays and other values; a field has one kind: assign two"
                f" fields, or say it by register_parameter, register_buffer or register_aux"
            )
        return kinds.pop() if kinds else Any
    if isinstance(value, Node) or (callable(value) and not isinstance(value, type)):
        return Module
    return Parameter if isinstance(value, ParamInit) or is_array(value) else Any
