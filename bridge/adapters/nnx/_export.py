"""A Module as a Flax NNX module."""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import nnx

import bridge.core.paths as paths
from bridge.adapters.nnx._wrap import NnxModule
from bridge.core.blueprint import PARAMS, RNGS, Blueprint, Place
from bridge.core.errors import MissingRngError, ModelError
from bridge.core.exporting import exportable, keys_of_call, mode_of_call, no_method, offers, only_wraps
from bridge.core.rng import DEFAULT, Lent, Streams


class FrozenParam(nnx.Variable[Any]):
    """A parameter that is not trained: `nnx.Param` as a filter passes it by."""


class State(nnx.Variable[Any]):
    """A state of a Module that has no collection of its own: what `bridge.State` declares.

    Flax would make a type of this name when it is asked for one, and such a type cannot be pickled.
    """


class BridgeNnx(nnx.Module):
    """A Module as an NNX module: a Variable for each array, by collection and by its own path.

    `rngs` serve a call that brings none. `train()` and `eval()` set `deterministic`, which is the mode;
    None is the Module's own.
    """

    def __init__(self, module: Any, rngs: nnx.Rngs | None) -> None:
        self.blueprint = Blueprint.of(module)
        pairs = zip(self.blueprint.places, jax.tree.leaves(module), strict=True)
        self.variables = nnx.data(self.blueprint.trees(_variable(place, leaf) for place, leaf in pairs))
        self.rngs = nnx.data(rngs)
        self.deterministic: bool | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the Module's call returns."""
        return self._invoke("__call__", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        blueprint = vars(self).get("blueprint")
        if blueprint is None or not offers(blueprint.skeleton, name):
            raise AttributeError(name if blueprint is None else no_method(blueprint.skeleton, name))
        return functools.partial(_called, self, name)

    def _invoke(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rngs = kwargs.pop("rngs", None)
        mode, kwargs = mode_of_call(self.blueprint.skeleton, method, kwargs, None)
        if mode is None and self.deterministic is not None:
            mode = "eval" if self.deterministic else "train"
        variables = self._variables()
        leaves = self.blueprint.fitting([variable.get_value() for variable in variables])
        streams = _streams(self.blueprint.skeleton, self.rngs if rngs is None else rngs)
        out, changes, _ = self.blueprint.run(leaves, method, args, kwargs, rng=streams, mode=mode)
        for number, value in changes.items():
            variables[number].set_value(value)
        return out

    def _variables(self) -> list[nnx.Variable[Any]]:
        return self.blueprint.found(self.variables)


def _called(exported: BridgeNnx, method: str, *args: Any, **kwargs: Any) -> Any:
    return exported._invoke(method, args, kwargs)


def _variable(place: Place, array: Any) -> nnx.Variable[Any]:
    """The Variable of an array, of the type that Flax has for its collection."""
    if place.collection == PARAMS:
        return nnx.Param(array) if place.trained else FrozenParam(array)
    if place.collection == RNGS:
        is_key = jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key)
        return (nnx.RngKey if is_key else nnx.RngCount)(array, tag=paths.join(place.path[:-1]))
    if place.collection == "state":
        return State(array)
    return nnx.variablelib.variable_type_from_name(place.collection, allow_register=True)(array)


def _streams(module: Any, rngs: Any) -> Streams | None:
    """The streams of an nnx.Rngs, or of what else `rngs` may be: a stream, a key, or None."""
    if rngs is None or isinstance(rngs, jax.Array):
        return keys_of_call(module, rngs, "model(x, rngs=nnx.Rngs({stream}=key))")
    if isinstance(rngs, nnx.RngStream):
        return Streams(Lent([DEFAULT], lambda _: rngs()), ())
    if not isinstance(rngs, nnx.Rngs):
        raise ModelError(
            f"rngs is a {type(rngs).__name__}; an nnx.Rngs, a stream of one or a key was wanted"
        )

    def take(stream: str) -> Any:
        try:
            return rngs[stream]()
        except (AttributeError, KeyError):
            raise MissingRngError(
                f"the exported module draws from the stream {stream!r}, and the nnx.Rngs have"
                f" {', '.join(map(repr, rngs)) or 'none'}; give it nnx.Rngs({stream}=key), or"
                f" nnx.Rngs(key) to serve every stream"
            ) from None

    return Streams(Lent(rngs, take), ())


def export(module: Any, rngs: nnx.Rngs | None) -> nnx.Module:
    """A Module as an NNX module; a new NNX module of its own class where the Module only wraps one."""
    module = exportable(module, "to_nnx")
    if only_wraps(module, NnxModule):
        return module.native()
    return BridgeNnx(module, rngs)


def taken_back(exported: BridgeNnx) -> Any:
    """The Module that was exported, with the arrays that the NNX module has now."""
    leaves = [variable.get_value() for variable in exported._variables()]
    return exported.blueprint.module(exported.blueprint.fitting(leaves))
