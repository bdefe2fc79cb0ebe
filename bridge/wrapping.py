"""`from_linen` and its siblings: each imports its adapter, and with it the library, when called."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bridge.core.errors import MissingLibraryError, ModelError
from bridge.core.module import Module

ENTRY_POINTS = "bridge.adapters"


@dataclass(frozen=True)
class Adapter:
    """An adapter of bridge's own: what its library is called, imported as and installed by."""

    title: str
    package: str
    distribution: str
    extra: str


ADAPTERS: Mapping[str, Adapter] = {
    "linen": Adapter("Linen", "flax.linen", "flax", "flax"),
    "nnx": Adapter("NNX", "flax.nnx", "flax", "flax"),
    "haiku": Adapter("Haiku", "haiku", "dm-haiku", "haiku"),
    "equinox": Adapter("Equinox", "equinox", "equinox", "equinox"),
}


def from_linen(module: Any, variables: Mapping[str, Any] | None = None) -> Any:
    """A Flax Linen module as a Module.

    Without `variables`, `init` makes them from an input. With them (what `module.init` made, or
    `{"params": ...}`) it is initialised already. Raises ModelError for anything else than an unbound
    Linen module, MissingLibraryError without flax.

    >>> import bridge as br, flax.linen as nn, jax, jax.numpy as jnp
    >>> module = br.from_linen(nn.Dense(5)).init(jax.random.key(0), jnp.ones((2, 3)))
    >>> module(jnp.ones((2, 3))).shape
    (2, 5)
    """
    return _adapter("linen").from_linen(module, variables)


def from_nnx(module: Any) -> Any:
    """A Flax NNX module as a Module; the given object is never changed.

    Raises ModelError for anything else than an NNX module, MissingLibraryError without flax.

    >>> import bridge as br, jax.numpy as jnp
    >>> from flax import nnx
    >>> br.from_nnx(nnx.Linear(3, 5, rngs=nnx.Rngs(0)))(jnp.ones((2, 3))).shape
    (2, 5)
    """
    return _adapter("nnx").from_nnx(module)


def from_haiku(
    target: Any,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    state: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """A Haiku model as a Module.

    `target` is a function that uses Haiku modules, or what `hk.transform` or
    `hk.transform_with_state` made of one. For a class of Haiku modules what comes back takes the
    arguments of its constructor, and gives the Module. Without `params`, `init` makes them from an
    input. Raises ModelError for anything else, MissingLibraryError without dm-haiku.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> module = br.from_haiku(hk.Linear)(5).init(jax.random.key(0), jnp.ones((2, 3)))
    >>> module(jnp.ones((2, 3))).shape
    (2, 5)
    """
    return _adapter("haiku").from_haiku(target, params, state)


def from_equinox(model: Any, state: Any = None, vmap: bool = False) -> Any:
    """An Equinox module as a Module.

    `state` is the `eqx.nn.State` of a model that has one. With `vmap` a model of single examples is
    called with batches. Raises ModelError for anything else than an Equinox module,
    MissingLibraryError without equinox.

    >>> import bridge as br, equinox as eqx, jax, jax.numpy as jnp
    >>> module = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)), vmap=True)
    >>> module(jnp.ones((2, 3))).shape
    (2, 5)
    """
    return _adapter("equinox").from_equinox(model, state, vmap)


def wrap(model: Any, *args: Any, **kwargs: Any) -> Any:
    """A model of any library as a Module, by the `from_<library>` that its class asks for.

    What follows the model goes to that function. A library that bridge has no adapter for is served by
    the entry point of the group "bridge.adapters" that is named as the library is imported (`name`): a
    module with a function `from_<name>`. A Module is returned as it is. Raises ModelError where no
    adapter knows the class.

    >>> import bridge as br, flax.linen as nn
    >>> br.wrap(nn.Dense(5))
    LinenModule uninit (Dense)
    """
    if isinstance(model, Module):
        return model
    classes = model.__mro__ if isinstance(model, type) else type(model).__mro__
    # From the oldest ancestor on: flax.nnx defines a Linen module, nnx.bridge.ToLinen.
    homes = [cls.__module__ for cls in reversed(classes)]
    for home in homes:
        for name, adapter in ADAPTERS.items():
            if _inside(home, adapter.package):
                return getattr(_adapter(name), f"from_{name}")(model, *args, **kwargs)
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.name not in ADAPTERS and any(_inside(home, entry.name) for home in homes):
            return getattr(entry.load(), f"from_{entry.name}")(model, *args, **kwargs)
    raise ModelError(
        f"no adapter knows a {type(model).__name__} ({model!r}); bridge wraps models of"
        f" {', '.join(adapter.title for adapter in ADAPTERS.values())}. A function of Haiku modules"
        f" goes to bridge.from_haiku, any other function to bridge.Function"
    )


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _adapter(name: str) -> ModuleType:
    adapter = ADAPTERS[name]
    try:
        return importlib.import_module(f"bridge.adapters.{name}")
    except ModuleNotFoundError as error:
        library = adapter.package.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise MissingLibraryError(
            f"The {adapter.title} adapter needs {adapter.distribution}. Install it with:"
            f' pip install "bridge-jax[{adapter.extra}]"'
        ) from None
