"""sprig: a library of neural networks in a hundred lines, made up for `write_an_adapter.py`.

It knows nothing of bridge, and has what an adapter has to deal with: arrays that the caller carries and
that are made for an input, averages that training changes, a random key, a train flag, an error.

    model = sprig.Chain((sprig.Dense(16), sprig.Norm(), sprig.Relu(), sprig.Dropout(0.1)))
    params, averages = model.init(key, x)
    out, averages = model(params, averages, x, key=key, train=True)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


class NoKey(ValueError):
    """Something random was to be drawn in a call without a key."""


class Layer:
    """A layer without arrays; each layer takes from a call what it wants, and ignores the rest."""

    def init(self, key: Any, x: Any) -> tuple[dict, dict]:
        """First params and averages for such an input."""
        return {}, {}


@dataclass(frozen=True)
class Dense(Layer):
    features: int

    def init(self, key, x):
        kernel = jax.nn.initializers.lecun_normal()(key, (x.shape[-1], self.features))
        return {"kernel": kernel, "bias": jnp.zeros(self.features)}, {}

    def __call__(self, params, averages, x, **call):
        return x @ params["kernel"] + params["bias"], averages


@dataclass(frozen=True)
class Norm(Layer):
    """Normalises by the batch while it trains, and by the averages over all batches afterwards."""

    momentum: float = 0.9
    epsilon: float = 1e-5

    def init(self, key, x):
        zeros, ones = jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])
        return {"scale": ones, "shift": zeros}, {"mean": zeros, "variance": ones}

    def __call__(self, params, averages, x, *, train=False, **call):
        used = averages
        if train:
            batch = tuple(range(x.ndim - 1))
            used = {"mean": x.mean(batch), "variance": x.var(batch)}
            averages = jax.tree.map(self.updated, averages, used)
        x = (x - used["mean"]) / jnp.sqrt(used["variance"] + self.epsilon)
        return x * params["scale"] + params["shift"], averages

    def updated(self, average, value):
        return self.momentum * average + (1 - self.momentum) * value


@dataclass(frozen=True)
class Relu(Layer):
    def __call__(self, params, averages, x, **call):
        return jax.nn.relu(x), averages


@dataclass(frozen=True)
class Dropout(Layer):
    rate: float

    def __call__(self, params, averages, x, *, key=None, train=False, **call):
        if not train:
            return x, averages
        if key is None:
            raise NoKey("Dropout draws while it trains; call the model with key=...")
        keep = jax.random.bernoulli(key, 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0), averages


@dataclass(frozen=True)
class Chain(Layer):
    """Layers one after another, each with the arrays under its name."""

    layers: tuple[Layer, ...]

    def named(self) -> dict[str, Layer]:
        """The layers by name: `dense_0`, `norm_1`."""
        return {f"{type(one).__name__.lower()}_{i}": one for i, one in enumerate(self.layers)}

    def init(self, key, x):
        params, averages = {}, {}
        for number, (name, layer) in enumerate(self.named().items()):
            params[name], averages[name] = layer.init(jax.random.fold_in(key, number), x)
            x, _ = layer(params[name], averages[name], x)
        return params, averages

    def __call__(
        self,
        params: dict,
        averages: dict,
        x: Any,
        *,
        key: Any = None,
        train: bool = False,
        watch: Callable[[tuple[str, ...], Any], None] = lambda path, out: None,
    ) -> tuple[Any, dict]:
        """The output and the averages after it; `watch` is told of each layer's output."""
        after = {}
        for number, (name, layer) in enumerate(self.named().items()):
            x, after[name] = layer(
                params[name],
                averages[name],
                x,
                key=None if key is None else jax.random.fold_in(key, number),
                train=train,
                watch=lambda path, out, name=name: watch((name, *path), out),
            )
            watch((name,), x)
        return x, after
