"""What the exports of a Module have in common: what may be exported, and what a call of one means."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import bridge.core.paths as paths
from bridge.core.errors import MissingRngError, ModelError
from bridge.core.flags import TRAIN_FLAGS
from bridge.core.leaves import Tied
from bridge.core.node import Node, rng_of, spec_of
from bridge.core.paths import Path
from bridge.core.rng import DEFAULT, Streams
from bridge.core.tree import entries
from bridge.core.wrapped import Wrapped


def only_wraps(module: Any, cls: type[Wrapped]) -> bool:
    """Whether a Module is a wrapped model and nothing more: nothing tied or frozen, no mode, no key."""
    spec = spec_of(module)
    if type(module) is not cls or spec.frozen or spec.mode is not None or rng_of(module) is not None:
        return False
    return not any(isinstance(entry.value, Tied) for entry in entries(module))


def exportable(module: Any, function: str) -> Any:
    """The Module to export; raises ModelError for anything else."""
    if not isinstance(module, Node):
        raise ModelError(
            f"{function} takes a bridge.Module; it was given a {type(module).__name__}. A model of a"
            f" library becomes one by bridge.wrap(model)"
        )
    return module


def offers(module: Any, name: str) -> bool:
    """Whether a Module has a public method of this name, its own or its wrapped model's."""
    if name.startswith("_"):
        return False
    owner = module.model_class() if isinstance(module, Wrapped) else type(module)
    return callable(getattr(owner, name, None)) and not hasattr(Node, name)


def no_method(module: Any, name: str) -> str:
    """What to say of a name that is no method of an exported Module."""
    return f"the exported {type(module).__name__} has no method {name!r}"


def named_by(module: Any, method: str) -> set[str]:
    """The parameters that a method of a Module has in its own signature."""
    function = getattr(type(module), method, None)
    return set(inspect.signature(function).parameters) if callable(function) else set()


def mode_of_call(
    module: Any, method: str, kwargs: Mapping[str, Any], attribute: bool | None
) -> tuple[str | None, dict[str, Any]]:
    """The mode that a call asks for by a train flag in any spelling, and the other arguments.

    `attribute` is the flag that the exported model has itself: True for train. A flag that the method
    names in its own signature is the method's. None keeps the Module's own mode. Raises ModelError
    where the flag is given twice.
    """
    own = named_by(module, method)
    flags = [name for name in TRAIN_FLAGS if name in kwargs and name not in own]
    said = [f"{name}={kwargs[name]}" for name in flags]
    said += [] if attribute is None else [f"{'train' if attribute else 'eval'} by its attribute"]
    if len(said) > 1:
        raise ModelError(f"the train flag of an exported module was given twice: {', '.join(said)}")
    rest = {name: value for name, value in kwargs.items() if name not in flags}
    if flags:
        attribute = bool(kwargs[flags[0]]) == TRAIN_FLAGS[flags[0]]
    return (None if attribute is None else "train" if attribute else "eval"), rest


def keys_of_call(module: Any, rng: Any, advice: str) -> Streams | None:
    """The keys that a call gives, a key or a dict of them by stream; None where the Module has its own.

    `advice` is what to type for a draw that finds no key, with `{stream}` in it. Raises MissingRngError
    for what is no key.
    """
    if rng is None and rng_of(module) is not None:
        return None
    return _KeysOfCall(rng, advice)


class _KeysOfCall(Streams):
    """The keys of a call, or none: then parts of the Module draw from what is attached to them."""

    def __init__(self, rng: Any, advice: str) -> None:
        super().__init__({} if rng is None else Streams.of(rng).keys, (), attached=rng is None)
        self._advice = advice

    def key(self, stream: str, path: Path) -> Any:
        if stream in self.keys or DEFAULT in self.keys:
            return super().key(stream, path)
        given = f"the streams given are {', '.join(map(repr, self.keys))}" if self.keys else None
        raise MissingRngError(
            f"{paths.name(path)} draws from the stream {stream!r}, and {given or 'no rng was given'}."
            f" Type {self._advice.format(stream=stream)}"
        )
