"""NNX's own forward and train step: `nnx.merge`, `nnx.value_and_grad` and `nnx.split` under jax.jit.

The form of Flax's guide to its functional API. Optax is used as it is, because `nnx.Optimizer` counts
the steps once more beside it.
"""

from typing import Any

import jax
import optax
from flax import nnx

import bridge as br


def split(module: br.Module) -> tuple[nnx.GraphDef, Any]:
    """The graph, and the values of the Variables: params, statistics, random streams."""
    graph, *trees = nnx.split(module.native(), nnx.Param, nnx.BatchStat, nnx.RngState)
    return graph, tuple(trees)


def evaluate(static: Any, trees: Any, x: jax.Array) -> jax.Array:
    model = nnx.merge(static, *trees)
    model.eval()
    return model(x)


def step(static: Any, transform: Any, trees: Any, opt_state: Any, x: Any, y: Any, key: Any) -> Any:
    """Without a key the model draws from the random streams of its own."""
    model = nnx.merge(static, *trees)
    model.train()

    def loss_of(model):
        out = model(x) if key is None else model(x, rngs=nnx.Rngs(key))
        return optax.l2_loss(out, y).mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    params = nnx.state(model, nnx.Param)
    updates, opt_state = transform.update(grads, opt_state, params)
    nnx.update(model, optax.apply_updates(params, updates))
    _, *trees = nnx.split(model, nnx.Param, nnx.BatchStat, nnx.RngState)
    return tuple(trees), opt_state, loss
