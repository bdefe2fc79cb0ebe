"""A Haiku model as a Module."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import haiku as hk
import jax

import bridge.core.paths as paths
from bridge.adapters.haiku._layers import observed, raw_transforms_refused, watched
from bridge.core.errors import ModelError, UninitialisedError, listed
from bridge.core.flags import TRAIN_FLAGS, train_flags
from bridge.core.frames import Frame
from bridge.core.kinds import State
from bridge.core.leaves import LAZY, Lazy, Leaves, as_array, leaves_of, segments
from bridge.core.libraries import library_of
from bridge.core.module import plain
from bridge.core.node import Node
from bridge.core.opaque import Opaque
from bridge.core.rng import place_key
from bridge.core.wrapped import Wrapped, key_or_none, parameter_names, takes_flag

STATEFUL = (hk.TransformedWithState, hk.MultiTransformedWithState)
# What Haiku's own errors begin with or hold, from haiku/_src/base.py: their classes are not public.
_NO_KEY = "You must pass a non-None PRNGKey"
_NO_PARAMETER = "Unable to retrieve parameter"
_OTHER_SHAPE = "with retrieved shape"
_NO_STATE = "No value for"


class Construction:
    """A class of Haiku modules and its constructor's arguments, compared by value.

    `inputs` are abstract ones that its params can be made from; None where a sample is needed.
    """

    def __init__(
        self,
        cls: type[hk.Module],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: tuple[Any, ...] | None = None,
    ) -> None:
        leaves, treedef = jax.tree.flatten((args, kwargs))
        # Rebuilt, so that a list which the caller changes later is not ours.
        self.args, self.kwargs = jax.tree.unflatten(treedef, leaves)
        self.cls, self.inputs = cls, inputs
        self.token = (cls, treedef, tuple((type(leaf), leaf) for leaf in leaves), inputs)

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Construction) and self.token == other.token

    def __repr__(self) -> str:
        given = [repr(value) for value in self.args]
        given += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.cls.__name__}({', '.join(given)})"

    def signature(self, name: str) -> Callable[..., Any]:
        """A function with the signature of a method's calls."""
        return functools.partial(getattr(self.cls, name), None)

    def method(self, where: str, name: str, training: bool) -> Callable[..., Any]:
        """The function that makes the module and runs a method of it, for a transform.

        A train flag that the constructor takes, and the method does not, is that of the mode.
        """
        args, kwargs = self.args, self.kwargs
        if not train_flags(self.signature(name), {}, training):
            args, kwargs = _flagged(where, self.cls, args, kwargs, training, always=True)

        def forward(*inputs: Any, **named: Any) -> Any:
            return getattr(self.cls(*args, **kwargs), name)(*inputs, **named)

        return forward


class Several:
    """The functions of an `hk.multi_transform`, by the names that they have as methods."""

    def __init__(self, target: hk.MultiTransformed | hk.MultiTransformedWithState) -> None:
        keyed, _ = jax.tree_util.tree_flatten_with_path(target.apply)
        names = [_method_name(segments(keys)) for keys, _ in keyed]
        taken = [name for name in names if _is_taken(name) or names.count(name) > 1]
        if taken:
            raise ModelError(
                f"the functions of a multi_transform become methods, and {', '.join(map(repr, taken))}"
                f" cannot be the name of one; give them others, as keys of a dict:"
                f' {{"encode": encode, "decode": decode}}'
            )
        self.functions = dict(zip(names, (function for _, function in keyed), strict=True))
        if len(names) == 1:
            self.functions["__call__"] = keyed[0][1]
        self.target, self.token = target, (target.init, *self.functions.items())
        self.cls = type(type(target).__name__, (), self.functions)

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Several) and self.token == other.token

    def __repr__(self) -> str:
        return f"{self.cls.__name__}({', '.join(self.functions)})"


def _method_name(path: tuple[str, ...]) -> str:
    """The name of a function at a place of the tree: its keys, or `apply_` and its numbers."""
    name = "_".join(path) or "__call__"
    return f"apply_{name}" if name[0].isdigit() else name


def _is_taken(name: str) -> bool:
    own = name.startswith("_") or hasattr(HaikuModule, name) or name in HaikuModule._fields
    return own and name != "__call__"


