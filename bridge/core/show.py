"""Modules as text: a tree as PyTorch prints it, and a table of every array."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

import bridge.core.paths as paths
from bridge.core.kinds import CHILD
from bridge.core.leaves import Lazy, ParamInit, Tied, is_array
from bridge.core.node import Alias, children_of
from bridge.core.paths import Path
from bridge.core.tree import Entry, entries


def draw(module: Any) -> str:
    """The module as an indented tree; `uninit` marks what `init` has still to make."""
    return "\n".join(_lines(module, paths.ROOT))


def uninitialised(module: Any) -> bool:
    """Whether something in the tree is still to be made."""
    return any(isinstance(entry.value, (ParamInit, Lazy)) for entry in entries(module))


def _lines(node: Any, path: Path) -> list[str]:
    if isinstance(node, Alias):
        return [f"-> {_target(path, node)}"]
    title = getattr(node, "_title", type(node).__name__) + (" uninit " if uninitialised(node) else "")
    inside = [line for line in node.extra_repr().splitlines() if line]
    for below, child in children_of(node):
        first, *rest = _lines(child, (*path, *below))
        inside += [f"({paths.join(below)}): {first}", *rest]
    declared = (type(node)._fields[name] for name in type(node)._dynamic)
    parent = any(field.kind == CHILD and not field.inline for field in declared)
    if not parent and len(inside) <= 1:
        return [f"{title}({''.join(inside)})"]
    return [f"{title}(", *(f"  {line}" for line in inside), ")"] if inside else [f"{title}()"]


def _target(path: Path, reference: Alias | Tied) -> str:
    """Where what an alias or a tied array stands for is kept, if that is in the tree."""
    try:
        return paths.join(paths.absolute(path, reference.up, reference.path))
    except IndexError:
        return "shared with a place outside"


def tabulate(module: Any) -> str:
    """A table of every array: path, kind, dtype, shape, and the totals below it."""
    rows = [("path", "kind", "dtype", "shape", "size")]
    listed = list(entries(module))
    rows += [_row(entry) for entry in listed]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            cell.rjust(width) if column == 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([f"{type(module).__name__}", *lines, *_totals(listed)])


def _row(entry: Entry) -> tuple[str, str, str, str, str]:
    kind = entry.kind.name
    if entry.kind.collection not in (None, "state"):
        kind = f"{kind} {entry.kind.collection}"
    if entry.frozen:
        kind += ", frozen"
    value = entry.value
    if isinstance(value, Lazy):
        return paths.join(entry.path), kind, "", "made by init", ""
    if isinstance(value, Tied):
        return paths.join(entry.path), kind, "", f"tied to {_target(entry.path, value)}", ""
    kind += ", uninit" if isinstance(value, ParamInit) else ""
    size = f"{math.prod(value.shape):,}"
    return paths.join(entry.path), kind, str(value.dtype), str(tuple(value.shape)), size


def _totals(listed: list[Entry]) -> list[str]:
    arrays = [entry for entry in listed if not isinstance(entry.value, (Lazy, Tied))]
    trained = [e for e in arrays if e.kind.name == "parameter" and not e.frozen]
    frozen = [e for e in arrays if e.kind.name == "parameter" and e.frozen]
    others = [e for e in arrays if e.kind.name != "parameter"]
    parts = [f"{_count(trained):,} trained"]
    parts += [f"{_count(frozen):,} frozen"] if frozen else []
    parts += [f"{_count(others):,} state"] if others else []
    return [f"{', '.join(parts)}; {sum(_bytes(entry.value) for entry in arrays):,} bytes"]


def _count(listed: list[Entry]) -> int:
    return sum(math.prod(entry.value.shape) for entry in listed)


def _bytes(value: Any) -> int:
    if is_array(value) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.eval_shape(jax.random.key_data, value)
    return math.prod(value.shape) * value.dtype.itemsize
