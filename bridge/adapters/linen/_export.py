"""A Module as a Flax Linen module."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.errors
import flax.linen as nn
import jax

import bridge.core.paths as paths
from bridge.adapters.linen._wrap import LinenModule
from bridge.core.blueprint import PARAMS, Blueprint, Held
from bridge.core.errors import MissingRngError, ModelError, TraceError
from bridge.core.exporting import exportable, keys_of_call, mode_of_call, no_method, offers, only_wraps
from bridge.core.rng import DEFAULT, Lent, Streams
from bridge.core.tree import entries
from bridge.core.wrapped import Wrapped

SOWN = "intermediates"
_ADVICE = "apply(variables, ..., rngs={{{stream!r}: key}})"


class BridgeLinen(nn.Module):
    """A Module as a Linen module: its variables stand at its own paths, in its collections.

    `train` is the mode, where the call does not say it by a keyword; None for the Module's own.
    """

    held: Held
    train: bool | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the Module's call returns."""
        return self._invoke("__call__", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get("held")
        if held is None or not offers(held.module, name):
            raise AttributeError(name if held is None else no_method(held.module, name))
        return types.MethodType(_method(name), self)

    @nn.compact
    def _invoke(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mode, kwargs = mode_of_call(self.held.module, method, kwargs, self.train)
        starting = self.is_initializing()
        if starting:
            self._make(method, args, kwargs, mode)
        blueprint, leaves = self.held.fitted(flax.core.unfreeze(self.variables))  # type: ignore[arg-type]
        wanted = (f"*{SOWN}*",) if self.is_mutable_collection(SOWN) and not starting else None
        out, changes, captured = blueprint.run(
            leaves, method, args, kwargs, rng=self._streams(), mode=mode, wanted=wanted
        )
        if not starting:
            self._write(blueprint, leaves, changes)
            self._sow(captured)
        return out

    def _make(self, method: str, args: Any, kwargs: Any, mode: str | None) -> None:
        """Makes the variables in Linen's own `init`: the Module's arrays, or new ones."""
        module = self.held.module
        if self.held.lazy:
            module = module.init(self.make_rng(PARAMS), *args, mode=mode, method=method, **kwargs)
        for collection, trees in Blueprint.reached(module).trees(jax.tree.leaves(module)).items():
            for name, tree in trees.items():
                self.variable(collection, name, lambda tree=tree: tree)

    def _streams(self) -> Streams | None:
        scope: Any = self.scope
        if not scope.rngs:
            return keys_of_call(self.held.module, None, _ADVICE)
        serves = {DEFAULT, "dropout", PARAMS} & set(scope.rngs)
        names = {*scope.rngs, DEFAULT} if serves else scope.rngs
        return Streams(Lent(names, self._key), ())

    def _key(self, stream: str) -> Any:
        """Linen's key of a stream; "dropout", which Linen's users give, serves what has none."""
        self._refuse_raw_transform(f"draws from the stream {stream!r}")
        other = stream if self.has_rng(stream) or not self.has_rng("dropout") else "dropout"
        try:
            return self.make_rng(other)
        except flax.errors.InvalidRngError:
            raise MissingRngError(
                f"{paths.name(self.path)} draws from the stream {stream!r}, which Linen was given no"
                f" key for. Type {_ADVICE.format(stream=stream)}"
            ) from None

    def _write(self, blueprint: Blueprint, leaves: list[Any], changes: Mapping[int, Any]) -> None:
        touched = {(blueprint.places[n].collection, blueprint.places[n].path[0]) for n in changes}
        after = blueprint.trees(changes.get(number, leaf) for number, leaf in enumerate(leaves))
        for collection, name in sorted(touched):
            self._refuse_raw_transform(f"writes {collection}.{name}")
            self.put_variable(collection, name, after[collection][name])

    def _sow(self, captured: Mapping[str, Any]) -> None:
        """Hands on what parts of the Module have sown; a later call of a part has its own label."""
        sown: dict[str, Any] = {}
        for label, value in captured.items():
            *above, last = (name for name in paths.split(label.partition("#")[0]) if name != SOWN)
            at = sown
            for name in above:
                at = at.setdefault(name, {})
            at[last] = (*at.get(last, ()), *value)
        for name, tree in sown.items():
            self.put_variable(SOWN, name, tree)

    def _refuse_raw_transform(self, what: str) -> None:
        """Raises TraceError inside a JAX transform that is none of Linen's: those make new scopes."""
        scope: Any = self.scope
        while scope is not None:
            if scope.trace_level != flax.core.current_trace():
                raise TraceError(
                    f"{paths.name(self.path)} {what} inside a JAX transform that was started inside the"
                    f" Linen model: it would be repeated or lost. Use flax.linen.scan, flax.linen.vmap"
                    f" or flax.linen.remat in its place"
                )
            scope = scope.parent


def _method(name: str) -> Any:
    def call(self: BridgeLinen, *args: Any, **kwargs: Any) -> Any:
        return self._invoke(name, args, kwargs)

    return call


def export(module: Any) -> nn.Module:
    """A Module as a Linen module; the Linen module itself where the Module only wraps one."""
    module = exportable(module, "to_linen")
    if only_wraps(module, LinenModule):
        return module.model.value
    below = any(entry.path[0] == PARAMS for entry in entries(module))
    if below and not isinstance(module, Wrapped):
        raise ModelError(
            f"Linen refuses variables that have 'params' directly below 'params', and"
            f" {type(module).__name__} has a field of that name; rename it, or put the Module below"
            f" another one"
        )
    return BridgeLinen(Held(module))


def taken_back(exported: BridgeLinen, variables: Mapping[str, Any] | None) -> Any:
    """The Module that was exported, with the arrays of Linen's variables if they are given."""
    if variables is None:
        return exported.held.module
    blueprint, leaves = exported.held.fitted(flax.core.unfreeze(variables))  # type: ignore[arg-type]
    return blueprint.module(leaves)
