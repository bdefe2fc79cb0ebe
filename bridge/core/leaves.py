"""What may stand where an array stands: arrays to be made, tied arrays, and flat bundles of arrays."""

from __future__ import annotations

import dataclasses
import operator
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from bridge.core.errors import FieldError, ImmutableError
from bridge.core.paths import Path


@dataclasses.dataclass(frozen=True, init=False)
class ParamInit:
    """An array to be made by `init`: its shape, its initializer and its dtype.

    `initializer` is called as those of `jax.nn.initializers`: `initializer(key, shape, dtype)`.
    """

    shape: tuple[int, ...]
    initializer: Callable[..., jax.Array]
    dtype: Any

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        """Any, for a type checker: a ParamInit stands in fields that are annotated as arrays."""
        return super().__new__(cls)

    def __init__(
        self,
        shape: Iterable[int],
        initializer: Callable[..., jax.Array],
        dtype: Any = jnp.float32,
    ) -> None:
        if not isinstance(shape, Iterable) or not callable(initializer):
            raise FieldError(
                f"ParamInit takes a shape and an initializer: ParamInit((3, 5),"
                f" jax.nn.initializers.zeros); it was given {shape!r} and {initializer!r}"
            )
        object.__setattr__(self, "shape", tuple(int(size) for size in shape))
        object.__setattr__(self, "initializer", initializer)
        object.__setattr__(self, "dtype", np.dtype(dtype))

    def make(self, key: jax.Array) -> jax.Array:
        """The array, drawn with `key`; raises FieldError where the initializer makes another one."""
        array = as_array(self.initializer(key, self.shape, self.dtype), "what the initializer made")
        if array.shape != self.shape or array.dtype != self.dtype:
            raise FieldError(
                f"the initializer {self.initializer!r} made {array.dtype}{list(array.shape)};"
                f" ParamInit asked for {self.dtype}{list(self.shape)}"
            )
        return array


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Stands for a tree of arrays that `init` makes from the inputs which reach the module."""


@dataclasses.dataclass(frozen=True)
class Tied:
    """Stands for an array that is kept elsewhere: climb `up` levels, then go down `path`."""

    up: int
    path: Path


LAZY: Any = Lazy()
"""What a field holds whose first value `init` makes of what reaches the module; see `Module.fill`."""
PLACEHOLDERS = (ParamInit, Lazy, Tied)

for _placeholder in PLACEHOLDERS:
    jax.tree_util.register_pytree_node(
        _placeholder, lambda stand_in: ((), stand_in), lambda stand_in, _: stand_in
    )


class Frozen(dict[str, Any]):
    """A read-only dict of arrays or modules: how a Module keeps the dicts in its fields.

    It keeps its order through JAX, which sorts a plain dict: layers may be called in order.
    """

    __slots__ = ("_state",)

    def __init__(self, entries: Any = ()) -> None:
        super().__init__(entries)
        self._state = tuple(self.values()), tuple(self)  # what flatten returns, at one read

    def _refuse(self, *_args: Any, **_kwargs: Any) -> Any:
        raise ImmutableError(
            "a dict inside a Module cannot be changed in place; assign a new one to the field:"
            " self.field = {**self.field, key: value}"
        )

    __setitem__ = __delitem__ = clear = pop = popitem = _refuse
    setdefault = update = __ior__ = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return Frozen, (dict(self),)


jax.tree_util.register_pytree_with_keys(
    Frozen,
    lambda d: (tuple((DictKey(key), value) for key, value in d.items()), tuple(d)),
    lambda keys, values: Frozen(zip(keys, values, strict=True)),
    operator.attrgetter("_state"),
)


@dataclasses.dataclass(frozen=True)
class PathKey:
    """The key of an array inside `Leaves`: several segments at once."""

    path: Path

    def __str__(self) -> str:
        return "".join(f".{segment}" for segment in self.path)


class Layout:
    """How a flat bundle of arrays lies in the tree of its library; interned, compared by identity."""

    __slots__ = ("__weakref__", "_places", "paths", "treedef")

    paths: tuple[Path, ...]
    treedef: Any
    _places: Mapping[Path, int | None] | None

    @property
    def places(self) -> Mapping[Path, int | None]:
        """Where each array stands among all, by its path; None for what only holds arrays."""
        if self._places is None:
            holders = {path[:length]: None for path in self.paths for length in range(len(path))}
            self._places = {**holders, **{path: n for n, path in enumerate(self.paths)}}
        return self._places

    def __deepcopy__(self, _memo: Any) -> Layout:
        return self

    def __reduce__(self) -> Any:
        skeleton = jax.tree.unflatten(self.treedef, range(len(self.paths)))
        return _layout_of, (skeleton, self.paths)


_layouts: weakref.WeakValueDictionary[Any, Layout] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _layout_of(tree: Any, paths: tuple[Path, ...] | None = None) -> Layout:
    keyed, treedef = jax.tree_util.tree_flatten_with_path(tree)
    paths = paths or tuple(segments(keys) for keys, _ in keyed)
    with _lock:
        layout = _layouts.get((treedef, paths))
        if layout is None:
            layout = Layout()
            layout.paths, layout.treedef, layout._places = paths, treedef, None
            _layouts[treedef, paths] = layout
    return layout


class Leaves:
    """The arrays of another library's tree as one flat pytree node.

    Flattening it costs the same whatever the depth of the library's own tree, which `tree()` gives
    back. Two bundles of the same tree structure have the same treedef.
    """

    __slots__ = ("layout", "values")

    values: tuple[Any, ...]
    layout: Layout

    def __init__(self, values: Iterable[Any], layout: Layout) -> None:
        self.values, self.layout = tuple(values), layout

    @classmethod
    def of(cls, tree: Any, paths: Iterable[Path] | None = None) -> Leaves:
        """The bundle of a library's tree; a Python scalar among its leaves becomes an array.

        `paths` are those of the leaves, in order, where they differ from their places in the tree.
        """
        layout = _layout_of(tree, None if paths is None else tuple(paths))
        return cls((as_array(leaf, "a leaf") for leaf in jax.tree.leaves(tree)), layout)

    def tree(self) -> Any:
        """The library's own tree, with the same arrays in it."""
        return jax.tree.unflatten(self.layout.treedef, self.values)

    def replace(self, tree: Any) -> Leaves:
        """The bundle of another tree, which keeps this one's layout where the structure is equal."""
        values, treedef = jax.tree.flatten(tree)
        return Leaves(values, self.layout) if treedef == self.layout.treedef else Leaves.of(tree)

    def items(self) -> Iterator[tuple[Path, Any]]:
        """Each array with its path."""
        return zip(self.layout.paths, self.values, strict=True)

    def at(self, path: Path) -> Any:
        """The array at a path; None where none is."""
        position = self.layout.places.get(path)
        return None if position is None else self.values[position]

    def __getitem__(self, key: Any) -> Any:
        return self.tree()[key]

    def __repr__(self) -> str:
        return f"Leaves({len(self.values)} arrays)"


