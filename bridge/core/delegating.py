"""A module whose methods are those of a model or a module inside it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import bridge.core.calling as calling
from bridge.core.frames import frame_of
from bridge.core.module import Module, plain


class Delegating(Module):
    """Runs the methods of what is inside; a subclass says how (`invoke`) and which (`has_own`)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the own call of what is inside returns."""
        return self.invoke("__call__", args, kwargs)

    @plain
    def invoke(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a method of what is inside returns, as part of the call that runs."""
        raise NotImplementedError

    @plain
    def has_own(self, name: str) -> bool:
        """Whether what is inside has a method of this name."""
        raise NotImplementedError

    @plain
    def without(self, name: str) -> str:
        """The message for a name that stands for nothing."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in type(self)._fields:
            raise AttributeError(name)
        method = self.own_method(name)
        if method is None:
            raise AttributeError(self.without(name))
        return method

    @plain
    def own_method(self, name: str) -> Any:
        """A method of what is inside, ready to be called, also where Module has one of that name.

        None where there is none.
        """
        if name.startswith("_") or not self.has_own(name):
            return None
        call = functools.partial(_invoke, name)
        frame = frame_of(self)
        if frame is not None:
            return lambda *args, **kwargs: frame.enter(self, call, args, kwargs)
        return lambda *args, **kwargs: calling.call(self, call, args, kwargs)


def _invoke(name: str, module: Any, *args: Any, **kwargs: Any) -> Any:
    return module.invoke(name, args, kwargs)
