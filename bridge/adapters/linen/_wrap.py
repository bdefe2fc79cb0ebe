"""A Flax Linen module as a Module."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.core
import flax.errors
import flax.linen as nn
import jax
import numpy as np

import bridge.core.paths as paths
from bridge.adapters.linen._layers import observed
from bridge.core.errors import ModelError, StructureError, UninitialisedError, listed
from bridge.core.frames import Frame
from bridge.core.leaves import LAZY, Lazy, Leaves, leaves_of
from bridge.core.module import plain
from bridge.core.node import Node
from bridge.core.paths import Path
from bridge.core.wrapped import Opaque, Wrapped, library_of, unsaid_flags

# What a call gives out through these would grow from call to call if it were fed back.
OUTPUTS = ("intermediates", "perturbations")
MISFITS = (
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeParamShapeError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeVariableNotFoundError,
    flax.errors.ModifyScopeVariableError,
)
# flax/errors.py: the message of InvalidRngError, which keeps the stream nowhere else.
_STREAM = re.compile(r'needs PRNG for "(.*?)"')


class LinenModule(Wrapped):
    """A Linen module: params and state are Linen's own variables by collection."""

    @plain
    def make(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any, Any, Any]:
        """Linen's own first variables; the root's keys are those that `init` was given."""
        module = self.model.value
        kwargs = {**kwargs, **unsaid_flags(module, method, args, kwargs, frame.mode == "train")}
        keys = frame.init_key()
        # Linen takes the key of "params" for every stream that it was not given.
        keys = {"params": keys["default"], **keys} if "default" in keys else keys
        named = {stream: key for stream, key in keys.items() if stream != "default"}
        # Its output serves as well: a decoder is made from a whole sequence and run on single steps.
        (out, variables), layers = observed(
            lambda: module.init_with_output(named, *args, method=method, **kwargs)
        )
        return out, *_divided(variables), layers

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of Linen's own `apply`, and the collections after it."""
        module = self.model.value
        kwargs = {**kwargs, **unsaid_flags(module, method, args, kwargs, frame.mode == "train")}
        variables = self.native()
        before = {name: tree for name, tree in variables.items() if name != "params"}
        mutable = [*before, *(() if frame.run.wanted is None else OUTPUTS[:1])]
        with _translated(frame), _watched(frame):
            out, after = module.apply(
                variables, *args, rngs=_rngs(frame), mutable=mutable, method=method, **kwargs
            )
        after = flax.core.unfreeze(after)
        for path, value in _named(after.pop(OUTPUTS[0], {})):
            frame.record((OUTPUTS[0], *path), value)
        _same_variables(frame, before, after)
        return out, after

    @plain
    def native(self) -> dict[str, Any]:
        """Linen's own variables: `{"params": ..., "batch_stats": ...}`."""
        if isinstance(self.params, Lazy):
            raise UninitialisedError(
                "a Linen module has variables after init; type module = module.init(key, *sample) first"
            )
        params, state = self.params.tree(), self.state.tree()  # type: ignore[attr-defined]
        return {**({"params": params} if params else {}), **state}


def wrap(module: Any, variables: Any) -> LinenModule:
    """An unbound Linen module as a Module; raises ModelError for anything else."""
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise ModelError(
            f"from_linen was given the class {name}; make it first: from_linen({name}(...))"
        )
    if isinstance(module, Node):
        raise ModelError(f"from_linen was given a {name}, which is a bridge.Module already")
    if not isinstance(module, nn.Module):
        library = library_of(module)
        fix = "; wrap it with bridge.wrap(model)" if library else ""
        raise ModelError(f"from_linen takes a flax.linen.Module; it was given a {name}{fix}")
    if module.scope is not None:
        raise ModelError(
            f"from_linen was given a {name} that is bound to variables; part them:"
            f" module, variables = module.unbind(), and then from_linen(module, variables)"
        )
    arrays = list(_arrays(module, (name,)))
    if arrays:
        raise ModelError(
            f"{', '.join(map(paths.join, arrays))}: an array among the attributes of a Linen module"
            f" would be compiled in and never trained; hand it to the call, or make it a variable"
        )
    if variables is None:
        return LinenModule(Opaque(module), LAZY, LAZY)
    params, state = _divided(_checked(variables))
    return LinenModule(Opaque(module), Leaves.of(params), Leaves.of(state))


