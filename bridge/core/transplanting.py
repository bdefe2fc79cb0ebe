"""Trained parts taken over into another model that is made of the same objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax

import bridge.core.calling as calling
import bridge.core.paths as paths
from bridge.core.errors import UninitialisedError, listed
from bridge.core.leaves import is_array
from bridge.core.module import Module
from bridge.core.origins import parts_by_origin, refuse_unused
from bridge.core.tree import entries

M = TypeVar("M", bound=Module)


def transplant(
    trained: Mapping[Module, Module],
    into: M,
    *sample: Any,
    mode: str | None = None,
    **kwargs: Any,
) -> M:
    """The module `into` with all that it shares with models that were trained, and nothing else.

    `trained` gives uninitialised modules and what they became: `{loss: trained_loss}`. A part of
    `into` that is the same object as one of them, or as a part of them, takes over its arrays, states
    and frozen marks; of two that have it, the one that is given itself is right. `sample` is what
    `into` is called with. Raises UninitialisedError, with every path, where something is not covered.

    >>> import bridge as br, flax.linen as nn, jax, jax.numpy as jnp
    >>> predict = br.from_linen(nn.Dense(2))
    >>> @br.parametrized
    ... def loss(x, y):
    ...     return jnp.mean((predict(x) - y) ** 2)
    >>> @br.parametrized
    ... def error(x, y):
    ...     return jnp.max(jnp.abs(predict(x) - y))
    >>> x, y = jnp.ones((3, 5)), jnp.zeros((3, 2))
    >>> trained = loss.init(jax.random.key(0), x, y)
    >>> measure = br.transplant({loss: trained}, error, x, y)
    >>> measure.predict.params is trained.predict.params
    True
    """
    parts = parts_by_origin(trained)
    made = calling.init(into, jax.random.key(0), sample, kwargs, mode=mode, trained=parts)
    refuse_unused(trained, parts, made)
    sources = [into, *(part for _, part in parts.values())]
    covered = {id(entry.value) for source in sources for entry in entries(source)}
    missing = [
        f"{paths.join(entry.path)}: {entry.kind.name} {entry.value.dtype}{list(entry.value.shape)}"
        for entry in entries(made)
        if is_array(entry.value) and id(entry.value) not in covered
    ]
    if missing:
        raise UninitialisedError(
            "what was trained does not cover\n"
            + listed(missing)
            + "\nGive a trained module that has it, or make it: into.init(key, *sample, reuse=...)"
        )
    return made
