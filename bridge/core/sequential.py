"""Modules and plain functions, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from bridge.core.errors import FieldError
from bridge.core.kinds import INLINE
from bridge.core.module import Module, plain
from bridge.core.node import Node


class Sequential(Module):
    """Modules of any library and plain functions; each takes what the one before it returns.

    A layer's path is its number, as in PyTorch: `0.weight`. The first one takes all arguments.

    >>> import bridge as br, equinox as eqx, flax.linen as nn, jax, jax.numpy as jnp
    >>> linear = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)), vmap=True)
    >>> net = br.Sequential(linear, jax.nn.relu, br.from_linen(nn.Dense(2)))
    >>> net = net.init(jax.random.key(0), jnp.ones((7, 3)))
    >>> net(jnp.ones((7, 3))).shape, len(net), net[1]
    ((7, 2), 3, Function(relu))
    """

    layers: Annotated[dict[str, Module], INLINE]

    def __init__(self, *layers: Any) -> None:
        for layer in layers:
            if not (isinstance(layer, Node) or callable(layer)) and hasattr(layer, "__iter__"):
                raise FieldError(
                    f"Sequential takes its layers one by one; it was given a {type(layer).__name__}."
                    f" Type Sequential(*layers)"
                )
        self.layers = {str(number): layer for number, layer in enumerate(layers)}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the last layer returns; without layers, the only argument."""
        for layer in self.layers.values():
            args, kwargs = (layer(*args, **kwargs),), {}
        if len(args) != 1 or kwargs:
            raise FieldError(
                "a Sequential without layers returns its only argument; it was given others"
            )
        return args[0]

    @plain
    def __getitem__(self, number: int) -> Any:
        return tuple(self.layers.values())[number]

    @plain
    def __len__(self) -> int:
        return len(self.layers)

    @plain
    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers.values())
