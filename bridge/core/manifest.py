"""What a saved file says about a tree beside its arrays: classes, statics, kinds, sharing, keys."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np

from bridge.core.errors import CheckpointError
from bridge.core.kinds import Kind
from bridge.core.leaves import Tied, segments
from bridge.core.node import Alias, Node, spec_of
from bridge.core.opaque import Opaque
from bridge.core.paths import Path, join
from bridge.core.tree import entries, owner_path, walk

VERSION = 1
CLASS = "__class__"
_PARTS = {"modules": dict, "kinds": str, "shared": str, "keys": str}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of a tree, by dotted path, in values that JSON has.

    `modules` are the class and the static fields of each module, `kinds` what each array of a module
    is for, `shared` the owner of each alias and tied array, `keys` the implementation of typed keys.
    """

    modules: Mapping[str, Mapping[str, Any]]
    kinds: Mapping[str, str]
    shared: Mapping[str, str]
    keys: Mapping[str, str]

    @classmethod
    def of(cls, tree: Any, keys: Mapping[str, str]) -> Manifest:
        """The description of a tree; raises SharingError where an owner is not in it."""
        modules: dict[str, Mapping[str, Any]] = {}
        kinds: dict[str, str] = {}
        shared: dict[str, str] = {}
        for prefix, root in modules_in(tree):
            for path, node in walk(root):
                place = join((*prefix, *path))
                if isinstance(node, Alias):
                    shared[place] = join((*prefix, *owner_path(path, node, root)))
                else:
                    modules[place] = _module(node)
            for entry in entries(root):
                place = join((*prefix, *entry.path))
                kinds[place] = _kind(entry.kind)
                if isinstance(entry.value, Tied):
                    shared[place] = join((*prefix, *owner_path(entry.path, entry.value, root)))
        return cls(modules, kinds, shared, keys)

    def text(self) -> str:
        """The description as JSON."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def parse(cls, text: str, file: str) -> Self:
        """The description that a file holds; raises CheckpointError for another version or damage."""
        try:
            spelled = json.loads(text)
            version = spelled.pop("version")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise _damaged(file) from None
        if version != VERSION:
            raise CheckpointError(
                f"{file} is written in version {version} of the format, and this bridge reads version"
                f" {VERSION}; install the bridge that wrote it, or a newer one"
            )
        whole = set(spelled) == set(_PARTS) and all(isinstance(spelled[n], dict) for n in _PARTS)
        if not whole or any(type(v) is not _PARTS[n] for n in _PARTS for v in spelled[n].values()):
            raise _damaged(file)
        return cls(**spelled)


def _damaged(file: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged: its description is not what save writes")


def modules_in(tree: Any) -> Iterator[tuple[Path, Any]]:
    """Each outermost module of a tree with its path."""
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part: isinstance(part, Node))
    yield from ((segments(keys), part) for keys, part in keyed if isinstance(part, Node))


def _kind(kind: Kind) -> str:
    return kind.name if kind.collection in (None, kind.name) else f"{kind.name} ({kind.collection})"


def _module(node: Any) -> dict[str, Any]:
    statics = {name: described(value) for name, value in spec_of(node).statics.items()}
    return {CLASS: type(node).__qualname__, **statics}


def described(value: Any) -> Any:
    """A static value in JSON: as it is where JSON has it, by name or by type in `<>` elsewhere.

    Names stand without their module: a script is `__main__` when it runs and not when it is imported,
    and libraries move their functions between versions.
    """
    if isinstance(value, Opaque):
        return described(value.value)
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else f"<float {value}>"
    if type(value) in (tuple, list):
        return [described(item) for item in value]
    if isinstance(value, Mapping):
        return _described_dict(value)
    if isinstance(value, frozenset):
        return sorted((described(item) for item in value), key=json.dumps)
    if isinstance(value, functools.partial):
        of = {"function": value.func, "args": value.args, "keywords": value.keywords}
        return {name: described(part) for name, part in of.items()}
    return _described_object(value)


def _described_dict(value: Mapping[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value):
        return {key: described(item) for key, item in value.items()}
    return [[described(key), described(item)] for key, item in value.items()]


def _described_object(value: Any) -> Any:
    cls = type(value)
    if isinstance(value, type):
        return f"<class {value.__qualname__}>"
    if isinstance(value, enum.Enum):
        return f"<enum {cls.__qualname__}.{value.name}>"
    if isinstance(value, (np.dtype, np.generic, bytes, complex)):
        return f"<{cls.__name__} {value!s}>"
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.repr]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        names = value._fields  # type: ignore[attr-defined]
    else:
        function = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        return f"<function {function}>" if function else f"<object {cls.__qualname__}>"
    return {CLASS: cls.__qualname__} | {n: described(getattr(value, n, None)) for n in names}
