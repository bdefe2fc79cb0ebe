"""A Flax NNX module as a Module."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import flax.errors
from flax import nnx

import bridge.adapters.nnx._layers as parts
import bridge.core.paths as paths
from bridge.adapters.nnx._layers import PARAMS
from bridge.core.errors import (
    BridgeError,
    MissingRngError,
    ModelError,
    SharingError,
    StructureError,
    TraceError,
    listed,
)
from bridge.core.flags import TRAIN_FLAGS, flagged
from bridge.core.forwarding import told_apart
from bridge.core.frames import Frame, current_trace
from bridge.core.leaves import Leaves, Tied
from bridge.core.libraries import library_of
from bridge.core.module import plain
from bridge.core.node import Node, put
from bridge.core.opaque import Opaque
from bridge.core.paths import Path
from bridge.core.reseeding import Stream, lent, seeds
from bridge.core.rng import DEFAULT
from bridge.core.tree import find
from bridge.core.wrapped import Wrapped, parameter_names, takes_flag

# flax/nnx/rnglib.py, Rngs._get_stream; flax/nnx/nn, of what was made without rngs
_NO_STREAM = re.compile(r"No RngStream named '(.*?)' found in Rngs")
_NO_RNGS = re.compile(r"no `rngs` argument was provided|'rngs' must be provided")
# The first class of Flax's own errors that fits, what it is here, and what to do.
_ADVICE = (
    (
        flax.errors.TraceContextError,
        TraceError,
        "A JAX transform inside the method (jax.lax.scan, jax.vmap, jax.checkpoint, jax.jit) would"
        " repeat or lose that; use nnx.scan, nnx.vmap, nnx.remat or nnx.jit there",
    ),
    (
        flax.errors.FlaxError,
        ModelError,
        "A Linen module in nnx.bridge.ToNNX has variables after nnx.bridge.lazy_init(model, *sample),"
        ' and changes those of the collections that its call names: mutable=["batch_stats"]',
    ),
)


@dataclass(frozen=True)
class Blueprint:
    """An NNX module without its arrays, in both modes.

    `places` are the collection and the path of each leaf, in the order of the graph; `gone` the names
    of the Intermediates that the module had; `mutable` says whether lists, dicts or sets are among its
    attributes.
    """

    train: nnx.GraphDef[Any]
    eval: nnx.GraphDef[Any]
    places: tuple[tuple[str, Path], ...]
    streams: tuple[Stream, ...]
    gone: frozenset[str] = field(compare=False, repr=False)
    mutable: bool = field(compare=False, repr=False)

    def graph(self, mode: str) -> nnx.GraphDef[Any]:
        """The module's structure in a mode."""
        return self.train if mode == "train" else self.eval

    def model(self, mode: str, leaves: Sequence[Any]) -> Any:
        """A new NNX module with these arrays; what else can be changed in it is its own."""
        model = nnx.merge(self.graph(mode), list(leaves))
        if self.mutable:
            parts.part_containers(model)
        return model

    def leaves(self, params: Any, state: Mapping[str, Any]) -> list[Any]:
        """The values of the Variables, in the order of the graph."""
        trees = {PARAMS: params, **state}
        return [functools.reduce(operator.getitem, path, trees[name]) for name, path in self.places]

    def trees(self, leaves: Iterable[Any]) -> tuple[Any, dict[str, Any]]:
        """Params, and the other collections, of the values of the Variables."""
        trees: dict[str, Any] = {PARAMS: {}}
        for (collection, path), leaf in zip(self.places, leaves, strict=True):
            at = trees.setdefault(collection, {})
            for segment in path[:-1]:
                at = at.setdefault(segment, {})
            at[path[-1]] = leaf
        return trees.pop(PARAMS), trees


def _form_of(blueprint: Blueprint) -> Any:
    graphs = parts.form_of(blueprint.train), parts.form_of(blueprint.eval)
    return graphs, blueprint.places, blueprint.streams