def _arrays(module: nn.Module, path: Path) -> Iterator[Path]:
    """The places of arrays among the attributes of a module and of the modules among them."""
    for field in dataclasses.fields(module):
        if field.name in ("parent", "name"):
            continue
        for leaf in jax.tree.leaves(getattr(module, field.name, None)):
            if isinstance(leaf, (jax.Array, np.ndarray)):
                yield (*path, field.name)
            elif isinstance(leaf, nn.Module):
                yield from _arrays(leaf, (*path, field.name))


def _checked(variables: Any) -> Mapping[str, Any]:
    if not isinstance(variables, Mapping) or not all(
        isinstance(collection, Mapping) for collection in variables.values()
    ):
        raise ModelError(
            f'variables are collections by name, {{"params": ..., "batch_stats": ...}}, as'
            f" module.init makes them; from_linen was given {jax.tree.structure(variables)}"
        )
    return variables


def _divided(variables: Mapping[str, Any]) -> tuple[Any, Any]:
    """Params, and the collections that are carried from call to call."""
    variables = flax.core.unfreeze(variables)  # type: ignore[arg-type]
    state = {name: tree for name, tree in variables.items() if name not in ("params", *OUTPUTS)}
    return variables.get("params", {}), state


def _rngs(frame: Frame) -> dict[str, Any]:
    """The keys of this call by stream; none where a draw will be refused."""
    if frame.streams is None or frame.foreign():
        return {}
    keys = {stream: frame.key(stream) for stream in frame.streams.keys}
    if "default" not in keys:
        return keys
    # Linen takes "params" for a stream that it was not given; lifted transforms split by name.
    default = keys.pop("default")
    return {"params": default, "dropout": default, **keys}


@contextlib.contextmanager
def _translated(frame: Frame) -> Iterator[None]:
    """Turns Linen's own errors about keys and variables into ones that say where and what to do."""
    try:
        yield
    except flax.errors.InvalidRngError as error:
        stream = _STREAM.search(str(error))
        frame.key(stream[1] if stream else "default")
        raise
    except MISFITS as error:
        what = str(error).partition(" (https://")[0]
        raise ModelError(
            f"{paths.name(frame.path)}: the variables do not fit the model. {what} Give from_linen what"
            f" the model's own init makes, or none and call module.init(key, *sample); what only"
            f" another method uses is made by module.init(key, *sample, method=...)"
        ) from None


def _watched(frame: Frame) -> contextlib.AbstractContextManager[Any]:
    """Records the output of each Linen module by its path, where `capture` asks for outputs."""
    if frame.run.wanted is None:
        return contextlib.nullcontext()

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path:
            frame.record(context.module.path, out)
        return out

    return nn.intercept_methods(record)


def _named(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What stands in nested dicts, by path."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for name, below in tree.items():
        yield from _named(below, (*path, name))


def _same_variables(frame: Frame, before: Any, after: Any) -> None:
    """Raises StructureError, by collection, where a call made variables or lost them."""
    old, new = ({path for path, _ in leaves_of(tree)} for tree in (before, after))
    problems = [f"{paths.join(path)}: made by the call, not by init" for path in sorted(new - old)]
    problems += [f"{paths.join(path)}: gone after the call" for path in sorted(old - new)]
    if problems:
        raise StructureError(
            f"{paths.name(frame.path)} has other variables after the call than before:\n"
            + listed(problems)
            + "\nMake them in init as well; what grows from call to call (sow) belongs into the"
            ' collection "intermediates", which module.capture(..., paths=[...]) reads'
        )
