"""`apply` and `init`: a method run on a private copy of the tree, then the copy sealed again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import bridge.core.hosts as hosts
import bridge.core.paths as paths
from bridge.core.errors import (
    DroppedStateError,
    FieldError,
    MissingRngError,
    PathError,
    StructureError,
    UninitialisedError,
    listed,
)
from bridge.core.frames import Frame, Run, selects
from bridge.core.kinds import CHILD
from bridge.core.leaves import Lazy, Leaves, ParamInit, Tied, is_array, leaves_of, map_leaves
from bridge.core.node import (
    Alias,
    build,
    children_of,
    enrol,
    field_values,
    map_children,
    put,
    rebuild,
    rng_of,
    spec_of,
)
from bridge.core.origins import origins, reused
from bridge.core.paths import Path
from bridge.core.rng import Streams, place_key
from bridge.core.spec import MODES, Mode
from bridge.core.tree import direct, entries, find, map_entries, owner_path, walk


def _open(run: Run, node: Any, path: Path, mode: Mode, streams: Streams | None, config: Any) -> Any:
    """The private copy of a node and all below it, aliases and ties resolved."""
    if isinstance(node, Alias):
        run.shares = True
        return node
    spec = spec_of(node)
    mode = mode if path == () else spec.mode or mode
    config = config if spec.config is None else spec.config.below(config)
    attached = rng_of(node)
    if attached is not None and (streams is None or streams.attached) and path != ():
        streams = Streams.of(attached, path, attached=True)
    values = {
        name: _readable(run, node, value, (*path, *field.prefix))
        for name, value in field_values(node).items()
        if (field := type(node)._fields[name]).kind != CHILD
    }
    children = map_children(node, lambda at, child: _open(run, child, at, mode, streams, config), path)
    copy = build(spec.running(mode, config), {**values, **children})
    enrol(copy, Frame(run, path, mode, streams, run.trace))
    run.opened[path] = copy
    return copy


def _settle(run: Run) -> None:
    """Puts the private copies of shared modules where their aliases stand."""

    def resolved(path: Path, child: Any) -> Any:
        return run.opened[owner_path(path, child, run.root)] if isinstance(child, Alias) else child

    for path, copy in run.opened.items():
        put(copy, map_children(copy, resolved, path))


def _readable(run: Run, node: Any, value: Any, path: Path) -> Any:
    """The value of a field as a call sees it: tied arrays in their places, nothing uninitialised."""
    if is_array(value):
        return value
    if isinstance(value, Lazy):
        if run.init_key is None and not node.unseen:
            raise _unmade(node, path)
        return value
    leaves = value.values if isinstance(value, Leaves) else [leaf for _, leaf in leaves_of(value)]
    if not any(issubclass(kind, (ParamInit, Tied, str, bool)) for kind in set(map(type, leaves))):
        return value

    def read(below: Path, leaf: Any) -> Any:
        place = (*path, *below)
        if isinstance(leaf, Tied):
            return find(run.root, owner_path(place, leaf, run.root))
        if isinstance(leaf, ParamInit):
            raise _unmade(node, place)
        if isinstance(leaf, (str, bool)):  # Optax calls a tree of labels or masks that can be called
            raise FieldError(
                f"{paths.name(place)} is {leaf!r} and no array, so this {type(run.root).__name__} is"
                f" not one to call. Make labels and masks for Optax of what nobody can call:"
                f" jax.tree.map(label, module.parameters())"
            )
        return leaf

    return map_leaves(value, read)


def _unmade(node: Any, place: Path) -> UninitialisedError:
    return UninitialisedError(
        f"{paths.name(place)} of {type(node).__name__} is not initialised; type"
        f" module = module.init(key, *sample) first"
    )


def _close(node: Any, copy: Any, keep: bool) -> Any:
    """The node with what its private copy has written; with `keep` only what `init` filled."""
    if isinstance(node, Alias):
        return node
    changes: dict[Path, Any] = {}
    for (path, child), (_, opened) in zip(children_of(node), children_of(copy), strict=True):
        if not isinstance(child, Alias):
            changes[path] = _close(child, opened, keep)
    values = map_children(node, lambda path, child: changes.get(path, child))
    frame = copy._call
    if keep:
        return _filled(rebuild(node, **values), frame.filled)
    for name in frame.written:
        before, after = getattr(node, name), getattr(copy, name)
        values[name] = settled(before, after, (*frame.path, *type(node)._fields[name].prefix))
    rng, streams = rng_of(node), frame.streams
    if rng is not None and streams is not None and streams.attached and streams.drawn:
        rng = streams.advanced() if streams.base == frame.path else rng
    return rebuild(node, rng=rng, **values)


def _filled(node: Any, filled: Mapping[str, Any]) -> Any:
    dynamic = {name: value for name, value in filled.items() if name in type(node)._dynamic}
    statics = {name: value for name, value in filled.items() if name not in dynamic}
    spec = spec_of(node)
    spec = spec.replace(statics={**spec.statics, **statics}) if statics else spec
    return rebuild(node, spec=spec, **dynamic)


def settled(before: Any, after: Any, path: Path) -> Any:
    """A written state, which must have the structure, shapes and dtypes that it had before."""
    if _alike(before, after):
        return after
    old, new = dict(leaves_of(before)), dict(leaves_of(after))
    problems = [
        f"{paths.join((*path, *below))}: was {_shown(old.get(below))}, was assigned"
        f" {_shown(new.get(below))}"
        for below in [*old, *(below for below in new if below not in old)]
        if _form(old.get(below)) != _form(new.get(below))
    ]
    if not problems and jax.tree.structure(before) != jax.tree.structure(after):
        problems = [f"{paths.join(path)}: the containers differ"]
    if problems:
        raise StructureError(
            "a state must keep its structure, shape and dtype from call to call, or nothing that is"
            " compiled fits twice:\n"
            + listed(problems)
            + "\nGive it its final form in __init__ (or by init), or cast what is assigned"
        )
    return after


def _alike(before: Any, after: Any) -> bool:
    """Whether two states surely have the same structure, shapes and dtypes; most calls end here."""
    olds, structure = jax.tree.flatten(before)
    news, other = jax.tree.flatten(after)
    return structure == other and list(map(_form, olds)) == list(map(_form, news))


def _form(value: Any) -> Any:
    return None if value is None else (value.shape, value.dtype)


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value.dtype}{list(value.shape)}"


def checked_mode(mode: str | None) -> Any:
    """A mode or None; raises FieldError for any other string."""
    if mode is not None and mode not in MODES:
        raise FieldError(f'mode is {mode!r}; it is "train", "eval", or None to keep the tree\'s own')
    return mode


def _start(module: Any, run: Run, rng: Any, mode: str | None) -> Any:
    running: Mode = checked_mode(mode) or spec_of(module).mode or "eval"
    attached = rng_of(module)
    streams = None
    if rng is not None:
        streams = Streams.of(rng)
    elif attached is not None:
        streams = Streams.of(attached, attached=True)
    root = _open(run, module, (), running, streams, None)
    if run.shares:
        _settle(run)
    return root


def _method_of(root: Any, method: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(method):
        return functools.partial(method, root)
    found = root.own_method(method) or getattr(root, method, None)
    if not callable(found):
        raise FieldError(
            f"{type(root).__name__} has no method {method!r}; define it, or give apply another"
            f" method: a name, or a function of the module and its arguments"
        )
    return found


def apply(
    module: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    rng: Any = None,
    mode: str | None = None,
    method: str | Callable[..., Any] = "__call__",
    run: Run | None = None,
) -> tuple[Any, Any]:
    """The output of a method and the module after it; see `Module.apply`."""
    run = run or Run(module)
    while True:
        root = _start(module, run, rng, mode)
        try:
            out = _method_of(root, method)(*args, **kwargs)
            return out, _close(module, root, keep=False) if run.changes else module
        except hosts.Again as again:
            if again.run is not run:
                raise
        finally:
            run.finished = True
        run = run.again()


def call(module: Any, method: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The output of a method alone; raises DroppedStateError where a state update would be lost."""
    host = hosts.running()
    if host is not None and host.takes(module):
        return host.call(module, method, args, kwargs)

    def entered(root: Any, *args: Any, **kwargs: Any) -> Any:
        return root._call.enter(root, method, args, kwargs)

    out, after = apply(module, args, kwargs, method=entered)
    if after is not module:
        lost = _changed(module, after)
        if lost:
            raise DroppedStateError(
                f"this call updates {', '.join(lost)}, and calling the module gives only its output:"
                f" the update would be lost. Type `out, module = module.apply(...)`"
            )
    return out


