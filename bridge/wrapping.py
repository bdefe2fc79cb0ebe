"""`from_linen` and its siblings: each imports its adapter, and with it the library, when called."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bridge.core.errors import MissingLibraryError, ModelError
from bridge.core.libraries import added_libraries, added_library, inside
from bridge.core.module import Module
from bridge.registering import from_added


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
    "torch": Adapter("PyTorch", "torch", "torch", "torch"),
}


def from_linen(module: Any, variables: Mapping[str, Any] | None = None) -> Any:
    """A Flax Linen module as a Module.

    Without `variables`, `init` makes them from an input. With them (what `module.init` made, or
    `{"params": ...}`), or of a bound module, it is initialised already. Raises ModelError for anything
    else than a Linen module, MissingLibraryError without flax.

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

    `target` is a function that uses Haiku modules, or what `hk.transform`, `hk.multi_transform` or
    their forms with state made of one; several functions become methods. For a class of Haiku modules
    what comes back takes the arguments of its constructor, and gives the Module. Without `params`,
    `init` makes them from an input. Raises ModelError for anything else, MissingLibraryError without
    dm-haiku.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> module = br.from_haiku(hk.Linear)(5).init(jax.random.key(0), jnp.ones((2, 3)))
    >>> module(jnp.ones((2, 3))).shape
    (2, 5)
    """
    return _adapter("haiku").from_haiku(target, params, state)


def from_equinox(model: Any, state: Any = None, vmap: bool | str = False) -> Any:
    """An Equinox module as a Module.

    `state` is the `eqx.nn.State` of a model that has one. With `vmap` a model of single examples is
    called with batches; a string is the name of the batch's axis. Raises ModelError for anything else
    than an Equinox module, MissingLibraryError without equinox.

    >>> import bridge as br, equinox as eqx, jax, jax.numpy as jnp
    >>> module = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)), vmap=True)
    >>> module(jnp.ones((2, 3))).shape
    (2, 5)
    """
    return _adapter("equinox").from_equinox(model, state, vmap)


def from_torch(
    model: Any,
    *example: Any,
    dynamic_batch: bool = True,
    mode: str | None = None,
    **keywords: Any,
) -> Any:
    """A `torch.nn.Module`, forward and all, as a Module.

    Its forward is captured by torch.export with the example inputs, tensors as the model takes them,
    once for eval and once for train mode, or for one `mode` alone; the given model is never changed.
    Paths are the names of its state_dict, arrays copies in torch's layout; parameters that do not
    require gradients are frozen, buffers are State. Parts that are in another mode than the model stay
    in theirs. With `dynamic_batch`, every size that torch.export can free may differ in a call.

    While JAX's x64 is off, int64 is int32: tensors whose values do not fit raise, results wrap around
    as JAX's do; float64 raises. Where torch checks values (an index, a singular matrix) JAX gives NaN
    or infinity.

    Raises LoweringError where torch.export fails or an op has no row, ModelError for what is no such
    model, MissingLibraryError without torch.

    >>> import bridge as br, jax.numpy as jnp, torch
    >>> module = br.from_torch(torch.nn.Linear(3, 5), torch.zeros(2, 3))
    >>> module(jnp.ones((7, 3))).shape
    (7, 5)
    """
    return _adapter("torch").from_torch(
        model, *example, dynamic_batch=dynamic_batch, mode=mode, **keywords
    )


def to_torch(module: Module, like: Any, rename: Mapping[Any, str] | None = None) -> Any:
    """A copy of a torch model with the weights of a Module, whichever library it is of.

    `like` is the torch model; it is not changed. Its arrays are matched with the Module's as in
    `bridge.match`, with its `rename`; buffers that the Module does not hold stay as they are. What
    `bridge.from_torch` has made goes back by name, into the same class and sizes. Raises WeightsError
    or StructureError, with every name, where the two do not fit, ModelError for anything else than a
    Module, MissingLibraryError without torch.

    >>> import bridge as br, equinox as eqx, jax, numpy as np, torch
    >>> layer = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)))
    >>> model = br.to_torch(layer, like=torch.nn.Linear(3, 5))
    >>> x = np.ones(3, np.float32)
    >>> np.allclose(model(torch.from_numpy(x)).detach(), layer(x), atol=1e-6)
    True
    """
    from bridge.lowering.module import foreign
    from bridge.weights.exporting import state_dict

    adapter, export = _adapter("torch"), None
    if isinstance(module, Module) and (rename is not None or foreign(module)):
        export = functools.partial(state_dict, module, like, rename)
    return adapter.to_torch(module, like, export)


def to_linen(module: Module) -> Any:
    """A Module as a Flax Linen module: its arrays are Linen's variables, by collection and path.

    Where the Module only wraps a Linen module, that one comes back, and `module.native()` are its
    variables. `br.from_linen(exported, variables)` gives the Module back. Raises ModelError for
    anything else than a Module, MissingLibraryError without flax.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> linear = br.from_haiku(hk.Linear)(7)
    >>> variables = br.to_linen(linear).init(jax.random.key(0), jnp.ones((2, 5)))
    >>> jax.tree.map(jnp.shape, variables)
    {'params': {'linear': {'b': (7,), 'w': (5, 7)}}}
    """
    return _adapter("linen").to_linen(module)


def to_nnx(module: Module, rngs: Any = None) -> Any:
    """A Module as a Flax NNX module: its arrays are Variables, its parameters `nnx.Param`.

    It draws from `rngs`, an `nnx.Rngs`, or from those of a call. Where the Module only wraps an NNX
    module, a new one of that class comes back. `br.from_nnx(exported)` gives the Module back. Raises
    UninitialisedError for a Module without arrays, ModelError for anything else than a Module,
    MissingLibraryError without flax.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear = br.from_haiku(hk.Linear)(7).init(jax.random.key(0), jnp.ones((2, 5)))
    >>> len(jax.tree.leaves(nnx.state(br.to_nnx(linear), nnx.Param)))
    2
    """
    return _adapter("nnx").to_nnx(module, rngs)


def to_haiku(module: Module, name: str | None = None) -> Any:
    """A Module as a callable for the inside of `hk.transform`: its arrays are params and state there.

    All of its calls in one transform share their parameters, as those of one Haiku module do; `name`
    is what they are kept under. Where the Module only wraps a Haiku function, that one comes back, and
    `module.native()` are its arrays. `br.from_haiku(exported, params, state)` gives the Module back.
    Raises ModelError for anything else than a Module, MissingLibraryError without dm-haiku.

    >>> import bridge as br, flax.linen as nn, haiku as hk, jax, jax.numpy as jnp
    >>> dense = br.to_haiku(br.from_linen(nn.Dense(7)), name="dense")
    >>> params = hk.transform(dense).init(jax.random.key(0), jnp.ones((2, 5)))
    >>> jax.tree.map(jnp.shape, params)
    {'~/dense': {'bias': (7,), 'kernel': (5, 7)}}
    """
    return _adapter("haiku").to_haiku(module, name)


def to_equinox(module: Module) -> tuple[Any, Any]:
    """A Module as an Equinox module, and the `eqx.nn.State` with its states.

    Where the Module only wraps an Equinox model, that one comes back. `br.from_equinox(model, state)`
    gives the Module back. Raises UninitialisedError for a Module without arrays, ModelError for
    anything else than a Module, MissingLibraryError without equinox.

    >>> import bridge as br, haiku as hk, jax, jax.numpy as jnp
    >>> linear = br.from_haiku(hk.Linear)(7).init(jax.random.key(0), jnp.ones((2, 5)))
    >>> model, state = br.to_equinox(linear)
    >>> model(jnp.ones((2, 5))).shape
    (2, 7)
    """
    return _adapter("equinox").to_equinox(module)


def wrap(model: Any, *args: Any, **kwargs: Any) -> Any:
    """A model of any library as a Module, by the `from_<library>` that its class asks for.

    What follows the model goes to that function. A library that bridge has no adapter for is served by
    one that was registered (`register_adapter`) or comes with an installed package. A Module is
    returned as it is. Raises ModelError where no adapter knows the class, AdapterError for an added
    adapter that cannot be used.

    >>> import bridge as br, flax.linen as nn
    >>> br.wrap(nn.Dense(5))
    LinenModule uninit (Dense)
    """
    if isinstance(model, Module):
        return model
    classes = model.__mro__ if isinstance(model, type) else type(model).__mro__
    added = added_library(classes)  # before bridge's own: a library may be built on one of those
    if added is not None:
        return from_added(added, model, args, kwargs)
    # From the oldest ancestor on: flax.nnx defines a Linen module, nnx.bridge.ToLinen.
    for cls in reversed(classes):
        for name, adapter in ADAPTERS.items():
            if inside(cls.__module__, adapter.package):
                return getattr(_adapter(name), f"from_{name}")(model, *args, **kwargs)
    titles = (*(adapter.title for adapter in ADAPTERS.values()), *added_libraries())
    raise ModelError(
        f"no adapter knows a {type(model).__name__} ({model!r}); bridge wraps models of"
        f" {', '.join(titles)}. A function of Haiku modules goes to bridge.from_haiku, any other"
        f" function to bridge.Function"
    )


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
