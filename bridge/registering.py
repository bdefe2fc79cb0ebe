"""`register_adapter`, and models by the adapters that a program or an installed package has added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

from bridge.core.errors import AdapterError
from bridge.core.libraries import installed, is_reserved, registered
from bridge.core.module import Module


def register_adapter(name: str, adapter: Any, replace: bool = False) -> None:
    """Adds an adapter for another library, which `wrap` uses for its models from here on.

    `name` is how the library is imported: its models are those whose class, or an ancestor of it, is
    from there. `adapter` is a module, a class or any other object with a function `from_<name>` (of
    "a.b.sixth": `from_sixth`), which takes a model and gives a Module. What that is made of stands in
    `bridge.adapters`, and `examples/write_an_adapter.py` is an adapter in full.

    This is for an adapter in a program or a notebook. An installed package names its own in its
    pyproject.toml, which is imported when a model of the library comes; what is registered goes first.

        [project.entry-points."bridge.adapters"]
        sixth = "bridge_sixth"

    Raises AdapterError for an object without that function, for a library that bridge has an adapter of
    its own for, and where another one is registered already, unless it is to `replace` that.

    >>> import bridge as br, fractions
    >>> class Fractions:
    ...     @staticmethod
    ...     def from_fractions(model):
    ...         return br.Function(lambda x: float(model) * x)
    >>> br.register_adapter("fractions", Fractions)
    >>> br.wrap(fractions.Fraction(1, 2))(3.0)
    1.5
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise AdapterError(
            f"an adapter is registered by the name that its library is imported by, as in"
            f" register_adapter('sixth', adapter); it was given {name!r}"
        )
    if is_reserved(name):
        raise AdapterError(
            f"bridge has an adapter of its own for {name!r}, and wraps its models by that; give a model"
            f" that is to be wrapped in another way to a function of yours instead of bridge.wrap"
        )
    _function_of(name, adapter)
    if not replace and registered.get(name, adapter) is not adapter:
        raise AdapterError(
            f"an adapter for {name!r} is registered already, {registered[name]!r}; to put this one in"
            f" its place, type bridge.register_adapter({name!r}, adapter, replace=True)"
        )
    registered[name] = adapter


def from_added(name: str, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A model as a Module, by the added adapter for its library; raises AdapterError for a bad one."""
    adapter = registered[name] if name in registered else _loaded(name)
    module = _function_of(name, adapter)(model, *args, **kwargs)
    # A class of models may become a function of its constructor's arguments, as in from_haiku.
    if isinstance(module, Module) or (isinstance(model, type) and callable(module)):
        return module
    raise AdapterError(
        f"{_function_name(name)} of the adapter for {name!r} made {module!r} of a"
        f" {type(model).__name__}; it has to make a bridge.Module"
    )


def _loaded(name: str) -> Any:
    """The adapter of an installed package."""
    entries = installed()[name]
    if len({entry.value for entry in entries}) > 1:
        raise AdapterError(
            f"several installed packages have an adapter for {name!r}:"
            f" {', '.join(map(_described, entries))}. Choose one of these:"
            f" bridge.register_adapter({name!r}, adapter)"
        )
    try:
        return entries[0].load()
    except (ImportError, AttributeError) as error:
        raise AdapterError(
            f"the adapter for {name!r}, {_described(entries[0])}, cannot be imported: {error}"
        ) from error


def _described(entry: EntryPoint) -> str:
    package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
    return f"{entry.value!r}{package}"


def _function_name(name: str) -> str:
    return f"from_{name.rpartition('.')[2]}"


def _function_of(name: str, adapter: Any) -> Callable[..., Any]:
    """What an adapter wraps models with; raises AdapterError where it has no such function."""
    function = getattr(adapter, _function_name(name), None)
    if not callable(function):
        raise AdapterError(
            f"the adapter for {name!r}, {adapter!r}, has no function {_function_name(name)}; it has to"
            f" have one that takes a model and gives a bridge.Module"
        )
    return function
