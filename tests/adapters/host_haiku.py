"""A model of Haiku that holds a Module."""

from typing import Any

import haiku as hk
import jax

import bridge as br
from tests.adapters.subject_haiku import dropout


class Host(hk.Module):
    def __init__(self, guest: Any, name: str | None = None):
        super().__init__(name)
        self.guest = guest

    def __call__(self, x: jax.Array, is_training: bool) -> tuple[jax.Array, jax.Array]:
        inner = self.guest(x, is_training=is_training)
        y = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(
            hk.Linear(11)(inner), is_training
        )
        return inner, hk.Linear(3)(dropout(y, is_training))

    def encode(self, x: jax.Array) -> jax.Array:
        return self.guest.encode(x)


def host(guest: br.Module) -> br.Module:
    return br.from_haiku(Host)(br.to_haiku(guest))
