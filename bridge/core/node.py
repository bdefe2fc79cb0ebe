"""The immutable tree node under every Module: its fields, its pytree side, and how it is rebuilt."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import operator
import sys
import threading
import typing
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from jax.tree_util import GetAttrKey

import bridge.core.paths as paths
from bridge.core.errors import FieldError, ImmutableError, SharingError
from bridge.core.kinds import CHILD, STATIC, Declared, Field, fields_of
from bridge.core.leaves import (
    PLACEHOLDERS,
    Frozen,
    Leaves,
    PathKey,
    as_array,
    freeze_containers,
    is_array,
    map_leaves,
)
from bridge.core.paths import Path
from bridge.core.spec import Spec, intern

_new = object.__new__
_preparing = threading.RLock()


class _Access:
    """Reads a field: from the children by position, from the statics by name, from a draft."""

    def __init__(self, name: str, position: int | None) -> None:
        self.name, self.position = name, position

    def __get__(self, node: Any, owner: type | None = None) -> Any:
        if node is None:
            return self
        if is_draft(node):
            return self._drafted(node)
        children, spec = node._state
        return spec.statics[self.name] if self.position is None else children[self.position]

    def _drafted(self, node: Any) -> Any:
        try:
            return node._call[self.name]
        except KeyError:
            raise AttributeError(
                f"{type(node).__name__}.{self.name} is read before `__init__` has set it"
            ) from None


class Draft(dict[str, Any]):
    """The fields of a node whose `__init__` still runs."""


@typing.dataclass_transform(field_specifiers=(dataclasses.field,))
class NodeType(type):
    """Makes the class of a node: takes defaults out of the body and seals each new instance."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], body: dict[str, Any], **options: Any
    ) -> NodeType:
        """The class, with the names that its annotations may use remembered."""
        caller = sys._getframe(1)
        # A class made inside a function may name its neighbours in string annotations.
        inside = {} if caller.f_code.co_name == "<module>" else {**caller.f_locals}
        body["_scope"] = ChainMap(inside, caller.f_globals)
        body.setdefault("__slots__", ())
        cls: Any = super().__new__(mcs, name, bases, body, **options)
        cls._declared = {}
        for field_name, annotation in inspect.get_annotations(cls).items():
            if field_name in body and "ClassVar" not in str(annotation):
                cls._declared[field_name] = Declared.of(cls.__dict__[field_name])
                delattr(cls, field_name)
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """A sealed instance: every field set, checked and immutable from here on."""
        cls.prepare()
        node = _new(cls)
        _set_call(node, Draft())
        node.__init__(*args, **kwargs)
        return seal(node)

    def prepare(cls) -> None:
        """Reads the annotations and registers the pytree, once, when the class is first used."""
        if "_fields" not in cls.__dict__:
            with _preparing:
                if "_fields" not in cls.__dict__:
                    _prepare(cls)


def _prepare(cls: Any) -> None:
    fields = fields_of(cls, Node)
    dynamic = [field for field in fields if field.kind != STATIC]
    cls._dynamic = tuple(field.name for field in dynamic)
    cls._child_fields = tuple((i, f.name, f.prefix) for i, f in enumerate(dynamic) if f.kind == CHILD)
    for field in fields:
        position = None if field.kind == STATIC else dynamic.index(field)
        setattr(cls, field.name, _Access(field.name, position))
    keys = [PathKey(()) if field.inline else GetAttrKey(field.name) for field in dynamic]
    cls._keys = (*keys, GetAttrKey("_rng"))
    _register(cls)
    cls._fields = {field.name: field for field in fields}  # last: other threads look for it


def _register(cls: Any) -> None:
    """Registers a class as a pytree; a node's state is what flatten returns, so it costs one read."""

    def flatten_with_keys(node: Any) -> tuple[Any, Spec]:
        children, spec = node._state
        return tuple(zip(cls._keys, children, strict=False)), spec

    def unflatten(spec: Spec, children: Any) -> Any:
        node = _new(cls)
        _set_state(node, (children, spec))
        return node

    flatten = operator.attrgetter("_state")
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


