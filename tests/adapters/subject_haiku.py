"""A small Haiku net for the behaviours that every adapter has."""

from typing import Any

import haiku as hk
import jax

import bridge as br
from tests.adapters.subjects import Subject

INPUTS = jax.random.normal(jax.random.key(3), (7, 5))


def forward(x: jax.Array, is_training: bool) -> jax.Array:
    x = hk.Linear(11)(x)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
    x = jax.nn.relu(x)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(3)(x)


def native(module: br.Module, key: Any, mode: str) -> tuple[Any, Any]:
    params, state = module.native()
    apply = jax.jit(hk.transform_with_state(forward).apply, static_argnames="is_training")
    return apply(params, state, key, INPUTS, is_training=mode == "train")


def subject() -> Subject:
    return Subject(library="haiku", build=lambda: br.from_haiku(forward), inputs=INPUTS, native=native)
