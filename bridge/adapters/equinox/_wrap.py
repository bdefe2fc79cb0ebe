"""An Equinox model as a Module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax

import bridge.core.paths as paths
from bridge.adapters.equinox._layers import layers
from bridge.core.errors import ModelError, PathError, listed
from bridge.core.frames import Frame
from bridge.core.layers import Layer
from bridge.core.leaves import Leaves, segments
from bridge.core.module import plain
from bridge.core.node import Node
from bridge.core.wrapped import Opaque, Wrapped, key_or_none, library_of

STATE = "state"
BUFFERS = "buffers"
BATCH = "batch"

# How a layer of equinox.nn and jax.random say that they got None in place of a key.
_NO_KEY = ("requires a key", "unexpected PRNG key type <class 'NoneType'>")


class Skeleton:
    """A model without its arrays: compared by its structure and the value of every other leaf."""

    def __init__(self, model: eqx.Module) -> None:
        self.model = model
        leaves, treedef = jax.tree.flatten(model)
        self.token = (treedef, tuple((type(leaf), leaf) for leaf in leaves))

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skeleton) and self.token == other.token

    @functools.cached_property
    def training(self) -> Any:
        """The skeleton with every `inference` flag False."""
        return eqx.nn.inference_mode(self.model, value=False)

    @functools.cached_property
    def evaluating(self) -> Any:
        """The skeleton with every `inference` flag True."""
        return eqx.nn.inference_mode(self.model, value=True)

    @functools.cached_property
    def indices(self) -> dict[Any, paths.Path]:
        """The markers of the model's StateIndex objects, and where they stand."""
        return {index.marker: path for path, index in _indices(self.model)}

    @functools.cached_property
    def axis_name(self) -> str:
        """The name that the model's BatchNorm layers have for the axis of the batch."""
        parts = jax.tree.leaves(self.model, is_leaf=_is_batch_norm)
        names = {str(part.axis_name) for part in parts if _is_batch_norm(part)}
        if len(names) > 1:
            raise ModelError(
                f"the BatchNorm layers of {type(self.model).__name__} name the axis of the batch"
                f" {' and '.join(sorted(names))}; vmap=True gives it one name: use one"
            )
        return next(iter(names), BATCH)


