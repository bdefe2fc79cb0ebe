"""A model of Linen that holds a Module."""

import flax.linen as nn
import jax

import bridge as br


class Host(nn.Module):
    guest: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        inner = self.guest(x, train=train)
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(11)(inner))
        return inner, nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(y))

    def encode(self, x: jax.Array) -> jax.Array:
        return self.guest.encode(x)


def host(guest: br.Module) -> br.Module:
    return br.from_linen(Host(br.to_linen(guest)))
