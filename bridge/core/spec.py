"""The static side of a Module, interned: equal by value means the same object.

`jax.jit` hashes and compares the treedef at every call. A Spec is compared by identity, which costs
nothing, and the pool below sees to it that equal values are one Spec.
"""

from __future__ import annotations

import enum
import threading
import types
import weakref
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from bridge.core.errors import FieldError
from bridge.core.paths import Path

Mode = Literal["train", "eval"]
MODES = ("train", "eval")


class Spec:
    """All that a Module holds beside its arrays. Made by `intern`, compared by identity.

    `statics` are the static fields by name; `frozen` the paths below the node that are not trained;
    `mode` the node's own mode, None where it takes its parent's; `keyed` whether a key is attached;
    `config` the GlobalConfig that it says to what is below it, None where it says nothing.
    """

    __slots__ = ("__weakref__", "cls", "config", "frozen", "keyed", "mode", "statics", "variants")

    cls: type
    statics: Mapping[str, Any]
    frozen: frozenset[Path]
    mode: Mode | None
    keyed: bool
    config: Any
    variants: dict[Any, Spec]

    def replace(self, **changes: Any) -> Spec:
        """The Spec with some of `frozen`, `mode`, `keyed`, `config` and `statics` changed."""
        now = {"statics": self.statics, "frozen": self.frozen, "mode": self.mode}
        return intern(self.cls, **{**now, "keyed": self.keyed, "config": self.config, **changes})

    def running(self, mode: Mode, config: Any = None) -> Spec:
        """The Spec of a private copy: in this mode, without a key of its own that it could draw from.

        `config` is all that the copy can read of the global config. It is remembered, because every
        call asks for it.
        """
        variant = mode if config is None else (mode, config.token)
        found = self.variants.get(variant)
        if found is None:
            found = self.replace(mode=mode, keyed=False, config=config)
            self.variants[variant] = found
        return found

    def bare(self) -> Spec:
        """The Spec without freezing, mode, key and config: what two modules of one structure share."""
        found = self.variants.get("bare")
        if found is None:
            found = self.replace(frozen=frozenset(), mode=None, keyed=False, config=None)
            self.variants["bare"] = found
        return found

    def __deepcopy__(self, _memo: Any) -> Spec:
        return self

    def __reduce__(self) -> Any:
        thawed = {name: thaw(value) for name, value in self.statics.items()}
        return intern, (self.cls, thawed, self.frozen, self.mode, self.keyed, self.config)


_pool: weakref.WeakValueDictionary[Any, Spec] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def intern(
    cls: type,
    statics: Mapping[str, Any],
    frozen: frozenset[Path] = frozenset(),
    mode: Mode | None = None,
    keyed: bool = False,
    config: Any = None,
) -> Spec:
    """The one Spec of these values. Raises FieldError for a static that cannot be compared."""
    kept = {name: settle(value) for name, value in statics.items()}
    tokens = tuple((name, token(value, f"{cls.__name__}.{name}")) for name, value in kept.items())
    key = (cls, tokens, frozen, mode, keyed, config and config.token)
    with _lock:
        spec = _pool.get(key)
        if spec is None:
            spec = Spec()
            spec.cls, spec.statics, spec.frozen = cls, types.MappingProxyType(kept), frozen
            spec.mode, spec.keyed, spec.config, spec.variants = mode, keyed, config, {}
            _pool[key] = spec
    return spec


def settle(value: Any) -> Any:
    """A static value that nobody can change: lists become tuples, dicts read-only, sets frozen."""
    if type(value) in (list, tuple):
        return tuple(settle(item) for item in value)
    if isinstance(value, (dict, types.MappingProxyType)):
        return types.MappingProxyType({key: settle(item) for key, item in value.items()})
    return frozenset(value) if isinstance(value, set) else value


def thaw(value: Any) -> Any:
    """A settled value in containers of its own, which can be changed and pickled."""
    if type(value) is tuple:
        return tuple(thaw(item) for item in value)
    if isinstance(value, types.MappingProxyType):
        return {key: thaw(item) for key, item in value.items()}
    return value


def token(value: Any, where: str) -> Any:
    """A hashable that is equal exactly for equal statics: 1, 1.0 and True are three values."""
    if value is None or isinstance(value, (bool, int, str, bytes, enum.Enum, type)):
        return type(value), value
    if isinstance(value, float):
        return type(value), value.hex()
    if isinstance(value, tuple):
        return type(value), tuple(token(item, where) for item in value)
    if isinstance(value, types.MappingProxyType):
        items = ((token(key, where), token(item, where)) for key, item in value.items())
        return dict, tuple(items)
    if type(value) is frozenset:
        return frozenset, frozenset(token(item, where) for item in value)
    if isinstance(value, complex):
        return type(value), token(value.real, where), token(value.imag, where)
    if isinstance(value, np.generic):
        return type(value), value.tobytes()
    if _holds_arrays(value):
        raise FieldError(
            f"{where} is a static field and holds an array ({_described(value)}); arrays are"
            f" leaves: annotate the field as bridge.Parameter or bridge.State"
        )
    try:
        hash(value)
    except TypeError as error:
        raise FieldError(
            f"{where} is a static field, part of what jax.jit compares, and holds a"
            f" {type(value).__name__} that has no hash: {error}; use a hashable value"
        ) from None
    return type(value), value


def _holds_arrays(value: Any) -> bool:
    return any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(value))


def _described(value: Any) -> str:
    leaves = jax.tree.leaves(value)
    array = next(leaf for leaf in leaves if isinstance(leaf, (jax.Array, np.ndarray)))
    return f"{array.dtype}{list(array.shape)}"
