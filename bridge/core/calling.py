"""`apply` and `init`: a method run on a private copy of the tree, then the copy sealed again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

import bridge.core.paths as paths
from bridge.core.errors import (
    BridgeError,
    DroppedStateError,
    FieldError,
    MissingRngError,
    PathError,
    StructureError,
    TraceError,
    UninitialisedError,
    listed,
)
from bridge.core.kinds import CHILD, Field
from bridge.core.leaves import LAZY, Lazy, ParamInit, Tied, is_array, leaves_of, map_leaves
from bridge.core.node import (
    Alias,
    build,
    call_of,
    checked,
    direct,
    enrol,
    entries,
    field_values,
    find,
    map_children,
    map_entries,
    owner_path,
    put,
    rebuild,
    rng_of,
    spec_of,
    walk,
)
from bridge.core.paths import Path
from bridge.core.rng import Streams, call_key, draw_key, no_rng, place_key
from bridge.core.spec import MODES, Mode


def current_trace() -> Any:
    """The JAX trace that runs now, to be compared with `==`."""
    return get_opaque_trace_state(convention="bridge")


class Run:
    """One apply: what its frames have in common."""

    def __init__(self, root: Any, init_key: Any = None, wanted: Iterable[str] | None = None) -> None:
        self.root = root
        self.init_key = init_key
        self.wanted = None if wanted is None else tuple(wanted)
        self.captured: dict[str, Any] = {}
        self.seen: list[str] = []
        self.opened: dict[Path, Any] = {}
        self.trace = current_trace()
        self.shares = self.changes = self.finished = False

    def record(self, path: Path, value: Any) -> None:
        """Keeps an intermediate output if it was asked for; later calls get `path#2`, `path#3`."""
        place = paths.join(path)
        self.seen.append(place)
        if self.wanted is None or not any(_selects(pattern, path) for pattern in self.wanted):
            return
        label, call = place, 1
        while label in self.captured:
            call += 1
            label = f"{place}#{call}"
        self.captured[label] = value


class Frame:
    """What a node of a private copy knows about the call that it is part of."""

    __slots__ = (
        "calls",
        "depth",
        "draws",
        "filled",
        "lifts",
        "mode",
        "path",
        "run",
        "streams",
        "trace",
        "written",
    )

    def __init__(self, run: Run, path: Path, mode: Mode, streams: Streams | None, trace: Any) -> None:
        self.run, self.path, self.mode, self.streams, self.trace = run, path, mode, streams, trace
        self.calls = self.depth = self.draws = 0
        self.lifts: tuple[Any, ...] = ()
        self.written: set[str] = set()
        self.filled: dict[str, Any] = {}

    def enter(self, node: Any, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs a method of the node; a method that calls another one of the node is one call."""
        self.refuse_when_over()
        if self.depth == 0:
            self.calls += 1
            self.draws = 0
        self.depth += 1
        try:
            out = method(node, *args, **kwargs)
        except BridgeError:
            raise
        except Exception as error:
            _note(error, f"in {paths.name(self.path)} ({type(node).__name__})")
            raise
        finally:
            self.depth -= 1
        if self.depth == 0 and self.run.wanted is not None:
            self.record((), out)
        return out

    def record(self, below: Path, value: Any) -> None:
        """Keeps an output of this node, or of a part `below` it, for `capture`."""
        path = (*self.path, *below)
        wanted = any(_selects(pattern, path) for pattern in self.run.wanted or ())
        if wanted and self.run.trace != current_trace():
            raise TraceError(
                f"{paths.name(path)} runs inside a JAX transform (scan, vmap, checkpoint) that was"
                f" started during the call, where its output cannot be captured; return it instead"
            )
        self.run.record(path, value)

    def refuse_when_over(self) -> None:
        """Raises TraceError for a private copy that was kept beyond its call."""
        if self.run.finished:
            raise TraceError(
                f"{paths.name(self.path)} is a private copy of a call that has ended; return arrays"
                f" from a method, and use the module that apply returns"
            )

    def foreign(self) -> bool:
        """Whether another trace runs than the one that this node belongs to."""
        return self.trace != current_trace()

    def key(self, stream: str) -> Any:
        """The node's key of a stream for this call; raises where there is none to be had."""
        self.refuse_when_over()
        if self.streams is None:
            raise no_rng(self.path, stream)
        if self.foreign():
            raise self.trace_error(f"draws from the rng stream {stream!r}")
        self.run.changes = self.run.changes or self.streams.attached
        key = self.streams.key(stream, self.path)
        relative = self.path[len(self.streams.base) :]
        return call_key(key, relative, max(self.calls - 1, 0), self.lifts)

    def draw(self, stream: str) -> Any:
        """A fresh key of a stream, another one at each draw."""
        self.draws += 1
        return draw_key(self.key(stream), self.draws)

    def write(self, node: Any, field: Field, value: Any) -> None:
        """Assigns a field of the private copy; only State and Key fields may be."""
        self.refuse_when_over()
        place = (*self.path, field.name)
        if field.kind.name not in ("state", "key"):
            raise FieldError(
                f"{paths.name(place)} is a {field.kind.name} and was assigned during a call; what"
                f" changes from call to call is declared as `{field.name}: bridge.State`"
            )
        if self.foreign():
            raise self.trace_error(f"writes its state {field.name!r}")
        put(node, {field.name: checked(value, field, type(node))})
        self.written.add(field.name)
        self.run.changes = True

    @property
    def initialising(self) -> bool:
        """Whether `init` runs, so that what is lazy is to be filled."""
        return self.run.init_key is not None

    def init_key(self) -> Any:
        """The keys, by stream, with which the node makes its own parameters."""
        return {name: place_key(key, self.path) for name, key in self.run.init_key.items()}

    def fill(self, node: Any, **values: Any) -> None:
        """Gives a lazy node of the private copy its first values, statics too, which `init` keeps."""
        dynamic = {name: value for name, value in values.items() if name in type(node)._dynamic}
        statics = {name: value for name, value in values.items() if name not in dynamic}
        spec = spec_of(node)
        put(node, dynamic, spec.replace(statics={**spec.statics, **statics}) if statics else spec)
        self.filled.update(values)
        self.run.changes = True

    def trace_error(self, what: str) -> TraceError:
        """The error for a draw or a write inside a raw JAX transform."""
        return TraceError(
            f"{paths.name(self.path)} {what} inside a JAX transform that was started during the"
            f" call: it would be repeated or lost. Use bridge.scan, bridge.vmap or bridge.remat in"
            f" place of jax.lax.scan, jax.vmap or jax.checkpoint; elsewhere (cond, an inner jit or"
            f" grad) call child.apply(..., rng=key) and hand its result out"
        )


