"""What runs while `apply` does: one Run for the call, one Frame for each node of its private copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jax.extend.core import get_opaque_trace_state

import bridge.core.hosts as hosts
import bridge.core.paths as paths
from bridge.core.errors import BridgeError, FieldError, TraceError, UninitialisedError
from bridge.core.kinds import Field
from bridge.core.leaves import Lazy
from bridge.core.node import call_of, checked, put, spec_of
from bridge.core.paths import Path
from bridge.core.rng import Streams, call_key, draw_key, no_rng, place_key
from bridge.core.spec import Mode


def current_trace() -> Any:
    """The JAX trace that runs now, to be compared with `==`."""
    return get_opaque_trace_state(convention="bridge")


class Run:
    """One apply: what its frames have in common."""

    def __init__(
        self,
        root: Any,
        init_key: Any = None,
        wanted: Iterable[str] | None = None,
        at: Path = (),
        trained: Mapping[int, Any] | None = None,
    ) -> None:
        self.root = root
        self.init_key: Any = init_key
        self.wanted = None if wanted is None else tuple(wanted)
        self.at, self.trained = at, trained or {}
        self.known: dict[int, tuple[Any, Path]] = {}
        self.isolated = False
        self.captured: dict[str, Any] = {}
        self.seen: list[str] = []
        self.opened: dict[Path, Any] = {}
        self.trace = current_trace()
        self.shares = self.changes = self.finished = self.abstract = False

    @contextlib.contextmanager
    def past_init(self) -> Iterator[None]:
        """What runs inside takes everything as made: `init` fills nothing there."""
        key, self.init_key = self.init_key, None
        try:
            yield
        finally:
            self.init_key = key

    def again(self, grown: Callable[[], Any] | None = None) -> Run:
        """The run from its beginning, apart from JAX's caches; `grown` gives another root for it."""
        root = self.root if grown is None else grown()
        run = Run(root, self.init_key, self.wanted, self.at, self.trained)
        run.isolated, run.abstract = True, self.abstract
        return run

    def record(self, path: Path, value: Any) -> None:
        """Keeps an intermediate output if it was asked for; later calls get `path#2`, `path#3`."""
        place = paths.join(path)
        self.seen.append(place)
        if self.wanted is None or not any(selects(pattern, path) for pattern in self.wanted):
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
        self.mode: Mode = mode
        self.run, self.path, self.streams, self.trace = run, path, streams, trace
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
            if hosts.running() is None:
                out = method(node, *args, **kwargs)
            else:
                with hosts.unhosted():
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
        wanted = any(selects(pattern, path) for pattern in self.run.wanted or ())
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
        place = (*self.path, *field.prefix)
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
        return {
            name: place_key(key, (*self.run.at, *self.path)) for name, key in self.run.init_key.items()
        }

    def first_values(self, node: Any, values: Mapping[str, Any]) -> None:
        """What a module makes of its own activations; see `Module.fill`."""
        where, cls = paths.name(self.path), type(node).__name__
        wrong = [name for name in values if name not in type(node)._dynamic]
        if wrong or not self.initialising:
            raise FieldError(
                f"{where}: fill was given {wrong[0]!r}, which is no parameter, state or key of {cls}"
                if wrong
                else f"{where}: fill gives first values while init runs; type"
                f" `if self.initialising: self.fill(...)`"
            )
        lazy = [name for name in values if isinstance(getattr(node, name), Lazy)]
        if not lazy:
            return
        if self.run.abstract:
            raise UninitialisedError(
                f"{where} makes {', '.join(lazy)} of the values that reach it, and init was given a"
                f" jax.ShapeDtypeStruct, which has none; give it an array: module.init(key, x), or for"
                f" the shapes alone jax.eval_shape(module.init, key, x)"
            )
        if self.run.trace != current_trace():
            raise TraceError(
                f"{where} makes {', '.join(lazy)} inside a JAX transform that was started during the"
                f" call, where values cannot be kept; call it outside of that once while"
                f" self.initialising, with what reaches it first"
            )
        fields = type(node)._fields
        self.fill(node, **{name: checked(values[name], fields[name], type(node)) for name in lazy})

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


def selects(pattern: str, path: Path) -> bool:
    """Whether a path or glob that `capture` was given asks for this place."""
    return paths.join(path) == pattern or (paths.is_pattern(pattern) and paths.matches(path, pattern))


def frame_of(node: Any) -> Frame | None:
    """The frame of a private copy; None for a module outside of a call."""
    call = call_of(node)
    return call if isinstance(call, Frame) else None
