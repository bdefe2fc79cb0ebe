"""The train flag of a call, in the spellings of the field's libraries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bridge.core.errors import ModelError

# Each spelling, and whether True means training.
TRAIN_FLAGS: Mapping[str, bool] = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}


def train_flags(
    function: Callable[..., Any], given: Mapping[str, Any], training: bool
) -> dict[str, bool]:
    """The train flag of a call in the spelling of the function's signature, unless it was given.

    A parameter of such a name whose default is something else than a flag is no flag.
    """
    parameters = inspect.signature(function).parameters
    return {
        name: training == means_training
        for name, means_training in TRAIN_FLAGS.items()
        if name in parameters and name not in given and _is_flag(parameters[name].default)
    }


def _is_flag(default: Any) -> bool:
    return default is None or default is inspect.Parameter.empty or isinstance(default, bool)


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


def flagged(
    where: str, model: Any, method: str, args: Any, kwargs: Mapping[str, Any], training: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the train flag of the mode among them, unless it is said already.

    It goes by position where it can: what is static in a compiled function may be so by its position.
    Raises ModelError for a flag that is given by position and by name.
    """
    parameters = list(inspect.signature(getattr(model, method)).parameters.values())
    by_position = [one.name for one in parameters[: len(args)] if one.kind is one.POSITIONAL_OR_KEYWORD]
    twice = [name for name in by_position if name in kwargs and name in TRAIN_FLAGS]
    if twice:
        raise ModelError(
            f"{where}: {twice[0]!r} is given twice, by position and by name; give it once, or leave it"
            f" to the mode: apply(..., mode='train')"
        )
    flags = unsaid_flags(model, method, args, kwargs, training)
    for one in parameters[len(args) :]:
        if one.name not in flags or one.kind is not one.POSITIONAL_OR_KEYWORD:
            break
        args = (*args, flags.pop(one.name))
    return args, {**kwargs, **flags}


def attribute_flags(
    cls: type, attributes: Mapping[str, Any], method: str, training: bool
) -> dict[str, bool]:
    """The train flags among the attributes of a model's class that the mode says otherwise.

    A flag that the method takes as an argument as well is the user's, and so is one without a value
    where the method takes any keyword.
    """
    said = {name: attributes[name] for name in TRAIN_FLAGS if name in attributes}
    said = {name: value for name, value in said.items() if value is None or isinstance(value, bool)}
    if not said:
        return {}
    function = inspect.getattr_static(cls, method, None)
    taken = inspect.signature(function).parameters if callable(function) else {}
    anything = any(one.kind is one.VAR_KEYWORD for one in taken.values())
    return {
        name: training == TRAIN_FLAGS[name]
        for name, value in said.items()
        if name not in taken
        and not (value is None and anything)
        and value is not (training == TRAIN_FLAGS[name])
    }
