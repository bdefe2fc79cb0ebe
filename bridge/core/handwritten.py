"""A Module whose forward is a plain function of a plain tree, and the trees that it sees."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import jax

import bridge.core.paths as paths
from bridge.core.errors import StructureError, TraceError
from bridge.core.frames import current_trace
from bridge.core.kinds import CHILD, INLINE, PARAMETER, STATIC, Kind
from bridge.core.leaves import as_array, leaves_of, map_leaves
from bridge.core.module import Module
from bridge.core.node import children_of, field_values, put, spec_of
from bridge.core.paths import Path
from bridge.core.spec import thaw

PARTS = ("params", "buffers")


class Handwritten(Module):
    """A node of a plain tree that was written by hand: its arrays, its children, its own `apply`.

    `apply(tree, config, *args)` returns the tree, or the parts of it that changed, and the output.
    `bridge.from_tree` makes it.
    """

    params: Annotated[dict[str, jax.Array], PARAMETER, INLINE]
    buffers: Annotated[dict[str, jax.Array], Kind("state", "state"), INLINE]
    submodules: Annotated[dict[str, Module], INLINE]
    aux: Mapping
    function: Callable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tree's `apply` returns beside the tree."""
        call = Call(self)
        returned = self.function(call.tree(self), self.global_config, *args, **kwargs)
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], dict)):
            raise StructureError(
                f"{call.place}: its apply returned {_shown(returned)}; type `return tree, output`, with"
                f" several outputs as one tuple"
            )
        call.merge(self, returned[0])
        return returned[1]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            for held in (*field_values(self).values(), self.aux):
                if name in held:
                    return held[name]
        raise AttributeError(f"this tree has no array, submodule or aux {name!r}")

    def extra_repr(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", repr(self.function))


def _shown(value: Any) -> str:
    kinds = [type(item).__name__ for item in value] if isinstance(value, tuple) else []
    return f"a tuple of {', '.join(kinds)}" if kinds else f"a {type(value).__name__}"


def arrays(node: Any) -> dict[str, dict[str, Any]]:
    """The params and the buffers of a node itself: each by its path below the node."""
    found: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for name, part, prefix in _array_fields(node):
        for below, leaf in leaves_of(getattr(node, name)):
            found[part][paths.join((*prefix, *below))] = leaf
    return found


def _array_fields(node: Any) -> Iterator[tuple[str, str, Path]]:
    for name, field in type(node)._fields.items():
        if field.kind not in (STATIC, CHILD):
            yield name, PARTS[field.kind.name != "parameter"], field.prefix


def statics(node: Any) -> dict[str, Any]:
    """The aux of a node without what bridge adds: its static fields, or what was written by hand."""
    values = spec_of(node).statics
    values = values["aux"] if isinstance(node, Handwritten) else values
    return {name: thaw(value) for name, value in values.items()}


class Call:
    """The trees of one running `apply`: one for each private copy, kept up to date as children run."""

    def __init__(self, root: Any) -> None:
        self.root, self.config, self.trace = root, root.global_config, current_trace()
        self.place = paths.name(root._call.path)
        self._copies: dict[int, Any] = {}
        self._trees: dict[int, dict[str, Any]] = {}
        self._aux: dict[int, dict[str, Any]] = {}
        self._seen: dict[int, dict[str, dict[str, list[Any]]]] = {}

    def tree(self, copy: Any) -> dict[str, Any]:
        """The tree of a private copy and all below it; of what is shared the same one at each place."""
        if id(copy) not in self._trees:
            own = {"draw": copy._call.draw} if copy is self.root else {}
            self._copies[id(copy)] = copy
            self._aux[id(copy)] = {**statics(copy), "mode": copy.mode, **own}
            self._seen[id(copy)] = {part: {} for part in PARTS}
            self._trees[id(copy)] = {
                "params": {},
                "buffers": {},
                "aux": dict(self._aux[id(copy)]),
                "apply": functools.partial(self.run, copy),
                "submodules": {paths.join(at): self.tree(child) for at, child in children_of(copy)},
            }
            self._refresh(copy)
        return self._trees[id(copy)]

    def run(self, copy: Any, tree: Any, config: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The tree after a child's call with the arrays of a tree, and the output.

        What the child writes is kept by itself; params that differ are lent for this call.
        """
        place = paths.name(copy._call.path)
        if config != self.config:
            raise StructureError(
                f"{place}: was called with another global config than {self.place}; it is read-only"
                f" while apply runs: module.with_global_config(...) gives another one, to any module"
            )
        lent: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []
        try:
            for node, part, changes in self._changes(copy, tree, place):
                if part == "params":
                    lent.append((node, changes, arrays(node)[part]))
                    _put(node, part, changes)
                else:
                    self._write(node, part, changes)
            out = copy(*args, **kwargs)
            after = self._snapshot(copy)
        finally:
            for node, given, own in lent:
                now = arrays(node)["params"]
                _put(node, "params", {n: own[n] for n, new in given.items() if now.get(n) is new})
        for held in self._copies.values():
            self._refresh(held)
        return (tree if tree is self._trees[id(copy)] else after), out

    def merge(self, copy: Any, tree: Any) -> None:
        """Writes what differs in a returned tree from all that the call has handed out."""
        for node, part, changes in list(self._changes(copy, tree, self.place)):
            self._write(node, part, changes)

    def _changes(self, copy: Any, tree: Any, place: str) -> Iterator[tuple[Any, str, dict[str, Any]]]:
        """Each private copy below with the arrays that a tree has in place of its own."""
        mine = self._trees[id(copy)]
        self._check(copy, tree, place)
        for part in PARTS:
            seen, now = self._seen[id(copy)][part], arrays(copy)[part]
            given = tree.get(part, now)
            _same_names(place, part, now, given)
            changes = {
                name: as_array(value, f"{place}: {part} {name}")
                for name, value in given.items()
                if not any(value is old for old in (now[name], *seen.get(name, ())))
            }
            if changes:
                yield copy, part, changes
        below = tree.get("submodules", mine["submodules"])
        children = {paths.join(at): child for at, child in children_of(copy)}
        _same_names(place, "submodules", children, below)
        for name, child in children.items():
            yield from self._changes(child, below[name], paths.name(child._call.path))

    def _check(self, copy: Any, tree: Any, place: str) -> None:
        if not isinstance(tree, dict):
            raise StructureError(f"{place}: a plain tree was wanted; this is a {type(tree).__name__}")
        mine = self._trees[id(copy)]
        if tree.get("apply", mine["apply"]) is not mine["apply"] or (
            tree.get("aux", self._aux[id(copy)]) != self._aux[id(copy)]
        ):
            raise StructureError(
                f"{place}: its aux or apply is another one than before the call. While apply runs,"
                f" params and buffers alone may change; edit the tree outside of a call:"
                f" tree = bridge.to_tree(module)"
            )

    def _write(self, node: Any, part: str, changes: dict[str, Any]) -> None:
        frame = node._call
        frame.refuse_when_over()
        if frame.foreign():
            raise frame.trace_error(f"changes its {part} {', '.join(map(repr, changes))}")
        if part == "params" and frame.trace != frame.run.trace:
            raise TraceError(
                f"{paths.name(frame.path)} changes its params {', '.join(map(repr, changes))} inside a"
                f" bridge.scan, vmap or remat, which carry buffers alone; keep them among the buffers"
            )
        frame.written |= _put(node, part, changes)
        frame.run.changes = True

    def _snapshot(self, copy: Any) -> dict[str, Any]:
        children = {paths.join(at): self._snapshot(child) for at, child in children_of(copy)}
        aux = dict(self._aux[id(copy)])
        apply = self._trees[id(copy)]["apply"]
        return {**arrays(copy), "aux": aux, "apply": apply, "submodules": children}

    def _refresh(self, copy: Any) -> None:
        """Shows in a copy's tree what has changed since it was last looked at."""
        for part, now in arrays(copy).items():
            held, seen = self._trees[id(copy)][part], self._seen[id(copy)][part]
            for name in [name for name in seen if name not in now]:  # made by init under other names
                del seen[name]
                held.pop(name, None)
            changed = {n: v for n, v in now.items() if n not in seen or seen[n][-1] is not v}
            if changed and current_trace() != self.trace:
                raise TraceError(
                    f"{paths.name(copy._call.path)} changes its {part} {', '.join(map(repr, changed))}"
                    f" inside a JAX transform that the apply of {self.place} has started, where its"
                    f" tree cannot follow; make a Module of what runs there: bridge.from_tree(tree)"
                )
            for name, value in changed.items():
                seen.setdefault(name, []).append(value)
                held[name] = value


def _same_names(place: str, part: str, mine: Mapping[str, Any], came: Mapping[str, Any]) -> None:
    problems = [f"{name!r} is gone" for name in mine if name not in came]
    problems += [f"{name!r} is new" for name in came if name not in mine]
    if problems:
        raise StructureError(
            f"{place}: its {part} are not those from before the call: {', '.join(problems)}"
        )


def _put(node: Any, part: str, changes: Mapping[str, Any]) -> set[str]:
    """Gives a private copy other arrays; the names of its fields that hold them."""
    written = set()
    for name, own, prefix in _array_fields(node):

        def new(below: Path, leaf: Any, prefix: Path = prefix) -> Any:
            return changes.get(paths.join((*prefix, *below)), leaf)

        if own == part:
            before = getattr(node, name)
            after = map_leaves(before, new)
            if after is not before:
                put(node, {name: after})
                written.add(name)
    return written
