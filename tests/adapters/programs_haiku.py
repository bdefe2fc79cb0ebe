"""Haiku's own forward and train step: what `hk.transform_with_state` makes of the function."""

from typing import Any

import haiku as hk
import jax
import optax

import bridge as br
from tests.adapters.subject_haiku import forward


def split(module: br.Module) -> tuple[hk.TransformedWithState, Any]:
    """The pair of pure functions, and Haiku's params and state."""
    return hk.transform_with_state(forward), module.native()


def evaluate(static: Any, trees: Any, x: jax.Array) -> jax.Array:
    params, state = trees
    out, _ = static.apply(params, state, None, x, is_training=False)
    return out


def step(
    static: hk.TransformedWithState,
    transform: Any,
    trees: Any,
    opt_state: Any,
    x: Any,
    y: Any,
    key: Any,
) -> Any:
    params, state = trees

    def loss_of(params):
        out, after = static.apply(params, state, key, x, is_training=True)
        return optax.l2_loss(out, y).mean(), after

    (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = transform.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), state), opt_state, loss
