"""A small Haiku net for the behaviours that every adapter has."""

from typing import Any

import haiku as hk
import jax

import bridge as br
from tests.adapters.subjects import Subject

INPUTS = jax.random.normal(jax.random.key(3), (7, 5))


def dropout(x: jax.Array, is_training: bool) -> jax.Array:
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def forward(x: jax.Array, is_training: bool) -> jax.Array:
    x = hk.Linear(11)(x)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
    return hk.Linear(3)(dropout(jax.nn.relu(x), is_training))


class Block(hk.Module):
    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        x = hk.Linear(x.shape[-1], w_init=hk.initializers.VarianceScaling())(x)
        x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
        return dropout(jax.nn.relu(x), is_training)


def native(module: br.Module, key: Any, mode: str) -> tuple[Any, Any]:
    params, state = module.native()
    apply = jax.jit(hk.transform_with_state(forward).apply, static_argnames="is_training")
    return apply(params, state, key, INPUTS, is_training=mode == "train")


def block() -> br.Module:
    return br.from_haiku(Block)()


def subject() -> Subject:
    return Subject(
        library="haiku", build=lambda: br.from_haiku(forward), block=block, inputs=INPUTS, native=native
    )
