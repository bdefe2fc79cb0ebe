"""A Flax NNX module as a Module."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import bridge.core.paths as paths
from bridge.adapters.nnx._layers import layers
from bridge.core.errors import ModelError, StructureError, listed
from bridge.core.frames import Frame
from bridge.core.leaves import Leaves
from bridge.core.module import plain
from bridge.core.node import Node
from bridge.core.paths import Path, fingerprint
from bridge.core.rng import call_key
from bridge.core.wrapped import Opaque, Wrapped, key_or_none, library_of, unsaid_flags

PARAMS = "params"
INTERMEDIATES = "intermediates"
ARRAYS = "arrays"
RNGS = "rngs"


class Output(nnx.Variable):
    """What a method of a part returned, while `capture` listens."""


@dataclass(frozen=True)
class Stream:
    """A random stream of a module: its name, its path, and which leaves its key and count are."""

    name: str
    path: Path
    key: int
    count: int


@dataclass(frozen=True)
class Blueprint:
    """An NNX module without its arrays, in both modes.

    `places` are the collection and the path of each leaf, in the order of the graph.
    """

    train: nnx.GraphDef[Any]
    eval: nnx.GraphDef[Any]
    places: tuple[tuple[str, Path], ...]
    streams: tuple[Stream, ...]

    def graph(self, mode: str) -> nnx.GraphDef[Any]:
        """The module's structure in a mode."""
        return self.train if mode == "train" else self.eval

    def leaves(self, params: Any, state: Mapping[str, Any]) -> list[Any]:
        """The values of the Variables, in the order of the graph."""
        trees = {PARAMS: params, **state}
        return [functools.reduce(operator.getitem, path, trees[name]) for name, path in self.places]

    def trees(self, leaves: Iterable[Any]) -> tuple[Any, dict[str, Any]]:
        """Params, and the other collections, of the values of the Variables."""
        trees: dict[str, Any] = {PARAMS: {}}
        for (collection, path), leaf in zip(self.places, leaves, strict=True):
            if not path:
                trees[collection] = leaf
                continue
            at = trees.setdefault(collection, {})
            for segment in path[:-1]:
                at = at.setdefault(segment, {})
            at[path[-1]] = leaf
        return trees.pop(PARAMS), trees


class NnxModule(Wrapped):
    """An NNX module: params and state are the values of its Variables, by type and path."""

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of a method of the module, merged for this call, and its state after it."""
        blueprint, own = self._parts()
        graph = blueprint.graph(frame.mode)
        seeds = list(_seeds(frame, blueprint.streams, own))
        leaves = list(own)
        for seed in seeds:
            leaves[seed.stream.key], leaves[seed.stream.count] = seed.key, seed.count
        model = nnx.merge(graph, leaves)
        kwargs = {**kwargs, **unsaid_flags(model, method, args, kwargs, frame.mode == "train")}
        out = _called(frame, model, method, args, kwargs)
        graph_after, values = nnx.graphlib.flatten(model, with_paths=False)
        if graph_after != graph:
            raise _other_graph(frame, graph, model, blueprint)
        after = list(values)
        for seed in seeds:
            seed.restore(own, after)
        return out, blueprint.trees(after)[1]

    @plain
    def native(self) -> nnx.Module:
        """A new NNX module with the arrays of this one, in this one's mode."""
        blueprint, own = self._parts()
        return nnx.merge(blueprint.graph(self.mode), own)

    def _parts(self) -> tuple[Blueprint, list[Any]]:
        blueprint: Blueprint = self.model.value
        return blueprint, blueprint.leaves(self.params.tree(), self.state.tree())  # type: ignore[attr-defined]

    @plain
    def model_class(self) -> type:
        """The class of the wrapped module."""
        return self.model.value.train.nodes[0].type


@dataclass(frozen=True)
class Seed:
    """What a stream starts from in one call; `refusal` is raised if it is drawn from.

    A stream that the call's rng serves comes back as it was, any other one keeps its count.
    """

    stream: Stream
    key: Any
    count: Any
    served: bool = False
    refusal: Exception | None = None

    def restore(self, own: list[Any], after: list[Any]) -> None:
        """Puts the module's own key, and the count of a served stream, back among the leaves."""
        count = self.stream.count
        if self.refusal is not None and after[count] is not self.count:
            raise self.refusal
        after[self.stream.key] = own[self.stream.key]
        if self.served:
            after[count] = own[count]


def _seeds(frame: Frame, streams: tuple[Stream, ...], own: list[Any]) -> Iterator[Seed]:
    """How the streams of a call differ from the module's own."""
    given = set() if frame.streams is None else set(frame.streams.keys)
    for stream in streams:
        key, count = own[stream.key], own[stream.count]
        if given & {stream.name, "default"}:
            new, refusal = key_or_none(frame, stream.name)
            if refusal is not None:
                yield Seed(stream, key, count, served=True, refusal=refusal)
                continue
            if len(streams) > 1:
                new = jax.random.fold_in(new, fingerprint(stream.path))
            yield Seed(stream, _like(new, key), jnp.zeros_like(count), served=True)
        elif frame.lifts:
            # Each step of a lifted transform draws other keys, from the module's own stream as well.
            yield Seed(stream, _like(call_key(_first(key), (), 0, frame.lifts), key), count)


