"""What an optimizer sees of a module: its structure with None where nothing is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

import bridge.core.paths as paths
from bridge.core.errors import StructureError, listed
from bridge.core.kinds import CHILD
from bridge.core.leaves import Frozen, Leaves, is_array, leaves_of, map_leaves
from bridge.core.node import Alias, Node, field_values, rebuild, spec_of
from bridge.core.paths import Path
from bridge.core.spec import Spec
from bridge.core.tree import Entry, entries


class ParameterTree:
    """The parameters of a module, or its states, in its structure: read fields as on the module itself.

    It cannot be called, on purpose: `optax.multi_transform` calls a label tree that can.
    """

    __slots__ = ("_children", "_spec")

    _children: tuple[Any, ...]
    _spec: Spec

    def __init__(self, children: tuple[Any, ...], spec: Spec) -> None:
        object.__setattr__(self, "_children", children)
        object.__setattr__(self, "_spec", spec)

    def __getattr__(self, name: str) -> Any:
        fields = self._spec.cls._fields
        for held, value in zip(self._spec.cls._dynamic, self._children, strict=True):
            if held == name:
                return value
            if fields[held].inline and name in value:
                return value[name]
        raise AttributeError(f"the leaves of {self._spec.cls.__name__} have no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"parameters never change; {name!r} cannot be assigned")

    def __reduce__(self) -> Any:
        return ParameterTree, (self._children, self._spec)

    def __repr__(self) -> str:
        lines = [
            f"  {paths.join(path)}: {getattr(leaf, 'dtype', leaf)}{list(getattr(leaf, 'shape', ()))}"
            for path, leaf in parameter_entries(self)
        ]
        return "\n".join([f"leaves of {self._spec.cls.__name__} (", *lines, ")"])


def _keyed(tree: ParameterTree) -> Any:
    return tuple(zip(tree._spec.cls._keys, tree._children, strict=False)), tree._spec


jax.tree_util.register_pytree_with_keys(
    ParameterTree,
    _keyed,
    lambda spec, children: ParameterTree(tuple(children), spec),
    lambda tree: (tree._children, tree._spec),
)


def trainable(module: Any) -> ParameterTree:
    """The parameters of a module; see `Module.parameters`."""
    return project(module, lambda entry: entry.value if entry.trained else None)


def carried(module: Any) -> ParameterTree:
    """The states and keys of a module; see `Module.states`."""
    kinds = ("state", "key")
    return project(module, lambda e: e.value if e.kind.name in kinds and is_array(e.value) else None)


def project(module: Any, choose: Callable[[Entry], Any]) -> ParameterTree:
    """The structure of a module with `choose(entry)` in the place of each array."""
    chosen = {entry.path: choose(entry) for entry in entries(module)}

    def visit(node: Any, path: Path) -> ParameterTree:
        children = []
        for name, value in field_values(node).items():
            field = type(node)._fields[name]
            at = (*path, *field.prefix)
            if field.kind == CHILD:
                children.append(_map_children_values(value, visit, at))
            else:
                children.append(map_leaves(value, functools.partial(_chosen, chosen, at)))
        # Modes, keys and freezing are no part of what an optimizer compares.
        return ParameterTree(tuple(children), spec_of(node).bare())

    return visit(module, ())


def _chosen(chosen: dict[Path, Any], prefix: Path, path: Path, leaf: Any) -> Any:
    return chosen.get((*prefix, *path))


def _map_children_values(value: Any, visit: Callable[[Any, Path], Any], path: Path) -> Any:
    if isinstance(value, (Node, ParameterTree)):
        return visit(value, path)
    if isinstance(value, tuple):
        items = enumerate(value)
        return tuple(_map_children_values(item, visit, (*path, str(i))) for i, item in items)
    if isinstance(value, dict):
        items = {k: _map_children_values(item, visit, (*path, k)) for k, item in value.items()}
        return Frozen(items)
    return value


def parameter_entries(tree: ParameterTree, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each leaf of a parameter tree with its path in the module."""
    fields = tree._spec.cls._fields
    for name, value in zip(tree._spec.cls._dynamic, tree._children, strict=True):
        at = (*path, *fields[name].prefix)
        if fields[name].kind == CHILD:
            for place, child in _trees_in(value, at):
                yield from parameter_entries(child, place)
        else:
            for below, leaf in leaves_of(value):
                yield (*at, *below), leaf


