"""An Equinox model as a Module."""

from __future__ import annotations

import enum
import functools
import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import bridge.core.paths as paths
from bridge.adapters.equinox._layers import (
    STATE,
    axis_name,
    faults,
    in_mode,
    layers,
    state_paths,
    watched,
    with_state,
)
from bridge.core.errors import ModelError, TraceError, listed
from bridge.core.flags import TRAIN_FLAGS
from bridge.core.frames import Frame, current_trace
from bridge.core.layers import Layer
from bridge.core.leaves import Leaves, Tied, is_array, segments
from bridge.core.libraries import library_of
from bridge.core.module import plain
from bridge.core.node import Node, spec_of
from bridge.core.opaque import Opaque
from bridge.core.spec import MODES
from bridge.core.tree import find, map_entries, owner_path
from bridge.core.wrapped import Wrapped, key_or_none

BUFFERS = "buffers"
# The names of a parameter for a key. Where there are both, `key` may be that of an attention.
KEYS = ("rng", "key")

# How a layer of equinox.nn and jax.random say that they got None in place of a key.
_NO_KEY = ("requires a key", "unexpected PRNG key type <class 'NoneType'>")


class Hole(enum.Enum):
    """What an array of a model is, in its place."""

    PARAMETER = "params"
    BUFFER = BUFFERS


class Skeleton:
    """A model with a Hole for each array: compared by its structure and the value of every leaf."""

    def __init__(self, model: eqx.Module) -> None:
        self.model = model
        leaves, treedef = jax.tree.flatten(model)
        self.token = (treedef, tuple(map(_comparable, leaves)))

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skeleton) and self.token == other.token

    def __reduce__(self) -> Any:
        return Skeleton, (self.model,)

    @functools.cached_property
    def modes(self) -> dict[str | None, Any]:
        """The skeleton with its `inference` flags as each mode has them, and as they were."""
        return {None: self.model, **{mode: in_mode(self.model, mode == "eval") for mode in MODES}}

    def filled(self, mode: str | None, parameters: Iterable[Any], buffers: Iterable[Any]) -> Any:
        """The model with its arrays, in the order of its leaves."""
        arrays = {Hole.PARAMETER: iter(parameters), Hole.BUFFER: iter(buffers)}
        return jax.tree.map(
            lambda leaf: next(arrays[leaf]) if isinstance(leaf, Hole) else leaf, self.modes[mode]
        )


def _comparable(leaf: Any) -> Any:
    """A leaf that is no array, in a form that is equal for equal ones: 1 and True are two values."""
    if type(leaf) is functools.partial:
        keywords = tuple((name, _comparable(leaf.keywords[name])) for name in sorted(leaf.keywords))
        return functools.partial, leaf.func, tuple(map(_comparable, leaf.args)), keywords
    return type(leaf), leaf


class Withheld:
    """Stands for a key that there is not: whoever looks at it gets the error that says why."""

    def __init__(self, refusal: Exception) -> None:
        self._refusal = refusal

    def __getattr__(self, _name: str) -> Any:
        raise self._refusal

    def __getitem__(self, _index: Any) -> Any:
        raise self._refusal

    def __iter__(self) -> Any:
        raise self._refusal