def _unflatten_leaves(layout: Layout, values: Iterable[Any]) -> Leaves:
    bundle = object.__new__(Leaves)
    bundle.layout, bundle.values = layout, values  # type: ignore[assignment]
    return bundle


jax.tree_util.register_pytree_with_keys(
    Leaves,
    lambda bundle: (
        tuple((PathKey(path), value) for path, value in bundle.items()),
        bundle.layout,
    ),
    _unflatten_leaves,
    lambda bundle: (bundle.values, bundle.layout),
)


def segments(keys: Iterable[Any]) -> Path:
    """The path that a key path of `jax.tree_util` spells."""
    path: list[str] = []
    for key in keys:
        match key:
            case PathKey(path=several):
                path.extend(several)
            case DictKey(key=one) | FlattenedIndexKey(key=one) | SequenceKey(idx=one):
                path.append(str(one))
            case GetAttrKey(name=one):
                path.append(one)
            case _:
                path.append(str(key).strip(".[]'\""))
    return tuple(path)


def is_array(value: Any) -> bool:
    """Whether a value is what a leaf of a Module may be: abstract too, or brought to the host."""
    return isinstance(value, (jax.Array, jax.ShapeDtypeStruct, np.ndarray))


def as_array(value: Any, where: str) -> Any:
    """An array that only the Module holds: NumPy arrays are copied, Python numbers converted.

    The dtype is a definite one: a weakly typed scalar would change its dtype at the first update and
    compile again. Raises FieldError for what is no array.
    """
    if isinstance(value, jax.ShapeDtypeStruct):
        return value
    if isinstance(value, jax.Array):
        weak = getattr(value, "weak_type", False)  # a typed key has none
        return jax.lax.convert_element_type(value, value.dtype) if weak else value
    if isinstance(value, (bool, int, float, complex)) or _numeric(value):
        return jnp.array(value, dtype=jnp.result_type(value))
    raise FieldError(
        f"{where} holds a {type(value).__name__} ({value!r}); a parameter, state or key is an"
        f" array, a bridge.ParamInit, or a tree of them: annotate anything else as what it is"
    )


def _numeric(value: Any) -> bool:
    if not isinstance(value, (np.ndarray, np.generic)):
        return False
    return jnp.issubdtype(value.dtype, np.number) or value.dtype == np.bool_


def map_leaves(value: Any, change: Callable[[Path, Any], Any]) -> Any:
    """A tree of arrays and placeholders with each replaced by `change(path, leaf)`.

    It is the same object where nothing differs, so that modules stay shared by identity.
    """
    if is_array(value) or isinstance(value, PLACEHOLDERS):
        return change((), value)
    keyed, treedef = jax.tree_util.tree_flatten_with_path(value, is_leaf=_is_placeholder)
    changed = [change(segments(keys), leaf) for keys, leaf in keyed]
    same = all(new is old for new, (_, old) in zip(changed, keyed, strict=True))
    return value if same else jax.tree.unflatten(treedef, changed)


def leaves_of(value: Any) -> Iterator[tuple[Path, Any]]:
    """Each array and placeholder of a tree, with its path in it."""
    if is_array(value) or isinstance(value, PLACEHOLDERS):
        yield (), value
    elif isinstance(value, Leaves):
        yield from ((path, leaf) for path, leaf in value.items() if leaf is not None)
    elif value is not None:
        keyed, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=_is_placeholder)
        yield from ((segments(keys), leaf) for keys, leaf in keyed)


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, PLACEHOLDERS)


def freeze_containers(value: Any) -> Any:
    """A tree whose lists are tuples and whose dicts are read-only, as a Module keeps it."""
    if type(value) in (list, tuple):
        return tuple(freeze_containers(item) for item in value)
    if isinstance(value, Mapping) and type(value) in (dict, Frozen):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise FieldError(
                f"a dict in a Module has strings for its keys, which are part of the paths; it was"
                f" given {', '.join(map(repr, odd))}"
            )
        return Frozen({key: freeze_containers(item) for key, item in value.items()})
    return value
