"""The nesting of what a torch model takes and gives."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from bridge.core.errors import ModelError, listed
from bridge.lowering.structure import Structure

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_LITERAL = (bool, int, float, str, type(None))
# What caches of transformers hold, which no pytree opens: attributes of these classes.
_ATTRIBUTES = {
    "EncoderDecoderCache": ("self_attention_cache", "cross_attention_cache"),
    "MambaCache": ("conv_states", "ssm_states"),
    "DynamicCache": ("key_cache", "value_cache"),
}


def flattened(value: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The leaves of example inputs, those of caches too, and the inputs made of other leaves."""
    outer, spec = pytree.tree_flatten(value, is_leaf=_is_cache)
    opened = [_tensors_of(one) if _is_cache(one) else [one] for one in outer]

    def rebuild(leaves: Sequence[Any]) -> Any:
        rest = iter(leaves)
        parts = [list(itertools.islice(rest, len(inside))) for inside in opened]
        made = [
            _cache_of(one, iter(part)) if _is_cache(one) else part[0]
            for one, part in zip(outer, parts, strict=True)
        ]
        return pytree.tree_unflatten(made, spec)

    return [leaf for inside in opened for leaf in inside], rebuild


def _is_cache(value: Any) -> bool:
    return type(value).__name__ in _ATTRIBUTES and type(value).__module__.startswith("transformers.")


def _tensors_of(cache: Any) -> list[Any]:
    return structure_of(cache)[1]


def _cache_of(cache: Any, tensors: Iterator[Any]) -> Any:
    """A cache like another one, with these tensors in the order of `_tensors_of`."""
    made = copy.copy(cache)
    if type(cache).__name__ == "DynamicCache":
        made.layers = [copy.copy(layer) for layer in cache.layers]
        for name in ("keys", "values"):
            for layer in made.layers:
                if getattr(layer, name) is not None:
                    setattr(layer, name, next(tensors))
        return made
    for name in _ATTRIBUTES[type(cache).__name__]:
        held = getattr(cache, name)
        setattr(
            made, name, _cache_of(held, tensors) if _is_cache(held) else [next(tensors) for _ in held]
        )
    return made


def structure_of(value: Any) -> tuple[Structure, list[Any]]:
    """The nesting of a value, and the tensors and symbolic numbers in it.

    A dataclass that torch knows as a container, as the outputs of transformers, is a dict. Any other
    object counts as a literal, which no call can give again.
    """
    if isinstance(value, (torch.Tensor, *SYMBOLIC)):
        return Structure("leaf"), [value]
    if isinstance(value, _LITERAL):
        return Structure("literal", value=value), []
    kind, names, inside = _opened(value)
    if kind is None:
        return Structure("literal", value=f"<{type(value).__name__}>"), []
    found = [structure_of(item) for item in inside]
    parts = tuple(structure for structure, _ in found)
    return Structure(kind, parts, tuple(names)), [leaf for _, leaves in found for leaf in leaves]


def check_output(model: torch.nn.Module, output: Any) -> None:
    """Raises ModelError where a model returns objects whose tensors nobody can see."""
    problems = [f"{where or 'it'} is a {type(one).__name__}" for where, one in _unknown(output, "")]
    if problems:
        raise ModelError(
            f"this {type(model).__name__} returns what no JAX program gives:\n{listed(problems)}"
            f"\nLet it return tensors in tuples and dicts (of transformers often: use_cache=False), or"
            f" make the class known by torch.export.register_dataclass"
        )


def _unknown(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The objects in a value that are no container and nothing that a program can give."""
    if isinstance(value, (torch.Tensor, *SYMBOLIC, *_LITERAL, torch.dtype, torch.device, torch.Size)):
        return
    kind, names, inside = _opened(value)
    if kind is None:
        yield where, value
    for index, item in enumerate(inside):
        step = names[index] if kind == "dict" else index
        yield from _unknown(item, f"{where}[{step!r}]")


def _opened(value: Any) -> tuple[str | None, Sequence[Any], Sequence[Any]]:
    """A container as the kind of its structure, its names, and what is in it."""
    if isinstance(value, Mapping):
        return "dict", list(value), list(value.values())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "named", [type(value).__name__, *value._fields], list(value)  # type: ignore[attr-defined]
    if isinstance(value, (tuple, list)):
        return "list" if isinstance(value, list) else "tuple", [], list(value)
    if _is_cache(value):
        names = _ATTRIBUTES[type(value).__name__]
        return "dict", names, _inside_cache(value, names)
    if type(value) not in pytree.SUPPORTED_NODES:
        return None, [], []
    inside, _ = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
    try:
        keyed, _ = pytree.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
    except (ValueError, KeyError):
        return "tuple", [], inside
    names = [getattr(keys[0], "key", getattr(keys[0], "name", None)) for keys, _ in keyed]
    return ("dict", names, inside) if all(isinstance(n, str) for n in names) else ("tuple", [], inside)


def _inside_cache(cache: Any, names: Sequence[str]) -> list[Any]:
    if type(cache).__name__ != "DynamicCache":
        return [getattr(cache, name) for name in names]
    held = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
    return [[one for one in tensors if one is not None] for tensors in held]
