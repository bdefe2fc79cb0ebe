"""Random keys by path: a draw's key depends on where it happens, not on what happens before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import bridge.core.paths as paths
from bridge.core.errors import MissingRngError
from bridge.core.leaves import Frozen
from bridge.core.paths import Path, fingerprint

DEFAULT = "default"
# No module has a path that begins with an empty segment, so these fold like none of them.
_ADVANCE = fingerprint(("", "advance"))
_DRAW = fingerprint(("", "draw"))
_LIFT = fingerprint(("", "lift"))


def is_key(value: Any) -> bool:
    """Whether a value is one key: a typed one, or a legacy one of two or four uint32 numbers."""
    if not isinstance(value, (jax.Array, jax.ShapeDtypeStruct)):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    return value.dtype == jnp.uint32 and value.shape in ((2,), (4,))


class Streams:
    """The keys given to a call by name, and the path of the module that they were given to."""

    def __init__(self, keys: Mapping[str, Any], base: Path, attached: bool = False) -> None:
        self.keys, self.base, self.attached = keys, base, attached
        self.drawn = False

    @classmethod
    def of(cls, rng: Any, base: Path = (), attached: bool = False) -> Streams:
        """Streams of one key or of a dict of keys; raises MissingRngError for anything else."""
        if isinstance(rng, Streams):
            return rng
        named = dict(rng) if isinstance(rng, Mapping) else {DEFAULT: rng}
        for stream, key in named.items():
            if not is_key(key):
                raise MissingRngError(
                    f"rng {stream!r} is {_described(key)}; a key was wanted: jax.random.key(0), or"
                    f' a dict of them by stream: {{"dropout": key, "default": other_key}}'
                )
        return cls(named, base, attached)

    def key(self, stream: str, path: Path) -> Any:
        """The key of a stream, unfolded; raises MissingRngError with the streams there are."""
        self.drawn = True
        name = stream if stream in self.keys else DEFAULT
        if name not in self.keys:
            given = ", ".join(repr(name) for name in self.keys)
            raise MissingRngError(
                f"{paths.name(path)} draws from the stream {stream!r}; the streams given are {given}."
                f' Give it a key: rng={{{stream!r}: key, ...}}, or "default" to serve every stream'
            )
        return self.keys[name]

    def take(self) -> None:
        """Takes every key that is only lent, before a transform runs in which it would be a leak."""
        self.keys = dict(self.keys)

    def advanced(self) -> Any:
        """The attached keys for the next call, in the form that they were attached in."""
        keys = {name: jax.random.fold_in(key, _ADVANCE) for name, key in self.keys.items()}
        return Frozen(keys) if set(keys) != {DEFAULT} else keys[DEFAULT]


class Lent(Mapping[str, Any]):
    """Keys that another library keeps by stream, each taken from it when it is first asked for.

    `names` are the streams that it has. `take` gives a stream's key, or raises MissingRngError: it is
    asked for every stream, because a library has rules of its own for what it was not given.
    """

    def __init__(self, names: Iterable[str], take: Callable[[str], Any]) -> None:
        self._names, self._take = tuple(names), take
        self._taken: dict[str, Any] = {}

    def __getitem__(self, stream: str) -> Any:
        if stream not in self._taken:
            self._taken[stream] = self._take(stream)
        return self._taken[stream]

    def __contains__(self, stream: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def attachable(rng: Any) -> Any:
    """A key or a dict of keys as a module keeps it; raises MissingRngError for anything else."""
    keys = Streams.of(rng).keys
    return Frozen(keys) if set(keys) != {DEFAULT} else keys[DEFAULT]


def call_key(key: Any, path: Path, call: int, lifts: tuple[Any, ...]) -> Any:
    """The key of the n-th call of the module at a path, in a step of each lifted transform.

    Both folds are left out at the root's first call, so that a wrapped model alone draws exactly what
    its own library draws from the same key.
    """
    if path or call:
        key = jax.random.fold_in(jax.random.fold_in(key, fingerprint(path)), call)
    for step in lifts:
        key = jax.random.fold_in(jax.random.fold_in(key, _LIFT), step)
    return key


def draw_key(key: Any, number: int) -> Any:
    """The n-th fresh key of a call's key."""
    return jax.random.fold_in(jax.random.fold_in(key, _DRAW), number)


def place_key(key: Any, path: Path) -> Any:
    """The key with which what stands at a path is initialised; the root's is the key itself."""
    return jax.random.fold_in(key, fingerprint(path)) if path else key


def no_rng(path: Path, stream: str) -> MissingRngError:
    """The error for a draw in a call that was given no key at all."""
    return MissingRngError(
        f"{paths.name(path)} draws from the stream {stream!r}, and no rng was given. Type"
        f" module.apply(..., rng=key), or attach one: module.new_state(key). (A module that went"
        f" through an inner jax.jit has none: draw before, and pass the key in)"
    )


def _described(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"{value!r}"
