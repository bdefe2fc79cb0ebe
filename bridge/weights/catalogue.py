"""Which layers a bare state_dict holds, as far as names and shapes of its arrays say."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bridge.core.layers import Layer, Row, Slot, placed
from bridge.core.paths import Path

# What can be told apart without the model: a matrix is a linear layer's or an embedding's, a vector
# named weight a norm's. The kinds of the target decide, and with them the order of the axes.
GROUPS: Mapping[str, str] = {
    "linear": "matrix",
    "embedding": "matrix",
    "layer norm": "scale",
    "rms norm": "scale",
    "group norm": "scale",
    "prelu": "scale",
    "batch norm": "running",
    "convolution": "convolution",
    "transposed convolution": "convolution",
}
INCOMPLETE = "incomplete"

_PARAMETRISED = re.compile(r"(?:(?P<prefix>.+)\.)?(?P<last>parametrizations\.weight\..+)")
_INPUTS = re.compile(r"weight_ih(?P<suffix>_(?P<place>l\d+(_reverse)?))?")
_SHAPED = ("weight.v", "weight.raw")  # the parts that have a reparametrised weight's shape


def _torch() -> Any:
    """The tables of torch.nn, of which nothing is loaded before weights are."""
    from bridge.adapters.torch import _dialect

    return _dialect


def group_of(kind: str) -> str:
    """What a kind of layer looks like in a bare state_dict."""
    return GROUPS.get(kind, kind)


@functools.cache
def torch_row(kind: str) -> Row | None:
    """The row of torch.nn for a kind of layer; None where it has no such layer."""
    return next((row for row in _torch().ROWS if row.kind == kind), None)


@functools.cache
def torch_slots(kind: str) -> tuple[Slot, ...]:
    """What torch.nn may keep of a kind of layer, as it is and reparametrised."""
    row = torch_row(kind)
    if row is None:
        return ()
    forms = (_torch().reparametrised(row, parts.values()) for parts in _torch().REPARAMETRISED)
    return tuple(dict.fromkeys((*row.slots, *(slot for form in forms for slot in form.slots))))


def unfolded(parts: Iterable[str]) -> str | None:
    """What to do with a layer whose weight is kept as several parts, where a whole one is wanted."""
    return _torch().FOLD if any(part.startswith("weight.") for part in parts) else None


def layers_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """The layers that keys and shapes show; a key that belongs to none is left out."""
    members: dict[Path, dict[str, str]] = {}
    for key in shapes:
        prefix, last = _split(key)
        members.setdefault(prefix, {})[_torch().OLD_NAMES.get(last, last)] = key
    return tuple(
        layer for prefix, keys in members.items() for layer in _layers_at(prefix, keys, shapes)
    )


def _split(key: str) -> tuple[Path, str]:
    """The path of a key's layer, and the name of the array there."""
    found = _PARAMETRISED.fullmatch(key)
    if found is not None:
        return tuple(found["prefix"].split(".")) if found["prefix"] else (), found["last"]
    *prefix, last = key.split(".")
    return tuple(prefix), last


def _layers_at(prefix: Path, keys: Mapping[str, str], shapes: Mapping[str, Any]) -> Iterator[Layer]:
    for part, row in _torch().PROJECTIONS.items():
        found = tuple(_present(row.slots, prefix, keys))
        if any(slot.part == "weight" for slot in found):
            yield Layer((*prefix, part), row.kind, found)
    yield from _recurrent_at(prefix, keys, shapes)
    yield from _reparametrised_at(prefix, keys, shapes)
    group = _group(keys, shapes)
    if group is not None:
        row = torch_row(group)
        yield Layer(
            prefix, group, tuple(_present(row.slots if row else _slots_of(group), prefix, keys))
        )


def _slots_of(group: str) -> tuple[Slot, ...]:
    """A slot for each part of the kinds that look like a group."""
    rows = [row for row in _torch().ROWS if group_of(row.kind) == group]
    slots = {slot.part: slot for row in rows for slot in row.slots}
    return tuple(slots.values()) or tuple(s for s in _torch().ROWS[0].slots if s.part == "bias")


def _recurrent_at(prefix: Path, keys: Mapping[str, str], shapes: Mapping[str, Any]) -> Iterator[Layer]:
    """The layers of recurrent networks: how many gates they have tells of which kind they are."""
    kinds = {max(len(gates), 1): kind for kind, gates in _torch().GATES.items()}
    for name in keys:
        found, state = _INPUTS.fullmatch(name), keys.get(name.replace("_ih", "_hh"))
        if found is None or state is None or len(shapes[state]) != 2:
            continue
        rows, columns = shapes[state]
        row = torch_row(kinds.get(rows // max(columns, 1), ""))
        if row is not None and rows % columns == 0:
            slots = _torch().with_suffix(row, found["suffix"] or "").slots
            path = (*prefix, found["place"]) if found["place"] else prefix
            yield Layer(path, row.kind, tuple(_present(slots, prefix, keys)), fixed_settings(row))


def _reparametrised_at(
    prefix: Path, keys: Mapping[str, str], shapes: Mapping[str, Any]
) -> Iterator[Layer]:
    for parts in _torch().REPARAMETRISED:
        if {*parts.values()} <= keys.keys():
            shaped = next(place for part, place in parts.items() if part in _SHAPED)
            rank = len(shapes[keys[shaped]])
            row = torch_row("linear" if rank == 2 else "convolution")
            if row is not None and 2 <= rank <= 5:
                slots = _torch().reparametrised(row, keys.keys()).slots
                yield Layer(prefix, row.kind, tuple(_present(slots, prefix, keys)))


def fixed_settings(row: Row) -> tuple[tuple[str, Any], ...]:
    """The settings that every layer of a row has, whatever model it is in."""
    return row.layer((), None).settings


def _present(slots: tuple[Slot, ...], prefix: Path, keys: Mapping[str, str]) -> Iterator[Slot]:
    """The slots whose arrays are there, at their own keys."""
    for slot in slots:
        last = ".".join(placed(slot.path, prefix)[len(prefix) :])
        if last in keys:
            yield Slot(slot.part, tuple(keys[last].split(".")), slot.axes)


def _group(keys: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if "running_mean" in keys:
        return "running"
    if any({*parts.values()} <= keys.keys() for parts in _torch().REPARAMETRISED):
        return None
    if "weight" not in keys:
        return INCOMPLETE if "bias" in keys else None
    rank = len(shapes[keys["weight"]])
    return {1: "scale", 2: "matrix"}.get(rank, "convolution" if 3 <= rank <= 5 else None)


def buffer_reason(key: str) -> str | None:
    """Why a key is no weight at all; None for any that may be one."""
    return _torch().BUFFERS.get(key.rpartition(".")[2])
