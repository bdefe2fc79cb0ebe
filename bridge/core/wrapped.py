"""What the modules of all adapters have in common: one model of another library as a Module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax

import bridge.core.calling as calling
import bridge.core.paths as paths
from bridge.core.errors import MissingRngError, TraceError, UninitialisedError
from bridge.core.frames import Frame, frame_of
from bridge.core.kinds import BY_FIRST_KEY, Kind, Parameter
from bridge.core.layers import Layer
from bridge.core.leaves import Lazy, Leaves
from bridge.core.module import Module, plain

States = Annotated[jax.Array, Kind("state", BY_FIRST_KEY)]
"""Annotation of a state field whose collections are the first keys of its tree."""

# The spellings of the train flag in the field's libraries, and whether True means training.
TRAIN_FLAGS: Mapping[str, bool] = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}


LIBRARIES = ("flax", "haiku", "equinox", "torch")


class Opaque:
    """A library's own object among the statics: compared by value where it can be hashed.

    An object without a hash is compared by identity, so that a model with a dict among its attributes
    still works; two of them built alike are then two treedefs.
    """

    __slots__ = ("hashed", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        try:
            self.hashed = hash(value)
        except TypeError:
            self.hashed = None

    def __hash__(self) -> int:
        return id(self.value) if self.hashed is None else self.hashed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Opaque) or type(self.value) is not type(other.value):
            return False
        return self.value is other.value or (self.hashed is not None and self.value == other.value)

    def __reduce__(self) -> Any:
        return Opaque, (self.value,)  # a hash of strings holds in one process only

    def __repr__(self) -> str:
        return f"{type(self.value).__name__}"


class Wrapped(Module):
    """A model of another library: its parameters, its state, and its own forward.

    An adapter's subclass says how the library runs a method (`run`) and, where the library makes its
    parameters from an input, how it makes them (`make`).
    """

    model: Opaque
    params: Parameter
    state: States
    known_layers: tuple | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own call returns."""
        return self.invoke("__call__", args, kwargs)

    @plain
    def invoke(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a method of the model returns; its state updates go into this module's state."""
        frame = self._running(method)
        out = None
        if frame.initialising and (isinstance(self.params, Lazy) or "params" in frame.filled):
            out = self._fill(frame, method, args, kwargs)
        elif frame.initialising and self.unseen:
            out, _, _, layers = self.make(frame, method, args, kwargs)
            frame.fill(self, known_layers=layers)
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
        """Makes what a method needs, and keeps what the methods called before it have made."""
        out, params, state, layers = self.make(frame, method, args, kwargs)
        if "params" in frame.filled:
            params = united(frame.filled["params"].tree(), params)
            state = united(frame.filled["state"].tree(), state)
            known = frame.filled["known_layers"] or ()
            layers = known + tuple(layer for layer in layers or () if layer not in known)
        frame.fill(self, params=Leaves.of(params), state=Leaves.of(state), known_layers=layers)
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
        """Whether the layers of the model show in a call alone, and none has shown them."""
        return self.known_layers is None and type(self).make is not Wrapped.make

    @plain
    def layers(self) -> tuple[Layer, ...] | None:
        """The layers of the model, their paths below this module; None where no call has shown them."""
        return self.known_layers

    @plain
    def native(self) -> Any:
        """The library's own form of what this module holds."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in type(self)._fields:
            raise AttributeError(name)
        model_class = self.model_class()
        if not callable(getattr(model_class, name, None)):
            raise AttributeError(
                f"the wrapped {model_class.__name__} has no method {name!r}; its arrays are read by"
                f" path: module.at['params...'].get()"
            )
        call = functools.partial(_invoke, name)
        frame = frame_of(self)
        if frame is not None:
            return lambda *args, **kwargs: frame.enter(self, call, args, kwargs)
        return lambda *args, **kwargs: calling.call(self, call, args, kwargs)

    @plain
    def model_class(self) -> type:
        """The class of the wrapped model: its methods can be called on this module."""
        return type(self.model.value)

    def extra_repr(self) -> str:
        """The class of the wrapped model."""
        return self.model_class().__name__


def _invoke(name: str, module: Any, *args: Any, **kwargs: Any) -> Any:
    return module.invoke(name, args, kwargs)


def united(first: Any, second: Any) -> Any:
    """Two nested dicts as one; what both have is the first one's."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return first
    both = {key: united(first[key], second[key]) for key in first if key in second}
    return {**second, **first, **both}


def library_of(model: Any) -> str | None:
    """The library of the field that the class of a model comes from, None for any other object."""
    packages = [cls.__module__.partition(".")[0] for cls in type(model).__mro__]
    return next((package for package in packages if package in LIBRARIES), None)


def train_flags(
    function: Callable[..., Any], given: Mapping[str, Any], training: bool
) -> dict[str, bool]:
    """The train flag of a call in the spelling of the function's signature, unless it was given."""
    parameters = inspect.signature(function).parameters
    return {
        name: training == means_training
        for name, means_training in TRAIN_FLAGS.items()
        if name in parameters and name not in given
    }


def unsaid_flags(
    model: Any, method: str, args: Any, kwargs: Mapping[str, Any], training: bool
) -> dict[str, bool]:
    """The train flag of a call, where neither the call nor the model's own attribute says it."""
    function = getattr(model, method)
    try:
        given = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    except TypeError:  # the call itself will speak of it
        given = kwargs
    flags = train_flags(function, given, training)
    return {name: flag for name, flag in flags.items() if getattr(model, name, None) is None}


def key_or_none(frame: Frame, stream: str = "default") -> tuple[Any, Exception | None]:
    """The key to hand to a library, or None and the error to raise if the library then draws.

    A library that draws nothing must not be refused for lack of a key, so the error waits.
    """
    try:
        return frame.key(stream), None
    except (MissingRngError, TraceError) as error:
        return None, error
