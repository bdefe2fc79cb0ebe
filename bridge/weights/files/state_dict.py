"""The state_dict in a checkpoint: by itself, or beside an optimizer, a count of epochs and the like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.core.errors import WeightsError
from bridge.weights.tensors import Source, Tensor

# What wraps a model in torch, and the name under which it holds the model.
WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}


def found(root: Any, path: Path) -> Source:
    """The tensors of the one state_dict in what torch.save was given.

    Mappings are searched level by level; the first level that has a mapping with tensors in it decides.
    Raises WeightsError where it has several of them, or where there is none at all.
    """
    level: dict[tuple[str, ...], dict[Any, Any]] = {(): root} if isinstance(root, dict) else {}
    seen: set[int] = set()  # a pickle may hold a mapping many times, and within itself
    while level:
        candidates = {place: one for place, one in level.items() if _tensors(one)}
        if len(candidates) > 1:
            raise WeightsError(_several(candidates, path))
        if candidates:
            ((place, one),) = candidates.items()
            return Source(_tensors(one), notes=tuple(_notes(place, root)))
        seen |= {id(one) for one in level.values()}
        below = (((*place, key), inner) for place, one in level.items() for key, inner in _below(one))
        level = {place: one for place, one in below if id(one) not in seen}
    raise WeightsError(
        f"{path} holds no state_dict: there is no mapping in it with names for its tensors"
    )


def unwrapped(source: Source) -> Source:
    """The source with the keys of the model itself, where all keys are those of a wrapper around it."""
    for prefix, wrapper in WRAPPERS.items():
        keys = source.tensors
        if keys and all(key.startswith(prefix) and key != prefix for key in keys):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in keys.items()}
            note = f'"{prefix}", which {wrapper} puts before every key, was taken off'
            return unwrapped(replace(source, tensors=tensors, notes=(*source.notes, note)))
    return source


def _tensors(one: dict[Any, Any]) -> dict[str, Tensor]:
    return {
        key: value for key, value in one.items() if isinstance(key, str) and isinstance(value, Tensor)
    }


def _below(one: dict[Any, Any]) -> Iterator[tuple[str, dict[Any, Any]]]:
    for key, inner in one.items():
        if isinstance(key, str) and isinstance(inner, dict):
            yield key, inner


def _notes(place: tuple[str, ...], root: Mapping[str, Any]) -> Iterator[str]:
    if place:
        others = ", ".join(f'"{key}"' for key in root if key != place[0])
        yield f'the state_dict is "{".".join(place)}" of the file' + (
            f"; {others} stayed unread" if others else ""
        )


def _several(candidates: Mapping[tuple[str, ...], Any], path: Path) -> str:
    names = [".".join(place) for place in candidates]
    first = "".join(f"[{key!r}]" for key in next(iter(candidates)))
    return (
        f"{path} holds {len(names)} state_dicts, {', '.join(names)}; give the one that is meant, such"
        f" as torch.load({str(path)!r}, weights_only=True){first}"
    )
