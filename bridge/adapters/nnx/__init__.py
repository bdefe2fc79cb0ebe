"""The Flax NNX adapter."""

from __future__ import annotations

from typing import Any

from flax import nnx

from bridge.adapters.nnx import _export, _wrap


def from_nnx(module: Any) -> Any:
    """A Flax NNX module as a Module; the given object is never changed.

    Every `nnx.Param` is a parameter; every other Variable is state, in the collection that Flax names
    its type by ("batch_stats", "cache"; one's own type by its class). A parameter that a call assigns
    is kept as well. An array is shared, a Variable at two places is one leaf. The mode is what
    `train()` and `eval()` of the model set, and the train flag of a method that takes one.

    Keys and counts of its random streams are the collection "rngs". In a call with an explicit rng they
    are seeded from it and stay as they were; without one they draw and advance. Of named streams, one
    that the model calls "default" needs a "default" key. A method that takes `rngs` gets the rng of the
    call. What `to_nnx` made becomes the Module that it was made of, with the arrays of now. Raises
    ModelError for anything else than an NNX module, and for one in which something would go wrong
    silently, with each path.

    >>> import bridge as br, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear = br.from_nnx(nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    >>> linear(jnp.ones((2, 3))).shape
    (2, 5)
    >>> linear.at["params.kernel"].get().shape
    (3, 5)
    """
    if isinstance(module, _export.BridgeNnx):
        return _export.taken_back(module)
    return _wrap.wrap(module)


def to_nnx(module: Any, rngs: nnx.Rngs | None = None) -> nnx.Module:
    """A Module as an NNX module; a module of its own class where the Module only wraps one.

    Each parameter is an `nnx.Param`, each state a Variable of the type that Flax names by its
    collection, a frozen parameter a `FrozenParam`, which `nnx.Param` as a filter passes by. Calls write
    the states. `train()` and `eval()` set the mode, or a keyword of the call in any spelling; before
    that it is the Module's own. It draws from `rngs`, or from the `rngs` of a call. Raises
    UninitialisedError for a Module that has no arrays yet, ModelError for anything else.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear = br.from_haiku(hk.Linear)(7).init(jax.random.key(0), jnp.ones((2, 5)))
    >>> model = br.to_nnx(linear)
    >>> model(jnp.ones((2, 5))).shape, len(jax.tree.leaves(nnx.state(model, nnx.Param)))
    ((2, 7), 2)
    """
    return _export.export(module, rngs)
