"""What the modules of all adapters have in common: one model of another library as a Module."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax

import bridge.core.paths as paths
from bridge.core.delegating import Delegating
from bridge.core.errors import MissingRngError, TraceError, UninitialisedError
from bridge.core.flags import TRAIN_FLAGS
from bridge.core.frames import Frame, current_trace
from bridge.core.kinds import BY_FIRST_KEY, Kind, Parameter
from bridge.core.layers import Layer
from bridge.core.leaves import Lazy, Leaves
from bridge.core.module import plain
from bridge.core.opaque import Opaque

States = Annotated[jax.Array, Kind("state", BY_FIRST_KEY)]
"""Annotation of a state field whose collections are the first keys of its tree."""


_parameters: weakref.WeakKeyDictionary[Any, frozenset[str]] = weakref.WeakKeyDictionary()


class Wrapped(Delegating):
    """A model of another library: its parameters, its state, and its own forward.

    An adapter's subclass says how the library runs a method (`run`) and, where the library makes its
    parameters from an input, how it makes them (`make`).
    """

    model: Opaque
    params: Parameter
    state: States
    known_layers: tuple | None = None

    @plain
    def invoke(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a method of the model returns; its state updates go into this module's state."""
        frame = self._running(method)
        lazy = isinstance(self.params, Lazy)
        # Inside a JAX transform nothing can be made that is kept, and what is there is enough.
        if frame.initialising and self.unseen and (lazy or frame.run.trace == current_trace()):
            out = self._fill(frame, method, args, kwargs)
            if out is not None:
                return out
        if isinstance(self.params, Lazy):
            raise UninitialisedError(
                f"{paths.name(frame.path)} is not initialised; type"
                f" module = module.init(key, *sample) first"
            )
        out, state = self.run(frame, method, args, kwargs)
        self._keep(frame, state)
        return out

    def _fill(self, frame: Frame, method: str, args: Any, kwargs: Any) -> Any:
        """Makes what a method needs and the module has not yet; everything that is there stays."""
        names = ("params", "state", "known_layers")
        params, state, known = (frame.filled.get(name, getattr(self, name)) for name in names)
        if known is not None:  # what is there was made, or looked at, by an init before
            frame.filled.update(params=params, state=state, known_layers=known)
        out, new_params, new_state, layers = self.make(frame, method, args, kwargs)
        if layers is not None:
            known = (*(known or ()), *(layer for layer in layers if layer not in (known or ())))
        params, state = _with(params, new_params), _with(state, new_state)
        frame.fill(self, params=params, state=state, known_layers=known)
        return out

    def _keep(self, frame: Frame, state: Any) -> None:
        """Writes the state that a call left, where it is another one than before."""
        before: Any = self.state
        after = before.replace(state)
        same = len(after.values) == len(before.values) and all(
            new is old for new, old in zip(after.values, before.values, strict=True)
        )
        if not same or after.layout is not before.layout:
            self.state = after

    @plain
    def make(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any, Any, tuple]:
        """The output, the first params, the state and the layers of a model made from an input.

        The output is None where the library's own init gives none; the model is then run for it.
        """
        raise NotImplementedError

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of a method of the model, and the model's state after it."""
        raise NotImplementedError

    @property
    def unseen(self) -> bool:
        """Whether a method may need arrays, or run through layers, that no method before it did."""
        return type(self).make is not Wrapped.make

    @plain
    def layers(self) -> tuple[Layer, ...] | None:
        """The layers of the model, their paths below this module; None where no call has shown them."""
        return self.known_layers

    @plain
    def native(self) -> Any:
        """The library's own form of what this module holds."""
        raise NotImplementedError

    @plain
    def has_own(self, name: str) -> bool:
        """Whether the model has a method of this name."""
        return callable(getattr(self.model_class(), name, None))

    @plain
    def without(self, name: str) -> str:
        """The message for a name that stands for nothing."""
        return (
            f"the wrapped {self.model_class().__name__} has no method {name!r}; its arrays are read by"
            f" path: module.at['params...'].get()"
        )

    @plain
    def model_class(self) -> type:
        """The class of the wrapped model: its methods can be called on this module."""
        return type(self.model.value)

    def extra_repr(self) -> str:
        """The class of the wrapped model."""
        return self.model_class().__name__


def _with(there: Any, made: Any) -> Leaves:
    """What is there and what was made besides; itself where that is nothing new."""
    if isinstance(there, Lazy):
        return Leaves.of(made)
    after = there.replace(united(there.tree(), made))
    return there if after.layout is there.layout else after


def united(first: Any, second: Any) -> Any:
    """Two nested dicts as one; what both have is the first one's."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return first
    both = {key: united(first[key], second[key]) for key in first if key in second}
    return {**second, **first, **both}


def parameter_names(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the parameters of a function, remembered: every call of a model asks for them."""
    if not isinstance(function, types.FunctionType):  # a model's own callable may hash by its arrays
        return frozenset(inspect.signature(function).parameters)
    names = _parameters.get(function)
    if names is None:
        names = _parameters[function] = frozenset(inspect.signature(function).parameters)
    return names


def takes_flag(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter of the name of a train flag; if not, a mode says nothing."""
    if isinstance(function, functools.partial):  # which has no other parameters than its function
        function = function.func
    function = getattr(function, "__func__", function)
    return not parameter_names(function).isdisjoint(TRAIN_FLAGS)


def key_or_none(frame: Frame, stream: str = "default") -> tuple[Any, Exception | None]:
    """The key to hand to a library, or None and the error to raise if the library then draws.

    A library that draws nothing must not be refused for lack of a key, so the error waits.
    """
    try:
        return frame.key(stream), None
    except (MissingRngError, TraceError) as error:
        return None, error
