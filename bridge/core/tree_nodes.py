"""The nodes of a plain tree as Modules: what a dict says, and how a class or a function takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import bridge.core.paths as paths
from bridge.core.calling import checked_mode
from bridge.core.errors import StructureError, listed
from bridge.core.global_config import GlobalConfig
from bridge.core.handwritten import PARTS, Handwritten
from bridge.core.kinds import CHILD, STATIC
from bridge.core.leaves import PLACEHOLDERS, Frozen, as_array
from bridge.core.node import build, checked_static
from bridge.core.paths import Path
from bridge.core.rng import attachable
from bridge.core.spec import Spec, intern

KEYS = (*PARTS, "aux", "apply", "submodules")
# No field of a Module can have these names, because every Module has something of its own by them.
RNG, MODE, FREEZE, CONFIG = "_rng", "mode", "freeze", "global_config"


class Slot(NamedTuple):
    """Stands in the form of a field for what a tree has by this name."""

    name: str


class Read(NamedTuple):
    """What a node's dict says, each name a path and each child a Module."""

    apply: Callable[..., Any]
    arrays: dict[str, dict[Path, Any]]
    children: dict[Path, Any]
    aux: dict[str, Any]
    added: dict[str, Any]
    rng: Any


def read(tree: Mapping[str, Any], path: Path, child: Callable[[Any, Path], Any]) -> Read:
    """What a node's dict says, with `child(tree, path)` for each of its submodules.

    Raises StructureError, with everything that is wrong in it.
    """
    place = paths.name(path)
    problems = [f"{key!r} is none of a tree's keys" for key in tree if key not in KEYS]
    problems += [] if callable(tree.get("apply")) else ["'apply' is no function"]
    parts: Any = {key: tree.get(key, {}) for key in (*PARTS, "submodules", "aux")}
    problems += [f"{key!r} is no dict" for key, part in parts.items() if not isinstance(part, Mapping)]
    _refuse(place, problems)
    for key in (*PARTS, "submodules"):
        odd = [name for name in parts[key] if not isinstance(name, str | int) or name == ""]
        problems += [f"{key} {name!r}: a name is a string" for name in odd]
        parts[key] = {str(name): value for name, value in parts[key].items()}
        if len(parts[key]) < len(tree.get(key, ())):
            problems.append(f"two of its {key} have one name: {', '.join(map(repr, tree[key]))}")
    problems += [
        f"{part} {name!r} is a {type(value).__name__}: each array has a name of its own, 'name.inner'"
        for part in PARTS
        for name, value in parts[part].items()
        if isinstance(value, dict | list | tuple) and not isinstance(value, PLACEHOLDERS)
    ]
    _refuse(place, problems)
    children = {
        (at := paths.split(name)): child(below, (*path, *at))
        for name, below in parts["submodules"].items()
    }
    held = {
        part: {paths.split(n): _array(v, n, place) for n, v in parts[part].items()} for part in PARTS
    }
    keys = {at[1:]: held["buffers"].pop(at) for at in list(held["buffers"]) if at[0] == RNG}
    rng = attachable({at[0] if at else "default": key for at, key in keys.items()}) if keys else None
    aux = dict(parts["aux"])
    added = {name: aux.pop(name) for name in (MODE, FREEZE, CONFIG) if name in aux}
    return Read(tree["apply"], held, children, aux, added, rng)


def _array(value: Any, name: str, place: str) -> Any:
    # What JAX has brought to the host is nobody's to write to, so it stays there.
    ours = isinstance(value, np.ndarray) and not (
        value.flags.writeable or isinstance(value.base, np.ndarray)
    )
    return value if ours or isinstance(value, PLACEHOLDERS) else as_array(value, f"{place}: {name}")


def handwritten(found: Read, place: str) -> Handwritten:
    """The Module of a node whose `apply` is a plain function."""
    held = {**found.arrays, "submodules": found.children}
    firsts = [(at[0], part) for part, names in held.items() for at in names]
    last = dict(firsts)
    twice = [(name, part) for name, part in firsts if last[name] != part]
    _refuse(place, [f"{name!r} is among its {part} and its {last[name]}" for name, part in twice])
    values = {part: _nested(names, place) for part, names in held.items()}
    fields = {"aux": found.aux, "function": found.apply}
    return build(_spec(Handwritten, fields, found, place), values, found.rng)