def _note(error: Exception, note: str) -> None:
    if not any(line.startswith("in ") for line in getattr(error, "__notes__", ())):
        error.add_note(note)


def _selects(pattern: str, path: Path) -> bool:
    return paths.join(path) == pattern or (paths.is_pattern(pattern) and paths.matches(path, pattern))


def frame_of(node: Any) -> Frame | None:
    """The frame of a private copy; None for a module outside of a call."""
    call = call_of(node)
    return call if isinstance(call, Frame) else None


def _open(run: Run, node: Any, path: Path, mode: Mode, streams: Streams | None, trace: Any) -> Any:
    """The private copy of a node and all below it, aliases and ties resolved."""
    if isinstance(node, Alias):
        run.shares = True
        return node
    spec = spec_of(node)
    mode = mode if path == () else spec.mode or mode
    attached = rng_of(node)
    if attached is not None and (streams is None or streams.attached) and path != ():
        streams = Streams.of(attached, path, attached=True)
    values = {
        name: _readable(run, node, value, (*path, name))
        for name, value in field_values(node).items()
        if type(node)._fields[name].kind != CHILD
    }
    children = map_children(node, lambda at, child: _open(run, child, at, mode, streams, trace), path)
    copy = build(spec.running(mode), {**values, **children})
    enrol(copy, Frame(run, path, mode, streams, trace))
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
    if is_array(value) or value is LAZY:
        return value
    if not any(isinstance(leaf, (ParamInit, Tied)) for _, leaf in leaves_of(value)):
        return value

    def read(below: Path, leaf: Any) -> Any:
        place = (*path, *below)
        if isinstance(leaf, Tied):
            return find(run.root, owner_path(place, leaf, run.root))
        if isinstance(leaf, ParamInit):
            raise UninitialisedError(
                f"{paths.name(place)} of {type(node).__name__} is not initialised; type"
                f" module = module.init(key, *sample) first"
            )
        return leaf

    return map_leaves(value, read)


