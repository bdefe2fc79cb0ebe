"""The parts of an NNX model: its layers, its Variables by place, and what the parts put out."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import bridge.core.paths as paths
from bridge.adapters.nnx._dialect import ROWS
from bridge.core.errors import FieldError
from bridge.core.flax_rows import general_linear, weight_normed
from bridge.core.frames import Frame
from bridge.core.layers import Layer, Row, row_of
from bridge.core.leaves import as_array
from bridge.core.libraries import library_of
from bridge.core.node import Node
from bridge.core.paths import Path
from bridge.core.reseeding import Stream

PARAMS = "params"
ARRAYS = "arrays"
RNGS = "rngs"
# nnx.Dict and ToNNX pass by attributes of the first prefix where they list what they hold.
HEARD = "_pytree__heard"
# nnx.Module.sow passes a value by where it finds this empty, and else grows the module.
_CAPTURES = "__captures__"
_OUTPUT = ("", "")
# flax/nnx/nn/normalization.py: a WeightNorm's scales have a type in newer releases alone.
_SCALES = ((PARAMS, "*", "scales", "kernel"), ("state", ARRAYS, "*", "scales", "kernel"))
_ASSIGNED = "is no Variable and was assigned"


# Layers


def layers(model: nnx.Module) -> tuple[Layer, ...]:
    """The layers of an NNX model that a row knows; a shared one at its first path."""
    found: list[Layer] = []
    for keys, module in nnx.iter_modules(model):
        row = _row(module)
        if row is not None:
            found.append(row.layer(segments(keys), module))
    return tuple(found)


def _row(module: nnx.Module) -> Row | None:
    if isinstance(module, nnx.WeightNorm):
        row = _row(module.layer_instance)
        return row and weight_normed(row, ("*", "layer_instance"), *_SCALES)
    if isinstance(module, nnx.LinearGeneral):
        return general_linear(
            "flax.LinearGeneral", "out_features", _count(module.axis), _count(module.out_features)
        )
    return row_of(module, ROWS)


def _count(axes: int | Sequence[int]) -> int:
    return 1 if isinstance(axes, int) else len(axes)


# Variables


def streams(variables: Sequence[tuple[Any, Any]]) -> Iterator[Stream]:
    """The random streams of a model, of its Variables by key."""
    numbers = {segments(keys): number for number, (keys, _) in enumerate(variables)}
    for keys, value in variables:
        *parent, name = segments(keys)
        if isinstance(value, nnx.RngKey) and (*parent, "count") in numbers:
            yield Stream(value.tag, tuple(parent), numbers[*parent, name], numbers[*parent, "count"])


def raw(value: Any) -> Any:
    """What a Variable holds, before any hook of it; an array is itself."""
    return value.get_raw_value() if isinstance(value, nnx.Variable) else value


def faults(model: nnx.Module, variables: Sequence[tuple[Any, Any]]) -> list[str]:
    """What in a model cannot be an array of a Module, with its path, one line each."""
    kinds: dict[str, type] = {ARRAYS: jax.Array, RNGS: nnx.RngState, PARAMS: nnx.Param}
    found = [f"{paths.join(path)}: {fault}" for path, fault in _foreign(model, variables)]
    places = [place(keys, value) for keys, value in variables]
    stems = {(name, path[:end]) for name, path in places for end in range(len(path))}
    times = collections.Counter(places)
    for at, (_, value) in zip(places, variables, strict=True):
        if at in stems or times[at] > 1:
            found.append(f"{spelled(at)}: is the path of several Variables")
        found += [f"{spelled(at)}: {fault}" for fault in _faults(at[0], value, kinds)]
    return found


def _foreign(model: nnx.Module, variables: Sequence[tuple[Any, Any]]) -> Iterator[tuple[Path, str]]:
    """The models of other libraries, and the Modules, whose arrays are among those of a model."""
    stems = {keys[:end] for keys, _ in variables for end in range(len(keys))}
    for keys, part in nnx.iter_graph(model):
        if keys in stems and (isinstance(part, Node) or library_of(part) not in (None, "flax")):
            yield (
                segments(keys),
                f"is a {type(part).__name__}, whose arrays are no nnx.Param, so that nothing trains"
                f" them; make it an NNX module: bridge.to_nnx(bridge.wrap(model))",
            )


def _faults(name: str, value: Any, kinds: dict[str, type]) -> Iterator[str]:
    """Why a Variable cannot be an array of a Module; `kinds` are the types that collections have."""
    if isinstance(value, nnx.Variable):
        kind = value.var_type
        if not issubclass(kind, kinds.setdefault(name, kind)):
            yield (
                f"another type of Variables is named {name!r} as well; give this one a name of its own:"
                f" nnx.register_variable_name('...', {kind.__qualname__})"
            )
        if value.hijax or value.ref:
            yield "was made with hijax=True or ref=True; make it without"
            return
    for leaf in jax.tree.leaves(raw(value)):
        try:
            as_array(leaf, "")
        except FieldError:
            yield f"holds a {type(leaf).__name__}, no array; make it a plain attribute"


def form_of(graph: nnx.GraphDef[Any]) -> Any:
    """What is equal for two structures exactly if they are built alike: NNX takes 1 for True."""
    nodes = (
        (node.type, node.index, _exact(dict(node.metadata)))
        if isinstance(node, nnx.graphlib.VariableDef)
        else node
        for node in graph.nodes
    )
    attributes = (
        (key, type(one), _exact(getattr(one, "value", None))) for key, one in graph.attributes
    )
    return tuple(nodes), tuple(attributes)


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return type(value), value.hex()  # 0.0 and -0.0 are two, nan is itself
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_exact(item) for item in value)
    if isinstance(value, dict):
        return type(value), tuple((_exact(key), _exact(item)) for key, item in value.items())
    return type(value), frozenset(value) if isinstance(value, set) else value


def segments(keys: Iterable[Any]) -> Path:
    """The path that NNX's keys spell; a tuple among them, which is a key of a dict, is several."""
    path: list[str] = []
    for key in keys:
        path.extend(segments(key) if isinstance(key, tuple) else (str(key),))
    return tuple(path)


