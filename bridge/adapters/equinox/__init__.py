"""The Equinox adapter."""

from __future__ import annotations

from typing import Any

import equinox as eqx

from bridge.adapters.equinox import _wrap


def from_equinox(
    model: Any, state: eqx.nn.State | None = None, vmap: bool = False
) -> _wrap.EquinoxModule:
    """An Equinox model as a Module.

    `model` is one, or the pair of model and state that `eqx.nn.make_with_state` gives. Its
    floating arrays are parameters, its other arrays state of the collection "buffers", the entries of
    its `eqx.nn.State` state of the collection "state", and everything else is static. With `vmap` a
    model of single examples takes batches: axis 0 of every array argument is the batch, each example
    has a key of its own, and the axis has the name that its BatchNorm layers ask for. Raises ModelError
    for anything else.

    >>> import bridge as br, equinox as eqx, jax, jax.numpy as jnp
    >>> linear = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)), vmap=True)
    >>> linear(jnp.ones((2, 3))).shape
    (2, 5)
    >>> linear.at["params.weight"].get().shape
    (5, 3)
    """
    return _wrap.wrap(model, state, vmap)