def _first(key: Any) -> Any:
    """One key of a stream, which has several inside of the library's own transforms."""
    return key.ravel()[0] if key.shape else key


def _like(new: Any, key: Any) -> Any:
    """A typed key in the place of a stream's, split where the stream has several."""
    if not jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        new = jax.random.wrap_key_data(new)
    return jax.random.split(new, key.shape) if key.shape else new


def _called(frame: Frame, model: nnx.Module, method: str, args: Any, kwargs: Any) -> Any:
    """The output of a method; what is sown goes to `capture` and is otherwise dropped."""

    def call(model: nnx.Module) -> Any:
        return getattr(model, method)(*args, **kwargs)

    if frame.run.wanted is None:
        return nnx.capture(call)(model)
    listening = nnx.capture(call, nnx.Intermediate, Output, method_outputs=Output)
    out, *captured = listening(model)
    sown, outputs = captured
    for (*part, name), values in nnx.to_flat_state(outputs):
        if part and name == "__call__":
            for value in values.get_value():
                frame.record(_segments(part), value)
    for path, value in nnx.to_flat_state(sown):
        frame.record((INTERMEDIATES, *_segments(path)), value.get_value())
    return out


def _other_graph(
    frame: Frame, before: nnx.GraphDef[Any], model: nnx.Module, blueprint: Blueprint
) -> StructureError:
    """The error for a call that changed more than the values of Variables."""
    after, leaves = nnx.graphlib.flatten(model)
    old, new = set(blueprint.places), {_place(path, leaf) for path, leaf in leaves}
    problems = [f"{_spelled(place)}: made by the call" for place in sorted(new - old)]
    problems += [f"{_spelled(place)}: gone after the call" for place in sorted(old - new)]
    if not problems:
        was, now = _attributes(before), _attributes(after)
        changed = [name for name in now if now[name] != was.get(name)]
        problems = [f"{name}: is no Variable and was assigned" for name in changed]
    return StructureError(
        f"{paths.name(frame.path)} is another NNX module after the call than before:\n"
        + listed(problems)
        + "\nMake each Variable in __init__, and keep in Variables what changes from call to call"
    )


def _attributes(graph: nnx.GraphDef[Any]) -> dict[str, list[Any]]:
    """The attributes of all modules by name, those that NNX keeps for itself left out."""
    found: dict[str, list[Any]] = {}
    for name, value in graph.attributes:
        if not str(name).startswith("_"):
            found.setdefault(str(name), []).append(value)
    return found


def _spelled(place: tuple[str, Path]) -> str:
    collection, path = place
    return paths.join(path if collection == PARAMS else ("state", collection, *path))


def wrap(module: Any) -> NnxModule:
    """An NNX module as a Module; raises ModelError for anything else."""
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    if isinstance(module, type) and issubclass(module, nnx.Module):
        raise ModelError(
            f"from_nnx was given the class {name}; make it first:"
            f" from_nnx({name}(..., rngs=nnx.Rngs(0)))"
        )
    if isinstance(module, Node):
        raise ModelError(f"from_nnx was given a {name}, which is a bridge.Module already")
    if not isinstance(module, nnx.Module):
        fix = "; wrap it with bridge.wrap(model)" if library_of(module) else ""
        raise ModelError(f"from_nnx takes a flax.nnx.Module; it was given a {name}{fix}")
    copy = nnx.clone(module)
    nnx.pop(copy, nnx.Intermediate)
    _, variables = nnx.graphlib.flatten(copy)
    leaves = [value.get_raw_value() if _is_variable(value) else value for _, value in variables]
    blueprint = Blueprint(
        train=_in_mode(copy, "train"),
        eval=_in_mode(copy, "eval"),
        places=tuple(_place(path, value) for path, value in variables),
        streams=tuple(_streams(variables)),
    )
    params, state = blueprint.trees(leaves)
    return NnxModule(Opaque(blueprint), Leaves.of(params), Leaves.of(state), layers(copy))


def _in_mode(model: nnx.Module, mode: str) -> nnx.GraphDef[Any]:
    getattr(model, mode)()
    return nnx.graphdef(model)


def _place(path: Iterable[Any], value: Any) -> tuple[str, Path]:
    return _collection(value), _segments(path)


def _segments(path: Iterable[Any]) -> Path:
    return tuple(str(key) for key in path)


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


def _collection(value: Any) -> str:
    """The collection of a leaf, as Flax names the type of its Variable."""
    if not _is_variable(value):
        return ARRAYS
    if isinstance(value, nnx.Param):
        return PARAMS
    if isinstance(value, nnx.RngState):
        return RNGS
    try:
        return nnx.variablelib.variable_name_from_type(type(value))
    except ValueError:  # a type of the user's own that has no registered name
        return type(value).__name__


def _streams(variables: Iterable[tuple[Any, Any]]) -> Iterator[Stream]:
    variables = list(variables)
    numbers = {_segments(path): number for number, (path, _) in enumerate(variables)}
    for path, value in variables:
        *parent, name = _segments(path)
        if isinstance(value, nnx.RngKey) and (*parent, "count") in numbers:
            yield Stream(value.tag, tuple(parent), numbers[*parent, name], numbers[*parent, "count"])
