"""Which layers a bare state_dict holds, as far as names and shapes of its arrays say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bridge.core.layers import Layer, Row, Slot, placed
from bridge.core.paths import Path

# What can be told apart without the model: a matrix is a linear layer's or an embedding's, a vector
# named weight a norm's. The kinds of the target decide, and with them the order of the axes.
GROUPS: Mapping[str, str] = {
    "linear": "matrix",
    "embedding": "matrix",
    "layer norm": "scale",
    "batch norm": "running",
    "convolution": "convolution",
}
INCOMPLETE = "incomplete"


def _torch() -> Any:
    """The tables of torch.nn, of which nothing is loaded before weights are."""
    from bridge.adapters.torch import _dialect

    return _dialect


def group_of(kind: str) -> str:
    """What a kind of layer looks like in a bare state_dict."""
    return GROUPS.get(kind, kind)


def torch_row(kind: str) -> Row | None:
    """The row of torch.nn for a kind of layer; None where it has no such layer."""
    return next((row for row in _torch().ROWS if row.kind == kind), None)


def layers_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """The layers that keys and shapes show; a key that belongs to none is left out."""
    members: dict[Path, dict[str, str]] = {}
    for key in shapes:
        *prefix, last = key.split(".")
        members.setdefault(tuple(prefix), {})[_torch().OLD_NAMES.get(last, last)] = key
    return tuple(
        layer for prefix, keys in members.items() for layer in _layers_at(prefix, keys, shapes)
    )


def _layers_at(prefix: Path, keys: Mapping[str, str], shapes: Mapping[str, Any]) -> Iterator[Layer]:
    for part, row in _torch().PROJECTIONS.items():
        found = tuple(_present(row.slots, prefix, keys))
        if any(slot.part == "weight" for slot in found):
            yield Layer((*prefix, part), row.kind, found)
    group = _group(keys, shapes)
    if group is not None:
        row = torch_row(group)
        slots = (
            row.slots if row else tuple({s.part: s for r in _torch().ROWS for s in r.slots}.values())
        )
        yield Layer(prefix, group, tuple(_present(slots, prefix, keys)))


def _present(slots: tuple[Slot, ...], prefix: Path, keys: Mapping[str, str]) -> Iterator[Slot]:
    """The slots whose arrays are there, at their own keys."""
    for slot in slots:
        last = placed(slot.path, prefix)[-1]
        if last in keys:
            yield Slot(slot.part, tuple(keys[last].split(".")), slot.axes)


def _group(keys: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if "running_mean" in keys:
        return "running"
    if "weight" not in keys:
        return INCOMPLETE if "bias" in keys else None
    rank = len(shapes[keys["weight"]])
    return {1: "scale", 2: "matrix"}.get(rank, "convolution" if 3 <= rank <= 5 else None)


def buffer_reason(key: str) -> str | None:
    """Why a key is no weight at all; None for any that may be one."""
    return _torch().BUFFERS.get(key.rpartition(".")[2])