def _close(node: Any, copy: Any, keep: bool) -> Any:
    """The node with what its private copy has written; with `keep` only what `init` filled."""
    if isinstance(node, Alias):
        return node
    changes: dict[Path, Any] = {}
    for (path, child), (_, opened) in zip(_children(node), _children(copy), strict=True):
        if not isinstance(child, Alias):
            changes.setdefault(path, _close(child, opened, keep))
    values = map_children(node, lambda path, child: changes.get(path, child))
    frame = copy._call
    if keep:
        return _filled(rebuild(node, **values), frame.filled)
    for name in frame.written:
        before, after = getattr(node, name), getattr(copy, name)
        values[name] = settled(before, after, (*frame.path, name))
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


def _children(node: Any) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    map_children(node, lambda path, child: found.append((path, child)) or child)
    return found


def settled(before: Any, after: Any, path: Path) -> Any:
    """A written state, which must have the structure, shapes and dtypes that it had before."""
    old, new = dict(leaves_of(before)), dict(leaves_of(after))
    problems = [
        f"{paths.join((*path, *below))}: was {_shown(old.get(below))}, was assigned"
        f" {_shown(new.get(below))}"
        for below in [*old, *(below for below in new if below not in old)]
        if _shown(old.get(below)) != _shown(new.get(below))
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
    root = _open(run, module, (), running, streams, run.trace)
    if run.shares:
        _settle(run)
    return root


def _method_of(root: Any, method: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(method):
        return functools.partial(method, root)
    found = getattr(root, method, None)
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
    root = _start(module, run, rng, mode)
    try:
        out = _method_of(root, method)(*args, **kwargs)
        after = _close(module, root, keep=False) if run.changes else module
    finally:
        run.finished = True
    return out, after


def call(module: Any, method: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The output of a method alone; raises DroppedStateError where a state update would be lost."""

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
        if not any(_selects(pattern, paths.split(place)) for place in run.seen):
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
) -> Any:
    """The module with everything made that was not there yet; see `Module.init`."""
    streams = Streams.of(key)
    base = streams.keys.get("params", streams.keys.get("default"))
    if base is None:
        raise MissingRngError(
            f"init makes parameters with the stream 'params'; the streams given are"
            f" {', '.join(map(repr, streams.keys))}. Type module.init(key, ...), or"
            f" module.init({{'params': key, ...}}, ...)"
        )

    def made(path: Path, leaf: Any) -> Any:
        return leaf.make(place_key(base, path)) if isinstance(leaf, ParamInit) else leaf

    if any(isinstance(entry.value, ParamInit) for entry in entries(module)):
        module = map_entries(module, made)
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
    run = Run(module, init_key=streams.keys)
    root = _start(module, run, {"default": base, **streams.keys}, mode)
    sample, kwargs = jax.tree.map(_concrete, (sample, dict(kwargs)))
    try:
        _method_of(root, method)(*sample, **kwargs)
        return _close(module, root, keep=True)
    finally:
        run.finished = True


def _concrete(value: Any) -> Any:
    """Zeros for an abstract sample: only its shape and dtype reach the parameters."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jnp.zeros(value.shape, value.dtype)
    return value