def _spec(cls: Any, fields: Mapping[str, Any], found: Read, place: str) -> Spec:
    cls.prepare()
    named = {name: checked_static(value, cls._fields[name], cls) for name, value in fields.items()}
    frozen = frozenset(map(paths.split, found.added.get(FREEZE, ())))
    lost = [p for p in frozen if not any(paths.below(at, p) for at in found.arrays["params"])]
    _refuse(place, [f"its aux freezes {paths.join(path)!r}, which is no param" for path in lost])
    config = found.added.get(CONFIG)
    mode = checked_mode(found.added.get(MODE))
    return intern(cls, named, frozen, mode, config=GlobalConfig(config) if config else None)


def _nested(names: Mapping[Path, Any], place: str) -> Frozen:
    """Arrays or modules by path as dicts in dicts."""
    grown: dict[str, Any] = {}
    for path, value in names.items():
        at = grown
        for segment in path[:-1]:
            at = at.setdefault(segment, {})
            if not isinstance(at, dict):
                break
        if not isinstance(at, dict) or path[-1] in at:
            _refuse(
                place, [f"{paths.join(path)!r} lies inside of another name, or another inside of it"]
            )
        at[path[-1]] = value
    return _frozen(grown)


def _frozen(grown: Any) -> Any:
    return Frozen({k: _frozen(v) for k, v in grown.items()}) if type(grown) is dict else grown


def classed(found: Read, cls: Any, forms: Mapping[str, Any], place: str) -> Any:
    """The Module of a node that `to_tree` made of a class, whose fields have these forms."""
    fields = cls._fields
    wanted = {name for name, field in fields.items() if field.kind == STATIC}
    problems = [f"aux {name!r} is gone" for name in sorted(wanted - set(found.aux))]
    problems += [f"aux {name!r} is new" for name in sorted(set(found.aux) - wanted)]
    values, used = {}, set()
    for name, form in forms.items():
        field = fields[name]
        if field.kind == CHILD:
            values[name] = _with_children(form, field.prefix, found.children, used)
        else:
            part = "params" if field.kind.name == "parameter" else "buffers"
            values[name] = _with_arrays(form, field.prefix, found.arrays[part], used, problems, part)
    held = {**found.arrays, "submodules": found.children}
    problems += [
        f"{part} {paths.join(at)!r} is new"
        for part, names in held.items()
        for at in names
        if (part, at) not in used
    ]
    if problems:
        hint = (
            f"\nA {cls.__name__} has a fixed form; replace its apply by a function to give it another"
        )
        _refuse(place, problems, hint)
    return build(_spec(cls, found.aux, found, place), values, found.rng)


def _with_arrays(
    form: Any, prefix: Path, names: Mapping[Path, Any], used: set[Any], problems: list[str], part: str
) -> Any:
    if form is None and prefix in names:
        form = Slot(paths.join(prefix))

    def filled(slot: Slot) -> Any:
        at = paths.split(slot.name)
        used.add((part, at))
        if at not in names:
            problems.append(f"{part} {slot.name!r} is gone")
        return names.get(at)

    return jax.tree.map(filled, form, is_leaf=lambda leaf: isinstance(leaf, Slot))


def _with_children(form: Any, at: Path, children: Mapping[Path, Any], used: set[Any]) -> Any:
    """A field of modules, without those that were cut and with those that were added to it."""
    if at and at in children:
        used.add(("submodules", at))
        return children[at]
    if isinstance(form, Slot):
        return None
    if type(form) is tuple:
        return _items(form, at, children, used)
    if isinstance(form, dict):
        names = dict.fromkeys([*form, *(path[len(at)] for path in children if _under(path, at))])
        found = {k: _with_children(form.get(k), (*at, k), children, used) for k in names}
        return Frozen({k: v for k, v in found.items() if v is not None or form.get(k) is None})
    return form


def _items(form: tuple[Any, ...], at: Path, children: Mapping[Path, Any], used: set[Any]) -> Any:
    count = len(form)
    more = [path[len(at)] for path in children if _under(path, at) and path[len(at)].isdigit()]
    added = sorted({int(index) for index in more if int(index) >= count})
    made = [_with_children(one, (*at, str(i)), children, used) for i, one in enumerate(form)]
    kept = [new for new, old in zip(made, form, strict=True) if new is not None or old is None]
    return (*kept, *(_with_children(None, (*at, str(i)), children, used) for i in added))


def _under(path: Path, at: Path) -> bool:
    return len(path) > len(at) and paths.below(path, at)


def _refuse(place: str, problems: Iterable[str], hint: str = "") -> None:
    problems = list(problems)
    if problems:
        raise StructureError(f"the tree of {place} is none of a module:\n{listed(problems)}{hint}")
