"""A library's own object among the statics of a Module, and how such an object is pickled."""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

from bridge.core.errors import CheckpointError


class Opaque:
    """A library's own object among the statics: compared by value where it can be hashed.

    `form` gives what stands for the object in comparisons, where its own `==` finds too much equal; a
    function at the top level of a file. An object without a hash is compared by identity, so that a
    model with a dict among its attributes still works; two of them built alike are then two treedefs.
    """

    __slots__ = ("form", "form_of", "hashed", "value")

    def __init__(self, value: Any, form: Callable[[Any], Any] | None = None) -> None:
        self.value, self.form_of = value, form
        self.form = value if form is None else form(value)
        try:
            self.hashed = hash(self.form)
        except TypeError:
            self.hashed = None

    def __hash__(self) -> int:
        return id(self.value) if self.hashed is None else self.hashed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Opaque) or type(self.value) is not type(other.value):
            return False
        return self.value is other.value or (self.hashed is not None and self.form == other.form)

    def __reduce__(self) -> Any:
        # A hash of strings holds in one process only, so it is made anew.
        return _unpickled, (_pickled(self.value), self.form_of)

    def __repr__(self) -> str:
        return f"{type(self.value).__name__}"


class _Pickler(pickle.Pickler):
    """Pickles by name what a library made by a call: defaults of its classes, compiled functions."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._defaults: dict[int, tuple[type, str]] = {}

    def reducer_override(self, obj: Any) -> Any:
        """How pickle takes an object apart, where it would fail by itself."""
        if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
            self._defaults |= {
                id(one.default): (type(obj), one.name)
                for one in dataclasses.fields(obj)
                if callable(one.default) and getattr(obj, one.name, None) is one.default
            }
        elif callable(obj) and not isinstance(obj, type):
            if _named(obj) is obj:
                return obj.__qualname__
            if id(obj) in self._defaults:
                return _default, self._defaults[id(obj)]
        return NotImplemented


def _named(obj: Any) -> Any:
    """What stands under the name that an object has in the module that it says it is from."""
    names = getattr(obj, "__qualname__", "").split(".")
    return functools.reduce(
        lambda at, name: getattr(at, name, None), names, sys.modules.get(getattr(obj, "__module__", ""))
    )


def _default(cls: type, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(cls) if field.name == name)


def _pickled(value: Any) -> bytes:
    """The bytes of an object; raises CheckpointError where something in it has no name."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"a {type(value).__name__} cannot be pickled: {error}. Functions and classes are pickled by"
            f" name: define those that the model is made of at the top level of a file. bridge.save"
            f" keeps the arrays alone, and needs none of them"
        ) from None
    return buffer.getvalue()


def _unpickled(data: bytes, form: Callable[[Any], Any] | None) -> Opaque:
    return Opaque(pickle.loads(data), form)