class Node(metaclass=NodeType):
    """An immutable node of a tree. `Module` adds everything that a user calls.

    `_state` is the children, with an attached key at their end, and the spec. `_call` is the frame of
    a private copy, or the draft while `__init__` runs.
    """

    __slots__ = ("__weakref__", "_call", "_state")

    _state: tuple[tuple[Any, ...], Spec]
    _call: Any
    _fields: ClassVar[Mapping[str, Field]]
    _dynamic: ClassVar[tuple[str, ...]]
    _keys: ClassVar[tuple[Any, ...]]
    _child_fields: ClassVar[tuple[tuple[int, str, Path], ...]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the fields in their order, as a dataclass does."""
        for name, value in _bind(type(self), args, kwargs).items():
            setattr(self, name, value)
        self.__post_init__()

    @property
    def unseen(self) -> bool:
        """Whether `init` has to run the node, although all of its arrays are there."""
        return False

    def completed(self, _root: Any, _path: Path, _keys: Mapping[str, Any]) -> Any:
        """The node with what `init` makes of arrays that are there; `_keys` are init's, by stream."""
        return self

    def own_method(self, _name: str) -> Any:
        """A method that a model inside the node has by this name; None where it has none."""
        return None

    def __post_init__(self) -> None:
        """Runs after the generated `__init__`, to derive fields from fields."""

    def __setattr__(self, name: str, value: Any) -> None:
        field = type(self)._fields.get(name)
        if field is None:
            raise FieldError(undeclared(type(self), name))
        call = call_of(self)
        if isinstance(call, Draft):
            call[name] = value
        elif call is not None:
            call.write(self, field, value)
        else:
            raise ImmutableError(
                f"{type(self).__name__}.{name} cannot be assigned: a Module never changes. Use"
                f" module = module.at[{name!r}].set(value), or assign a State field inside apply"
            )

    def __delattr__(self, name: str) -> None:
        raise ImmutableError(f"{type(self).__name__}.{name} cannot be deleted: a Module never changes")

    def __reduce__(self) -> Any:
        return _revive, (spec_of(self), field_values(self), rng_of(self))

    def __copy__(self) -> Any:
        return self

    @classmethod
    def adopt(cls, value: Any, where: str) -> Node:
        """The child that a value stands for; Module overrides it to take functions as well."""
        if isinstance(value, Node):
            return value
        raise FieldError(f"{where} is declared as a module and holds a {type(value).__name__}")


_set_state = Node._state.__set__  # type: ignore[attr-defined]
_set_call = Node._call.__set__


def call_of(node: Any) -> Any:
    """The draft or frame that a node is part of, None for a sealed module."""
    try:
        return node._call
    except AttributeError:
        return None


def is_draft(node: Any) -> bool:
    """Whether the node's `__init__` still runs."""
    return isinstance(call_of(node), Draft)


class Alias(Node):
    """Stands where a shared module stands again: it is kept `up` levels higher, then down `path`."""

    up: int
    path: tuple

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises SharingError: alone, an alias has no parameters."""
        raise SharingError(self._explanation("called"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise SharingError(self._explanation(f"asked for .{name}"))

    def _explanation(self, what: str) -> str:
        return (
            f"this place holds a shared module, which the tree keeps elsewhere ({self!r}); it was"
            f" {what} alone. Go through the module that holds both: whole.at[path].get() gives it,"
            f" whole.apply(x, method=lambda m, x: ...) calls it"
        )

    def __repr__(self) -> str:
        return f"{self.up} up, then {paths.join(self.path)}"


def _bind(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    fields = cls._fields
    parameters = [_parameter(field) for field in fields.values() if field.declared.init]
    parameters.sort(key=lambda one: (one.kind, one.default is not one.empty))
    try:
        bound = inspect.Signature(parameters).bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(one.name for one in parameters)
        raise FieldError(f"{cls.__name__}({names}): {error}") from None
    given = bound.arguments
    defaults = {f.name: f.declared.default for f in fields.values() if f.name not in given}
    return {**{name: make() for name, make in defaults.items() if make}, **given}


def _parameter(field: Field) -> inspect.Parameter:
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    default = inspect.Parameter.empty if field.declared.default is None else field.declared.default
    return inspect.Parameter(field.name, kinds[field.declared.kw_only], default=default)


def undeclared(cls: type, name: str) -> str:
    """The words for a field that a class does not declare, with the one that may be meant."""
    close = difflib.get_close_matches(name, cls._fields, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"{cls.__name__}.{name} is not declared.{meant} Declare it in the class body, for example"
        f" `{name}: bridge.Parameter` (trained), `{name}: bridge.State` (carried),"
        f" `{name}: bridge.Module` (a child) or `{name}: int` (static)"
    )


def seal(node: Any) -> Any:
    """A node whose `__init__` has run, checked field by field and shared parts made aliases."""
    cls = type(node)
    state = node._call
    statics: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for field in cls._fields.values():
        if field.name not in state:
            if field.declared.default is None:
                raise FieldError(f"{cls.__name__}.{field.name} is declared and never set in __init__")
            state[field.name] = field.declared.default()
        if field.kind == STATIC:
            statics[field.name] = checked_static(state[field.name], field, cls)
        else:
            values[field.name] = checked(state[field.name], field, cls)
            refuse_aliases(values[field.name], field, cls)
    return share(build(intern(cls, statics), values))


def checked_static(value: Any, field: Field, cls: type) -> Any:
    """A static value; raises FieldError where it holds a module, or an array by a mistaken hint."""
    where = f"{cls.__name__}.{field.name}"
    holds_module = _holds(value, Node)
    if field.unreadable is not None and (holds_module or _holds(value, (jax.Array, np.ndarray))):
        raise FieldError(
            f"{where} is annotated as {field.unreadable!r}, which names nothing that exists where the"
            f" class was made, so the field counts as static, and it holds"
            f" {'a module' if holds_module else 'an array'}. Define or import the name before the"
            f" class, and not under `if TYPE_CHECKING:`"
        )
    if holds_module:
        raise FieldError(
            f"{where} is a static field and holds a module; annotate it as"
            f" `{field.name}: bridge.Module`, `list[bridge.Module]` or `dict[str, bridge.Module]`"
        )
    return value


def _holds(value: Any, kinds: Any) -> bool:
    if type(value) in (list, tuple, dict):
        return any(_holds(item, kinds) for item in (value.values() if type(value) is dict else value))
    return isinstance(value, kinds)


def refuse_aliases(value: Any, field: Field, cls: type) -> None:
    """Raises SharingError for an alias taken from another tree: there it meant another place."""
    if field.kind == CHILD and any(isinstance(part, Alias) for _, part in _nodes_in(value, ())):
        raise SharingError(
            f"{cls.__name__}.{field.name} was given what stands for a shared module in another tree;"
            f" give it the module itself: whole.at[path].get()"
        )


def checked(value: Any, field: Field, cls: Any) -> Any:
    """The value of a dynamic field with its arrays converted and its containers frozen."""
    where = f"{cls.__name__}.{field.name}"
    if field.kind == CHILD:
        return _adopted(value, cls, where)
    value = freeze_containers(value)
    if is_array(value) or isinstance(value, (Leaves, *PLACEHOLDERS)):
        return value if not is_array(value) else as_array(value, where)
    return map_leaves(
        value, lambda _, leaf: leaf if isinstance(leaf, PLACEHOLDERS) else as_array(leaf, where)
    )


def _adopted(value: Any, cls: Any, where: str) -> Any:
    if value is None or isinstance(value, Node):
        return value
    if type(value) in (list, tuple):
        return tuple(_adopted(item, cls, f"{where}.{i}") for i, item in enumerate(value))
    if type(value) in (dict, Frozen):
        return freeze_containers({k: _adopted(item, cls, f"{where}.{k}") for k, item in value.items()})
    if isinstance(value, NodeType):
        raise FieldError(f"{where} holds the class {value.__name__}; give it a module: call the class")
    return cls.adopt(value, where)


def build(spec: Spec, values: Mapping[str, Any], rng: Any = None) -> Any:
    """The node of a spec and its dynamic fields, unchecked; keyed exactly if `rng` is given."""
    spec = spec if spec.keyed == (rng is not None) else spec.replace(keyed=rng is not None)
    children = tuple(values[name] for name in spec.cls._dynamic)
    node = _new(spec.cls)
    _set_state(node, (children if rng is None else (*children, rng), spec))
    return node


def put(node: Any, values: Mapping[str, Any], spec: Spec | None = None) -> None:
    """Changes fields of a private copy in place; no sealed module may be given."""
    children, own = node._state
    names = (*type(node)._dynamic, "_rng")
    changed = tuple(values.get(n, old) for n, old in zip(names, children, strict=False))
    _set_state(node, (changed, spec or own))


def enrol(node: Any, frame: Any) -> None:
    """Makes a node the private copy of a call."""
    _set_call(node, frame)


def _revive(spec: Spec, values: Mapping[str, Any], rng: Any) -> Any:
    spec.cls.prepare()
    return build(spec, values, rng)


def spec_of(node: Any) -> Spec:
    """The static side of a node."""
    return node._state[1]


def rng_of(node: Any) -> Any:
    """The key or keys attached to a node, None where there are none."""
    children, spec = node._state
    return children[-1] if spec.keyed else None


def field_values(node: Any) -> dict[str, Any]:
    """The dynamic fields of a node, by name."""
    return dict(zip(type(node)._dynamic, node._state[0], strict=False))


def field_at(node: Any, within: Path) -> tuple[Field, Path]:
    """The field in which a path below the node begins, and what is left of the path in that field.

    Raises LookupError where there is none.
    """
    fields = type(node)._fields
    for field in fields.values():
        if field.inline and within[0] in getattr(node, field.name):
            return field, within
    return fields[within[0]], within[1:]


def rebuild(node: Any, **changes: Any) -> Any:
    """The node with some dynamic fields, `spec` or `rng` changed; itself where nothing differs."""
    spec = changes.pop("spec", spec_of(node))
    rng = changes.pop("rng", rng_of(node))
    values = field_values(node)
    same = spec is spec_of(node) and rng is rng_of(node)
    if same and all(values[name] is value for name, value in changes.items()):
        return node
    return build(spec, {**values, **changes}, rng)


def children_of(node: Any) -> Iterator[tuple[Path, Any]]:
    """Each direct child with its path below the node, through lists, tuples and dicts."""
    for position, _, prefix in type(node)._child_fields:
        yield from _nodes_in(node._state[0][position], prefix)


def _nodes_in(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Node):
        yield path, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _nodes_in(item, (*path, str(index)))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _nodes_in(item, (*path, key))


def map_children(node: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> dict[str, Any]:
    """The child fields of a node with each child replaced by `change(path, child)`."""
    return {
        name: _map_nodes(node._state[0][position], change, (*path, *prefix))
        for position, name, prefix in type(node)._child_fields
    }


def _map_nodes(value: Any, change: Callable[[Path, Any], Any], path: Path) -> Any:
    if isinstance(value, Node):
        return change(path, value)
    if isinstance(value, tuple):
        items = [_map_nodes(item, change, (*path, str(i))) for i, item in enumerate(value)]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else tuple(items)
    if isinstance(value, dict):
        mapped = {k: _map_nodes(item, change, (*path, k)) for k, item in value.items()}
        return value if all(mapped[k] is old for k, old in value.items()) else Frozen(mapped)
    return value


def share(root: Any) -> Any:
    """The tree with each module that stands in it again replaced by an alias of its first place."""
    seen: dict[int, Path] = {}

    def visit(path: Path, node: Any) -> Any:
        if isinstance(node, Alias):
            return node
        if id(node) in seen and node is not root:
            up, down = paths.relative(path, seen[id(node)])
            return Alias(up=up, path=down)
        seen[id(node)] = path
        changes = map_children(node, visit, path)
        return rebuild(node, **changes)

    return visit((), root)