def _changed(before: Any, after: Any) -> list[str]:
    now = {entry.path: entry.value for entry in entries(after)}
    return [
        paths.join(entry.path) for entry in entries(before) if now.get(entry.path) is not entry.value
    ]


def capture(
    module: Any, args: Any, kwargs: Mapping[str, Any], wanted: Iterable[str], **options: Any
) -> dict[str, Any]:
    """The outputs of the modules at the wanted paths; see `Module.capture`."""
    wanted = tuple(_called_place(module, pattern) for pattern in wanted)
    run = Run(module, wanted=wanted)
    apply(module, args, kwargs, run=run, **options)
    for pattern in wanted:
        if not any(selects(pattern, paths.split(place)) for place in run.seen):
            nearest = paths.nearest(pattern, list(dict.fromkeys(run.seen)))
            raise PathError(f"no module at {pattern!r} was called; {nearest}")
    return run.captured


def _called_place(module: Any, pattern: str) -> str:
    """An exact path through what is shared, to the place at which that is called."""
    try:
        return (
            pattern if paths.is_pattern(pattern) else paths.join(direct(module, paths.split(pattern)))
        )
    except LookupError:
        return pattern


def init(
    module: Any,
    key: Any,
    sample: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    mode: str | None = None,
    method: str | Callable[..., Any] = "__call__",
    trained: Mapping[int, tuple[Any, Any]] | None = None,
    at: Path = (),
) -> Any:
    """The module with everything made that was not there yet; see `Module.init`.

    `trained` is what `parts_by_origin` gives, `at` the path of the module where that is a part.
    """
    streams = Streams.of(key)
    base = base_key(streams.keys)
    if base is None:
        raise MissingRngError(
            f"init makes parameters with the stream 'params'; the streams given are"
            f" {', '.join(map(repr, streams.keys))}. Type module.init(key, ...), or"
            f" module.init({{'params': key, ...}}, ...)"
        )
    given, module = module, begun(reused(module, trained or {}), streams.keys, at)
    lazy = [entry.path[:-1] for entry in entries(module) if isinstance(entry.value, Lazy)]
    called = bool(sample or kwargs or callable(method))
    if not lazy and not (called and any(node.unseen for _, node in walk(module))):
        return module
    if not called:
        names = ", ".join(paths.name(path) for path in dict.fromkeys(lazy))
        raise UninitialisedError(
            f"{names}: shapes come from the input; give one: module.init(key, *sample), where a"
            f" sample is an array or a jax.ShapeDtypeStruct"
        )
    run = Run(module, init_key=streams.keys, at=at, trained=trained)
    leaves = jax.tree.leaves((sample, dict(kwargs)))
    run.abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    sample, kwargs = jax.tree.map(_concrete, (sample, dict(kwargs)))
    while True:
        run.known = {id(origin): (origin, path) for path, origin in origins(given, run.root)}
        root = _start(run.root, run, {"default": base, **streams.keys}, mode)
        try:
            _method_of(root, method)(*sample, **kwargs)
            return _close(run.root, root, keep=True)
        except hosts.Again as again:
            if again.run is not run:
                raise
            grown = again.grown
        finally:
            run.finished = True
        run = run.again(grown)


