"""Models that see their parameters through a transform: weight norm, LoRA and quantisation are one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import bridge.core.calling as calling
import bridge.core.paths as paths
from bridge.core.delegating import Delegating
from bridge.core.errors import FieldError, PathError, StructureError, UninitialisedError
from bridge.core.frames import Frame
from bridge.core.leaves import Lazy, Tied, as_array, freeze_containers, is_array
from bridge.core.module import Function, Module, plain
from bridge.core.node import field_values, put, rebuild, spec_of
from bridge.core.opaque import Opaque
from bridge.core.origins import with_node
from bridge.core.partition import Where, chosen, settled_where
from bridge.core.paths import Path
from bridge.core.reaching import exchange, reached, stored_at
from bridge.core.rng import place_key
from bridge.core.tree import Entry, direct, entries, find, walk

_TRANSFORMS = "transforms"


class Reparametrized(Delegating):
    """A module whose chosen parameters are seen by it as a transform gives them.

    What is stored, and trained, stands where it stood, below `module`. A transform that is a module
    has its own copy for each parameter, below `transforms`, under the path of that.
    """

    module: Module
    transforms: dict[str, Module]
    transform: Any
    where: Any
    places: tuple | None

    @plain
    def invoke(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a method of the module returns, with the parameters as the transform gives them."""
        frame = self._running(method)
        if not frame.initialising:
            with self._put(frame):
                return _method(self.module, method)(*args, **kwargs)
        before = {owner for entry, owner in reached(self.module) if is_array(entry.value)}
        _method(self.module, method)(*args, **kwargs)  # makes what is lazy, to be transformed next
        self._fill(frame, before)
        with frame.run.past_init(), self._put(frame):
            return _method(self.module, method)(*args, **kwargs)

    @contextlib.contextmanager
    def _put(self, frame: Frame) -> Iterator[None]:
        """The private copies below with the transformed arrays in place, and then as they were."""
        found = reached(self.module)
        before = exchange(found, self.seen(frame, found))
        try:
            yield
        finally:
            for node, fields in before:
                put(node, fields)

    @plain
    def seen(self, frame: Frame, found: list[tuple[Entry, Path]]) -> dict[Path, Any]:
        """The array that the module sees for each stored one, by the place that owns that."""
        if self.places is None:
            if any(isinstance(entry.value, Lazy) for entry, _ in found):
                return {}  # a method that needs no parameters, or else says itself that it has none
            raise _unmade(frame.path)
        wanted = {paths.split(place): place for place in self.places}
        there = {entry.path for entry, _ in found}
        gone = [place for path, place in wanted.items() if path not in there]
        if gone:
            raise _gone(frame.path, gone)
        values: dict[Path, Any] = {}
        for entry, owner in found:
            if entry.path in wanted and owner not in values:
                seen = self._transformed(frame, entry)
                values[owner] = as_array(seen, f"{paths.join(entry.path)} as transformed")
        return values

    @plain
    def _transformed(self, frame: Frame, entry: Entry) -> Any:
        if not isinstance(self.transform, Opaque):
            return self.transform(entry.value)
        part = _part(self.transforms, entry.path)
        if part is None:
            raise _unmade(frame.path)
        return part(entry.value)

    @plain
    def _fill(self, frame: Frame, before: set[Path]) -> None:
        """Chooses among the parameters that init has just made, and makes their transforms."""
        owners = {entry.path: owner for entry, owner in reached(self.module)}
        if self.places is not None and before.issuperset(owners.values()):
            return
        new: dict[Path, Entry] = {}
        for entry in _parameters(self.module, self.where):
            if self.places is None or owners[entry.path] not in before:
                new.setdefault(owners[entry.path], entry)
        values = {entry.path: entry.value for entry in new.values()}
        frame.fill(self, places=(*(self.places or ()), *map(paths.join, values)))
        made = self._made(values, frame.init_key())
        run, config = frame.run, spec_of(self).config
        run.root = with_node(run.root, frame.path, lambda node: _with_parts(node, made))
        copies = {
            way: calling.opened(run, part, (*frame.path, _TRANSFORMS, *way), frame, config)
            for way, part in made.items()
        }
        put(self, field_values(_with_parts(self, copies)))

    @plain
    def completed(self, root: Any, path: Path, keys: Mapping[str, Any]) -> Any:
        """The module with its transforms made, where all that they transform is there."""
        inner = find(root, direct(root, (*path, "module")))
        if any(isinstance(entry.value, Lazy) for entry in entries(inner)):
            return self
        places = self.places
        if places is None:
            places = tuple(paths.join(entry.path) for entry in _parameters(inner, self.where))
        spec = spec_of(self)
        spec = spec if self.places else spec.replace(statics={**spec.statics, "places": places})
        ways = [way for way in map(paths.split, places) if _part(self.transforms, way) is None]
        keys = {stream: place_key(key, path) for stream, key in keys.items()}
        try:
            values = {way: stored_at(root, (*path, "module", *way)) for way in ways}
        except LookupError:
            raise _gone(path, [paths.join(way) for way in ways]) from None
        return _with_parts(rebuild(self, spec=spec), self._made(values, keys))

    @plain
    def _made(self, values: Mapping[Path, Any], keys: Mapping[str, Any]) -> dict[Path, Any]:
        """A transform of its own for each of these stored arrays, where it is a module."""
        if not isinstance(self.transform, Opaque):
            return {}
        made = {}
        for way, stored in values.items():
            fresh = jax.tree.map(lambda leaf: leaf, self.transform.value)  # one object would be shared
            own = {stream: place_key(key, (_TRANSFORMS, *way)) for stream, key in keys.items()}
            made[way] = fresh.init(own, stored)
        return made

    @plain
    def has_own(self, name: str) -> bool:
        """Whether the module inside has a method of this name that not every Module has."""
        inner: Any = self.module
        if inner.own_method(name) is not None:
            return True
        return not hasattr(Module, name) and callable(getattr(inner, name, None))

    @plain
    def without(self, name: str) -> str:
        """The message for a name that stands for nothing."""
        return (
            f"{type(self.module).__name__} has no method {name!r}; what a reparametrized module stores"
            f" is read below it: .module.{name}"
        )

    def extra_repr(self) -> str:
        """The transform, and what it is chosen for."""
        transform: Any = self.transform
        prototype = isinstance(transform, Opaque)
        name = type(transform.value).__name__ if prototype else getattr(transform, "__name__", "")
        return name if self.where is None else f"{name}, {self.where}"


