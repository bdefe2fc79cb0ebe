"""How `init` gives a parametrized function the parts that it is found to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

import bridge.core.calling as calling
import bridge.core.paths as paths
from bridge.core.frames import Run
from bridge.core.leaves import Frozen, ParamInit
from bridge.core.node import Alias, put, rebuild, spec_of
from bridge.core.origins import origins, reused, with_node
from bridge.core.paths import Path
from bridge.core.recipes import Recipe
from bridge.core.rng import place_key
from bridge.core.tree import owner_path


def made(run: Run, path: Path, wanted: ParamInit) -> Any:
    """The array of a place, drawn with the key of that place."""
    return wanted.make(place_key(calling.base_key(run.init_key), (*run.at, *path)))


def join(run: Run, host: Any, name: str, module: Any) -> None:
    """Makes a module a part of the running function, and opens it for the call."""
    frame = host._call
    path = (*frame.path, name)
    part = _part(run, path, module)
    run.root = with_node(run.root, frame.path, lambda node: _with(node, "parts", name, part))
    if isinstance(part, Alias):
        copy = run.opened[owner_path(path, part, run.root)]
    else:
        config = spec_of(host).config
        copy = calling.opened(run, part, path, frame, config)
    put(host, {"parts": Frozen({**host.parts, name: copy})})
    run.changes = True


def with_part(
    run: Run, path: Path, module: Any, recipe: Recipe, method: Callable[..., Any], arguments: Any
) -> Any:
    """The root with a part made outside of the JAX transform in which it is first called."""
    args, kwargs = jax.tree.map(_form, arguments)
    *host, name = path
    frame = run.opened[tuple(host)]._call

    def called(root: Any, *args: Any, **kwargs: Any) -> Any:
        return root._call.enter(root, method, args, kwargs)

    part = _shared(run, path, module)
    if part is None:
        at = (*run.at, *path)
        part = calling.init(
            module,
            run.init_key,
            args,
            kwargs,
            mode=frame.mode,
            method=called,
            trained=run.trained,
            at=at,
        )
        part = _aliased(run, path, module, part)

    def changed(node: Any) -> Any:
        statics = {**spec_of(node).statics, "recipes": (*node.recipes, (name, recipe))}
        return rebuild(_with(node, "parts", name, part), spec=spec_of(node).replace(statics=statics))

    return with_node(run.root, tuple(host), changed)


def with_value(run: Run, host: Path, name: str, wanted: ParamInit) -> Any:
    """The root with a parameter made outside of the JAX transform in which it is first used."""
    value = made(run, (*host, name), wanted)
    return with_node(run.root, host, lambda node: _with(node, "values", name, value))


def _with(node: Any, field: str, name: str, value: Any) -> Any:
    return rebuild(node, **{field: Frozen({**getattr(node, field), name: value})})


def _part(run: Run, path: Path, module: Any) -> Any:
    part = _shared(run, path, module)
    if part is not None:
        return part
    part = calling.begun(reused(module, run.trained), run.init_key, (*run.at, *path))
    return _aliased(run, path, module, part)


def _shared(run: Run, path: Path, module: Any) -> Any:
    """What stands for a module that the tree has elsewhere already; None where it has not."""
    if id(module) not in run.known:
        return None
    up, down = paths.relative(path, run.known[id(module)][1])
    return Alias(up=up, path=down)


def _aliased(run: Run, path: Path, module: Any, part: Any) -> Any:
    """The part with what the tree has elsewhere shared; the rest of it is known from here on."""
    for below, origin in list(origins(module, part)):
        alias = _shared(run, (*path, *below), origin)
        if alias is not None:
            part = with_node(part, below, lambda _, alias=alias: alias)
    for below, origin in origins(module, part):
        run.known.setdefault(id(origin), (origin, (*path, *below)))
    return part


def _form(value: Any) -> Any:
    """The shape and dtype of an array of a trace that is over."""
    if isinstance(value, Tracer):
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    return value
