"""The Flax Linen adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.adapters.linen import _wrap


def from_linen(module: Any, variables: Mapping[str, Any] | None = None) -> _wrap.LinenModule:
    """A Flax Linen module as a Module.

    Without `variables`, `init` makes them from an input, as `module.init` does. With them (what
    `module.init` made, or a checkpoint's `{"params": ...}`) it is initialised already; the arrays are
    shared. Its params are parameters; every other collection is state under its own name, but for what
    a call gives out: "intermediates" and "perturbations". Raises ModelError for anything else than an
    unbound Linen module.

    >>> import bridge as br, flax.linen as nn, jax, jax.numpy as jnp
    >>> dense = br.from_linen(nn.Dense(5)).init(jax.random.key(0), jnp.ones((2, 3)))
    >>> dense(jnp.ones((2, 3))).shape
    (2, 5)
    >>> dense.at["params.kernel"].get().shape
    (3, 5)
    """
    return _wrap.wrap(module, variables)