class EquinoxModule(Wrapped):
    """An Equinox model: params in the model's own structure, and its state beside them.

    `axis` is the name of the axis of the batch, None for a model that is called as it is.
    """

    axis: Any = None

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of the model's method, and buffers and state after it."""
        kept = self._kept()
        call = Call(frame, self._model(frame.mode), method, kept.get(STATE))
        call.bind(args, kwargs)
        try:
            out, after, heard = call.alone() if self.axis is None else call.mapped(self.axis)
        except (RuntimeError, TypeError) as error:
            refusal = call.refusal() if any(sign in str(error) for sign in _NO_KEY) else None
            if refusal is not None:
                raise refusal from None
            raise
        except NameError as error:
            if "unbound axis name" in str(error):
                raise _no_axis(call.where, self.axis, error) from None
            raise
        for path, value in heard:
            frame.record(path, value)
        return out, self._kept() if after is None else {**kept, STATE: after}

    def _kept(self) -> dict[str, Any]:
        """Buffers and state; the State is a new one, because Equinox lets each be used once."""
        return self.state.tree()  # type: ignore[attr-defined]

    def _model(self, mode: str | None) -> Any:
        buffers = jax.tree.leaves(self._kept()[BUFFERS])
        return self.model.value.filled(mode, self.params.values, buffers)  # type: ignore[attr-defined]

    @plain
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the model, their paths below this module."""
        return layers(self._model(None))

    @plain
    def model_class(self) -> type:
        """The class of the wrapped model."""
        return type(self.model.value.model)

    @plain
    def native(self) -> Any:
        """The Equinox model, or the pair `(model, State)` of one that has state.

        Its `inference` flags are those that it was wrapped with, or those of this module's mode where
        that was set. A tied array is at each of its places. Raises SharingError for one that is kept
        outside of this module.
        """
        untied = _untied(self)
        model, state = untied._model(spec_of(self).mode), untied._kept().get(STATE)
        return model if state is None else (model, state)


def _untied(module: Any) -> Any:
    """The module with each tied array in its place."""

    def array(path: paths.Path, leaf: Any) -> Any:
        return find(module, owner_path(path, leaf, module)) if isinstance(leaf, Tied) else leaf

    return map_entries(module, array)


class Call:
    """A call of a method of a model: what it was given, and what the Module adds to that."""

    key_name: str | None = None
    key: Any = None
    no_key: Exception | None = None

    def __init__(self, frame: Frame, model: Any, method: str, state: Any) -> None:
        self.frame, self.method, self.state = frame, method, state
        self.where = paths.name(frame.path)
        self.signature = _signature(model, method, self.where)
        self.model = model if frame.run.wanted is None else watched(model, self._hear)
        self.markers = None if state is None else state.tree_flatten()[1]
        self.state_name = None if state is None else _state_name(self.signature)

    def bind(self, args: Any, kwargs: Any) -> None:
        """Takes what the caller gives, and adds flag and key; raises ModelError where it misfits."""
        if _holds_state((args, kwargs)):
            raise ModelError(
                "a wrapped Equinox model keeps its eqx.nn.State itself; call it without one:"
                " out, module = module.apply(x)"
            )
        parameters = self.signature.parameters
        others = [parameters[name] for name in parameters if name != self.state_name]
        try:
            bound = self.signature.replace(parameters=others).bind_partial(*args, **kwargs)
            self.arguments = {**bound.arguments, **self._flags(bound.arguments)}
            self._find_key()
            full = self._completed(self.arguments, self.key, self.state)
            self.signature.bind(*full.args, **full.kwargs)
        except ModelError:
            raise
        except TypeError as error:
            raise self._refused(
                f"was called with other arguments: {error}. The Module gives a key to `key` or `rng`,"
                f" and its eqx.nn.State to `state` or to what is annotated as one; give everything"
                f" else in the call"
            ) from None

    def _flags(self, given: Mapping[str, Any]) -> dict[str, bool]:
        """The train flag that the mode means, in each spelling of the method, unless it was given."""
        names = [name for name in TRAIN_FLAGS if name in self.signature.parameters]
        said = [f"{name}={given[name]}" for name in names if name in given]
        if len(said) > 1:
            raise self._refused(f"was given the train flag twice, as {' and '.join(said)}; give one")
        if said:
            return {}
        if "inference" in names and "deterministic" in names:
            names.remove("deterministic")  # equinox.nn warns of it
        return {name: (self.frame.mode == "train") == TRAIN_FLAGS[name] for name in names}

    def _find_key(self) -> None:
        parameters = self.signature.parameters
        name = next((name for name in KEYS if name in parameters), None)
        if name is not None and name not in self.arguments:
            self.key_name = name
            self.key, self.no_key = key_or_none(self.frame)
            # Where None means something to the model, a call without any key means it as well.
            required = parameters[name].default is inspect.Parameter.empty
            if self.no_key is not None and (required or isinstance(self.no_key, TraceError)):
                self.key = Withheld(self.no_key)

    def refusal(self) -> Exception | None:
        """What to raise where the model wanted a key and got None; None if the caller gave that."""
        if any(name in self.signature.parameters for name in KEYS):
            return self.no_key
        return self._refused(
            "has no argument `key`, and draws random numbers; give it one, or give the key in the"
            " call as what the method takes for one"
        )

    def _completed(self, given: Mapping[str, Any], key: Any, state: Any) -> inspect.BoundArguments:
        own = {self.key_name: key, self.state_name: state}
        own.pop(None, None)
        return inspect.BoundArguments(self.signature, {**given, **own})  # type: ignore[arg-type]

    def alone(self) -> tuple[Any, Any, list[Any]]:
        """The output, the State after it if the method gave one, and what the parts gave."""
        return self._run(self.arguments, self.key, self.state)

    def mapped(self, axis: Any) -> tuple[Any, Any, list[Any]]:
        """The same for each example of a batch: a key for each, one State for all."""
        arrays, rest = eqx.partition(self.arguments, is_array)
        size = self._batch_size(arrays)
        keys = jax.random.split(self.key, size) if is_array(self.key) else None
        unmapped: list[Any] = []

        def single(arrays: Any, key: Any, state: Any) -> tuple[Any, Any]:
            given = eqx.combine(arrays, rest)
            out, after, heard = self._run(given, self.key if keys is None else key, state)
            mapped, other = eqx.partition((out, heard), eqx.is_array_like)
            unmapped.append(other)
            return mapped, after

        try:
            mapped, after = jax.vmap(single, (0, 0, None), (0, None), axis)(arrays, keys, self.state)
        except ValueError as error:
            if f"(axis_name={axis}) but out_axes is None" not in str(error):
                raise
            raise self._refused(
                f"gives another State for each example, and there is one for all: reduce what it sets,"
                f" jax.lax.pmean(value, {axis!r})"
            ) from None
        out, heard = eqx.combine(mapped, unmapped[-1])
        return out, after, heard

    def _batch_size(self, arrays: Any) -> int:
        keyed, _ = jax.tree_util.tree_flatten_with_path(arrays)
        shapes = {paths.join(segments(keys)): list(leaf.shape) for keys, leaf in keyed}
        sizes = {size for shape in shapes.values() for size in shape[:1] or [None]}
        if len(sizes) == 1 and None not in sizes:
            return sizes.pop()
        came = listed([f"{name}: {shape}" for name, shape in shapes.items()]) or "  no array"
        raise self._refused(
            f"maps axis 0 of every array, because of from_equinox(model, vmap=True); it was given\n"
            f"{came}\n"
            f"Give what all examples share a batch axis as well, jnp.broadcast_to(x, (batch,"
            f" *x.shape)), or wrap the model without vmap and map it in a bridge.Module:"
            f" bridge.vmap(self.model, in_axes=(0, None))"
        )

    def _run(self, given: Mapping[str, Any], key: Any, state: Any) -> tuple[Any, Any, list[Any]]:
        self.trace, self.heard = current_trace(), []
        bound = self._completed(given, key, state)
        out = getattr(self.model, self.method)(*bound.args, **bound.kwargs)
        after = None
        if self.state_name is not None:
            out, after = _split(out)
            self._check(out, after)
        return out, after, self.heard

    def _check(self, out: Any, after: Any) -> None:
        """Raises ModelError for a State after which nothing can go on."""
        if _holds_state(out):
            raise self._refused(
                "returns a State among other things, where its update would be lost; return one,"
                " beside the output: (out, state)"
            )
        try:
            markers = self.markers if after is None else after.tree_flatten()[1]
        except ValueError:
            raise self._refused(
                "returns an old eqx.nn.State, which state.set has replaced; return the last one"
            ) from None
        if markers != self.markers:
            raise self._refused(
                "returns a State of other entries than the one that it was given; put it back with"
                " state.update(substate)"
            )

    def _hear(self, path: paths.Path, out: Any) -> None:
        """Keeps the output of a part; one from another trace is refused if it was asked for."""
        out = eqx.filter(_split(out)[0], lambda leaf: not _is_state(leaf), is_leaf=_is_state)
        if self.trace == current_trace():
            self.heard.append((path, out))
        else:
            self.frame.record(path, out)

    def _refused(self, what: str) -> ModelError:
        parameters = [one.replace(annotation=one.empty) for one in self.signature.parameters.values()]
        spelled = f"{type(self.model).__name__}.{self.method}{inspect.Signature(parameters)}"
        return ModelError(f"{self.where}: {spelled} {what}")


def _signature(model: Any, method: str, name: str) -> inspect.Signature:
    """The signature of a method, through the wrappers of Equinox, which hide it on an instance."""
    target: Any = inspect.unwrap(model) if method == "__call__" else model
    owner = type(target)
    if not callable(target if method == "__call__" else getattr(owner, method, None)):
        raise ModelError(f"{name}: {owner.__name__} has no method {method!r}")
    if isinstance(inspect.getattr_static(owner, method), (staticmethod, classmethod)):
        target = getattr(owner, method)
    elif isinstance(target, eqx.Module):
        target = functools.partial(getattr(owner, method), target)
    try:
        return inspect.signature(target, eval_str=True)
    except (NameError, AttributeError, SyntaxError, TypeError):  # annotations for type checkers alone
        return inspect.signature(target)


def _state_name(signature: inspect.Signature) -> str | None:
    """The parameter for the State: by its annotation, or else by its name."""
    for name, parameter in signature.parameters.items():
        if eqx.nn.State in (parameter.annotation, *typing.get_args(parameter.annotation)):
            return name
    return STATE if STATE in signature.parameters else None


def _requires_state(model: Any) -> bool:
    """Whether a model without state is called with a State all the same."""
    signature = _signature(model, "__call__", "") if callable(model) else inspect.Signature()
    name = _state_name(signature)
    return name is not None and signature.parameters[name].default is inspect.Parameter.empty


def _split(out: Any) -> tuple[Any, Any]:
    """An output without the one State that is beside it, and that State or None."""
    if _is_state(out):
        return None, out
    found = [item for item in out if _is_state(item)] if type(out) in (tuple, list) else []
    if len(found) != 1:
        return out, None
    rest = type(out)(item for item in out if item is not found[0])
    return (rest[0] if len(rest) == 1 else rest), found[0]


def _is_state(value: Any) -> bool:
    return isinstance(value, eqx.nn.State)


def _holds_state(value: Any) -> bool:
    return any(map(_is_state, jax.tree.leaves(value, is_leaf=_is_state)))


def _no_axis(where: str, axis: Any, error: NameError) -> ModelError:
    name = str(error).partition("unbound axis name: ")[2].partition(".")[0]
    if axis is None:
        return ModelError(
            f"{where} averages over the axis {name!r} of a batch, which there is none of; wrap it"
            f" with from_equinox(model, vmap=True) and call it with batches"
        )
    return ModelError(
        f"{where} averages over the axis {name!r}, and that of its batch is called {axis!r}; name it:"
        f" from_equinox(model, vmap={name!r})"
    )


def wrap(model: Any, state: Any, vmap: bool | str) -> EquinoxModule:
    """A model, or the pair of a model and its State, as a Module."""
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], eqx.nn.State):
        if state is not None:
            raise ModelError(
                "from_equinox was given a state twice, in the pair (model, state) and as `state`;"
                " give it once"
            )
        model, state = model
    _check(model, vmap)
    model, state = with_state(model, state)
    if state is not None and not state.tree_flatten()[1] and not _requires_state(model):
        state = None
    holes = jax.tree.map(_hole, model)
    params = jax.tree.map(lambda leaf, hole: leaf if hole is Hole.PARAMETER else None, model, holes)
    buffers = jax.tree.map(lambda leaf, hole: leaf if hole is Hole.BUFFER else None, model, holes)
    kept = {BUFFERS: buffers} if state is None else {BUFFERS: buffers, STATE: state}
    return EquinoxModule(
        model=Opaque(Skeleton(holes)),
        params=Leaves.of(params),
        state=Leaves.of(kept, state_paths(kept, holes)),
        axis=axis_name(model) if vmap is True else vmap or None,
    )


def _hole(leaf: Any) -> Any:
    """What stands for a leaf in a Skeleton: itself, where it is no array."""
    if not (eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)):
        return leaf
    return Hole.PARAMETER if jnp.issubdtype(leaf.dtype, jnp.inexact) else Hole.BUFFER


def _check(model: Any, vmap: Any) -> None:
    name = type(model).__name__
    if isinstance(model, type) and issubclass(model, eqx.Module):
        raise ModelError(
            f"from_equinox was given the class {model.__name__}; give it a model:"
            f" from_equinox({model.__name__}(..., key=key))"
        )
    if isinstance(model, Node):
        raise ModelError(f"from_equinox was given what is a bridge.Module already: {name}")
    if not isinstance(model, eqx.Module):
        library = library_of(model)
        if library is not None:
            raise ModelError(
                f"from_equinox was given a {library} {name}; wrap it with bridge.wrap(model)"
            )
        raise ModelError(
            f"from_equinox takes an equinox.Module, or the pair (model, state) that"
            f" eqx.nn.make_with_state gives; it was given {model!r}"
        )
    if not isinstance(vmap, (bool, str)):
        raise ModelError(f"vmap is True, False, or the name of the axis of the batch; not {vmap!r}")
    problems = faults(model)
    if problems:
        raise ModelError(f"this {name} cannot be wrapped:\n{listed(problems)}")
