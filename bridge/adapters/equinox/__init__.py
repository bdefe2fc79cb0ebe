"""The Equinox adapter."""

from __future__ import annotations

from typing import Any

import equinox as eqx

from bridge.adapters.equinox import _export, _wrap


def from_equinox(model: Any, state: eqx.nn.State | None = None, vmap: bool | str = False) -> Any:
    """An Equinox model as a Module.

    `model` is one, or the pair of model and state that `eqx.nn.make_with_state` gives. What
    `eqx.is_inexact_array` finds in it are parameters, its other arrays state of the collection
    "buffers", the entries of its `eqx.nn.State` state of the collection "state". Everything else is
    static: a Python float too, so what is to be trained is an array, `jnp.array(0.5)`. An array at two
    places is two parameters, as in Equinox; `eqx.nn.Shared` and `bridge.tie` make them one.

    The mode sets every `inference` flag, as `eqx.nn.inference_mode` does, whatever it was before; a
    part with a mode of its own is a Module of its own. A train flag of the call goes first. The model
    is called as before, without its State, and without its `key`, which the Module's rng gives.

    With `vmap` a model of single examples takes batches: axis 0 of every array argument is the batch,
    each example has a key of its own, the State is one for all, and the axis has the name that the
    layers ask for, or `vmap` where that is a string. What `to_equinox` made becomes the Module that
    it was made of, with the arrays of now. Raises ModelError for anything else, and for a model in
    which something would go wrong silently, with each path.

    >>> import bridge as br, equinox as eqx, jax, jax.numpy as jnp
    >>> linear = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)), vmap=True)
    >>> linear(jnp.ones((2, 3))).shape
    (2, 5)
    >>> linear.at["params.weight"].get().shape
    (5, 3)
    """
    wrapped = _wrap.wrap(model, state, vmap)
    if issubclass(wrapped.model_class(), _export.BridgeEquinox):
        return _export.taken_back(wrapped)
    return wrapped


def to_equinox(module: Any) -> tuple[Any, eqx.nn.State]:
    """A Module as an Equinox module, and its State; its own where the Module only wraps a model.

    The model has the arrays that are trained; states, keys and frozen parameters stand in the State;
    all are shared. `out, state = model(x, state, key=key)`, or `out = model(x)` where the State is
    empty, takes what the Module takes (batches, if that does). It draws what the Module draws from that
    key, or from a dict of keys by stream. The mode is `inference`, which `eqx.nn.inference_mode` sets,
    or a keyword of the call in any spelling. It starts in train mode, as Equinox's layers do, unless
    the Module is in eval mode itself. A model with a State of its own holds it by `with_init_state`.
    Raises UninitialisedError for a Module that has no arrays yet, ModelError for anything else.

    >>> import bridge as br, equinox as eqx, haiku as hk, jax, jax.numpy as jnp
    >>> linear = br.from_haiku(hk.Linear)(7).init(jax.random.key(0), jnp.ones((2, 5)))
    >>> model, state = br.to_equinox(linear)
    >>> model(jnp.ones((2, 5))).shape
    (2, 7)
    >>> model.params["linear"]["w"].shape
    (5, 7)
    """
    return _export.export(module)


def with_init_state(model: Any, state: eqx.nn.State) -> Any:
    """A model with its state inside again, to be a part of one that `eqx.nn.make_with_state` makes.

    `model` is an Equinox model, exported or not; of a whole model's State it takes what is its own.
    Raises ModelError where the State is an old one, or another model's.

    >>> import bridge as br, equinox as eqx, flax.linen as nn, jax, jax.numpy as jnp
    >>> from bridge.adapters.equinox import with_init_state
    >>> class Net(eqx.Module):
    ...     core: eqx.Module
    ...     norm: eqx.nn.BatchNorm
    ...
    ...     def __init__(self, core):
    ...         self.core = with_init_state(*br.to_equinox(core))
    ...         self.norm = eqx.nn.BatchNorm(5, "batch", mode="batch")
    ...
    ...     def __call__(self, x, state):
    ...         x, state = self.core(x, state)
    ...         return jax.vmap(self.norm, (0, None), (0, None), axis_name="batch")(x, state)
    >>> norm = br.from_linen(nn.BatchNorm(use_running_average=False))
    >>> net, state = eqx.nn.make_with_state(Net)(norm.init(jax.random.key(0), jnp.ones((2, 5))))
    >>> out, state = net(jnp.ones((2, 5)), state)
    >>> sorted(state.get(net.core.state["batch_stats"]))
    ['mean', 'var']
    """
    return _export.with_init_state(model, state)