def place(keys: Iterable[Any], value: Any) -> tuple[str, Path]:
    """The collection and the path of a Variable, or of an array that is none."""
    path = segments(keys)
    if not isinstance(value, nnx.Variable):
        return ARRAYS, path
    if isinstance(value, nnx.Param):
        return PARAMS, path
    return (RNGS if isinstance(value, nnx.RngState) else collection(value.var_type)), path


def collection(kind: type | str) -> str:
    """The collection of a type of Variables: as Flax has registered it, or else its class's name."""
    if isinstance(kind, str):
        return kind
    try:
        return nnx.variable_name_from_type(kind)
    except ValueError:
        return kind.__name__


def spelled(at: tuple[str, Path]) -> str:
    """The dotted path of a place in the Module."""
    name, path = at
    return paths.join((PARAMS, *path) if name == PARAMS else ("state", name, *path))


def differences(before: nnx.Module, after: nnx.Module) -> list[str]:
    """A line for each thing in which a call has changed a model, the values of Variables left out."""
    was, now = _described(before), _described(after)
    lines = []
    for name in sorted(was.keys() | now.keys()):
        what, value = now.get(name, ("gone after the call", None))
        if name not in was:
            lines.append(f"{name}: {what if what == _ASSIGNED else 'made by the call'}")
        elif name not in now or was[name][1] != value:
            lines.append(f"{name}: {what}")
    return lines or ["its parts are shared in another way"]


def _described(model: nnx.Module) -> dict[str, tuple[str, Any]]:
    """What a call must leave as it is, by name, and what to say where it does not."""
    found: dict[str, tuple[str, Any]] = {}
    for keys, value in nnx.iter_graph(model):
        name = paths.join(segments(keys))
        hidden = any(str(key).startswith(("_pytree__", _CAPTURES)) for key in keys)
        if hidden or isinstance(value, (list, tuple, dict)):
            continue
        if isinstance(value, nnx.Variable):
            found[spelled(place(keys, value))] = "its metadata were assigned", value.get_metadata()
        elif isinstance(value, (jax.Array, np.ndarray)):
            found[spelled(place(keys, value))] = "", None
        elif isinstance(value, nnx.Pytree):
            found[name] = "is another part", (type(value).__module__, type(value).__qualname__)
        else:
            found[name] = _ASSIGNED, value
    return found


