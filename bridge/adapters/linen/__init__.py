"""The Flax Linen adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from bridge.adapters.linen import _export, _wrap


def from_linen(module: Any, variables: Mapping[str, Any] | None = None) -> Any:
    """A Flax Linen module as a Module.

    Without `variables`, `init` makes them from an input, as `module.init` does; a later `init` adds
    what another method needs. With them (what `module.init` made, a checkpoint's `{"params": ...}`, or
    those that the module is bound to) it is initialised already; the arrays are shared. Its params are
    parameters; every other collection is state under its own name, but for what a call gives out:
    "intermediates" and "perturbations". The mode is the train flag of the call in the model's own
    spelling, or an attribute of that name which no call takes. What `to_linen` made becomes the Module
    that it was made of, with these variables. Raises ModelError for anything else than a Linen module.

    >>> import bridge as br, flax.linen as nn, jax, jax.numpy as jnp
    >>> dense = br.from_linen(nn.Dense(5)).init(jax.random.key(0), jnp.ones((2, 3)))
    >>> dense(jnp.ones((2, 3))).shape
    (2, 5)
    >>> dense.at["params.kernel"].get().shape
    (3, 5)
    """
    if isinstance(module, _export.BridgeLinen):
        return _export.taken_back(module, variables)
    return _wrap.wrap(module, variables)


def to_linen(module: Any) -> nn.Module:
    """A Module as a Linen module; its own Linen module where the Module only wraps one.

    That one has no arrays, as no Linen module has: they are `module.native()`. Of any other Module:

    its parameters are the collection "params", its states stand in their own collections and its keys
    in "rngs", all by path. `init` gives the arrays that the Module has, and makes what it has not made
    yet. The mode is given by a keyword in any spelling (`train=True`, `deterministic=False`), or by the
    attribute `train`; without one it is the Module's own. It draws from Linen's streams by name, and
    from "dropout" where Linen has no stream of that name. Frozen parameters stand among the params and
    get no gradient. Raises ModelError for anything else than a Module.

    >>> import bridge as br, flax.linen as nn, haiku as hk, jax, jax.numpy as jnp
    >>> class Net(nn.Module):
    ...     core: nn.Module
    ...
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(3)(self.core(x))
    >>> net = Net(br.to_linen(br.from_haiku(hk.Linear)(7)))
    >>> variables = net.init(jax.random.key(0), jnp.ones((2, 5)))
    >>> jax.tree.map(jnp.shape, variables["params"]["core"])
    {'linear': {'b': (7,), 'w': (5, 7)}}
    """
    return _export.export(module)
