"""Modules as text: a tree as PyTorch prints it, and a drawn tree with a table of every array."""

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
from bridge.core.tree import Entry, entries, own_entries


def draw(module: Any) -> str:
    """The module as an indented tree; `uninit` marks what `init` has still to make."""
    return "\n".join(_lines(module, paths.ROOT))


def uninitialised(module: Any) -> bool:
    """Whether something in the tree is still to be made."""
    return any(isinstance(entry.value, (ParamInit, Lazy)) for entry in entries(module))


def _lines(node: Any, path: Path) -> list[str]:
    if isinstance(node, Alias):
        return [f"-> {_target(path, node)}"]
    title = _title(node) + (" uninit " if uninitialised(node) else "")
    inside = [line for line in node.extra_repr().splitlines() if line]
    for below, child in children_of(node):
        first, *rest = _lines(child, (*path, *below))
        inside += [f"({paths.join(below)}): {first}", *rest]
    declared = (type(node)._fields[name] for name in type(node)._dynamic)
    parent = any(field.kind == CHILD and not field.inline for field in declared)
    parent = parent or any(children_of(node))
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
    """The drawn tree of a module as a table with the totals below it; see `Module.summary`."""
    rows = [("path", "kind", "dtype", "shape", "size"), *_rows(module, paths.ROOT, "")]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            cell.rjust(width) if column == 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines[1:1] = ["  ".join("-" * width for width in widths), _title(module)]
    return "\n".join([*lines, *_totals(list(entries(module)))])


def _rows(node: Any, path: Path, stem: str) -> list[tuple[str, ...]]:
    """The rows below a node: its arrays, and its children with what is below them."""
    arrays = [(entry.within, entry) for entry in own_entries(node, path)]
    branches = [*arrays, *children_of(node)]
    rows = []
    for number, (below, held) in enumerate(branches, 1):
        branch, beside = ("└── ", "    ") if number == len(branches) else ("├── ", "│   ")
        at = (*path, *below)
        cells = _cells(held) if isinstance(held, Entry) else (_called(held, at), "", "", "")
        rows.append((f"{stem}{branch}{paths.join(below)}", *cells))
        if not isinstance(held, (Entry, Alias)):
            rows += _rows(held, at, stem + beside)
    return rows


def _called(node: Any, path: Path) -> str:
    """The class of a module, or where the shared one is kept for which an alias stands."""
    return f"-> {_target(path, node)}" if isinstance(node, Alias) else _title(node)


def _title(node: Any) -> str:
    """The class of a module, or the name of the class that it was captured from."""
    return getattr(node, "_title", type(node).__name__)


def _cells(entry: Entry) -> tuple[str, str, str, str]:
    """The kind of an array, its dtype, its shape and its size."""
    kind = entry.kind.name
    if entry.kind.collection not in (None, "state"):
        kind = f"{kind} {entry.kind.collection}"
    if entry.frozen:
        kind += ", frozen"
    value = entry.value
    if isinstance(value, Lazy):
        return kind, "", "made by init", ""
    if isinstance(value, Tied):
        return kind, "", f"tied to {_target(entry.path, value)}", ""
    kind += ", uninit" if isinstance(value, ParamInit) else ""
    return kind, str(value.dtype), str(tuple(value.shape)), f"{math.prod(value.shape):,}"


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
