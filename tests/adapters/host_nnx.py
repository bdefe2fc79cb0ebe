"""A model of NNX that holds a Module."""

import jax
from flax import nnx

import bridge as br


class Host(nnx.Module):
    def __init__(self, guest: nnx.Module, rngs: nnx.Rngs):
        self.guest = guest
        self.linear = nnx.Linear(5, 11, rngs=rngs)
        self.norm = nnx.BatchNorm(11, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(11, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        inner = self.guest(x)
        return inner, self.head(self.dropout(self.norm(self.linear(inner))))

    def encode(self, x: jax.Array) -> jax.Array:
        return self.guest.encode(x)


def host(guest: br.Module) -> br.Module:
    return br.from_nnx(Host(br.to_nnx(guest, rngs=nnx.Rngs(2)), nnx.Rngs(3)))
