"""A Module as a callable for the inside of `hk.transform`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import haiku as hk

# Haiku tells nowhere else which run of a transform goes on, in which trace, and under which hooks.
import haiku._src.base as base
import jax

import bridge.core.paths as paths
from bridge.adapters.haiku._wrap import Construction, HaikuModule, constructor
from bridge.core.blueprint import PARAMS, Blueprint, Held, Place
from bridge.core.errors import MissingRngError, ModelError, TraceError
from bridge.core.exporting import exportable, keys_of_call, mode_of_call, no_method, offers, only_wraps
from bridge.core.leaves import Lazy
from bridge.core.rng import DEFAULT, Lent, Streams
from bridge.core.wrapped import Wrapped

# What hk.custom_creator, hk.custom_getter and hk.custom_setter fill.
_HOOKS: tuple[Any, ...] = (
    base.param_creator_stack,
    base.state_creator_stack,
    base.param_getter_stack,
    base.state_getter_stack,
    base.state_setter_stack,
)
Maker = functools.partial[hk.Module]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<!^)(?=[A-Z][a-z])")
_ADVICE = "f.apply(params, state, key, ...), where f is what hk.transform_with_state made"


class BridgeHaiku(hk.Module):
    """A Module as a Haiku module: its arrays are params and state of one bundle, named by path.

    The name of a state begins with its collection; keys are the collection "rngs".
    """

    def __init__(self, held: Held, name: str) -> None:
        super().__init__(name)
        self.held = held

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the Module's call returns."""
        return _run(self.held, self.module_name, "__call__", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get("held")
        if held is None or not offers(held.module, name):
            raise AttributeError(name if held is None else no_method(held.module, name))
        return functools.partial(self._invoke, name)

    def _invoke(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        return _run(self.held, self.module_name, method, args, kwargs)


def _run(held: Held, bundle: str, method: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """The output of a method, with the arrays of the Haiku module that runs."""
    mode, kwargs = mode_of_call(held.module, method, kwargs, None)

    def call(module: Any) -> Any:
        return getattr(module, method)(*args, **kwargs)

    def made(key: Any) -> Any:
        with _unhooked():
            return held.module.init(key, mode=mode, method=call)

    @functools.cache
    def first() -> list[Any]:
        _refuse_foreign_trace(bundle, "makes its params")
        return jax.tree.leaves(made(_key(bundle, PARAMS)) if held.lazy else held.module)

    if held.lazy:
        blueprint = Blueprint.reached(jax.eval_shape(made, jax.random.key(0)))
    else:
        blueprint = held.blueprint
    leaves = blueprint.fitting(
        [_read(bundle, place, lambda n=n: first()[n]) for n, place in enumerate(blueprint.places)]
    )
    with _unhooked():
        streams = _streams(bundle, held.module)
        out, changes, _ = blueprint.run(leaves, method, args, kwargs, rng=streams, mode=mode)
    for number, value in changes.items():
        _refuse_foreign_trace(bundle, "writes its state")
        hk.set_state(_name(blueprint.places[number]), value)
    return out


def _read(bundle: str, place: Place, first: Callable[[], Any]) -> Any:
    """The array that Haiku has for a place, made in its `init`; None where there is none."""
    name, starting = _name(place), hk.running_init()
    if place.collection != PARAMS:
        init: Any = (lambda *_: first()) if starting else (lambda *_: hk.DO_NOT_STORE)
        found = hk.get_state(name, place.shape, place.dtype, init=init)
        return None if found is hk.DO_NOT_STORE else found
    try:
        init = (lambda *_: first()) if starting else (lambda *_: None)
        return hk.get_parameter(name, place.shape, place.dtype, init=init)
    except ValueError:  # Haiku's for what is missing or of another shape, which `fitting` words
        found = hk.get_params().get(bundle, {}).get(name)
        if place.misfit(found) is None or (starting and found is None):
            raise
        return found


def _streams(bundle: str, module: Any) -> Streams | None:
    if hk.maybe_get_rng_sequence_state() is None:
        return keys_of_call(module, None, _ADVICE)
    return Streams(Lent([DEFAULT], functools.partial(_key, bundle)), ())


def _key(bundle: str, stream: str) -> Any:
    """The next of Haiku's keys, whatever the stream."""
    if hk.maybe_get_rng_sequence_state() is None:
        raise MissingRngError(
            f"{bundle} makes its {stream} with a key of Haiku's, which was given none; type"
            f" f.init(key, ...), where f is what hk.transform_with_state made"
        )
    _refuse_foreign_trace(bundle, f"draws from the stream {stream!r}")
    return hk.next_rng_key()


def _refuse_foreign_trace(bundle: str, what: str) -> None:
    """Raises TraceError inside a raw JAX transform, where Haiku would lose or repeat an effect."""
    try:
        with hk.config.context(check_jax_usage=True):
            base.assert_jax_usage(what)
    except base.JaxUsageError:
        raise TraceError(
            f"{bundle} {what} inside a JAX transform that was started inside hk.transform: it would be"
            f" repeated or lost. Use hk.scan, hk.vmap, hk.remat or hk.grad in its place"
        ) from None


def _name(place: Place) -> str:
    """What an array is called in its bundle: states of two collections may have one path."""
    return paths.join(place.path if place.collection == PARAMS else (place.collection, *place.path))


@contextlib.contextmanager
def _unhooked() -> Iterator[None]:
    """Keeps Haiku's hooks from a Haiku model in the Module: its arrays have been through them."""
    saved = [[stack.pop() for _ in range(len(stack))] for stack in _HOOKS]
    try:
        yield
    finally:
        for stack, hooks in zip(_HOOKS, saved, strict=True):
            for hook in reversed(hooks):
                stack.push(hook)


class Exported:
    """A Module that stands at the top level of whichever transform calls it.

    All calls in one run are calls of one Haiku module, wherever they are made. It is named `~/name`,
    which no module made in the transform can be: Haiku would let the two share their params.
    """

    def __init__(self, held: Held, make: Maker, name: str) -> None:
        self.held, self.make, self.module_name = held, make, f"~/{name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the Module's call returns."""
        return self._invoke("__call__", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get("held")
        if held is None or not offers(held.module, name):
            raise AttributeError(name if held is None else no_method(held.module, name))
        return functools.partial(self._invoke, name)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the Module's own call, and a train flag: hk.layer_stack and jax.jit ask for it."""
        _, *own = inspect.signature(_class_of(self.held.module).__call__).parameters.values()
        named = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD]
        return inspect.Signature([*named, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])

    def _invoke(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        if not _running():
            raise ModelError(
                f"the exported {self.held!r} is called inside a Haiku transform; type"
                f" f = hk.transform_with_state(exported), then f.init(key, ...) and f.apply(...)"
            )
        _claim(self)
        return getattr(self.make(name=hk.force_name(self.module_name)), method)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"{self.module_name}: {self.held!r}"


def _running() -> bool:
    """Whether a transform runs."""
    try:
        hk.running_init()
    except ValueError:
        return False
    return True


class _Owners(dict[str, Exported]):
    """Whose each name is in one run of a transform."""


# Each lives as long as Haiku's own context of its run, which holds it.
_owners: weakref.WeakValueDictionary[int, _Owners] = weakref.WeakValueDictionary()


def _claim(exported: Exported) -> None:
    """Raises ModelError where another one has the name in the run that goes on."""
    context = base.current_context()
    owners = _owners.get(id(context))
    if owners is None:
        owners = _owners[id(context)] = _Owners()
        context.add_teardown_callback(lambda: owners)
    if owners.setdefault(exported.module_name, exported) is not exported:
        raise ModelError(
            f"two exported Modules are both named {exported.module_name!r} in one transform, and would"
            f" share their params; give one a name of its own: bridge.to_haiku(module, name=...)"
        )


def export(module: Any, name: str | None) -> Callable[..., Any]:
    """A Module as a callable; Haiku's own where the Module only wraps one.

    Made inside a transform it is a Haiku module of that place.
    """
    module = exportable(module, "to_haiku")
    target = module.model.value if only_wraps(module, HaikuModule) else None
    if callable(target) and name is None:
        return target
    if target is not None and not isinstance(module.params, Lazy):
        target = None  # a class that is made anew would have other arrays
    held, make, name = _parts(module, target, name)
    if not _NAME.fullmatch(name):
        raise ModelError(f"name is {name!r}; Haiku names a module by a Python identifier: 'encoder'")
    made: Any = make(name=name) if _running() else Exported(held, make, name)
    return made


def _parts(module: Any, target: Any, name: str | None) -> tuple[Held, Maker, str]:
    """What is exported, a function of the name that makes it inside a transform, and the name."""
    cls = _class_of(module)
    named = inspect.signature(cls).parameters.get("name") if isinstance(target, Construction) else None
    if named is None:
        held = Held(module)
        return held, functools.partial(BridgeHaiku, held), name or _snake(cls)
    given = inspect.signature(cls).bind_partial(*target.args, **target.kwargs)
    own = given.arguments.pop("name", None) or named.default
    if name is not None:
        module = constructor(cls, None, None)(*given.args, **given.kwargs, name=name)
    make = functools.partial(cls, *given.args, **given.kwargs)
    return Held(module), make, name or (own if isinstance(own, str) else _snake(cls))


def _class_of(module: Any) -> type:
    return module.model_class() if isinstance(module, Wrapped) else type(module)


def _snake(cls: type) -> str:
    """The name that Haiku gives to a module of a class by itself."""
    return _WORDS.sub("_", cls.__name__).lower()


def taken_back(
    exported: Exported | BridgeHaiku,
    params: Mapping[str, Mapping[str, Any]] | None,
    state: Mapping[str, Mapping[str, Any]] | None,
) -> Any:
    """The Module that was exported, with the arrays of Haiku's params and state if they are given."""
    held = exported.held
    if params is None:
        if state is not None:
            raise ModelError("from_haiku was given state without params; give both, or neither")
        return held.module
    name = exported.module_name
    mine = {PARAMS: _below(params, name), "state": _below(state, name)}
    if held.lazy and (params or state) and not any(mine.values()):
        raise ModelError(
            f"params and state have nothing of {name!r}, under which to_haiku keeps the"
            f" {held!r}; they have {', '.join(map(repr, [*params, *(state or {})]))}"
        )
    if isinstance(exported, BridgeHaiku) or exported.make.func is BridgeHaiku:
        mine = _unbundled(mine[PARAMS].get("", {}), mine["state"].get("", {}))
    else:
        own = name.removeprefix("~/")
        mine = {kind: {own + at: arrays for at, arrays in tree.items()} for kind, tree in mine.items()}
    blueprint, leaves = held.fitted(mine)
    return blueprint.module(leaves)


def _below(tree: Any, name: str) -> dict[str, dict[str, Any]]:
    """What params or state have of the Haiku module of a name, and of those in it, by the rest."""
    return {
        module.removeprefix(name): dict(arrays)
        for module, arrays in (tree or {}).items()
        if module == name or module.startswith(name + "/")
    }


def _unbundled(params: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a bundle as nested dicts by path, under their collections."""
    trees: dict[str, Any] = {}
    named = [(paths.join((PARAMS, *paths.split(name))), array) for name, array in params.items()]
    for name, array in (*named, *state.items()):
        *above, last = paths.split(name)
        at = trees
        for segment in above:
            at = at.setdefault(segment, {})
        at[last] = array
    return trees
