"""Functions as modules: the modules that a function calls are its parts, found by `init`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

import bridge.core.calling as calling
import bridge.core.growing as growing
import bridge.core.hosts as hosts
import bridge.core.paths as paths
from bridge.core.errors import FieldError, StructureError, UninitialisedError
from bridge.core.frames import Frame, current_trace
from bridge.core.kinds import INLINE, PARAMETER, Parameter
from bridge.core.leaves import LAZY, Frozen, Lazy, ParamInit
from bridge.core.module import Module
from bridge.core.node import Node
from bridge.core.opaque import Opaque
from bridge.core.paths import Path
from bridge.core.recipes import Recipe, refresh
from bridge.core.tree import walk
from bridge.core.wrapped import Wrapped


class Code(Opaque):
    """A function among the statics: pickled by its name, also where that is now its module's."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        names = (self.value.__module__, self.value.__qualname__)
        decorated = _held(*names)
        by_name = isinstance(decorated, Parametrized) and decorated.function is self.value
        return (_code_of, names) if by_name else super().__reduce__()


def _held(module: str, qualname: str) -> Any:
    """What a file has under a name."""
    names = qualname.split(".")
    return functools.reduce(lambda at, name: getattr(at, name, None), names, sys.modules.get(module))


def _code_of(module: str, qualname: str) -> Code:
    importlib.import_module(module)
    return _held(module, qualname).code


class Parametrized(Module):
    """A function as a module; see `parametrized`. Its parts and parameters are read by name."""

    values: Annotated[dict[str, jax.Array], PARAMETER, INLINE]
    parts: Annotated[dict[str, Module], INLINE]
    unmade: Parameter
    code: Code
    recipes: tuple

    def __init__(self, function: Callable[..., Any]) -> None:
        self.values, self.parts, self.unmade = {}, {}, LAZY
        self.code, self.recipes = Code(function), ()

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        return self.code.value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        host = Host(self, self._running("__call__"))
        with host.running():
            out = self.function(*args, **kwargs)
        host.finish()
        return out

    @property
    def unseen(self) -> bool:
        """Whether a call may use parts that no call before it did: always, for a function."""
        return True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        for held in (self.parts, self.values):
            if name in held:
                return held[name]
        raise AttributeError(f"{self._title} has no part or parameter {name!r}")

    @property
    def _title(self) -> str:
        return getattr(self.function, "__name__", "function").replace("<lambda>", "function")


def parametrized(function: Callable[..., Any]) -> Parametrized:
    """A function that calls other modules as a Module: those are its parts, whatever their library.

    Modules may be made inside the function, or come from outside: a variable, a default. One object
    is one set of parameters, wherever it is called. `init` runs the function and finds the parts; a
    part is named by the variable or default that holds it, or else by its class (`dense`, `dense_1`,
    in the order of the calls), and a later call must make the same ones. A part that was trained
    before keeps its arrays; a module whose arrays are traced values is called as it is.

    Where the function calls parts inside `jax.jit`, `jax.lax.scan` and the like, these are traced anew
    in each call, so they never keep old parameters; put the whole under `jax.jit`. Layers that draw,
    or write a state, do so inside `bridge.scan`, `bridge.vmap` and `bridge.remat`.

    >>> import bridge as br, flax.linen as nn, jax, jax.numpy as jnp
    >>> @br.parametrized
    ... def net(x):
    ...     hidden = jax.nn.relu(br.from_linen(nn.Dense(5))(x))
    ...     return hidden @ br.parameter((5, 2), jax.nn.initializers.ones, "mixing")
    >>> net = net.init(jax.random.key(0), jnp.ones((3, 7)))
    >>> net(jnp.ones((3, 7))).shape, net.mixing.shape
    ((3, 2), (5, 2))
    >>> net
    net(
      (dense): LinenModule(Dense)
    )
    """
    if isinstance(function, Node) or not callable(function):
        raise FieldError(
            f"parametrized takes a function that calls modules; it was given a"
            f" {type(function).__name__}"
        )
    return Parametrized(function)


