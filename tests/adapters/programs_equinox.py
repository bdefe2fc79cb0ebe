"""Equinox's own forward and train step: partition and combine around jax.jit, vmap over examples."""

from typing import Any

import equinox as eqx
import jax
import optax

import bridge as br


def split(module: br.Module) -> tuple[Any, Any]:
    """What is no array of the model, then its arrays and its State."""
    model, state = module.native()
    arrays, static = eqx.partition(model, eqx.is_array)
    return static, (arrays, state)


def _batched(model: Any, state: eqx.nn.State, x: jax.Array, keys: Any = None) -> Any:
    def single(x, state, key):
        return model(x, state, key=key)

    return jax.vmap(single, (0, None, 0), (0, None), axis_name="batch")(x, state, keys)


def evaluate(static: Any, trees: Any, x: jax.Array) -> jax.Array:
    arrays, state = trees
    model = eqx.nn.inference_mode(eqx.combine(arrays, static))
    return _batched(model, state, x)[0]


def step(static: Any, transform: Any, trees: Any, opt_state: Any, x: Any, y: Any, key: Any) -> Any:
    arrays, state = trees
    model = eqx.combine(arrays, static)

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_of(model):
        out, after = _batched(model, state, x, jax.random.split(key, len(x)))
        return optax.l2_loss(out, y).mean(), after

    (loss, state), grads = loss_of(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, opt_state = transform.update(grads, opt_state, params)
    model = eqx.apply_updates(model, updates)
    return (eqx.filter(model, eqx.is_array), state), opt_state, loss
