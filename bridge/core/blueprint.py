"""A Module as another library holds it: its arrays by collection and path, and all the rest."""

from __future__ import annotations

import collections
import functools
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import bridge.core.calling as calling
import bridge.core.paths as paths
from bridge.core.errors import ModelError, UninitialisedError, listed
from bridge.core.frames import Run
from bridge.core.kinds import BY_FIRST_KEY
from bridge.core.leaves import PLACEHOLDERS, Lazy, Leaves, ParamInit, Tied, segments
from bridge.core.node import map_children, rebuild
from bridge.core.paths import Path
from bridge.core.rng import Streams
from bridge.core.tree import Entry, entries, map_entries
from bridge.core.wrapped import Wrapped

PARAMS = "params"
RNGS = "rngs"


@dataclass(frozen=True)
class Place:
    """What one array of a Module is: its collection ("params", "rngs", or its state's), path and form.

    The path is that in the Module without the two fields of a wrapped model: the array at
    `encoder.params.Dense_0.kernel` is the param `encoder.Dense_0.kernel`, as in the model's own
    library. `trained` is False for what is frozen and for everything that is no parameter.
    """

    collection: str
    path: Path
    shape: tuple[int, ...]
    dtype: Any
    trained: bool

    def misfit(self, array: Any) -> str | None:
        """What is wrong with an array that is to stand here; None where it fits."""
        where = f"{self.collection}: {paths.join(self.path)}"
        wanted = f"the Module has {self.dtype}{list(self.shape)}"
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            return f"{where}: missing; {wanted}"
        # Another precision is the caller's choice, another kind of number a mistake.
        if tuple(array.shape) == self.shape and _family(array.dtype) is _family(self.dtype):
            return None
        return f"{where}: is {array.dtype}{list(array.shape)}; {wanted}"


