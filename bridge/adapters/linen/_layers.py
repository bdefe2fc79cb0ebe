"""What a call of a Linen model runs through: layers, and parts that draw, write and give out."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import flax.core
import flax.linen as nn
import jax

import bridge.core.paths as paths
from bridge.adapters.linen._dialect import ROWS
from bridge.core.errors import MissingRngError, ModelError, TraceError
from bridge.core.flax_rows import general_linear, weight_normed
from bridge.core.frames import Frame, current_trace
from bridge.core.layers import Layer, Row, row_of
from bridge.core.paths import Path
from bridge.core.rng import DEFAULT

T = TypeVar("T")

SOWN = "intermediates"
# flax/linen/module.py: what merge_param says, with the name of the parameter.
_FLAG = re.compile(r'Parameter "(\w+)" (was|must be) passed to the constructor')
_HOW = {
    "was": "given twice, by the attribute of that name and by the call; leave one of them out",
    "must be": (
        "given neither by the attribute of that name nor by the call. The mode says it to the model's"
        " own call: take it there as an argument, and hand it on"
    ),
}


class Watched(flax.core.Scope):
    """The place of a part of the model, which asks the watch of the call before it draws or writes.

    `trace` is the JAX trace that it belongs to. `lifted` says whether a lifted transform of Linen made
    it, `tainted` whether that transform was started under another trace than its own.
    """

    watch: Watch
    trace: Any
    lifted: bool
    tainted: bool

    @property
    def foreign(self) -> bool:
        """Whether a JAX transform runs that Linen knows nothing of."""
        return self.tainted or self.trace != flax.core.current_trace()

    def push(self, *args: Any, **kwargs: Any) -> Any:
        """The place of a child."""
        return self.watch.follow(super().push(*args, **kwargs), self)

    def rewound(self, *args: Any, **kwargs: Any) -> Any:
        """The same place anew."""
        return self.watch.follow(super().rewound(*args, **kwargs), self)

    def make_rng(self, name: str = "params") -> Any:
        """A key of the stream that serves this one."""
        return super().make_rng(self.watch.stream(self, name))

    def has_variable(self, col: str, name: str) -> bool:
        """Whether there is a variable of this name."""
        self.watch.touch(self.watch.read, (col, *self.path, name))
        return super().has_variable(col, name)

    def get_variable(self, col: str, name: str, default: Any = None) -> Any:
        """The value of a variable."""
        self.watch.touch(self.watch.read, (col, *self.path, name))
        return super().get_variable(col, name, default)

    def put_variable(self, col: str, name: str, value: Any) -> None:
        """Writes a variable where the watch allows it."""
        self.watch.write(self, col, name)
        super().put_variable(col, name, value)

    def _validate_trace_level(self) -> None:
        # Linen asks here before it starts a lifted transform; it has no public place for that.
        self.watch.mark(self)


class Watch:
    """Follows an init of a Linen model from part to part: an interceptor of the methods of its modules.

    Another model that runs inside on variables of its own is left alone. What lifted transforms make
    anew is known by the counters of its draws, which they hand on. `layers` are those that the call ran
    through, `elsewhere` the part and name of a variable that was made inside a raw JAX transform.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.layers: dict[Path, Layer] = {}
        self.elsewhere: Any = None
        self.read: set[Path] = set()
        self.sown: set[Path] = set()
        self._counters: dict[int, Any] = {}
        self._foreign: set[int] = set()

    def follow(self, scope: Any, like: Watched | None = None) -> Any:
        """A scope as one that asks this watch: a root, or a part of the tree of the scope `like`."""
        lifted = bool(self._counters) if like is None else like.lifted
        self._counters[id(scope.rng_counters)] = scope.rng_counters
        scope.__class__ = Watched
        scope.watch, scope.lifted = self, lifted
        scope.trace = scope.trace_level if like is None else like.trace
        scope.tainted = id(scope.rng_counters) in self._foreign if like is None else like.tainted
        return scope

    def mark(self, scope: Watched) -> None:
        """Remembers whether a lifted transform that starts here starts under another trace."""
        change = self._foreign.add if scope.foreign else self._foreign.discard
        change(id(scope.rng_counters))

    def touch(self, places: set[Path], place: Path) -> None:
        """Notes that a place is read, or sown; raises ModelError where the other happens as well."""
        places.add(place)
        if place in self.read and place in self.sown:
            variable = f"self.variable({place[0]!r}, {place[-1]!r}, ...)"
            raise ModelError(
                f"{self.name(place[1:-1])} sows {place[0]}.{place[-1]} and reads it, so that it is"
                f" state; what is sown is given out by a call, and gone: keep it in {variable}"
            )

    def _follows(self, scope: Any) -> bool:
        """Whether a scope belongs to the model; that of a lifted transform shows itself only here."""
        if scope is None:
            return False
        root = scope.root
        if not isinstance(root, Watched) and id(root.rng_counters) in self._counters:
            self.follow(root)
        if getattr(root, "watch", None) is not self:
            return False
        if not isinstance(scope, Watched):
            self.follow(scope, root)
        return True

    def __call__(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Runs a method of a module, as `flax.linen.intercept_methods` asks for it."""
        module = context.module
        if not self._follows(module.scope):
            return call(*args, **kwargs)
        for name in ("sow", "perturb"):
            if getattr(type(module), name) is getattr(nn.Module, name):
                object.__setattr__(module, name, functools.partial(getattr(self, name), module))
        try:
            out = call(*args, **kwargs)
        except ValueError as error:
            found = _FLAG.match(str(error))
            if found is None:
                raise
            raise self._flag_error(module, *found.groups()) from None
        self.left(module, context.method_name, out)
        return out

    def name(self, place: Path) -> str:
        """A place in the model for a message."""
        return paths.name((*self.frame.path, *place))

    def trace_error(self, place: Path, what: str) -> TraceError:
        """The error for what a part does inside a raw JAX transform."""
        return TraceError(
            f"{self.name(place)} {what} inside a JAX transform that the model's own code starts: it"
            f" would be repeated or lost. Use flax.linen.scan, flax.linen.vmap or flax.linen.remat in"
            f" place of jax.lax.scan, jax.vmap or jax.checkpoint (flax.linen has cond, while_loop, jit"
            f" and vjp as well)"
        )

    def _flag_error(self, module: Any, flag: str, how: str) -> ModelError:
        """The error for a parameter of a part that was given twice, or not at all."""
        return ModelError(
            f"{self.name(module.path)} ({type(module).__name__}): {flag!r} is {_HOW[how]}"
        )

    def stream(self, scope: Watched, name: str) -> str:
        """The stream that serves a draw from this one."""
        return name

    def write(self, scope: Watched, collection: str, name: str) -> None:
        """Notes the first variable that a raw JAX transform may keep for itself."""
        if scope.foreign and self.elsewhere is None:
            self.elsewhere = scope.path, f"{collection}.{name}"

    def sow(self, module: Any, col: str, name: str, value: Any, *how: Any, **named: Any) -> bool:
        """Sows nothing, which is what Linen does where a collection is not mutable."""
        if col != SOWN:
            self.touch(self.sown, (col, *module.path, name))
        return False

    def perturb(self, module: Any, name: str, value: Any, collection: str = "perturbations") -> Any:
        """The value as it is."""
        return value

    def left(self, module: Any, method: str, out: Any) -> None:
        """Notes the module if it is a layer."""
        row = _row(module)
        if row is not None:
            self.layers.setdefault(module.path, row.layer(module.path, module))


class Unserved(Exception):
    """A part draws from a stream of which the call was given no key by name."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.stream = stream


class Running(Watch):
    """The watch of an apply: it serves streams, refuses raw transforms, and notes what is given out.

    `keys` are what Linen is given. Outside of lifted transforms, which split keys by name, `server` is
    the one stream that serves all that have no key of their own: so no two draws of a part are alike.
    """

    def __init__(self, frame: Frame, more: Sequence[str]) -> None:
        super().__init__(frame)
        streams = None if frame.foreign() else frame.streams  # without keys, what draws is told why
        self.keys = {} if streams is None else {name: frame.key(name) for name in streams.keys}
        self.named = set(self.keys) - {DEFAULT}
        self.server = None
        if DEFAULT in self.keys:
            self.server = DEFAULT if "dropout" in self.keys else "dropout"
            self.keys[self.server] = self.keys.pop(DEFAULT)
        for name in more:
            key = frame.key(name)
            self.keys[name] = key if self.server is None else _folded(key, name)
        self.outputs: list[tuple[Path, Any]] = []
        self._values: dict[Path, Any] = {}

    def stream(self, scope: Watched, name: str) -> str:
        """The stream that serves a draw; raises TraceError inside a raw JAX transform."""
        if scope.foreign:
            raise self.trace_error(scope.path, f"draws from the rng stream {name!r}")
        if self.server is not None and not scope.lifted and name not in self.named:
            return self.server
        if scope.has_rng(name) or (not scope.lifted and scope.has_rng("params")):
            return name
        if name in self.keys:
            raise MissingRngError(
                f"{self.name(scope.path)} draws from the stream {name!r}, which the lifted transform"
                f" around it keeps back; name it there: split_rngs={{{name!r}: True, ...}}"
            )
        raise Unserved(name)

    def write(self, scope: Watched, collection: str, name: str) -> None:
        """Raises TraceError inside a raw JAX transform."""
        if scope.foreign:
            raise self.trace_error(scope.path, f"writes {collection}.{name}")

    def sow(
        self,
        module: Any,
        col: str,
        name: str,
        value: Any,
        reduce_fn: Callable[[Any, Any], Any] = lambda sown, value: (*sown, value),
        init_fn: Callable[[], Any] = tuple,
    ) -> bool:
        """Keeps a value for `capture`; what is sown in any collection is no state."""
        if col == SOWN and not module.scope.foreign:  # lifted transforms hand these on
            return nn.Module.sow(module, col, name, value, reduce_fn, init_fn)
        super().sow(module, col, name, value)
        place = (col, *module.path, name)
        if not self._captures(place, value):
            return False
        self._values[place] = reduce_fn(self._values.get(place, init_fn()), value)
        return True

    def perturb(self, module: Any, name: str, value: Any, collection: str = "perturbations") -> Any:
        """The value that passes, which `capture` sees; a perturbation that is a variable is added."""
        if module.has_variable(collection, name):
            value = nn.Module.perturb(module, name, value, collection)
        self._give((collection, *module.path, name), value)
        return value

    def left(self, module: Any, method: str, out: Any) -> None:
        """Keeps the output of a part's call for `capture`."""
        if method == "__call__" and module.path:
            self._give(module.path, out)

    def given_out(self, sown: Any) -> list[tuple[Path, Any]]:
        """All that the call gave out, by path, and what Linen itself has kept of what was sown."""
        linens = (((SOWN, *place), value) for place, value in named(sown))
        return [*self.outputs, *self._values.items(), *linens]

    def _give(self, place: Path, value: Any) -> None:
        if self._captures(place, value):
            self.outputs.append((place, value))

    def _captures(self, place: Path, value: Any) -> bool:
        """Whether `capture` can have a value; raises TraceError where it wants one and cannot."""
        run = self.frame.run
        if run.wanted is None:
            return False
        here = run.trace == current_trace()
        if not here:
            self.frame.record(place, value)
        return here


def running(frame: Frame, program: Callable[[Running], tuple[T, Any]]) -> tuple[T, Any]:
    """The output of a program and the collections after it, run under a watch.

    A lifted transform splits keys by name: where a part in one draws from a stream that "default"
    serves, the program runs again with a key for that stream.
    """
    more: tuple[str, ...] = ()
    while True:
        watch = Running(frame, more)
        try:
            with nn.intercept_methods(watch):
                out, after = program(watch)
        except Unserved as missing:
            more = (*more, missing.stream)
            continue
        after = flax.core.unfreeze(after)
        for place, value in watch.given_out(after.pop(SOWN, {})):
            frame.record(place, value)
        return out, after


def _folded(key: Any, stream: str) -> Any:
    return jax.random.fold_in(key, paths.fingerprint((stream,)))


def named(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What stands in nested dicts, by path."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for name, below in tree.items():
        yield from named(below, (*path, name))


def _row(module: nn.Module) -> Row | None:
    if isinstance(module, nn.WeightNorm):
        layer = module.layer_instance
        row = _row(layer)
        # flax/linen/normalization.py: it names a scale by the layer's name and the array's path in it.
        return row and weight_normed(
            row, layer.path, ("params", *module.path, f"{layer.name}/kernel/scale")
        )
    if isinstance(module, nn.DenseGeneral):
        return general_linear(
            "flax.DenseGeneral", "features", _count(module.axis), _count(module.features)
        )
    return row_of(module, ROWS)


def _count(axes: int | Sequence[int]) -> int:
    return 1 if isinstance(axes, int) else len(axes)
