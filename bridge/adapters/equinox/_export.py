"""A Module as an Equinox module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax

from bridge.adapters.equinox._wrap import EquinoxModule
from bridge.core.blueprint import PARAMS, Blueprint
from bridge.core.errors import ModelError
from bridge.core.exporting import (
    exportable,
    keys_of_call,
    mode_of_call,
    named_by,
    no_method,
    offers,
    only_wraps,
)
from bridge.core.leaves import as_array
from bridge.core.node import spec_of

KEY = "key"
_ADVICE = "model(x, state, key=key), or key={{{stream!r}: key}} for this stream alone"


class BridgeEquinox(eqx.nn.StatefulLayer):
    """A Module as an Equinox module: what is trained are its leaves, all other arrays its State.

    `params` are the trained parameters as nested dicts by path, None where one is frozen. `state` has
    an `eqx.nn.StateIndex` for each collection: `state.get(model.state["batch_stats"])` are its arrays
    by path. Keys are the collection "rngs" there, frozen parameters "params", where no optimizer comes.
    """

    params: dict[str, Any]
    state: dict[str, eqx.nn.StateIndex]
    inference: bool
    blueprint: Blueprint = eqx.field(static=True, repr=False)

    def __init__(self, module: Any) -> None:
        self.blueprint = Blueprint.of(module)
        leaves = [as_array(leaf, "a leaf") for leaf in jax.tree.leaves(module)]
        self.params = self._part(leaves, trained=True).get(PARAMS, {})
        kept = self._part(leaves, trained=False)
        self.state = {
            name: eqx.nn.StateIndex(tree) for name, tree in kept.items() if jax.tree.leaves(tree)
        }
        # A layer of Equinox trains until it is told otherwise, and so does what has no mode of its own.
        self.inference = spec_of(module).mode == "eval"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the Module's call returns; with a State, the pair of that and the State after it."""
        return _called(self, "__call__", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        blueprint = vars(self).get("blueprint")
        if blueprint is None or not offers(blueprint.skeleton, name):
            raise AttributeError(name if blueprint is None else no_method(blueprint.skeleton, name))
        return eqx.Partial(_called, self, name)  # a pytree, as every bound method of Equinox is

    def is_stateful(self) -> bool:
        """Whether it is called with a State, as `eqx.nn.Sequential` asks its layers."""
        return bool(self.state)

    def _leaves(self, state: eqx.nn.State | None) -> list[Any]:
        """The Module's arrays; raises ModelError where one is missing or of another form."""
        if self.state and state is None:
            raise ModelError(
                f"{self._title()} keeps its {', '.join(self.state)} in an eqx.nn.State; call it with"
                f" the one that came with it: out, state = model(x, state)"
            )
        kept = {name: _entry(state, index, self._title(), name) for name, index in self.state.items()}
        pairs = zip(
            self.blueprint.places,
            self.blueprint.found({PARAMS: self.params}),
            self.blueprint.found(kept),
            strict=True,
        )
        return self.blueprint.fitting([own if place.trained else other for place, own, other in pairs])

    def _written(self, state: Any, leaves: list[Any], changes: Mapping[int, Any]) -> eqx.nn.State:
        """The State with what a call has changed."""
        touched = {self.blueprint.places[number].collection for number in changes}
        after = [changes.get(number, leaf) for number, leaf in enumerate(leaves)]
        trees = self._part(after, trained=False)
        for name in sorted(touched):
            # Equinox takes a weakly typed number for another type than it had before.
            strong = jax.tree.map(lambda leaf, name=name: as_array(leaf, name), trees[name])
            state = state.set(self.state[name], strong)
        return state

    def _part(self, leaves: list[Any], trained: bool) -> dict[str, dict[str, Any]]:
        pairs = zip(self.blueprint.places, leaves, strict=True)
        return self.blueprint.trees(leaf if place.trained == trained else None for place, leaf in pairs)

    def _title(self) -> str:
        return f"the exported {type(self.blueprint.skeleton).__name__}"


def _called(exported: BridgeEquinox, method: str, *args: Any, **kwargs: Any) -> Any:
    module = exported.blueprint.skeleton
    state, args, kwargs = _apart(args, kwargs)
    mode, kwargs = mode_of_call(module, method, kwargs, None)
    mode = mode or ("eval" if exported.inference else "train")
    key = None if KEY in named_by(module, method) else kwargs.pop(KEY, None)
    leaves = exported._leaves(state)
    out, changes, _ = exported.blueprint.run(
        leaves, method, args, kwargs, rng=keys_of_call(module, key, _ADVICE), mode=mode
    )
    return out if state is None else (out, exported._written(state, leaves, changes))


def _apart(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...], Any]:
    """The State among the arguments of a call, None where there is none, and the other arguments."""
    states = [value for value in (*args, *kwargs.values()) if isinstance(value, eqx.nn.State)]
    if len(states) > 1:
        raise ModelError(
            f"an exported module was called with {len(states)} eqx.nn.State; it takes one, that of the"
            f" whole model: out, state = model(x, state)"
        )
    rest = tuple(value for value in args if not isinstance(value, eqx.nn.State))
    named = {name: value for name, value in kwargs.items() if not isinstance(value, eqx.nn.State)}
    return next(iter(states), None), rest, named


def _entry(state: Any, index: eqx.nn.StateIndex, owner: str, name: str) -> Any:
    try:
        return state.get(index)
    except ValueError:
        raise ModelError(
            f"the eqx.nn.State given to {owner} is an old one, which a call has replaced; give it the"
            f" state that the last call returned"
        ) from None
    except KeyError:
        raise ModelError(
            f"the eqx.nn.State given to {owner} has no entry for its {name}; give it the state that"
            f" was made with it, or with the model that holds it"
        ) from None


def export(module: Any) -> tuple[Any, eqx.nn.State]:
    """A Module as an Equinox module and its State; Equinox's own where the Module only wraps one."""
    module = exportable(module, "to_equinox")
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(module)):
        raise ModelError(
            f"to_equinox was given a {type(module).__name__} that has shapes in place of arrays; for"
            f" the shapes of the exported one type eqx.filter_eval_shape(bridge.to_equinox, module)"
        )
    if not only_wraps(module, EquinoxModule) or module.axis is not None:
        return eqx.nn.make_with_state(BridgeEquinox)(module)
    native = module.native()
    return native if isinstance(native, tuple) else (native, eqx.nn.State(native))


def taken_back(wrapped: EquinoxModule) -> Any:
    """The Module that was exported, of what `from_equinox` makes of the exported one."""
    if wrapped.axis is not None:
        raise ModelError(
            "from_equinox was given an exported Module and vmap=True; it takes what the Module took"
            " before it was exported: leave vmap out"
        )
    native = wrapped.native()
    model, state = native if isinstance(native, tuple) else (native, None)
    return model.blueprint.module(model._leaves(state))


def with_init_state(model: Any, state: eqx.nn.State) -> Any:
    """A model with its State inside, as it is before `eqx.nn.make_with_state` takes that out."""

    def filled(part: Any) -> Any:
        if not _is_index(part):
            return part
        return eqx.nn.StateIndex(_entry(state, part, type(model).__name__, str(part.marker)))

    return jax.tree.map(filled, model, is_leaf=_is_index)


def _is_index(part: Any) -> bool:
    return isinstance(part, eqx.nn.StateIndex)
