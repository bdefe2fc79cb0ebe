"""A small Equinox net for the behaviours that every adapter has."""

from typing import Any

import equinox as eqx
import jax

import bridge as br
from tests.adapters.subjects import Subject

INPUTS = jax.random.normal(jax.random.key(3), (7, 5))


class Net(eqx.Module):
    stem: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        stem, head = jax.random.split(key)
        self.stem = eqx.nn.Linear(5, 11, key=stem)
        self.norm = eqx.nn.BatchNorm(11, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(11, 3, key=head)

    def __call__(self, x: jax.Array, state: eqx.nn.State, *, key: Any = None) -> Any:
        x, state = self.norm(self.stem(x), state)
        return self.head(self.dropout(jax.nn.relu(x), key=key)), state


class Block(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key: jax.Array):
        self.linear = eqx.nn.Linear(5, 5, key=key)
        self.norm = eqx.nn.BatchNorm(5, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x: jax.Array, state: eqx.nn.State, *, key: Any = None) -> Any:
        x, state = self.norm(self.linear(x), state)
        return self.dropout(jax.nn.relu(x), key=key), state


def native(module: br.Module, key: Any, mode: str) -> tuple[Any, Any]:
    model, state = module.native()
    model = eqx.nn.inference_mode(model, value=mode == "eval")
    keys = None if key is None else jax.random.split(key, len(INPUTS))

    @eqx.filter_jit
    def run(model, x, state, keys):
        def single(x, state, key):
            return model(x, state, key=key)

        batched = jax.vmap(single, (0, None, 0), (0, None), axis_name="batch")
        return batched(x, state, keys)

    return run(model, INPUTS, state, keys)


def block() -> br.Module:
    model, state = eqx.nn.make_with_state(Block)(jax.random.key(0))
    return br.from_equinox(model, state, vmap=True)


def subject() -> Subject:
    def build() -> br.Module:
        return br.from_equinox(eqx.nn.make_with_state(Net)(jax.random.key(0)), vmap=True)

    return Subject(library="equinox", build=build, block=block, inputs=INPUTS, native=native)
