"""A model of Equinox that holds a Module."""

from typing import Any

import equinox as eqx
import jax

import bridge as br
from bridge.adapters.equinox import with_init_state


class Host(eqx.Module):
    """Takes batches, as the Module that it holds does."""

    guest: Any
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, guest: br.Module, key: jax.Array):
        first, second = jax.random.split(key)
        self.guest = with_init_state(*br.to_equinox(guest))
        self.linear = eqx.nn.Linear(5, 11, key=first)
        self.norm = eqx.nn.BatchNorm(11, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(11, 3, key=second)

    def __call__(self, x: jax.Array, state: eqx.nn.State, *, key: Any = None) -> Any:
        own, guests = (None, None) if key is None else jax.random.split(key)
        inner, state = self.guest(x, state, key=guests)
        y = jax.vmap(self.linear)(inner)
        y, state = jax.vmap(self.norm, (0, None), (0, None), axis_name="batch")(y, state)
        return (inner, jax.vmap(self.head)(self.dropout(y, key=own))), state

    def encode(self, x: jax.Array, state: eqx.nn.State) -> Any:
        return self.guest.encode(x, state)


def host(guest: br.Module) -> br.Module:
    return br.from_equinox(eqx.nn.make_with_state(Host)(guest, jax.random.key(1)))