class EquinoxModule(Wrapped):
    """An Equinox model: params in the model's own structure, and its state beside them."""

    vmap: bool = False

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of the model's method, and buffers and state after it."""
        _refuse_inner_paths(frame)
        skeleton = self.model.value
        kept = self._kept()
        model = self._model(skeleton.training if frame.mode == "train" else skeleton.evaluating)
        wants = _wants(getattr(model, method), args, kwargs)
        state = kept.get(STATE) if "state" in wants else None
        key, no_key = key_or_none(frame) if "key" in wants else (None, None)
        call = functools.partial(_called, getattr(model, method), wants)
        try:
            if self.vmap:
                out, after = _mapped(call, skeleton.axis_name, state, key, (args, kwargs))
            else:
                out, after = call(state, key, args, kwargs)
        except (RuntimeError, TypeError) as error:
            if no_key is not None and any(sign in str(error) for sign in _NO_KEY):
                raise no_key from None
            raise
        except NameError as error:
            if "unbound axis name" in str(error):
                raise _no_axis(frame, error) from None
            raise
        return out, kept if after is None else {**kept, STATE: after}

    def _kept(self) -> dict[str, Any]:
        """Buffers and state; the State is a new one, because Equinox lets each be used once."""
        return self.state.tree()  # type: ignore[attr-defined]

    def _model(self, skeleton: Any) -> Any:
        return eqx.combine(self.params.tree(), self._kept()[BUFFERS], skeleton)  # type: ignore[attr-defined]

    @plain
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the model, their paths below this module."""
        return layers(self.model.value.model)

    @plain
    def model_class(self) -> type:
        """The class of the wrapped model."""
        return type(self.model.value.model)

    @plain
    def native(self) -> Any:
        """The Equinox model, or the pair `(model, State)` of one that has state."""
        model = self._model(self.model.value.model)
        state = self._kept().get(STATE)
        return model if state is None else (model, state)


def wrap(model: Any, state: eqx.nn.State | None, vmap: bool) -> EquinoxModule:
    """A model, or the pair of a model and its State, as a Module."""
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], eqx.nn.State):
        if state is not None:
            raise ModelError(
                "from_equinox was given a state twice, in the pair (model, state) and as `state`;"
                " give it once"
            )
        model, state = model
    _check(model)
    model, state = _with_state(model, state)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    buffers, rest = eqx.partition(rest, eqx.is_array)
    skeleton = Skeleton(rest)
    kept = {BUFFERS: buffers} if state is None else {BUFFERS: buffers, STATE: state}
    return EquinoxModule(
        model=Opaque(skeleton),
        params=Leaves.of(params),
        state=Leaves.of(kept, _state_paths(kept, skeleton.indices)),
        vmap=vmap,
    )


def _check(model: Any) -> None:
    name = type(model).__name__
    if isinstance(model, eqx.Module):
        return
    if isinstance(model, type) and issubclass(model, eqx.Module):
        raise ModelError(
            f"from_equinox was given the class {model.__name__}; give it a model:"
            f" from_equinox({model.__name__}(..., key=key))"
        )
    if isinstance(model, Node):
        raise ModelError(f"from_equinox was given what is a bridge.Module already: {name}")
    library = library_of(model)
    if library is not None:
        raise ModelError(f"from_equinox was given a {library} {name}; wrap it with bridge.wrap(model)")
    raise ModelError(
        f"from_equinox takes an equinox.Module, or the pair (model, state) that"
        f" eqx.nn.make_with_state gives; it was given {model!r}"
    )


def _with_state(model: Any, state: Any) -> tuple[Any, Any]:
    """A model without initial states in it, and its State; None for a model that has no state."""
    wanted = {index.marker: paths.join(path) for path, index in _indices(model)}
    if state is None and not wanted:
        return model, None
    if state is None:
        try:
            return eqx.nn.make_with_state(lambda: model)()
        except ValueError:
            raise ModelError(
                f"{type(model).__name__} was made by eqx.nn.make_with_state, which keeps its state"
                f" apart; give both: from_equinox((model, state))"
            ) from None
    try:
        _, given = state.tree_flatten()
    except ValueError:
        raise ModelError(
            "the eqx.nn.State given to from_equinox is an old one, which a call has replaced; give"
            " it the state that the call returned"
        ) from None
    problems = [f"{path}: has no entry" for marker, path in wanted.items() if marker not in given]
    problems += [f"{marker}: is no part of the model" for marker in given if marker not in wanted]
    if problems:
        raise ModelError(
            f"the eqx.nn.State given to from_equinox is not that of this"
            f" {type(model).__name__}:\n{listed(problems)}\n"
            f"Give it the model and the state that one eqx.nn.make_with_state made"
        )
    return eqx.nn.delete_init_state(model), state


def _indices(model: Any) -> list[tuple[paths.Path, eqx.nn.StateIndex]]:
    keyed, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_index)
    return [(segments(keys), leaf) for keys, leaf in keyed if _is_index(leaf)]


def _is_index(value: Any) -> bool:
    return isinstance(value, eqx.nn.StateIndex)


def _is_batch_norm(value: Any) -> bool:
    return isinstance(value, eqx.nn.BatchNorm)


def _state_paths(kept: Mapping[str, Any], indices: Mapping[Any, paths.Path]) -> list[paths.Path]:
    """The paths of buffers and state: an entry of a State is where its StateIndex is in the model."""
    markers = kept[STATE].tree_flatten()[1] if STATE in kept else ()
    found = []
    for keys, _ in jax.tree_util.tree_flatten_with_path(kept)[0]:
        collection, *below = segments(keys)
        if collection == STATE:
            below[:1] = indices[markers[int(below[0])]]
        found.append((collection, *below))
    return found


def _wants(method: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> set[str]:
    """Which of `key` and `state` a method takes and was not given.

    Raises ModelError for an eqx.nn.State among the arguments, which the Module keeps itself.
    """
    if any(isinstance(value, eqx.nn.State) for value in (*args, *kwargs.values())):
        raise ModelError(
            "a wrapped Equinox model keeps its eqx.nn.State itself; call it without one:"
            " out, module = module.apply(x)"
        )
    signature = inspect.signature(method)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:  # the call itself will say what does not fit
        given = kwargs
    return {name for name in ("key", "state") if name in signature.parameters and name not in given}


def _called(
    method: Callable[..., Any], wants: set[str], state: Any, key: Any, args: Any, kwargs: Any
) -> tuple[Any, Any]:
    """The output of a method, and the State that it returned last, None where it returned none."""
    extra = {"key": key} if "key" in wants else {}
    extra |= {"state": state} if state is not None else {}
    out = method(*args, **kwargs, **extra)
    if state is None or not (isinstance(out, tuple) and out and isinstance(out[-1], eqx.nn.State)):
        return out, None
    return (out[0] if len(out) == 2 else out[:-1]), out[-1]


def _mapped(
    call: Callable[..., Any],
    axis_name: str,
    state: Any,
    key: Any,
    arguments: tuple[Any, Any],
) -> tuple[Any, Any]:
    """`call` for each example of a batch: a key for each, one State for all."""
    arrays, rest = eqx.partition(arguments, eqx.is_array)
    leaves = jax.tree.leaves(arrays)
    if not leaves or any(leaf.ndim == 0 for leaf in leaves):
        raise ModelError(
            "a model wrapped with vmap=True maps axis 0 of every array that it is called with;"
            f" it was called with {[list(leaf.shape) for leaf in leaves] or 'no array'}"
        )
    keys = None if key is None else jax.random.split(key, leaves[0].shape[0])

    def single(arrays: Any, key: Any, state: Any) -> tuple[Any, Any]:
        args, kwargs = eqx.combine(arrays, rest)
        return call(state, key, args, kwargs)

    mapped = jax.vmap(single, in_axes=(0, 0, None), out_axes=(0, None), axis_name=axis_name)
    return mapped(arrays, keys, state)


def _no_axis(frame: Frame, error: NameError) -> ModelError:
    name = str(error).partition("unbound axis name: ")[2].partition(".")[0]
    return ModelError(
        f"{paths.name(frame.path)} averages over the axis {name!r} of a batch, which there is none of;"
        f" wrap it with from_equinox(model, vmap=True) and call it with batches"
    )


def _refuse_inner_paths(frame: Frame) -> None:
    for wanted in frame.run.wanted or ():
        path = paths.split(wanted)
        if not paths.is_pattern(wanted) and paths.below(path, frame.path) and path != frame.path:
            raise PathError(
                f"{wanted!r} is inside of the Equinox model at {paths.name(frame.path)}, whose parts"
                f" cannot be watched; return the value from the model itself"
            )
