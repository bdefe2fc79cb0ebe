"""Linen's own forward and train step: variables in, updated collections out."""

from typing import Any

import jax
import optax

import bridge as br
from tests.adapters.subject_linen import Net


def split(module: br.Module) -> tuple[Net, Any]:
    """The Linen module, and its variables: params, then all other collections."""
    variables = module.native()
    return Net(), (variables.pop("params"), variables)


def evaluate(static: Any, trees: Any, x: jax.Array) -> jax.Array:
    params, state = trees
    return static.apply({"params": params, **state}, x, train=False)


def step(static: Any, transform: Any, trees: Any, opt_state: Any, x: Any, y: Any, key: Any) -> Any:
    params, state = trees

    def loss_of(params):
        variables = {"params": params, **state}
        out, updates = static.apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return optax.l2_loss(out, y).mean(), updates

    (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = transform.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), state), opt_state, loss