# What a copy of a model has for itself


def part_containers(model: nnx.Module) -> bool:
    """Gives a model lists, dicts and sets of its own for those among its attributes, if it has some.

    NNX shares them between a model and its copies.
    """
    found = False
    for _, part in list(nnx.iter_graph(model)):
        if isinstance(part, nnx.Pytree):
            for name, value in list(vars(part).items()):
                if isinstance(value, (list, dict, set)):
                    object.__setattr__(part, name, _copied(value))
                    found = True
    return found


def _copied(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return copy.copy(value) if isinstance(value, (list, dict, set)) else value


def pass_sown_by(model: nnx.Module) -> None:
    """Makes the parts of a model pass by what they sow; nnx.capture alone would show in an nnx.Dict."""
    for _, part in nnx.iter_modules(model):
        if not isinstance(part, (nnx.Dict, nnx.bridge.ToNNX)):
            vars(part).setdefault(_CAPTURES, ())


def sow_again(model: nnx.Module) -> None:
    """Makes the parts of a model sow as NNX means it."""
    for _, part in nnx.iter_modules(model):
        vars(part).pop(_CAPTURES, None)


# What the parts put out


class Heard(nnx.Variable[Any]):
    """What a part has put out, by collection and name; NNX's own transforms carry it along."""


def _all(before: Any, value: Any) -> Any:
    return (*before, value)


def _keep(part: Any, name: tuple[str, str], value: Any, reduce: Any = _all, start: Any = tuple) -> None:
    heard: Heard | None = vars(part).get(HEARD)
    if heard is None:  # the call has made this part
        return
    before = heard.get_value()
    value = reduce(before[name] if name in before else start(), value)
    # It is set as a whole: NNX refuses that under another trace than the part's own.
    heard.set_value({**before, name: value})


@functools.cache
def _listening(cls: Any) -> Any:
    """The class of a part that keeps what it sows and what it returns, and is else of this class."""

    def sow(
        self: Any,
        variable_type: type | str,
        name: str,
        value: Any,
        reduce_fn: Callable[[Any, Any], Any] = _all,
        init_fn: Callable[[], Any] = tuple,
        **options: Any,
    ) -> bool:
        _keep(self, (collection(variable_type), name), value, reduce_fn, init_fn)
        return cls.sow(self, variable_type, name, value, reduce_fn, init_fn, **options)

    def perturb(
        self: Any, name: str, value: Any, variable_type: type | str = nnx.Perturbation, **options: Any
    ) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, value)
        _keep(self, (collection(variable_type), name), zeros, lambda _, value: value)
        return cls.perturb(self, name, value, variable_type, **options)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = cls.__call__(self, *args, **kwargs)
        _keep(self, _OUTPUT, out)
        return out

    called = any("__call__" in vars(base) for base in cls.__mro__)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    names |= {"sow": sow, "perturb": perturb, **({"__call__": call} if called else {})}
    is_pytree = not jax.tree_util.all_leaves([object.__new__(cls)])
    # One base: an object takes only a class of the layout of its own.
    return type(cls)(cls.__name__, (cls,), names, pytree=is_pytree)


def listen(model: nnx.Module) -> nnx.GraphDef[Any]:
    """Makes each part of a model keep what it puts out, and gives the model's structure since then.

    Each gets a class of its own for that: other models of its class, in other threads too, go on.
    """
    for _, part in list(nnx.iter_modules(model)):
        if not isinstance(part, (nnx.Dict, nnx.List)):
            object.__setattr__(part, "__class__", _listening(type(part)))
            setattr(part, HEARD, Heard({}))
    return nnx.graphdef(model)


def record(frame: Frame, model: nnx.Module) -> None:
    """Gives `capture` what the parts of a model have kept."""
    for keys, part in nnx.iter_modules(model):
        heard = vars(part).get(HEARD)
        for (name, of), value in heard.get_value().items() if heard is not None else ():
            if of:
                frame.record((name, *segments(keys), of), value)
            elif keys:  # the output of the model itself is recorded by its node
                for out in value:
                    frame.record(segments(keys), out)