def begun(module: Any, keys: Mapping[str, Any], at: Path) -> Any:
    """The module, which stands at a path, with everything made that needs no sample."""
    base = base_key(keys)

    def made(path: Path, leaf: Any) -> Any:
        return leaf.make(place_key(base, (*at, *path))) if isinstance(leaf, ParamInit) else leaf

    if any(isinstance(entry.value, ParamInit) for entry in entries(module)):
        module = map_entries(module, made)
    keys = {name: place_key(key, at) for name, key in keys.items()}

    def completed(path: Path, node: Any) -> Any:
        node = rebuild(node, **map_children(node, completed, path))
        return node.completed(module, path, keys)

    return completed((), module)


def base_key(keys: Mapping[str, Any]) -> Any:
    """The key that parameters are made with, of those that init was given; None where it has none."""
    return keys.get("params", keys.get("default"))


def opened(run: Run, part: Any, path: Path, frame: Frame, config: Any) -> Any:
    """The private copy of a part that is found during a call."""
    copy = _open(run, part, path, frame.mode, frame.streams, config)
    _settle(run)
    return copy


def name_of(module: Any, method: Any) -> str:
    """The name of a method that a class of modules runs, as a caller types it."""
    if isinstance(method, functools.partial):  # a wrapped model's own
        return method.args[0]
    of_call = getattr(type(module).__call__, "__wrapped__", None)
    return "__call__" if method is of_call else method.__name__


def _concrete(value: Any) -> Any:
    """Zeros for an abstract sample: only its shape and dtype reach the parameters."""
    if isinstance(value, jax.ShapeDtypeStruct):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), value.shape)
        return jnp.zeros(value.shape, value.dtype)
    return value