_FAMILIES = (jax.dtypes.prng_key, jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def _family(dtype: Any) -> Any:
    return next((family for family in _FAMILIES if jnp.issubdtype(dtype, family)), dtype)


class Outcome(typing.NamedTuple):
    """What a call gives: its output, each array that it has changed by number, and what it captured."""

    out: Any
    changes: dict[int, Any]
    captured: dict[str, Any]


@dataclass(frozen=True, repr=False)
class Blueprint:
    """A Module without its arrays, and what each of them is, in the order of `jax.tree.leaves`."""

    treedef: Any
    places: tuple[Place, ...]

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Blueprint of a {type(self.skeleton).__name__}"

    @functools.cached_property
    def _hash(self) -> int:
        """Kept, because a library that has the blueprint among its statics hashes it at each call."""
        return hash((self.treedef, self.places))

    @classmethod
    def of(cls, module: Any) -> Blueprint:
        """The blueprint of a Module; raises UninitialisedError with every path that has no array."""
        lazy = [paths.name(e.path) for e in entries(module) if is_unmade(e.value)]
        if lazy:
            raise UninitialisedError(
                f"{', '.join(lazy)}: not initialised, so there is nothing to hand over; type"
                f" module = module.init(key, *sample) first"
            )
        return cls.reached(module)

    @classmethod
    def reached(cls, module: Any) -> Blueprint:
        """The blueprint of a Module in which what `init` has still to make stays as it is."""
        known = {entry.path: entry for entry in entries(module)}
        keyed, treedef = jax.tree_util.tree_flatten_with_path(module)
        places = tuple(_place(segments(keys), leaf, known.get(segments(keys))) for keys, leaf in keyed)
        seen = collections.Counter((place.collection, place.path) for place in places)
        twice = [f"{name}: {paths.join(path)}" for (name, path), times in seen.items() if times > 1]
        if twice:
            raise ModelError(f"two arrays of the Module would have one name:\n{listed(twice)}")
        return cls(treedef, places)

    @functools.cached_property
    def skeleton(self) -> Any:
        """The Module with the shape and dtype of each array in its place."""
        forms = [jax.ShapeDtypeStruct(place.shape, place.dtype) for place in self.places]
        return jax.tree.unflatten(self.treedef, forms)

    def module(self, leaves: Iterable[Any]) -> Any:
        """The Module with these arrays, in the order of `places`."""
        return jax.tree.unflatten(self.treedef, list(leaves))

    def trees(self, leaves: Iterable[Any]) -> dict[str, dict[str, Any]]:
        """The arrays as nested dicts by path, under their collections."""
        trees: dict[str, dict[str, Any]] = {}
        for place, leaf in zip(self.places, leaves, strict=True):
            at = trees.setdefault(place.collection, {})
            for segment in place.path[:-1]:
                at = at.setdefault(segment, {})
            at[place.path[-1]] = leaf
        return trees

    def leaves(self, trees: Mapping[str, Any]) -> list[Any]:
        """The arrays of nested dicts, in the order of `places`; raises ModelError where one misfits."""
        return self.fitting(self.found(trees))

    def found(self, trees: Mapping[str, Any]) -> list[Any]:
        """What nested dicts have in each of the `places`, None where nothing is."""
        return [_found(trees.get(p.collection, {}), p.path) for p in self.places]

    def fitting(self, leaves: Sequence[Any]) -> list[Any]:
        """The given arrays; raises ModelError with each that is missing, or of another form."""
        pairs = zip(self.places, leaves, strict=True)
        problems = [problem for place, leaf in pairs if (problem := place.misfit(leaf)) is not None]
        _refuse(self.skeleton, problems)
        return list(leaves)

    def run(
        self,
        leaves: Sequence[Any],
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        rng: Streams | None,
        mode: str | None,
        wanted: Sequence[str] | None = None,
    ) -> Outcome:
        """What a method gives; `wanted` are the outputs of parts to capture, by path.

        What is frozen gets no gradient, whoever trains it.
        """
        pairs = zip(self.places, leaves, strict=True)
        module = self.module(
            jax.lax.stop_gradient(leaf) if place.collection == PARAMS and not place.trained else leaf
            for place, leaf in pairs
        )
        call = Run(module, wanted=wanted)
        out, after = calling.apply(module, args, kwargs, rng=rng, mode=mode, method=method, run=call)
        if after is module:
            return Outcome(out, {}, call.captured)
        new = enumerate(zip(jax.tree.leaves(module), jax.tree.leaves(after), strict=True))
        changes = {number: leaf for number, (old, leaf) in new if leaf is not old}
        return Outcome(out, changes, call.captured)


def _place(path: Path, leaf: Any, entry: Entry | None) -> Place:
    """The place of a leaf; an attached key is no field of the Module, so it has no entry."""
    form = tuple(leaf.shape), leaf.dtype
    if entry is None:
        return Place(RNGS, path, *form, trained=False)
    collection = {"parameter": PARAMS, "key": RNGS}.get(entry.kind.name, entry.kind.collection)
    if collection == PARAMS and entry.kind.name == "state":
        raise ModelError(
            f"{paths.join(path)} is a state in the collection {PARAMS!r}, where a library keeps what it"
            f" trains; declare it with another name: bridge.collection(...)"
        )
    field, *below = entry.within
    if isinstance(entry.node, Wrapped) and field in ("params", "state"):
        if field == "state" and type(entry.node)._fields[field].kind.collection == BY_FIRST_KEY:
            below = below[1:]
        path = (*path[: len(path) - len(entry.within)], *below)
    return Place(str(collection), path, *form, trained=entry.trained)


class Held:
    """A Module as an attribute of another library's model, and no pytree there.

    Two are equal whose structure is equal and whose arrays are the same objects: a library may take
    the one for the other, and gives out these arrays in its `init`.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.lazy = any(is_unmade(entry.value) for entry in entries(module))
        self._leaves, self._treedef = jax.tree.flatten(module)

    def __hash__(self) -> int:
        return hash(self._treedef)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held) or self._treedef != other._treedef:
            return False
        return all(own is its for own, its in zip(self._leaves, other._leaves, strict=True))

    def __reduce__(self) -> Any:
        return Held, (self.module,)

    @functools.cached_property
    def blueprint(self) -> Blueprint:
        """The blueprint of the Module, where it is initialised."""
        return Blueprint.of(self.module)

    def fitted(self, trees: Mapping[str, Any]) -> tuple[Blueprint, list[Any]]:
        """The blueprint and its arrays of nested dicts, which also say what is not made here yet.

        Raises ModelError where an array is missing or of another form.
        """
        if not self.lazy:
            return self.blueprint, self.blueprint.leaves(trees)
        module = filled(self.module, trees)
        blueprint = Blueprint.of(module)
        return blueprint, blueprint.leaves(trees)

    def __repr__(self) -> str:
        return type(self.module).__name__


def is_unmade(value: Any) -> bool:
    """Whether `init` has still to make what stands here."""
    return isinstance(value, PLACEHOLDERS) and not isinstance(value, Tied)


def filled(module: Any, trees: Mapping[str, Any]) -> Any:
    """The Module with everything that `init` would make taken from nested dicts by collection."""

    def visit(path: Path, node: Any) -> Any:
        changes = map_children(node, visit, path)
        if isinstance(node, Wrapped) and isinstance(node.params, Lazy):
            changes["params"] = Leaves.of(_found(trees.get(PARAMS, {}), path) or {})
            changes["state"] = Leaves.of(_states(node, trees, path))
        return rebuild(node, **changes)

    module = visit((), module)
    made: dict[Path, Any] = {}
    problems: list[str] = []
    for entry in entries(module):
        if isinstance(entry.value, ParamInit):
            place = _place(entry.path, entry.value, entry)
            made[entry.path] = _found(trees.get(place.collection, {}), place.path)
            problems.append(place.misfit(made[entry.path]) or "")
    _refuse(module, [problem for problem in problems if problem])
    return map_entries(module, lambda path, leaf: made.get(path, leaf))


def _states(node: Any, trees: Mapping[str, Any], path: Path) -> Any:
    """The state of a wrapped model, from every collection that has something at its path."""
    collection = type(node)._fields["state"].kind.collection
    if collection != BY_FIRST_KEY:
        return _found(trees.get(collection, {}), path) or {}
    found = {name: _found(tree, path) for name, tree in trees.items() if name != PARAMS}
    return {name: tree for name, tree in found.items() if tree is not None}


def _refuse(module: Any, problems: Sequence[str]) -> None:
    if problems:
        raise ModelError(
            f"these arrays do not fit the {type(module).__name__}:\n{listed(problems)}\n"
            f"Give it what its own init makes"
        )


def _found(tree: Any, path: Path) -> Any:
    for segment in path:
        if not isinstance(tree, Mapping) or segment not in tree:
            return None
        tree = tree[segment]
    return tree