class NnxModule(Wrapped):
    """An NNX module: params and state are the values of its Variables, by type and path.

    In a call with an explicit rng, a method that takes `rngs` is given an nnx.Rngs of it unless the
    caller gives one, and the module's own random streams start from it. Else they draw and advance.
    """

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of a method of the module, merged for this call, and its state after it."""
        blueprint, own = self._parts()
        keys = _lent(frame, self.model_class(), method)
        planted = list(seeds(frame, blueprint.streams, own, alone=keys is None))
        leaves = list(own)
        for seed in planted:
            seed.plant(leaves)
        call = Call(frame, blueprint, method, args, kwargs, keys, frame.run.wanted is not None)
        out, values = call.run(leaves)
        # The sign of nnx.jit or nnx.remat inside, which give new arrays for all that they are given.
        if any(values[n] is not leaves[n] for n, at in enumerate(blueprint.places) if at[0] == PARAMS):
            values = told_apart(call.again, leaves, values)
        for seed in planted:
            seed.restore(own, values)
        params, state = blueprint.trees(values)
        self._keep_params(frame, params)
        return out, state

    @plain
    def _keep_params(self, frame: Frame, params: Any) -> None:
        """Keeps the parameters that a call has assigned, as where a layer normalises its weights."""
        before: Any = self.params
        after = before.replace(params)
        if all(new is old for new, old in zip(after.values, before.values, strict=False)):
            return
        where, held = paths.name(frame.path), find(frame.run.root, frame.path).params
        if any(isinstance(value, Tied) for value in held.values):
            raise SharingError(
                f"{where} assigns parameters in a call, and has others that bridge.tie has tied, which"
                f" would part; share one nnx.Param in the NNX module instead"
            )
        if frame.run.trace != current_trace():
            raise TraceError(
                f"{where} assigns its parameters inside a transform, through which only state is"
                f" carried; call it outside of one, or make a Variable of what it assigns"
            )
        put(self, {"params": after})
        frame.written.add("params")
        frame.run.changes = True

    @plain
    def native(self) -> nnx.Module:
        """A new NNX module with the arrays of this one, in this one's mode."""
        blueprint, own = self._parts()
        model = blueprint.model(self.mode, own)
        parts.sow_again(model)
        return model

    def _parts(self) -> tuple[Blueprint, list[Any]]:
        blueprint: Blueprint = self.model.value
        return blueprint, blueprint.leaves(self.params.tree(), self.state.tree())  # type: ignore[attr-defined]

    @plain
    def model_class(self) -> type:
        """The class of the wrapped module."""
        return self.model.value.train.nodes[0].type


