"""The Haiku adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk

from bridge.adapters.haiku import _export, _wrap


def from_haiku(
    target: Any,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    state: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[..., Any]:
    """A Haiku model as a Module.

    `target` is a class of Haiku modules, a function that uses them, or what `hk.transform`,
    `hk.multi_transform` and their relatives made of one. For a class what comes back takes the
    arguments of its constructor, and gives the Module. The functions of a multi_transform are methods:
    of a dict or namedtuple by its keys, of a tuple `apply_0`, `apply_1`; a single one is `__call__`.

    Without `params` (and `state`, where the model has some) `init` makes them, always in train mode;
    for a multi_transform its template does, and takes the arguments. Given ones are compared with what
    Haiku makes by `init`, and by a call as far as Haiku itself notices: what the call has no use for,
    and other dtypes, may be meant for another method or mode. What `to_haiku` made becomes the Module
    that it was made of, with these params and state.

    The train flag of a call is that of the mode unless it is given, and that of a constructor always;
    that of a multi_transform's function has to be given, because Haiku does not show its signature.
    Haiku's one random key is that of the stream "default". Raises ModelError for anything else.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> core = br.from_haiku(hk.LSTM)(7)
    >>> carry = core.initial_state(2)
    >>> core = core.init(jax.random.key(0), jnp.ones((2, 3)), carry)
    >>> out, carry = core(jnp.ones((2, 3)), carry)
    >>> out.shape
    (2, 7)
    >>> core.at["params.lstm/linear.w"].get().shape
    (10, 28)
    >>> def codec():
    ...     encode, decode = hk.Linear(2), hk.Linear(3)
    ...     return lambda x: decode(encode(x)), {"encode": encode, "decode": decode}
    >>> codec = br.from_haiku(hk.multi_transform(codec)).init(jax.random.key(0), jnp.ones((2, 3)))
    >>> codec.decode(codec.encode(jnp.ones((2, 3)))).shape
    (2, 3)
    """
    if isinstance(target, (_export.Exported, _export.BridgeHaiku)):
        return _export.taken_back(target, params, state)
    if isinstance(target, type) and issubclass(target, hk.Module):
        return _wrap.constructor(target, params, state)
    return _wrap.wrap(target, params, state)


def to_haiku(module: Any, name: str | None = None) -> Callable[..., Any]:
    """A Module as a callable for the inside of `hk.transform` or `hk.transform_with_state`.

    It is one Haiku module: all of its calls in a transform share one bundle of params and of state,
    named `name`, or without it as Haiku names a module of that class. Made inside a transform it stands
    where it is made, numbered as Haiku numbers. Made outside it stands at the top level as `~/name`,
    wherever it is called. In the bundle a param is named by its path, a state by its collection and
    path; keys are the collection "rngs".

    `init` gives the arrays that the Module has, and makes what it has not made yet. The mode is given
    by a keyword in any spelling (`is_training=True`); without one it is the Module's own. It draws from
    Haiku's key. Frozen parameters stand among the params and get no gradient. `from_haiku(exported,
    params, state)` gives the Module back.

    Where the Module only wraps a Haiku function and no `name` is given, that one comes back, and for a
    class of Haiku modules that was not initialised a callable with its own params: their `init` makes
    new arrays, and the Module's are `module.native()`. Raises ModelError for anything else than a
    Module.

    >>> import bridge as br, flax.linen as nn, haiku as hk, jax, jax.numpy as jnp
    >>> encoder = br.to_haiku(br.from_linen(nn.Dense(7)), name="encoder")
    >>> net = hk.transform(lambda x: hk.Linear(3)(encoder(x)))
    >>> params = net.init(jax.random.key(0), jnp.ones((2, 5)))
    >>> jax.tree.map(jnp.shape, params["~/encoder"])
    {'bias': (7,), 'kernel': (5, 7)}
    >>> net.apply(params, None, jnp.ones((2, 5))).shape
    (2, 3)
    """
    return _export.export(module, name)