def reparametrized(module: Any, transform: Any, where: Where | None = None) -> Reparametrized:
    """The module with its parameters seen by it as `transform(parameter)`, its own code untouched.

    `transform` is a function of an array, or a module that is called with one: each parameter gets a
    copy of that, with parameters, state and random keys of its own, which `init` makes; `bridge.LAZY`
    fields are filled there from what is stored. `where` chooses parameters by their paths
    below the module, as for `bridge.partition`; None chooses all that are trained, a path what is
    frozen too. Gradients and optimizers see what is stored, below `.module` under the names that it
    had, and the transforms' own parameters, below `.transforms`. What is shared or tied is seen as one
    array; what shares with the module from outside sees what is stored. Raises PathError where nothing
    is chosen.

    >>> import bridge as br, jax, jax.numpy as jnp
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    ...     shift: br.Parameter
    ...
    ...     def __call__(self, x):
    ...         return self.slope * x + self.shift
    >>> doubled = br.reparametrized(Line(3.0, 1.0), lambda array: 2 * array, "slope")
    >>> float(doubled(10.0)), float(doubled.grad(10.0).module.slope)
    (61.0, 20.0)
    >>> class Scaled(br.Module):
    ...     scale: br.Parameter = br.ParamInit((), jax.nn.initializers.ones)
    ...
    ...     def __call__(self, array):
    ...         return self.scale * array
    >>> scaled = br.reparametrized(Line(3.0, 1.0), Scaled()).init(jax.random.key(0))
    >>> scaled = scaled.at["transforms.slope.scale"].set(jnp.array(5.0))
    >>> float(scaled(10.0)), float(br.materialized(scaled).slope)
    (151.0, 15.0)
    """
    transform = Module.adopt(transform, "the transform of reparametrized")
    traced = [e.path for e in entries(transform) if isinstance(e.value, Tracer)]
    if traced:
        raise FieldError(
            f"the transform {type(transform).__name__} has a traced array at {paths.join(traced[0])},"
            f" and each parameter gets a copy of it, also in later calls: put a bridge.ParamInit or"
            f" bridge.LAZY there, which init makes"
        )
    own = transform.function if isinstance(transform, Function) else None
    module, where = Module.adopt(module, "reparametrized"), settled_where(where)
    places = None
    if not any(isinstance(entry.value, Lazy) for entry in entries(module)):
        places = tuple(paths.join(entry.path) for entry in _parameters(module, where))
    return Reparametrized(module, {}, own or Opaque(transform, _form), where, places)


def _form(transform: Any) -> Any:
    """What two equal transforms have in common: the structure, and the values of their arrays."""
    leaves, structure = jax.tree.flatten(transform)
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    plain = [jax.random.key_data(leaf) if key else leaf for key, leaf in zip(keys, leaves, strict=True)]
    return structure, tuple((leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in plain)


def _parameters(module: Any, where: Where | None) -> list[Entry]:
    """The parameters to transform, without those of the transforms of parts below."""
    within = [(*path, _TRANSFORMS) for path, node in walk(module) if isinstance(node, Reparametrized)]
    own = [
        entry
        for entry in entries(module)
        if entry.kind.name == "parameter"
        and not isinstance(entry.value, (Lazy, Tied))
        and not any(paths.below(entry.path, prefix) for prefix in within)
    ]
    if where is None:
        found = [entry for entry in own if not entry.frozen]
    else:
        found = chosen(module, where, own, "parameter")
    if not found:
        raise PathError(
            f"reparametrized chose no parameter of this {type(module).__name__}; a path as where also"
            f" chooses what is frozen: where='*'"
        )
    return found


def _part(parts: Any, way: Path) -> Any:
    """The transform at a path of nested dicts; None where there is none."""
    for step in way:
        parts = parts.get(step) if isinstance(parts, dict) else None
    return parts


def _with_parts(node: Any, parts: Mapping[Path, Any]) -> Any:
    """The node with these transforms besides those that it has."""
    transforms: Any = node.transforms
    for way, part in parts.items():
        transforms = _nested(transforms, way, part)
    return rebuild(node, transforms=freeze_containers(transforms)) if parts else node


def _nested(parts: Any, way: Path, part: Any) -> Any:
    step, *rest = way
    return {**parts, step: _nested(parts.get(step, {}), tuple(rest), part) if rest else part}


def _method(module: Any, name: str) -> Callable[..., Any]:
    return module.own_method(name) or getattr(module, name)


def _gone(path: Path, places: list[str]) -> StructureError:
    return StructureError(
        f"{paths.name(path)} transforms {', '.join(map(repr, places))}, and its module has not all of"
        f" these parameters any more; change a module first, and then type"
        f" bridge.reparametrized(module, ...)"
    )


def _unmade(path: Path) -> UninitialisedError:
    return UninitialisedError(
        f"{paths.name(path)} has not made its transforms; type module = module.init(key, *sample) first"
    )
