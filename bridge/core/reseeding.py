"""Random streams that a model keeps among its own arrays, and what they start from in a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bridge.core.frames import Frame
from bridge.core.paths import Path, fingerprint
from bridge.core.rng import DEFAULT, call_key
from bridge.core.wrapped import key_or_none


@dataclass(frozen=True)
class Stream:
    """A random stream of a model: its name, its path, and which arrays its key and its count are."""

    name: str
    path: Path
    key: int
    count: int


@dataclass(frozen=True)
class Seed:
    """What a stream starts from in one call; `refusal` is raised if it is drawn from.

    A stream that the call's rng serves comes back as it was, any other one keeps its count.
    """

    stream: Stream
    key: Any
    count: Any
    served: bool = False
    refusal: Exception | None = None

    def plant(self, arrays: list[Any]) -> None:
        """Puts the key and the count of this call among the arrays."""
        arrays[self.stream.key], arrays[self.stream.count] = self.key, self.count

    def restore(self, own: Sequence[Any], arrays: list[Any]) -> None:
        """Puts the model's own key, and the count of a served stream, back among the arrays."""
        count = self.stream.count
        if self.refusal is not None and arrays[count] is not self.count:
            raise self.refusal
        arrays[self.stream.key] = own[self.stream.key]
        if self.served:
            arrays[count] = own[count]


def seeds(
    frame: Frame, streams: Sequence[Stream], arrays: Sequence[Any], alone: bool
) -> Iterator[Seed]:
    """How the streams of a call differ from the model's own, which are among the arrays.

    A stream that the call serves takes its key, and counts from a number that its path gives: no other
    one draws the same, and nothing is computed for a stream that is not drawn from. The one stream of
    a model counts from zero, if nothing else of it draws (`alone`). A stream named "default" may serve
    any purpose, so that a call which has keys for other streams only does not leave it to itself.
    """
    given = set() if frame.streams is None else set(frame.streams.keys)
    for stream in streams:
        key, count = arrays[stream.key], arrays[stream.count]
        if given and ({stream.name, DEFAULT} & given or stream.name == DEFAULT):
            new, refusal = key_or_none(frame, stream.name)
            if refusal is not None:
                yield Seed(stream, key, count, served=True, refusal=refusal)
                continue
            start = 0 if alone and len(streams) == 1 else fingerprint(stream.path)
            with jax.ensure_compile_time_eval():
                start = jnp.full(count.shape, start, count.dtype)
            yield Seed(stream, _like(new, key), start, served=True)
        elif frame.lifts:
            # Each step of a lifted transform draws other keys, from the model's own stream as well.
            yield Seed(stream, _like(call_key(_first(key), (), 0, frame.lifts), key), count)


def lent(frame: Frame) -> dict[str, Any]:
    """The keys of the call by stream, without those that it must not draw from where it is."""
    streams = () if frame.streams is None else frame.streams.keys
    found = {stream: key_or_none(frame, stream) for stream in streams}
    return {stream: key for stream, (key, refusal) in found.items() if refusal is None}


def _first(key: Any) -> Any:
    """One key of a stream, which has several inside of a library's own transforms."""
    return key.ravel()[0] if key.shape else key


def _like(new: Any, key: Any) -> Any:
    """A typed key in the place of a stream's, split where the stream has several."""
    if not jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        new = jax.random.wrap_key_data(new)
    return jax.random.split(new, key.shape) if key.shape else new