@dataclass(frozen=True)
class Call:
    """One call of a method: all that it takes but the arrays of the module.

    `keys` are those of the call's rng, by stream, where the method takes `rngs`, and None where it does
    not. `listening` says whether the parts keep what they put out.
    """

    frame: Frame
    blueprint: Blueprint
    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keys: Mapping[str, Any] | None
    listening: bool

    def run(self, leaves: Sequence[Any]) -> tuple[Any, list[Any]]:
        """The output, and the values of the Variables after the call."""
        model = self.blueprint.model(self.frame.mode, leaves)
        method = getattr(model, self.method)
        args, kwargs = self._completed(model, method)
        graph = parts.listen(model) if self.listening else self.blueprint.graph(self.frame.mode)
        with self._translated():
            out = method(*args, **kwargs)
        if self.listening:
            parts.record(self.frame, model)
        return out, self._values(model, graph, leaves)

    def again(self, leaves: Sequence[Any]) -> list[Any]:
        """The values of the Variables after the same call under another trace."""
        args, kwargs = nnx.clone(
            (self.args, dict(self.kwargs))
        )  # a caller's nnx.Rngs has its own trace
        return dataclasses.replace(self, args=args, kwargs=kwargs, listening=False).run(leaves)[1]

    def _completed(self, model: nnx.Module, method: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with those that the caller leaves to the mode and to the rng of the call."""
        args, kwargs = self._flagged(model, method)
        if self.keys is None or "rngs" in kwargs:
            return args, kwargs
        parameters = inspect.signature(method).parameters
        if "rngs" in list(parameters)[: len(args)]:
            return args, kwargs
        if self.frame.streams is not None and self.frame.streams.keys:
            return args, {**kwargs, "rngs": nnx.Rngs(self.keys)}
        if "rngs" in parameters and parameters["rngs"].default is inspect.Parameter.empty:
            self.frame.key(DEFAULT)  # raises: the method cannot do without
        return args, kwargs

    def _flagged(self, model: nnx.Module, method: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the train flag that the mode means, where nothing else says it."""
        holder, function = model, method
        if isinstance(model, nnx.bridge.ToNNX):  # its flag is that of the Linen module which it holds
            holder, function = model.to_nnx__module, self.kwargs.get("method") or "__call__"
            function = function if callable(function) else getattr(holder, function)
        if not takes_flag(function):
            return self.args, dict(self.kwargs)
        said = {name: getattr(holder, name, None) for name in TRAIN_FLAGS}
        # `train` is a method of every NNX module, and says nothing.
        said = {name: value for name, value in said.items() if not callable(value)}
        flags = SimpleNamespace(**{**said, self.method: function})
        where, training = paths.name(self.frame.path), self.frame.mode == "train"
        return flagged(where, flags, self.method, self.args, self.kwargs, training)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns NNX's own errors into ones that say where and what to do."""
        try:
            yield
        except (flax.errors.FlaxError, AttributeError, KeyError, TypeError, ValueError) as error:
            refusal = self._refusal(error, f"{paths.name(self.frame.path)}, {self.method}")
            if refusal is None:
                raise
            raise refusal from None

    def _refusal(self, error: Exception, where: str) -> BridgeError | None:
        """The error that tells of one of NNX's, None for an error of the model's own."""
        text = str(error).partition(" (https://")[0].rstrip(".")
        if self.listening and (parts.HEARD in text or f" {parts.Heard.__name__} " in text):
            return TraceError(
                f"{where}: a part runs inside a transform where its output cannot be captured: one of"
                f" JAX, or an nnx.vmap or nnx.scan that has the same part for every step; return it"
            )
        if isinstance(error, flax.errors.FlaxError):
            known, advice = next((k, a) for cls, k, a in _ADVICE if isinstance(error, cls))
            return known(f"{where}: {text}. {advice}")
        if isinstance(error, AttributeError) and error.name in self.blueprint.gone:
            return ModelError(
                f"{where}: {error.name} is an nnx.Intermediate, and no call keeps one: what is assigned"
                f" there goes to module.capture. Make it a Variable of another type to keep it, or"
                f" assign a new nnx.Intermediate there"
            )
        found = _NO_STREAM.search(text)
        if found or _NO_RNGS.search(text):
            return self._missing(found[1] if found else "dropout", where)
        return None

    def _missing(self, stream: str, where: str) -> MissingRngError:
        """The error for a draw from a stream that is not there."""
        take = f"; or let its {self.method} take `rngs` and hand it on"
        if self.keys is not None:
            take = ""
            self.frame.key(stream)  # raises where the call does not have it either
        return MissingRngError(
            f"{where}: draws from the stream {stream!r}, which the model does not have: make it with"
            f" nnx.Rngs({stream}=...), or with nnx.Rngs(key) to serve every stream{take}"
        )

    def _values(self, model: Any, graph: nnx.GraphDef[Any], leaves: Sequence[Any]) -> list[Any]:
        """The values of the Variables; raises StructureError where a call has changed anything else."""
        after, variables = nnx.flatten(model)
        if after != graph:
            for keys, value in nnx.to_flat_state(nnx.pop(model, nnx.Intermediate)):
                if self.listening:
                    name, path = parts.place(keys, value)
                    self.frame.record((name, *path), value.get_value())
            parts.pass_sown_by(model)  # an nnx.capture in the method has ended that
            after, variables = nnx.flatten(model)
        if after != graph:
            before = self.blueprint.model(self.frame.mode, leaves)
            raise StructureError(
                f"{paths.name(self.frame.path)} is another NNX module after the call than before:\n"
                + listed(parts.differences(before, model))
                + "\nMake each Variable in __init__, and keep in Variables what changes from call to"
                " call"
            )
        return [parts.raw(value) for _, value in variables if not isinstance(value, parts.Heard)]


def _lent(frame: Frame, cls: type, method: str) -> dict[str, Any] | None:
    """The keys of the call by stream for a method that takes `rngs`; None for one that does not."""
    function = getattr(cls, method)
    # What is missing there is an error of NNX's when it is drawn from, and that says why.
    return lent(frame) if "rngs" in parameter_names(function) or _hands_on(cls, function) else None


def _hands_on(cls: type, function: Any) -> bool:
    """Whether a method of a Sequential hands what it is given by name on to the parts."""
    if not issubclass(cls, nnx.Sequential):
        return False
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def wrap(module: Any) -> NnxModule:
    """An NNX module as a Module; raises ModelError for anything else."""
    _refuse(module)
    copy = nnx.clone(module)
    gone = nnx.to_flat_state(nnx.pop(copy, nnx.Intermediate))
    mutable = parts.part_containers(copy)
    parts.pass_sown_by(copy)
    (train, others), (evaluated, variables) = (_in_mode(copy, mode) for mode in ("train", "eval"))
    problems = parts.faults(copy, variables)
    if [keys for keys, _ in variables] != [keys for keys, _ in others]:
        problems.append("train() and eval() change which Variables it has; make them all in __init__")
    if problems:
        raise ModelError(f"this {type(module).__name__} cannot be wrapped:\n{listed(problems)}")
    blueprint = Blueprint(
        train=train,
        eval=evaluated,
        places=tuple(parts.place(keys, value) for keys, value in variables),
        streams=tuple(parts.streams(variables)),
        gone=frozenset(str(keys[-1]) for keys, _ in gone),
        mutable=mutable,
    )
    params, state = blueprint.trees(parts.raw(value) for _, value in variables)
    opaque = Opaque(blueprint, _form_of)
    return NnxModule(opaque, Leaves.of(params), Leaves.of(state), parts.layers(copy))


def _refuse(module: Any) -> None:
    """Raises ModelError for what is no NNX module, with what to type instead."""
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    if isinstance(module, type) and issubclass(module, nnx.Module):
        raise ModelError(
            f"from_nnx was given the class {name}; make it first:"
            f" from_nnx({name}(..., rngs=nnx.Rngs(0)))"
        )
    if isinstance(module, Node):
        raise ModelError(f"from_nnx was given a {name}, which is a bridge.Module already")
    if not isinstance(module, nnx.Module):
        foreign = library_of(module) and not isinstance(module, nnx.Pytree)
        fix = "; wrap it with bridge.wrap(model)" if foreign else ""
        raise ModelError(f"from_nnx takes a flax.nnx.Module; it was given a {name}{fix}")


def _in_mode(model: nnx.Module, mode: str) -> tuple[nnx.GraphDef[Any], list[Any]]:
    """A model's structure, and its Variables and arrays by key, after its own `train` or `eval`."""
    method = getattr(model, mode)
    if callable(method):
        method()
    else:  # an attribute of the model's own has that name
        getattr(nnx.Module, mode)(model)
    graph, variables = nnx.flatten(model)
    return graph, list(variables)
