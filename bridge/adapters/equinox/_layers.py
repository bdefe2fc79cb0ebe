"""What an Equinox model has inside: layers, flags, states, what cannot be wrapped, and outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.tree_util import GetAttrKey, tree_flatten_with_path, tree_map_with_path

from bridge.adapters.equinox._dialect import HEADS, REPARAMETRISED, ROWS
from bridge.core.errors import ModelError, listed
from bridge.core.layers import Layer, Row, class_names, reparametrised, row_of
from bridge.core.leaves import is_array, segments
from bridge.core.libraries import is_foreign
from bridge.core.paths import ROOT, Path, join

STATE = "state"
FLAG = "inference"
BATCH = "batch"
_WHOLE = (eqx.Module, eqx.nn.State)


def layers(model: eqx.Module) -> tuple[Layer, ...]:
    """The layers of an Equinox model that a row knows."""
    keyed, _ = tree_flatten_with_path(model, is_leaf=_known)
    found: list[Layer] = []
    for keys, part in keyed:
        row = _row(part)
        if row is not None:
            found.append(row.layer(segments(keys), part))
    heads = _heads(model)
    return tuple(
        replace(layer, settings=(*layer.settings, *heads.get(layer.path, ()))) for layer in found
    )


def _heads(model: Any) -> dict[Path, tuple[tuple[str, Any], ...]]:
    """How many heads the layers inside of an attention have, as a setting, by path."""
    found: dict[Path, tuple[tuple[str, Any], ...]] = {}
    for path, part in parts(model):
        names = (name for cls in class_names(part) for name in HEADS.get(cls, ()))
        found |= {(*path, name): (("heads", vars(part)["num_heads"]),) for name in names}
    return found


def _row(part: Any) -> Row | None:
    form = row_of(part, REPARAMETRISED)
    row = row_of(part.layer, ROWS) if form is not None else row_of(part, ROWS)
    if form is None or row is None:
        return row
    return reparametrised(row, "layer", ("*", "layer"), form.kind, form.slots)


def _known(part: Any) -> bool:
    return _row(part) is not None


def parts(model: Any, path: Path = ROOT) -> Iterator[tuple[Path, eqx.Module]]:
    """The model and every module in it, parents first, each with its path."""
    yield path, model
    for below, part in _flattened(model)[0]:
        if isinstance(part, eqx.Module):
            yield from parts(part, (*path, *below))


def _flattened(model: Any) -> tuple[list[tuple[Path, Any]], Any]:
    """What a module holds, down to the next modules: each with its path below it; and the treedef."""
    keyed, treedef = tree_flatten_with_path(
        model, is_leaf=lambda x: x is not model and (isinstance(x, _WHOLE) or is_foreign(x, "equinox"))
    )
    return [(segments(keys), value) for keys, value in keyed], treedef


def in_mode(model: Any, inference: bool) -> Any:
    """The model with the flags that `eqx.nn.inference_mode` sets.

    Unlike there a method, a property or a part of that name is no flag.
    """

    def flagged(keys: Any, leaf: Any) -> Any:
        return inference if keys[-1:] == (GetAttrKey(FLAG),) and isinstance(leaf, bool) else leaf

    return tree_map_with_path(flagged, model)


def faults(model: eqx.Module) -> list[str]:
    """What in a model cannot be wrapped, with its path, one line each."""
    found: list[str] = []
    for path, part in parts(model):
        keyed, _ = tree_flatten_with_path(part, is_leaf=lambda x, part=part: x is not part)
        ordinary = {name for keys, _ in keyed for name in segments(keys)[:1]}
        for field in dataclasses.fields(part):
            place, value = join((*path, field.name)), getattr(part, field.name, None)
            static = field.name not in ordinary
            if static and any(map(is_array, jax.tree.leaves(value))):
                found.append(
                    f"{place} is a static field and holds an array, which jax.jit cannot compare; make"
                    f" it an ordinary field, or a tuple of numbers"
                )
            elif field.name == FLAG and (held := _unsettable(part, value, static)) is not None:
                found.append(
                    f"{place} is {held}, which no mode can set; make it an ordinary field that"
                    f" __init__ sets to a bool"
                )
        found += _misplaced(path, part)
    return found


def _unsettable(part: eqx.Module, value: Any, static: bool) -> str | None:
    """What a flag is that no mode can set; None for one that it can, and for what is no flag."""
    is_flag = value is None or (jax.tree_util.all_leaves([value]) and not callable(value))
    if not is_flag or (isinstance(value, bool) and not static and FLAG in vars(part)):
        return None
    if static:
        return "a static field"
    if FLAG not in vars(part):
        return "a default of the class alone"
    return "an array" if is_array(value) else repr(value)


def _misplaced(path: Path, part: eqx.Module) -> Iterator[str]:
    for below, value in _flattened(part)[0]:
        if is_foreign(value, "equinox"):
            yield (
                f"{join((*path, *below))} is a {type(value).__name__}, whose arrays Equinox takes for"
                f" its own; make it an Equinox model:"
                f" with_init_state(*bridge.to_equinox(bridge.wrap(model)))"
            )
        elif isinstance(value, eqx.nn.State):
            yield (
                f"{join((*path, *below))} is an eqx.nn.State; take it out of the model and give it"
                f" beside it: from_equinox(model, state)"
            )
        elif isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "OSUMm":
            yield (
                f"{join((*path, *below))} is an array of {value.dtype}, which jax has none of; keep it"
                f" as a tuple in a static field"
            )


def watched(model: Any, record: Callable[[Path, Any], None], path: Path = ROOT) -> Any:
    """The model with every part that can be called telling its outputs: `record(path, output)`.

    Such a part is a copy, of a subclass of its class, with the same fields and methods. What gives
    parts and no outputs, `eqx.nn.Shared`, tells nothing; nor does the model itself.
    """
    inside, treedef = _flattened(model)
    copies = [
        watched(value, record, (*path, *below)) if isinstance(value, eqx.Module) else value
        for below, value in inside
    ]
    copy = jax.tree.unflatten(treedef, copies)
    if not path or not callable(copy) or isinstance(copy, eqx.nn.Shared):
        return copy
    telling = object.__new__(_telling(type(copy)))
    for name, value in {**vars(copy), "_bridge_tell": functools.partial(record, path)}.items():
        object.__setattr__(telling, name, value)
    return telling


@functools.cache
def _telling(cls: Any) -> Any:
    """The subclass of a class of modules whose call tells its output; its name is the same."""

    @functools.wraps(cls.__call__, updated=())
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = cls.__call__(self, *args, **kwargs)
        self._bridge_tell(out)
        return out

    body = {
        "__call__": __call__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__annotations__": {"_bridge_tell": Any},
        "_bridge_tell": eqx.field(static=True, default=None),
    }
    return type(cls)(cls.__name__, (cls,), body)


def axis_name(model: Any) -> Any:
    """The name that the layers of a model have for the axis of the batch."""
    names: dict[Any, None] = {}
    for _, part in parts(model):
        name = getattr(part, "axis_name", None)
        names |= dict.fromkeys(name if isinstance(name, (list, tuple)) else [name])
    names.pop(None, None)
    if len(names) > 1:
        raise ModelError(
            f"the layers of {type(model).__name__} name several axes,"
            f" {' and '.join(map(repr, names))}; say which is that of the batch:"
            f" from_equinox(model, vmap={next(iter(names))!r})"
        )
    return next(iter(names), BATCH)


def with_state(model: Any, state: Any) -> tuple[Any, Any]:
    """A model without initial states in it, and its State; None for a model that has no state."""
    indices = _indices(model)
    if state is None and not indices:
        return model, None
    if state is None:
        try:
            state = eqx.nn.State(model)
        except ValueError:
            raise ModelError(
                f"{type(model).__name__} was made by eqx.nn.make_with_state, which keeps its state"
                f" apart; give both: from_equinox((model, state))"
            ) from None
    _check_state(model, indices, state)
    if any(not isinstance(index.marker, str) for _, index in indices):
        model, state = _marked_by_path(model, indices, state)
    return eqx.nn.delete_init_state(model), state


def _marked_by_path(model: Any, indices: Iterable[tuple[Any, Any]], state: Any) -> tuple[Any, Any]:
    """The model and its State with the markers of make_with_state; one index twice stays one."""

    def filled(index: Any) -> Any:
        init = state.get(index)
        return eqx.tree_at(lambda index: index.init, index, init, is_leaf=lambda x: x is None)

    whole = _map_indices(filled, model)
    renamed, every = eqx.nn.make_with_state(lambda: whole)()
    pairs = zip(indices, _indices(renamed), strict=True)
    named = {old.marker: new for (_, old), (_, new) in pairs}
    model = _map_indices(lambda index: named[index.marker], whole)
    return model, every.substate(model)


def _map_indices(change: Callable[[Any], Any], model: Any) -> Any:
    return jax.tree.map(lambda x: change(x) if _is_index(x) else x, model, is_leaf=_is_index)


def _check_state(model: Any, indices: Iterable[tuple[Any, Any]], state: Any) -> None:
    name = type(model).__name__
    if not isinstance(state, eqx.nn.State):
        raise ModelError(
            f"the state of {name} is an eqx.nn.State, as eqx.nn.make_with_state gives it; it was given"
            f" a {type(state).__name__}"
        )
    try:
        _, given = state.tree_flatten()
    except ValueError:
        raise ModelError(
            "the eqx.nn.State given to from_equinox is an old one, which a call has replaced; give"
            " it the state that the call returned"
        ) from None
    wanted = {index.marker: join(path) for path, index in indices}
    problems = [f"{path}: has no entry" for marker, path in wanted.items() if marker not in given]
    problems += [f"{marker}: is no part of the model" for marker in given if marker not in wanted]
    if problems:
        raise ModelError(
            f"the eqx.nn.State given to from_equinox is not that of this {name}:\n{listed(problems)}\n"
            f"Give it the model and the state that one eqx.nn.make_with_state made"
        )


def _indices(model: Any) -> list[tuple[Path, eqx.nn.StateIndex]]:
    keyed, _ = tree_flatten_with_path(model, is_leaf=_is_index)
    return [(segments(keys), leaf) for keys, leaf in keyed if _is_index(leaf)]


def _is_index(value: Any) -> bool:
    return isinstance(value, eqx.nn.StateIndex)


def state_paths(kept: Mapping[str, Any], model: Any) -> list[Path]:
    """The paths of buffers and state: an entry of a State is where its StateIndex first is."""
    indices = {index.marker: path for path, index in reversed(_indices(model))}
    markers = kept[STATE].tree_flatten()[1] if STATE in kept else ()
    found = []
    for keys, _ in tree_flatten_with_path(kept)[0]:
        collection, *below = segments(keys)
        if collection == STATE:
            below[:1] = indices[markers[int(below[0])]]
        found.append((collection, *below))
    return found