def parameter(
    shape: tuple[int, ...],
    initializer: Callable[..., jax.Array],
    name: str,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """A parameter of the parametrized function that runs: what `ParamInit` is to a field.

    The same name in one call is the same parameter. Raises FieldError outside of such a function, and
    for a name that stands for something else.

    >>> import bridge as br, jax
    >>> @br.parametrized
    ... def scale(x):
    ...     return x * br.parameter((), jax.nn.initializers.ones, "factor")
    >>> float(scale.init(jax.random.key(0), 3.0)(3.0))
    3.0
    """
    return _running("bridge.parameter").value(name, ParamInit(shape, initializer, dtype))


def current_module() -> Any:
    """The module of the parametrized function that runs: its `draw`, `rng`, `mode` and `training`.

    >>> import bridge as br, jax
    >>> @br.parametrized
    ... def noise(x):
    ...     return x + jax.random.normal(br.current_module().draw("latent"))
    >>> key = jax.random.key(0)
    >>> noise = noise.init(key, 0.0)
    >>> one, other = (noise.apply(0.0, rng={"latent": key})[0] for _ in range(2))
    >>> bool(one == other)
    True
    """
    return _running("bridge.current_module").node


def _running(what: str) -> Host:
    host = hosts.running()
    if host is None:
        raise FieldError(
            f"{what} stands in a function under @bridge.parametrized, and works only while that"
            f" module is called; in a class of modules declare a field, and use self"
        )
    return host


# Functions that call parts inside JAX transforms: their runs are isolated from the beginning.
_transforming: weakref.WeakSet[Any] = weakref.WeakSet()


class Host:
    """One call of a parametrized function: it takes the modules that the function calls."""

    def __init__(self, node: Parametrized, frame: Frame) -> None:
        self.node, self.frame, self.run = node, frame, frame.run
        if isinstance(node.unmade, Lazy) and not frame.initialising:
            raise UninitialisedError(
                f"{paths.name(frame.path)} is not initialised; type"
                f" module = module.init(key, *sample) first"
            )
        self.labels = _labels(node.function)
        self.known: dict[int, tuple[Any, Any]] = {}
        self.counts: dict[str, int] = {}
        self.run.isolated = self.run.isolated or node.function in _transforming

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The time in which the function's own code runs."""
        with hosts.hosting(self, self.run.isolated) as self.marks:
            yield

    def finish(self) -> None:
        """After the function: the module is made."""
        if self.frame.initialising and isinstance(self.node.unmade, Lazy):
            self.frame.fill(self.node, unmade=None)

    def takes(self, module: Any) -> bool:
        """Whether a module that is called becomes a part: not where its arrays are traced values."""
        return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(module))

    def call(self, module: Any, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The output of a method of the part that a module stands for."""
        self._isolate()
        if id(module) not in self.known:
            self._find(module, method, args, kwargs)
        copy = self.known[id(module)][1]
        if type(copy) is not type(module):  # something else was put in the part's place
            name = calling.name_of(module, method)
            return (copy.own_method(name) or getattr(copy, name))(*args, **kwargs)
        return copy._call.enter(copy, method, args, kwargs)

    def value(self, name: str, wanted: ParamInit) -> Any:
        """The parameter of a name, made where `init` runs."""
        self._isolate()
        path = (*self.frame.path, name)
        if name not in self.node.values:
            if not self.frame.initialising:
                raise self._unknown(path, f"a parameter {list(wanted.shape)}")
            if name in self.node.parts:
                raise FieldError(
                    f"{paths.join(path)} is a part already; give the parameter another name"
                )
            self._at_root(lambda: growing.with_value(self.run, self.frame.path, name, wanted))
            made = growing.made(self.run, path, wanted)
            self.frame.fill(self.node, values=Frozen({**self.node.values, name: made}))
        value = self.node.values[name]
        if hasattr(value, "shape") and (value.shape != wanted.shape or value.dtype != wanted.dtype):
            raise StructureError(
                f"{paths.join(path)} is {value.dtype}{list(value.shape)}, and this call asks for"
                f" {wanted.dtype}{list(wanted.shape)}; type module.init(key, *sample) for another one"
            )
        return value

    def mark(self) -> Any:
        """Where the function is in naming its parts."""
        return dict(self.known), dict(self.counts)

    def rewind(self, mark: Any) -> None:
        """Names the parts again from a mark on, because JAX traces the same code once more."""
        known, counts = mark
        self.known, self.counts = dict(known), dict(counts)

    def _isolate(self) -> None:
        """Keeps a trace inside of the call from being found again by a later call."""
        if not self.frame.foreign():
            return
        if not self.run.isolated:
            _transforming.add(self.node.function)
            raise hosts.Again(self.run)
        hosts.renew(self.marks)

    def _at_root(self, grown: Callable[[], Any]) -> None:
        """Begins again with what `grown` gives, where this is no trace in which arrays can be made."""
        if self.run.trace != current_trace():
            raise hosts.Again(self.run, grown)

    def _find(self, module: Any, method: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Takes a module that this call has not met before as the next part."""
        name = self._name(module)
        path = (*self.frame.path, name)
        recipes = dict(self.node.recipes)
        if name not in self.node.parts:
            if not self.frame.initialising:
                raise self._unknown(path, repr(module).partition("\n")[0])
            recipe = Recipe(module)
            self._at_root(
                lambda: growing.with_part(self.run, path, module, recipe, method, (args, kwargs))
            )
            growing.join(self.run, self.node, name, module)
            self.frame.fill(self.node, recipes=(*self.node.recipes, (name, recipe)))
        elif name in recipes and (difference := recipes[name].difference(module)):
            raise StructureError(
                f"{paths.join(path)} is not the module that it was when init ran: {difference}. The"
                f" function must make the same modules in the same order; what depends on a value of"
                f" the call belongs outside, or in a bridge.parametrized function of its own"
            )
        copy = self.node.parts[name]
        refresh(copy, module)
        self._remember(module, copy)

    def _remember(self, module: Any, copy: Any) -> None:
        """Notes the private copy that each module of a part stands for from now on."""
        copies = dict(walk(copy))
        for path, node in walk(module):
            if path in copies:
                self.known.setdefault(id(node), (node, copies[path]))

    def _name(self, module: Any) -> str:
        label = self.labels.get(id(module)) or _snake(module)
        number = self.counts.get(label, 0)
        self.counts[label] = number + 1
        name = f"{label}_{number}" if number else label
        return self._name(module) if name in self.node.values else name

    def _unknown(self, path: Path, what: str) -> StructureError:
        return StructureError(
            f"{paths.join(path)} ({what}) is used by this call and was not when init ran; type"
            f" module = module.init(key, *sample) with the sample and the mode of this call: what is"
            f" there stays"
        )


def _snake(module: Any) -> str:
    """The name that a part has by its class: `Dense` is `dense`, `LayerNorm` is `layer_norm`."""
    title = getattr(module, "_title", type(module).__name__)
    if isinstance(module, Wrapped):
        title = module.model_class().__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", title).lower()


def _labels(function: Any) -> dict[int, str]:
    """The variables and defaults that hold a module where the function can see it, by identity."""
    function = inspect.unwrap(function)
    if not isinstance(function, types.FunctionType):
        return {}
    found: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # a default that cannot be shown
        found = {n: p.default for n, p in inspect.signature(function).parameters.items()}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a variable that is not assigned yet
            found[name] = cell.cell_contents
    names = _names(function.__code__)
    found |= {name: function.__globals__[name] for name in names if name in function.__globals__}
    return {id(value): name for name, value in reversed(found.items()) if isinstance(value, Node)}


def _names(code: types.CodeType) -> list[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return [*code.co_names, *(name for one in inner for name in _names(one))]