@dataclass(frozen=True)
class Program:
    """A method of a target as Haiku's own pure functions, in one of the two modes.

    `signature` is a function with the signature that the arguments of a call have to fit, `where` what
    errors call the module, `takes_key` whether `apply_function` takes a key: hk.without_apply_rng takes
    it out of the signature.
    """

    init_function: Callable[..., Any]
    apply_function: Callable[..., Any]
    signature: Callable[..., Any]
    stateful: bool
    training: bool
    where: str
    takes_key: bool = True

    @classmethod
    def of(cls, frame: Frame, target: Any, method: str, training: bool) -> Program:
        """The program of a method of a target, for the module of a frame."""
        fields: dict[str, Any] = {"training": training, "where": paths.name(frame.path)}
        if isinstance(target, Several):
            init, stateful = target.target.init, isinstance(target.target, STATEFUL)
            apply = target.functions.get(method, _uncallable)
            fields["takes_key"] = "rng" in parameter_names(apply)
            return cls(init, apply, functools.partial(init, None), stateful, **fields)
        if isinstance(target, Construction):
            made = hk.transform_with_state(target.method(fields["where"], method, training))
            return cls(*made, target.signature(method), stateful=True, **fields)
        if method != "__call__":
            raise ModelError(
                f"a Haiku function has no method {method!r}; wrap a class of Haiku modules to call"
                f" its methods by name"
            )
        if isinstance(target, (hk.Transformed, hk.TransformedWithState)):
            signature = functools.partial(target.init, None)
            fields["takes_key"] = "rng" in parameter_names(target.apply)
            return cls(*target, signature, isinstance(target, STATEFUL), **fields)
        return cls(*hk.transform_with_state(target), target, stateful=True, **fields)

    def init(self, key: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """The first params and state, in the program's mode whatever the arguments say."""
        args, kwargs = _flagged(self.where, self.signature, args, kwargs, self.training, always=True)
        made = self.init_function(key, *args, **kwargs)
        return made if self.stateful else (made, {})

    def apply(
        self, params: Any, state: Any, key: Any, args: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """The output and the state after it, with the train flag of the mode unless it is given."""
        args, kwargs = _flagged(self.where, self.signature, args, kwargs, self.training)
        args = (key, *args) if self.takes_key else args
        if self.stateful:
            return self.apply_function(params, state, *args, **kwargs)
        return self.apply_function(params, *args, **kwargs), state


def _uncallable(*_: Any, **__: Any) -> Any:
    raise ModelError("the functions of a multi_transform are called by name, and none is __call__")


def _flagged(
    where: str,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    training: bool,
    always: bool = False,
) -> tuple[Any, Any]:
    """Arguments with the train flag of a mode: where they do not give it, or `always`."""
    if not takes_flag(function):
        return args, kwargs
    try:
        given = inspect.signature(function).bind_partial(*args, **kwargs)
    except TypeError as error:
        twice = [name for name in TRAIN_FLAGS if f"multiple values for argument '{name}'" in str(error)]
        if not twice:  # the call itself will speak of it
            return args, {**kwargs, **train_flags(function, kwargs, training)}
        raise ModelError(
            f"{where}: {twice[0]!r} is given twice, by position and by name; give it once, or leave it"
            f" to the mode: apply(..., mode='train')"
        ) from None
    given.arguments.update(train_flags(function, {} if always else given.arguments, training))
    return given.args, given.kwargs


class HaikuModule(Wrapped):
    """A Haiku model: params and state are Haiku's own dicts by module name."""

    state: State

    @plain
    def completed(self, _root: Any, path: paths.Path, keys: Mapping[str, Any]) -> Any:
        """The module with the params of a class whose inputs are known, as a sample would make them."""
        target = self.model.value
        if not isinstance(self.params, Lazy) or getattr(target, "inputs", None) is None:
            return self
        lazy = _module(Construction(target.cls, target.args, target.kwargs), None, None)
        made = lazy.init({name: place_key(key, path) for name, key in keys.items()}, *target.inputs)
        fields = ("model", "params", "state", "known_layers")
        return self.replace(**{name: getattr(made, name) for name in fields})

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
        program = Program.of(frame, self.model.value, method, frame.mode == "train")
        try:
            with raw_transforms_refused(frame):
                out, state = program.apply({}, {}, key_or_none(frame)[0], args, kwargs)
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
        target, there = self.model.value, frame.filled.get("params", self.params)
        # The init of several functions runs a template, with arguments and an output of its own.
        several = isinstance(target, Several)
        out = () if several and method == "__call__" and not frame.path else None
        if several and "params" in frame.filled:
            return out, {}, {}, ()  # that one init has made everything
        keys = frame.init_key()
        key = keys.get("params", keys.get("default"))
        if isinstance(there, Leaves) and there.values:
            # Haiku counts its draws: with the same key another method's params would repeat these.
            key = jax.random.fold_in(key, len(there.values))
        # Nothing but train mode works for hk.BatchNorm, which makes its averages only there.
        program = Program.of(frame, target, method, training=True)
        with raw_transforms_refused(frame):
            (params, state), layers = observed(lambda: program.init(key, args, kwargs))
        if isinstance(self.params, Leaves) and "params" not in frame.filled:
            problems = self._problems(params, state)
            if problems:
                raise _misfit(frame, problems)
        return out, params, state, layers

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of Haiku's own `apply` and the state after it."""
        program = Program.of(frame, self.model.value, method, frame.mode == "train")
        params, state = self.native()
        key, no_key = key_or_none(frame)
        try:
            with raw_transforms_refused(frame), watched(frame, params):
                out, after = program.apply(params, state, key, args, kwargs)
        except ValueError as error:
            if str(error).startswith(_NO_KEY):
                raise no_key or _key_kept(program) or error from None
            if not str(error).startswith((_NO_PARAMETER, _NO_STATE)) and _OTHER_SHAPE not in str(error):
                raise
            raise self._misfit_of(frame, method, args, kwargs, str(error)) from None
        if isinstance(out, hk.Module):
            raise ModelError(
                f"{program.where} returned a module and not an output: {out!r}; call it in the"
                f" function, or wrap its class: from_haiku({type(out).__name__})(...)"
            )
        # Haiku makes a state that it was not given, and says nothing.
        made = [
            paths.join(("state", module, name))
            for module, values in after.items()
            for name in values
            if name not in state.get(module, {})
        ]
        if made:
            raise self._misfit_of(frame, method, args, kwargs, f"the call made {', '.join(made)}")
        # What was asked for state in vain is there as a module without any.
        after = {module: values for module, values in after.items() if values or module in state}
        return out, jax.tree.map(lambda leaf: as_array(leaf, "the state of a Haiku model"), after)

    def _misfit_of(self, frame: Frame, method: str, args: Any, kwargs: Any, words: str) -> ModelError:
        """The error for all in which the arrays differ from those of an init, or else with `words`."""
        if isinstance(self.model.value, Several):  # its init has arguments of its own
            return _misfit(frame, [words])
        program = Program.of(frame, self.model.value, method, training=True)
        wanted = jax.eval_shape(lambda key: program.init(key, args, kwargs), jax.random.key(0))
        return _misfit(frame, self._problems(*wanted) or [words])

    def _problems(self, params: Any, state: Any) -> list[str]:
        """In what the arrays differ from those that an init makes, a line for each."""
        made = {"params": params, "state": state}
        held = dict(zip(made, self.native(), strict=True))
        if isinstance(self.model.value, Construction):
            # Other methods of a class have arrays of other modules, which are not left over.
            held = {
                kind: {module: arrays for module, arrays in tree.items() if module in made[kind]}
                for kind, tree in held.items()
            }
        old, new = _shown(held), _shown(made)
        problems = [f"{path}: missing; the model makes {new[path]}" for path in new if path not in old]
        problems += [f"{path}: left over" for path in old if path not in new]
        return problems + [
            f"{path}: is {old[path]}; the model makes {new[path]}"
            for path in new
            if path in old and old[path] != new[path]
        ]

    @plain
    def model_class(self) -> type:
        """The class whose methods can be called: what was wrapped, or one made of several functions."""
        target = self.model.value
        return target.cls if isinstance(target, (Construction, Several)) else types.FunctionType

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
        if isinstance(target, (Construction, Several)):
            return repr(target)
        return getattr(target, "__name__", type(target).__name__)


def constructor(cls: type[hk.Module], params: Any, state: Any) -> Callable[..., HaikuModule]:
    """A function of the constructor's arguments of a class that gives the Module."""

    @functools.wraps(cls, updated=())
    def construct(*args: Any, **kwargs: Any) -> HaikuModule:
        return _module(Construction(cls, args, kwargs), params, state)

    return construct


def sized(cls: type[hk.Module], inputs: tuple[Any, ...], *args: Any, **kwargs: Any) -> HaikuModule:
    """The Module of a class with the constructor's arguments; its init needs no other inputs."""
    return _module(Construction(cls, args, kwargs, inputs), None, None)


def wrap(target: Any, params: Any, state: Any) -> HaikuModule:
    """A function or a transform as a Module; raises ModelError for anything else."""
    if isinstance(target, (hk.MultiTransformed, hk.MultiTransformedWithState)):
        target = Several(target)
    elif not isinstance(target, (hk.Transformed, hk.TransformedWithState)):
        _refuse(target)
    return _module(target, params, state)


def _refuse(target: Any) -> None:
    """Raises ModelError for what is no function of Haiku modules."""
    library, name = library_of(target), type(target).__name__
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


def _shown(tree: Any) -> dict[str, str]:
    """Dtype and shape of each array, by its path."""
    return {paths.join(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves_of(tree)}


def _misfit(frame: Frame, problems: list[str]) -> ModelError:
    return ModelError(
        f"the arrays of {paths.name(frame.path)} do not fit the model:\n{listed(problems)}\n"
        f"Give from_haiku the params and the state that the model's own init makes, or none and call"
        f" module.init(key, *sample); what only another method uses is made by"
        f" module.init(key, *sample, method=...)"
    )


def _key_kept(program: Program) -> ModelError | None:
    """The error for a draw that hk.without_apply_rng keeps the key from; None where it has one."""
    if program.takes_key:
        return None
    return ModelError(
        f"{program.where} draws random numbers, and hk.without_apply_rng keeps the key from it; give"
        f" from_haiku what hk.transform made"
    )
