"""Changing a module by path: reading and setting what stands at a place, freezing, tying."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import bridge.core.paths as paths
from bridge.core.errors import PathError, SharingError, StructureError, listed
from bridge.core.kinds import CHILD, STATIC
from bridge.core.leaves import Lazy, ParamInit, Tied, as_array, is_array, map_leaves
from bridge.core.node import (
    Alias,
    build,
    checked,
    checked_static,
    field_at,
    field_values,
    map_children,
    rebuild,
    rng_of,
    share,
    spec_of,
)
from bridge.core.paths import Path
from bridge.core.tree import Entry, direct, entries, find, map_entries, owner_path, walk

M = TypeVar("M")


class At(Generic[M]):
    """The places of a module that a path or a glob selects."""

    def __init__(self, module: M, pattern: str | None = None) -> None:
        self.module, self.pattern = module, pattern

    def __getitem__(self, segment: str | int) -> At[M]:
        """A path, or one step further down: `module.at["layers"][2]`."""
        step = str(segment)
        return At(self.module, step if self.pattern is None else f"{self.pattern}.{step}")

    def get(self) -> Any:
        """What stands there; for a glob a dict of it by path. Shared things come from their owner."""
        found = {paths.join(path): _owned(self.module, path) for path in self._paths()}
        return found if paths.is_pattern(self._text) else next(iter(found.values()))

    def set(self, new: Any) -> M:
        """The module with something else there: a module, a function, an array, a static value.

        An array must have the shape and dtype of the one that it replaces.
        """
        return self.apply(lambda _: new)

    def apply(self, change: Callable[[Any], Any]) -> M:
        """The module with `change(old)` there; `Module.map` changes every part of a tree."""
        module: Any = self.module
        arrays = {entry.path for entry in entries(module) if is_array(entry.value)}
        targets = _targets(module, self._paths())
        inside = arrays.intersection(targets)  # these in one go: a model may have thousands
        if inside:
            module = map_entries(
                module,
                lambda path, leaf: _fitting(leaf, change(leaf), path) if path in inside else leaf,
            )
        for path in targets:
            if path not in inside:
                module = _put(module, path, change)
        _check_references(module)
        return module

    @property
    def _text(self) -> str:
        if self.pattern is None:
            raise PathError('module.at wants a path: module.at["encoder.layers.0"]')
        return self.pattern

    def _paths(self) -> list[Path]:
        return select(self.module, self._text)


def places(module: Any) -> list[Path]:
    """Every path at which something can be selected: modules, fields, containers and arrays."""
    found: dict[Path, None] = {}
    for path, node in walk(module):
        found.update({path[:length]: None for length in range(1, len(path) + 1)})
        found.update({(*path, f.name): None for f in type(node)._fields.values() if not f.inline})
    for entry in entries(module):
        start = len(entry.path) - len(entry.within)
        found.update({entry.path[:end]: None for end in range(start + 1, len(entry.path) + 1)})
    return list(found)


def select(module: Any, pattern: str) -> list[Path]:
    """The paths that an exact path or a glob selects, outermost first; raises PathError for none."""
    if not paths.is_pattern(pattern):
        path = paths.split(pattern)
        try:
            return [path if _exists(module, path) else direct(module, path)]
        except LookupError:
            candidates = [paths.join(place) for place in places(module)]
            raise paths.nothing_there(pattern, candidates) from None
    found = paths.outermost(path for path in places(module) if paths.matches(path, pattern))
    if not found:
        raise paths.nothing_there(pattern, [paths.join(place) for place in places(module)])
    return found


def _exists(module: Any, path: Path) -> bool:
    try:
        find(module, path)
    except (LookupError, SharingError):
        return False
    return True


def _owned(module: Any, path: Path) -> Any:
    """What stands at a path, with a shared module or a tied array read from its owner."""
    value = find(module, direct(module, path))
    return find(module, owner_path(path, value, module)) if isinstance(value, Tied) else value


def _targets(module: Any, chosen: list[Path]) -> list[Path]:
    """The paths to change: what is shared changes once, at the chosen one of its places."""
    targets: list[Path] = []
    for path in chosen:
        value = find(module, path) if _exists(module, path) else None
        shared = isinstance(value, (Alias, Tied))
        owner = owner_path(path, value, module) if shared else None
        if owner is None or not any(paths.below(owner, other) for other in chosen):
            targets.append(direct_or_refuse(module, path))
    return targets


def direct_or_refuse(module: Any, path: Path) -> Path:
    """The path to change, through aliases; raises SharingError at an alias or a tied array itself."""
    value = find(module, path) if _exists(module, path) else None
    if isinstance(value, (Alias, Tied)):
        owner = paths.join(owner_path(path, value, module))
        raise SharingError(
            f"{paths.join(path)} is shared with {owner}: change {owner} and both change. To part"
            f" them, build the module with two objects, or set what holds {paths.join(path)}"
        )
    return direct(module, path)


def _put(module: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """The module with `change(old)` at a path that leads through no alias."""
    owner: Path = ()
    for at, node in walk(module):
        if paths.below(path, at) and at != path and not isinstance(node, Alias):
            owner = at
    within = path[len(owner) :]

    def visit(at: Path, node: Any) -> Any:
        if at == owner:
            return share(_with_field(node, within, change, path))
        return rebuild(node, **map_children(node, visit, at)) if paths.below(owner, at) else node

    changed = visit((), module)
    return share(changed)


def _with_field(node: Any, within: Path, change: Callable[[Any], Any], path: Path) -> Any:
    field, below = field_at(node, within)
    name = field.name
    if field.kind == STATIC:
        if below:
            raise PathError(f"{paths.join(path)} lies inside a static field; set the whole field")
        new = checked_static(change(getattr(node, name)), field, type(node))
        statics = {**spec_of(node).statics, name: new}
        return build(spec_of(node).replace(statics=statics), field_values(node), rng_of(node))
    value = getattr(node, name)
    if field.kind == CHILD or not below:
        new = _inside(value, below, change)
        if field.kind != CHILD and is_array(value):
            new = _fitting(value, new, path)
        return rebuild(node, **{name: checked(new, field, type(node))})

    def swapped(at: Path, leaf: Any) -> Any:
        return _fitting(leaf, change(leaf), path) if at == below else leaf

    if not any(at == below for at, _ in _leaf_paths(value)):
        raise PathError(f"{paths.join(path)} holds several arrays; set them one by one, or by glob")
    return rebuild(node, **{name: map_leaves(value, swapped)})


def _leaf_paths(value: Any) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    map_leaves(value, lambda at, leaf: found.append((at, leaf)) or leaf)
    return found


def _inside(value: Any, below: Path, change: Callable[[Any], Any]) -> Any:
    """A container of modules with one of them changed."""
    if not below:
        return change(value)
    step, *rest = below
    if isinstance(value, tuple):
        index = int(step)
        return (*value[:index], _inside(value[index], tuple(rest), change), *value[index + 1 :])
    return {**value, step: _inside(value[step], tuple(rest), change)}


def _fitting(old: Any, new: Any, path: Path) -> Any:
    """An array, or one to be made, for the place of another; StructureError where it misfits."""
    new = new if isinstance(new, ParamInit) else as_array(new, paths.join(path))
    if hasattr(old, "shape") and (new.shape != old.shape or new.dtype != old.dtype):
        raise StructureError(
            f"{paths.join(path)} is {old.dtype}{list(old.shape)}, and {new.dtype}{list(new.shape)}"
            f" was given. To change sizes, set the whole module: module.at[path].set(new_module)"
        )
    return new


def _check_references(module: Any) -> None:
    for path, node in walk(module):
        if isinstance(node, Alias):
            owner_path(path, node, module)
    for entry in entries(module):
        if isinstance(entry.value, Tied):
            owner_path(entry.path, entry.value, module)


def selected(module: Any, patterns: Iterable[str], among: Iterable[Entry], what: str) -> list[Entry]:
    """Those entries that any of the patterns selects; raises PathError for one that selects none.

    What is shared or tied counts at each of its places.
    """
    among = list(among)
    references = [entry for entry in entries(module) if isinstance(entry.value, Tied)]
    tied = {entry.path: owner_path(entry.path, entry.value, module) for entry in references}
    chosen: dict[Path, Entry] = {}
    for pattern in patterns:
        prefixes = _owners(module, select(module, pattern))
        prefixes |= {tied[at] for at in tied if paths.under(at, prefixes)}
        found = [entry for entry in among if paths.under(entry.path, prefixes)]
        if not found:
            names = [paths.join(entry.path) for entry in among]
            raise PathError(f"{pattern!r} selects no {what}; {paths.nearest(pattern, names)}")
        chosen.update({entry.path: entry for entry in found})
    return list(chosen.values())


def _owners(module: Any, selected: Iterable[Path]) -> set[Path]:
    """The selected paths, and where the shared modules at and below them are kept."""
    aliases = [(at, n) for at, n in walk(module) if isinstance(n, Alias)]
    reached: set[Path] = set()
    waiting = [direct(module, path) for path in selected]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += [owner_path(at, n, module) for at, n in aliases if paths.below(at, path)]
    return reached


def freeze(module: Any, patterns: Iterable[str]) -> Any:
    """The module with the selected parameters masked; see `Module.freeze`."""
    return _masked(module, tuple(patterns), lambda frozen, chosen: frozen | chosen)


def unfreeze(module: Any, patterns: Iterable[str]) -> Any:
    """The module with the selected parameters unmasked; see `Module.unfreeze`."""
    return _masked(module, tuple(patterns), lambda frozen, chosen: frozen - chosen)


def _masked(module: Any, patterns: tuple[str, ...], combine: Callable[..., set[Path]]) -> Any:
    parameters = [entry for entry in entries(module) if entry.kind.name == "parameter"]
    picks = selected(module, patterns, parameters, "parameter") if patterns else parameters
    chosen = {entry.path for entry in picks}
    own: dict[int, tuple[set[Path], set[Path]]] = {}
    for entry in parameters:
        frozen, picked = own.setdefault(id(entry.node), (set(), set()))
        if entry.frozen:
            frozen.add(entry.within)
        if entry.path in chosen:
            picked.add(entry.within)

    def visit(_: Path, node: Any) -> Any:
        changes = map_children(node, visit)
        spec = spec_of(node)
        if id(node) in own:
            spec = spec.replace(frozen=frozenset(combine(*own[id(node)])))
        return rebuild(node, spec=spec, **changes)

    return visit((), module)


def tie(module: M, place: str, owner: str) -> M:
    """The module in which the array at `place` is the one at `owner`: one parameter, used twice.

    Both gradients add up, and save, load and optimizers see one array. Raises SharingError where the
    two differ in shape or dtype or are not parameters.

    >>> import bridge as br, jax, jax.numpy as jnp
    >>> class Two(br.Module):
    ...     embed: br.Parameter
    ...     head: br.Parameter
    >>> two = br.tie(Two(jnp.ones((3, 2)), jnp.zeros((3, 2))), "head", "embed")
    >>> len(jax.tree.leaves(two)), float(two.at["head"].get().sum())
    (1, 6.0)
    """
    position, target = direct(module, select(module, place)[0]), select(module, owner)[0]
    target = direct(module, target)
    found = {entry.path: entry for entry in entries(module)}
    problems = [
        f"{paths.join(path)} is no parameter array"
        for path in (position, target)
        if path not in found or found[path].kind.name != "parameter"
    ]
    if not problems:
        problems = _untieable(found[position], found[target])
    if problems:
        raise SharingError(f"{place!r} cannot be tied to {owner!r}:\n" + listed(problems))
    up, down = paths.relative(position, target)
    return map_entries(module, lambda path, leaf: Tied(up, down) if path == position else leaf)


def _untieable(place: Entry, owner: Entry) -> list[str]:
    if place.path == owner.path:
        return [f"{paths.join(place.path)} is the same place"]
    if isinstance(owner.value, Tied):
        return [f"{paths.join(owner.path)} is tied itself: tie to its owner"]
    if any(isinstance(entry.value, Lazy) for entry in (place, owner)):
        return ["it is not initialised: type module = module.init(key, *sample) first"]
    if isinstance(place.value, Tied):
        return [f"{paths.join(place.path)} is tied already"]
    sizes = [(tuple(entry.value.shape), str(entry.value.dtype)) for entry in (place, owner)]
    if sizes[0] != sizes[1]:
        return [f"{paths.join(e.path)} is {e.value.dtype}{list(e.value.shape)}" for e in (place, owner)]
    return []
