"""The Flax NNX adapter."""

from __future__ import annotations

from typing import Any

from bridge.adapters.nnx import _wrap


def from_nnx(module: Any) -> _wrap.NnxModule:
    """A Flax NNX module as a Module; the given object is never changed.

    Every `nnx.Param` is a parameter; every other Variable is state, in the collection that Flax names
    its type by ("batch_stats", "cache"; one's own type by its class). Keys and counts of its random
    streams are the collection "rngs". In a call with an explicit rng they are seeded from it and stay
    as they were; without one they draw and advance. An array is shared, a Variable at two places is one
    leaf. Raises ModelError for anything else than an NNX module.

    >>> import bridge as br, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear = br.from_nnx(nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    >>> linear(jnp.ones((2, 3))).shape
    (2, 5)
    >>> linear.at["params.kernel"].get().shape
    (3, 5)
    """
    return _wrap.wrap(module)
