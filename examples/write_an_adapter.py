"""Adds a library to bridge: `sprig`, a made-up one that stands next to this file.

`SprigModule` and its table are the whole adapter. From there on a model of sprig is a Module as any
other: it stands in one tree with layers of other libraries, and has what bridge gives them all: rng by
path, train and eval mode, state, optimizers, freezing, checkpoints, PyTorch weights. A package that is
installed would hold the same and name it in its pyproject.toml: `bridge.register_adapter` says how.

    python examples/write_an_adapter.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import sprig

import bridge as br
from bridge.adapters import (
    LAZY,
    Frame,
    Layer,
    Lazy,
    ModelError,
    Opaque,
    Row,
    UninitialisedError,
    Wrapped,
    key_or_none,
    row_of,
    slot,
    unsaid_flags,
)

# What the arrays of a layer are called and how their axes are ordered; `*` is the layer's own path.
ROWS = (
    Row(
        kind="linear",
        classes=("sprig.Dense",),
        slots=(slot("weight", "params.*.kernel", "in out"), slot("bias", "params.*.bias", "out")),
        settings={},
    ),
    Row(
        kind="batch norm",
        classes=("sprig.Norm",),
        slots=(
            slot("weight", "params.*.scale", "features"),
            slot("bias", "params.*.shift", "features"),
            slot("mean", "state.averages.*.mean", "features"),
            slot("variance", "state.averages.*.variance", "features"),
        ),
        settings={"eps": "epsilon"},
    ),
)


class SprigModule(Wrapped):
    """A model of sprig as a Module: its params are trained, its averages carried from call to call."""

    @classmethod
    def from_sprig(cls, model: sprig.Layer) -> SprigModule:
        """A model without arrays, which `init` makes. Raises ModelError for anything else."""
        if not isinstance(model, sprig.Layer):
            raise ModelError(f"from_sprig takes a sprig.Layer; it was given {model!r}")
        return cls(Opaque(model), LAZY, LAZY)

    @br.plain
    def make(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any, Any, Any]:
        """No output (then the model is run for it), the first params and state, and the layers."""
        model = self.model.value
        params, averages = model.init(frame.key("params"), *args)
        return None, params, {"averages": averages}, tuple(layers(model))

    @br.plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of a method of the model, and the state after it."""
        model, args = self.model.value, (*self.native(), *args)
        key, refusal = key_or_none(frame)
        flags = unsaid_flags(model, method, args, kwargs, frame.mode == "train")
        call = {"key": key, "watch": frame.record, **flags, **kwargs}
        try:
            out, averages = getattr(model, method)(*args, **call)
        except sprig.NoKey as error:
            raise refusal or error from None
        return out, {"averages": averages}

    @br.plain
    def native(self) -> tuple[Any, Any]:
        """Params and averages, as sprig takes them."""
        if isinstance(self.params, Lazy):
            raise UninitialisedError("a sprig model has params after module.init(key, *sample)")
        return self.params.tree(), self.state.tree()["averages"]


def layers(model: sprig.Layer, path: tuple[str, ...] = ()) -> Iterator[Layer]:
    """The layers of a model that the table knows."""
    row = row_of(model, ROWS)
    if row is not None:
        yield row.layer(path, model)
    if isinstance(model, sprig.Chain):
        for name, part in model.named().items():
            yield from layers(part, (*path, name))


br.register_adapter("sprig", SprigModule)


MODEL = sprig.Chain((sprig.Dense(32), sprig.Norm(), sprig.Relu(), sprig.Dropout(0.1), sprig.Dense(16)))


class Classifier(br.Module):
    """One tree: features by a model of sprig, and a layer of bridge's own on top of them."""

    features: br.Module
    weight: br.Parameter
    bias: br.Parameter

    def __init__(self, features: br.Module, size: int):
        self.features = features
        self.weight = br.ParamInit((size,), jax.nn.initializers.normal(0.1))
        self.bias = br.ParamInit((), jax.nn.initializers.zeros)

    def __call__(self, points):
        return self.features(points) @ self.weight + self.bias


def difference(points, key):
    """The largest between bridge and sprig itself, in every array of three steps of training."""
    module = br.wrap(MODEL).init(key, points)
    params, averages = module.native()
    found = []
    for step_key in jax.random.split(key, 3):
        out, module = module.apply(points, rng=step_key, mode="train")
        own, averages = MODEL(params, averages, points, key=step_key, train=True)
        ours, theirs = (out, module.native()), (own, (params, averages))
        found += jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), ours, theirs))
    return max(found)


def sample(key):
    """Points around the origin, and which of them lie in a ring."""
    points = jax.random.normal(key, (512, 2))
    return points, abs(jnp.linalg.norm(points, axis=1) - 1) < 0.4


def loss_of(net, points, labels, key):
    logits, net = net.apply(points, rng=key, mode="train")
    return optax.losses.sigmoid_binary_cross_entropy(logits, labels).mean(), net


@jax.jit
def train_step(net, optimizer, key):
    batch_key, call_key = jax.random.split(key)
    (_, net), grads = br.value_and_grad(loss_of, has_aux=True)(net, *sample(batch_key), call_key)
    return optimizer.step(grads, net)


def main():
    points, labels = sample(jax.random.key(0))
    print(f"largest difference from sprig itself: {difference(points, jax.random.key(1))}")

    net = Classifier(br.wrap(MODEL), 16).init(jax.random.key(2), points)
    optimizer = br.Optimizer(optax.adam(1e-2)).init(net)
    for key in jax.random.split(jax.random.key(3), 300):
        net, optimizer = train_step(net, optimizer, key)
    right = ((net(points) > 0) == labels).mean()
    print(f"{net}\ntells {right:.1%} of the points right after 300 steps")


if __name__ == "__main__":
    main()