def _trees_in(value: Any, path: Path) -> Iterator[tuple[Path, ParameterTree]]:
    if isinstance(value, ParameterTree):
        yield path, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _trees_in(item, (*path, str(index)))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _trees_in(item, (*path, key))


def updated(module: Any, params: Any) -> Any:
    """The module with the leaves of `params` in place of its own; see `Module.update`."""
    if not isinstance(params, ParameterTree):
        raise StructureError(
            f"update takes what module.parameters() gives, a ParameterTree; it was given a"
            f" {type(params).__name__}"
        )
    problems: list[str] = []

    def visit(node: Any, tree: Any, path: Path) -> Any:
        if not isinstance(tree, ParameterTree) or tree._spec is not spec_of(node).bare():
            came = tree._spec.cls.__name__ if isinstance(tree, ParameterTree) else tree
            problems.append(
                f"{paths.name(path)}: the module has a {type(node).__name__}, the parameters are"
                f" those of a {came}" + _static_difference(spec_of(node), tree)
            )
            return node
        changes = {}
        for (name, value), new in zip(field_values(node).items(), tree._children, strict=True):
            field = type(node)._fields[name]
            at = (*path, *field.prefix)
            if field.kind == CHILD:
                changes[name] = _zip_children(value, new, visit, at, problems)
            else:
                changes[name] = _merged(value, new, at, problems)
        return rebuild(node, **changes)

    result = visit(module, params, ())
    if problems:
        raise StructureError(
            "these parameters do not fit the module:\n"
            + listed(problems)
            + "\nTake them from a module of the same structure: module.parameters()"
        )
    return result


def _static_difference(spec: Spec, tree: Any) -> str:
    if not isinstance(tree, ParameterTree) or tree._spec.cls is not spec.cls:
        return ""
    other = tree._spec.statics
    names = [name for name in spec.statics if spec.statics[name] != other.get(name)]
    return f" with another {', '.join(names)}" if names else ""


def _zip_children(value: Any, new: Any, visit: Any, path: Path, problems: list[str]) -> Any:
    if isinstance(value, Alias):
        return value
    if isinstance(value, Node):
        return visit(value, new, path)
    if isinstance(value, tuple) and isinstance(new, tuple) and len(value) == len(new):
        pairs = enumerate(zip(value, new, strict=True))
        items = [_zip_children(a, b, visit, (*path, str(i)), problems) for i, (a, b) in pairs]
        same = all(made is old for made, old in zip(items, value, strict=True))
        return value if same else tuple(items)
    if isinstance(value, dict) and isinstance(new, dict) and set(value) == set(new):
        items = {k: _zip_children(value[k], new[k], visit, (*path, k), problems) for k in value}
        return value if all(items[k] is old for k, old in value.items()) else Frozen(items)
    if value is not None:
        problems.append(f"{paths.name(path)}: the containers differ")
    return value


def _merged(value: Any, new: Any, path: Path, problems: list[str]) -> Any:
    """A field's value with the arrays of `new`, which has None where nothing is to change."""
    if new is None:
        return value
    if is_array(value):
        return _replaced(value, new, path, problems)
    if isinstance(value, Leaves) and isinstance(new, Leaves) and value.layout is new.layout:
        triples = zip(value.layout.paths, value.values, new.values, strict=True)
        merged = [_replaced(a, b, (*path, *below), problems) for below, a, b in triples]
        same = all(made is old for made, old in zip(merged, value.values, strict=True))
        return value if same else Leaves(merged, value.layout)
    incoming = dict(leaves_of(new))
    if not incoming:
        return value
    unknown = set(incoming) - {below for below, _ in leaves_of(value)}
    problems.extend(f"{paths.join((*path, *below))}: not in the module" for below in sorted(unknown))
    return map_leaves(
        value, lambda below, leaf: _replaced(leaf, incoming.get(below), (*path, *below), problems)
    )


def _replaced(old: Any, new: Any, path: Path, problems: list[str]) -> Any:
    if new is None:
        return old
    if hasattr(old, "shape") and hasattr(new, "shape") and old.shape != new.shape:
        problems.append(
            f"{paths.join(path)}: the module has shape {tuple(old.shape)}, the parameters"
            f" {tuple(new.shape)}"
        )
    return new
