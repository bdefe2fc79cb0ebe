"""What a call of a Haiku model runs through: layers, modules with outputs, and JAX's transforms.

A call may run other transforms inside (hk.layer_stack, a nested hk.transform), whose modules are named
from a start of their own, and may have the names of modules of the model. What tells the two apart is
whose arrays `hk.get_params` gives at the place.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import haiku as hk
import jax

import bridge.core.paths as paths
from bridge.adapters.haiku._dialect import HEADS, ROLES, ROWS
from bridge.core.errors import TraceError
from bridge.core.frames import Frame
from bridge.core.layers import Layer, class_names, row_of

# haiku/_src/base.py: what its JaxUsageError says, with the function that was called.
_RAW_TRANSFORM = re.compile(
    r"tl;dr - You need to use a Haiku overloaded .* `(hk\.\w+)` has a side", re.S
)


def observed(init: Callable[[], tuple[Any, Any]]) -> tuple[tuple[Any, Any], tuple[Layer, ...]]:
    """The params and state that `init` makes, and the layers that it runs through, each once."""
    seen: dict[str, list[tuple[Layer, Any]]] = {}
    roles: dict[str, str] = {}
    heads: dict[str, tuple[tuple[str, Any], ...]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__init__":  # a module is known by its attributes, set there
            return call(*args, **kwargs)
        name, row = module.module_name, row_of(module, ROWS)
        for cls in class_names(module):
            roles.update({f"{name}/{part}": role for part, role in ROLES.get(cls, {}).items()})
            for part in HEADS.get(cls, ()):
                heads[f"{name}/{part}"] = (("heads", module.num_heads),)
        if row is None:
            return call(*args, **kwargs)
        sightings = seen.setdefault(name, [])
        out = call(*args, **kwargs)
        layer = row.layer((name,), module)
        settings = (*layer.settings, *heads.get(name, ()))
        layer = replace(layer, role=roles.get(name, ""), settings=settings)
        sightings.append((layer, hk.get_params().get(name, {})))
        return out

    with hk.intercept_methods(record):
        params, state = init()
    layers = (_layer_of(name, sightings, params, state) for name, sightings in seen.items())
    return (params, state), tuple(layer for layer in layers if layer is not None)


def _layer_of(name: str, sightings: list[tuple[Layer, Any]], params: Any, state: Any) -> Layer | None:
    """The layer that has a name in the model itself; None where that cannot be told."""
    # Under hk.remat or hk.vmap the arrays are not yet those that init gives back.
    own = [layer for layer, arrays in sightings if _same(arrays, params.get(name, {}))]
    layers = set(own or [layer for layer, _ in sightings])
    if len(layers) != 1:
        return None
    layer = layers.pop()
    made = {("params", *path) for path in _places(params)} | {
        ("state", *path) for path in _places(state)
    }
    return layer if any(slot.path in made for slot in layer.slots) else None


def _places(tree: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    return ((module, name) for module, arrays in tree.items() for name in arrays)


def _same(first: Any, second: Any) -> bool:
    """Whether two trees hold the very same arrays."""
    ours, structure = jax.tree.flatten(first)
    theirs, other = jax.tree.flatten(second)
    return structure == other and all(a is b for a, b in zip(ours, theirs, strict=True))


@contextlib.contextmanager
def watched(frame: Frame, params: Any) -> Iterator[None]:
    """Records the output of each Haiku module by its name, where `capture` asks for outputs.

    Raises TraceError for the output of a module that another transform inside the call has.
    """
    if frame.run.wanted is None:
        yield
        return
    inner: set[str] = set()

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            name = context.module.module_name
            if _same(hk.get_params(), params):
                frame.record((name,), out)
            else:
                inner.add(name)
        return out

    with hk.intercept_methods(record):
        yield
    for pattern in frame.run.wanted:
        *above, last = paths.split(pattern) or ("",)
        if tuple(above) != frame.path or pattern in frame.run.seen:
            continue
        if any(last == name or last.endswith(f"/{name}") for name in inner):
            raise TraceError(
                f"{pattern} runs in another Haiku transform inside the call (hk.layer_stack, hk.lift),"
                f" where its output cannot be captured; return it instead"
            )


@contextlib.contextmanager
def raw_transforms_refused(frame: Frame) -> Iterator[None]:
    """Raises TraceError where a Haiku function calls Haiku inside a JAX transform of its own.

    Haiku would draw the same numbers in each step, and lose what is made or set there.
    """
    try:
        with hk.config.context(check_jax_usage=True):
            yield
    except ValueError as error:
        found = _RAW_TRANSFORM.match(str(error))
        if found is None:
            raise
        raise TraceError(
            f"{paths.name(frame.path)} calls {found[1]} inside a JAX transform that was started during"
            f" the call: it would be repeated or lost. Use Haiku's own in its place: hk.scan, hk.map,"
            f" hk.fori_loop, hk.while_loop, hk.cond, hk.switch, hk.grad, hk.remat, or hk.vmap(...,"
            f" split_rng=not hk.running_init()); leave out an inner jax.jit, and jit the whole"
        ) from None
