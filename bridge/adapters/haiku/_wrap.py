"""A Haiku model as a Module."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax

import bridge.core.paths as paths
from bridge.adapters.haiku._layers import observed
from bridge.core.errors import ModelError, UninitialisedError, listed
from bridge.core.frames import Frame
from bridge.core.kinds import State
from bridge.core.leaves import LAZY, Lazy, Leaves, leaves_of
from bridge.core.module import plain
from bridge.core.node import Node
from bridge.core.wrapped import Opaque, Wrapped, key_or_none, library_of, train_flags

# What Haiku's own errors begin with or hold, from haiku/_src/base.py: their classes are not public.
_NO_KEY = "You must pass a non-None PRNGKey"
_NO_PARAMETER = "Unable to retrieve parameter"
_OTHER_SHAPE = "with retrieved shape"
_NO_STATE = "No value for"


class Construction:
    """A class of Haiku modules and its constructor's arguments, compared by value."""

    def __init__(self, cls: type[hk.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, treedef = jax.tree.flatten((args, kwargs))
        # Rebuilt, so that a list which the caller changes later is not ours.
        self.args, self.kwargs = jax.tree.unflatten(treedef, leaves)
        self.cls = cls
        self.token = (cls, treedef, tuple((type(leaf), leaf) for leaf in leaves))

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Construction) and self.token == other.token

    def method(self, name: str) -> Callable[..., Any]:
        """The function that makes the module and runs a method of it, for a transform."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return getattr(self.cls(*self.args, **self.kwargs), name)(*args, **kwargs)

        return forward


class Program:
    """A method of a target as two pure functions, in the form of `hk.transform_with_state`.

    `signature` is a function with the signature that the arguments of a call have to fit.
    """

    def __init__(self, target: Any, method: str) -> None:
        if isinstance(target, Construction):
            self.signature = functools.partial(getattr(target.cls, method), None)
            target = hk.transform_with_state(target.method(method))
        elif method != "__call__":
            raise ModelError(
                f"a Haiku function has no method {method!r}; wrap a class of Haiku modules to call"
                f" its methods by name"
            )
        elif isinstance(target, (hk.Transformed, hk.TransformedWithState)):
            self.signature = functools.partial(target.init, None)
        else:
            self.signature = target
            target = hk.transform_with_state(target)
        self.target = target
        # hk.without_apply_rng takes the key out of the signature.
        self.takes_key = "rng" in inspect.signature(target.apply).parameters

    def init(self, key: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """The first params and state, in train mode whatever the arguments say.

        Nothing else works for hk.BatchNorm, which makes its averages only while it trains.
        """
        given = self._bound(args, kwargs)
        if given is not None:
            given.arguments.update(train_flags(self.signature, {}, training=True))
            args, kwargs = given.args, given.kwargs
        made: Any = self.target.init(key, *args, **kwargs)
        return made if isinstance(self.target, hk.TransformedWithState) else (made, {})

    def apply(
        self, params: Any, state: Any, key: Any, args: Any, kwargs: Mapping[str, Any], training: bool
    ) -> tuple[Any, Any]:
        """The output and the state after it, with the train flag of the mode unless it is given."""
        given = self._bound(args, kwargs)
        named = kwargs if given is None else given.arguments
        kwargs = {**kwargs, **train_flags(self.signature, named, training)}
        args = (key, *args) if self.takes_key else args
        if isinstance(self.target, hk.TransformedWithState):
            return self.target.apply(params, state, *args, **kwargs)
        return self.target.apply(params, *args, **kwargs), state

    def _bound(self, args: Any, kwargs: Mapping[str, Any]) -> inspect.BoundArguments | None:
        """The arguments by name; None where they do not fit, of which the call itself will speak."""
        try:
            return inspect.signature(self.signature).bind_partial(*args, **kwargs)
        except TypeError:
            return None


class HaikuModule(Wrapped):
    """A Haiku model: params and state are Haiku's own dicts by module name."""

    state: State

    @plain
    def invoke(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a method returns; one that needs no params, as `initial_state`, runs without `init`."""
        frame = self._running(method)
        if isinstance(self.params, Lazy) and not frame.initialising:
            return self._without_params(frame, method, args, kwargs)
        return super().invoke(method, args, kwargs)

    def _without_params(self, frame: Frame, method: str, args: Any, kwargs: Any) -> Any:
        missing = UninitialisedError(
            f"{paths.name(frame.path)} is not initialised; type"
            f" module = module.init(key, *sample) first"
        )
        key, _ = key_or_none(frame)
        try:
            out, state = self._program(method).apply({}, {}, key, args, kwargs, frame.mode == "train")
        except ValueError as error:
            if str(error).startswith((_NO_PARAMETER, _NO_KEY)):
                raise missing from None
            raise
        if state:
            raise missing
        return out

    @plain
    def make(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any, Any, Any]:
        """Haiku's own first params and state; the root's key is the one that `init` was given."""
        keys = frame.init_key()
        key = keys.get("params", keys.get("default"))
        if "params" in frame.filled and frame.filled["params"].values:
            # Haiku counts its draws: with the same key another method's params would repeat these.
            key = jax.random.fold_in(key, frame.calls)
        program = self._program(method)
        (params, state), layers = observed(lambda: program.init(key, args, kwargs))
        if isinstance(self.params, Leaves) and "params" not in frame.filled:
            self._check_fit(frame, params)
        return None, params, state, layers

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of Haiku's own `apply` and the state after it."""
        program = self._program(method)
        params, state = self.params.tree(), self.state.tree()  # type: ignore[attr-defined]
        key, no_key = key_or_none(frame)
        try:
            with _watched(frame):
                out, after = program.apply(params, state, key, args, kwargs, frame.mode == "train")
        except ValueError as error:
            if no_key is not None and str(error).startswith(_NO_KEY):
                raise no_key from None
            if str(error).startswith(_NO_PARAMETER) or _OTHER_SHAPE in str(error):
                wanted = jax.eval_shape(lambda k: program.init(k, args, kwargs), jax.random.key(0))
                self._check_fit(frame, wanted[0])
            if str(error).startswith(_NO_STATE):
                raise _stateless(frame, str(error).partition(",")[0]) from None
            raise
        made = [
            f"{module}.{name}"
            for module, values in after.items()
            for name in values
            if name not in state.get(module, {})
        ]
        if made:
            raise _stateless(frame, f"it made {', '.join(made)}")
        return out, after

    def _check_fit(self, frame: Frame, made: Any) -> None:
        """Raises ModelError with everything in which the params differ from those that Haiku makes."""
        params = self.params.tree()  # type: ignore[attr-defined]
        if isinstance(self.model.value, Construction):
            # Other methods of a class have params of other modules, which are not left over.
            params = {module: values for module, values in params.items() if module in made}
        problems = _differences(params, made)
        if problems:
            raise ModelError(
                f"the params of {paths.name(frame.path)} do not fit the model:\n{listed(problems)}\n"
                f"Give from_haiku what the model's own init makes, or none and call"
                f" module.init(key, *sample)"
            )

    def _program(self, method: str) -> Program:
        return Program(self.model.value, method)

    @plain
    def model_class(self) -> type:
        """The class of Haiku modules that was wrapped, or the type of the function."""
        target = self.model.value
        return target.cls if isinstance(target, Construction) else type(target)

    @plain
    def native(self) -> tuple[Any, Any]:
        """Haiku's own params and state, as its `apply` takes them."""
        if isinstance(self.params, Lazy):
            raise UninitialisedError(
                "a Haiku model has params after init; type module = module.init(key, *sample) first"
            )
        return self.params.tree(), self.state.tree()  # type: ignore[attr-defined]

    def extra_repr(self) -> str:
        """The class or function that was wrapped, with the arguments of the constructor."""
        target = self.model.value
        if not isinstance(target, Construction):
            return getattr(target, "__name__", type(target).__name__)
        given = [repr(value) for value in target.args]
        given += [f"{name}={value!r}" for name, value in target.kwargs.items()]
        return f"{target.cls.__name__}({', '.join(given)})"


def constructor(cls: type[hk.Module], params: Any, state: Any) -> Callable[..., HaikuModule]:
    """A function of the constructor's arguments of a class that gives the Module."""

    @functools.wraps(cls, updated=())
    def construct(*args: Any, **kwargs: Any) -> HaikuModule:
        return _module(Construction(cls, args, kwargs), params, state)

    return construct


def wrap(target: Any, params: Any, state: Any) -> HaikuModule:
    """A function or a transform as a Module; raises ModelError for anything else."""
    library = library_of(target)
    name = type(target).__name__
    if isinstance(target, (hk.Transformed, hk.TransformedWithState)):
        return _module(target, params, state)
    if isinstance(target, (hk.MultiTransformed, hk.MultiTransformedWithState)):
        raise ModelError(
            f"from_haiku takes one function, and {name} has several; wrap a class of Haiku modules,"
            f" whose methods are called by name: from_haiku(Net)(...)"
        )
    if isinstance(target, hk.Module):
        raise ModelError(
            f"from_haiku was given a {name} that is made already, and Haiku makes modules inside a"
            f" transform only; give it the class: from_haiku({name})(...)"
        )
    if isinstance(target, Node):
        raise ModelError(f"from_haiku was given what is a bridge.Module already: {name}")
    if library is not None:
        raise ModelError(f"from_haiku was given a {library} {name}; wrap it with bridge.wrap(model)")
    if isinstance(target, jax.stages.Wrapped):
        raise ModelError(
            "from_haiku was given a function under jax.jit, inside which Haiku's params would leak;"
            " give it the plain function, and jit what calls the Module"
        )
    if isinstance(target, type) or not callable(target):
        raise ModelError(
            f"from_haiku takes a class of Haiku modules, a function that uses them, or what"
            f" hk.transform made of one; it was given {target!r}"
        )
    return _module(target, params, state)


def _module(target: Any, params: Any, state: Any) -> HaikuModule:
    if params is None and state is not None:
        raise ModelError("from_haiku was given state without params; give both, or neither")
    if params is None:
        return HaikuModule(Opaque(target), LAZY, LAZY)
    return HaikuModule(
        Opaque(target),
        Leaves.of(_by_module(params, "params")),
        Leaves.of(_by_module({} if state is None else state, "state")),
    )


def _by_module(tree: Any, what: str) -> dict[str, dict[str, Any]]:
    """Params or state as plain dicts; raises ModelError for another form than Haiku's own."""
    if not isinstance(tree, Mapping) or not all(isinstance(at, Mapping) for at in tree.values()):
        raise ModelError(
            f"{what} is not what Haiku's init makes, {{module name: {{name: array}}}}, but"
            f" {jax.tree.structure(tree)}"
        )
    return {module: dict(values) for module, values in tree.items()}


def _differences(params: Any, made: Any) -> list[str]:
    old = {paths.join(path): _shown(leaf) for path, leaf in leaves_of(params)}
    new = {paths.join(path): _shown(leaf) for path, leaf in leaves_of(made)}
    problems = [f"{path}: missing; the model makes {new[path]}" for path in new if path not in old]
    problems += [f"{path}: left over" for path in old if path not in new]
    return problems + [
        f"{path}: is {old[path]}; the model makes {new[path]}"
        for path in new
        if path in old and old[path] != new[path]
    ]


def _stateless(frame: Frame, what: str) -> ModelError:
    return ModelError(
        f"{paths.name(frame.path)} keeps state that it was not given: {what}. Give it as well:"
        f" from_haiku(target, params, state)"
    )


def _shown(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _watched(frame: Frame) -> contextlib.AbstractContextManager[Any]:
    """Records the output of each Haiku module by its name, where `capture` asks for outputs."""
    if frame.run.wanted is None:
        return contextlib.nullcontext()

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            frame.record((context.module.module_name,), out)
        return out

    return hk.intercept_methods(record)
