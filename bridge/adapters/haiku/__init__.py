"""The Haiku adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk

from bridge.adapters.haiku import _wrap


def from_haiku(
    target: Any,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    state: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[..., Any]:
    """A Haiku model as a Module.

    `target` is a function that uses Haiku modules, or what `hk.transform` or
    `hk.transform_with_state` made of one. For a class of Haiku modules what comes back takes the
    arguments of its constructor, and gives the Module. Without `params` (and `state`, where the model
    has some), `init` makes them from an input, always in train mode. Haiku's one random key is that of
    the stream "default". Raises ModelError for anything else.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> core = br.from_haiku(hk.LSTM)(7)
    >>> carry = core.initial_state(2)
    >>> core = core.init(jax.random.key(0), jnp.ones((2, 3)), carry)
    >>> out, carry = core(jnp.ones((2, 3)), carry)
    >>> out.shape
    (2, 7)
    >>> core.at["params.lstm/linear.w"].get().shape
    (10, 28)
    """
    if isinstance(target, type) and issubclass(target, hk.Module):
        return _wrap.constructor(target, params, state)
    return _wrap.wrap(target, params, state)
