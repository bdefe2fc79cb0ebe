"""One model, trained by the own tools of Linen, NNX, Haiku and Equinox.

The model is a tree of two: a Haiku block with batch statistics, and a head of its own. Each library
gets it as one of its own models, trains it with its own loop and optimizer, and hands the Module back.
All four start from the same arrays, so they must end with the same ones.

    python examples/four_training_loops.py
"""

from __future__ import annotations

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.train_state import TrainState

import bridge as br

STEPS = 200
OPTIMIZER = optax.adam(3e-2)


def block(x, is_training):
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(
        hk.Linear(32)(x), is_training
    )
    return jax.nn.relu(x)


class Classifier(br.Module):
    features: br.Module
    weight: br.Parameter
    bias: br.Parameter

    def __init__(self, features: br.Module, size: int):
        self.features = features
        self.weight = br.ParamInit((size,), jax.nn.initializers.normal(0.1))
        self.bias = br.ParamInit((), jax.nn.initializers.zeros)

    def __call__(self, points):
        return self.features(points) @ self.weight + self.bias


def sample(key):
    """Points around the origin, and which of them lie in a ring."""
    points = jax.random.normal(key, (512, 2))
    return points, abs(jnp.linalg.norm(points, axis=1) - 1) < 0.4


POINTS, LABELS = sample(jax.random.key(0))


def loss_of(logits):
    return optax.losses.sigmoid_binary_cross_entropy(logits, LABELS).mean()


def trained_by_linen(module: br.Module) -> br.Module:
    model = br.to_linen(module)
    variables = model.init(jax.random.key(0), POINTS)
    training = TrainState.create(apply_fn=model.apply, params=variables.pop("params"), tx=OPTIMIZER)

    @jax.jit
    def step(training, state):
        def loss(params):
            variables = {"params": params, **state}
            logits, after = model.apply(variables, POINTS, train=True, mutable=list(state))
            return loss_of(logits), after

        grads, state = jax.grad(loss, has_aux=True)(training.params)
        return training.apply_gradients(grads=grads), state

    state = variables
    for _ in range(STEPS):
        training, state = step(training, state)
    return br.from_linen(model, {"params": training.params, **state})


def trained_by_nnx(module: br.Module) -> br.Module:
    model = br.to_nnx(module)
    model.train()
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: loss_of(model(POINTS)))(model)
        optimizer.update(model, grads)

    for _ in range(STEPS):
        step(model, optimizer)
    return br.from_nnx(model)


def trained_by_haiku(module: br.Module) -> br.Module:
    exported = br.to_haiku(module, name="classifier")
    model = hk.without_apply_rng(hk.transform_with_state(exported))
    params, state = model.init(jax.random.key(0), POINTS)
    memory = OPTIMIZER.init(params)

    @jax.jit
    def step(params, state, memory):
        def loss(params):
            logits, after = model.apply(params, state, POINTS, is_training=True)
            return loss_of(logits), after

        grads, state = jax.grad(loss, has_aux=True)(params)
        updates, memory = OPTIMIZER.update(grads, memory, params)
        return optax.apply_updates(params, updates), state, memory

    for _ in range(STEPS):
        params, state, memory = step(params, state, memory)
    return br.from_haiku(exported, params, state)


def trained_by_equinox(module: br.Module) -> br.Module:
    model, state = br.to_equinox(module)
    model = eqx.nn.inference_mode(model, value=False)
    memory = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, memory):
        @eqx.filter_grad(has_aux=True)
        def loss(model, state):
            logits, state = model(POINTS, state)
            return loss_of(logits), state

        grads, state = loss(model, state)
        updates, memory = OPTIMIZER.update(grads, memory)
        return eqx.apply_updates(model, updates), state, memory

    for _ in range(STEPS):
        model, state, memory = step(model, state, memory)
    return br.from_equinox(model, state)


LOOPS = {
    "Linen": trained_by_linen,
    "NNX": trained_by_nnx,
    "Haiku": trained_by_haiku,
    "Equinox": trained_by_equinox,
}


def main() -> None:
    start = Classifier(br.from_haiku(block), 32).init(jax.random.key(1), POINTS)
    test, labels = sample(jax.random.key(2))
    modules = {name: train(start) for name, train in LOOPS.items()}
    for name, module in modules.items():
        right = ((module(test) > 0) == labels).mean()
        print(f"trained by {name:8} {right:.1%} of unseen points right")
    first, *others = modules.values()
    furthest = max(
        float(abs(a - b).max())
        for other in others
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    )
    print(f"largest difference between the four, in every parameter and statistic: {furthest:.1e}")


if __name__ == "__main__":
    main()
