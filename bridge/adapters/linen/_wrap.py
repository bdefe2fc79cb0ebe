"""A Flax Linen module as a Module."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import flax.core
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import bridge.core.paths as paths
from bridge.adapters.linen._layers import SOWN, Running, Watch, named, running
from bridge.core.errors import ModelError, StructureError, UninitialisedError, listed
from bridge.core.flags import attribute_flags, flagged
from bridge.core.frames import Frame
from bridge.core.leaves import LAZY, Lazy, Leaves, leaves_of
from bridge.core.libraries import library_of
from bridge.core.module import plain
from bridge.core.node import Node
from bridge.core.opaque import Opaque
from bridge.core.paths import Path
from bridge.core.wrapped import Wrapped, takes_flag

PERTURBED = "perturbations"
# flax/linen/fp8_ops.py and flax/training/train_state.py: scales whose "gradient" is their next value.
OVERWRITTEN = "_overwrite_with_gradient"
# The collections whose shapes the model alone decides; a cache may follow the batch.
FIXED = ("params", "batch_stats")
KINDS = (jax.dtypes.prng_key, jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
MISFITS = (
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeParamShapeError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeVariableNotFoundError,
    flax.errors.ModifyScopeVariableError,
)
_calls = itertools.count()


class LinenModule(Wrapped):
    """A Linen module: params and state are Linen's own variables by collection."""

    @plain
    def make(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any, Any, Any]:
        """Linen's own first variables; the root's keys are those that `init` was given."""
        program = self._program(frame, method, args, kwargs)
        lazy = isinstance(self.params, Lazy)
        params = {} if lazy else self.params.tree()  # type: ignore[attr-defined]
        if not lazy and self.known_layers is None:
            self._refuse_misfits(frame, program)
        keys = frame.init_key()
        # Linen takes the key of "params" for every stream that it was not given.
        keys = {"params": keys["default"], **keys} if "default" in keys else keys
        keys = {stream: key for stream, key in keys.items() if stream != "default"}
        # Its output serves as well: a decoder is made from a whole sequence and run on single steps.
        out, variables, watch = _made(frame, program, params, keys)
        if watch.elsewhere is not None:
            _refuse_leaks(variables, watch)
        if _joined(params, variables.get("params", {})):
            # Linen counts the draws of a part: a param that joins others would repeat one of theirs.
            count = len(jax.tree.leaves(params))
            keys = {stream: jax.random.fold_in(key, count) for stream, key in keys.items()}
            out, variables, watch = _made(frame, program, params, keys)
        return out, *_divided(variables), tuple(watch.layers.values())

    @plain
    def run(self, frame: Frame, method: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The output of Linen's own `apply`, and the collections after it."""
        program = self._program(frame, method, args, kwargs)
        variables = self.native()
        dtypes = {leaf.dtype for leaf in self.params.values}  # type: ignore[attr-defined]
        if not all(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
            self._refuse_misfits(frame, program)  # which Linen itself takes for what it wants
        before = {name: tree for name, tree in variables.items() if name != "params"}
        if OVERWRITTEN in before and frame.mode == "train":
            raise ModelError(
                f"{paths.name(frame.path)}: the scales of fp8 layers ({OVERWRITTEN!r}) are replaced by"
                f" their gradients at each step, which flax.training.train_state does and no optimizer"
                f" of bridge: they would stay what they are. Train it there; in eval mode it runs"
            )
        captures = frame.run.wanted is not None
        mutable = [*before, *([SOWN] if captures else [])]

        def applied(watch: Running) -> Any:
            run = flax.core.apply(program(watch), mutable, _unlike_any(captures))
            return run(variables, rngs=watch.keys)

        try:
            out, after = running(frame, applied)
        except MISFITS as error:
            problems = self._problems(frame, program, missing=True)
            raise _misfit(frame, problems or [_said(error)]) from None
        _same_variables(frame, before, after)
        return out, after

    @plain
    def native(self) -> dict[str, Any]:
        """Linen's own variables: `{"params": ..., "batch_stats": ...}`."""
        if isinstance(self.params, Lazy):
            raise UninitialisedError(
                "a Linen module has variables after init; type module = module.init(key, *sample) first"
            )
        params, state = self.params.tree(), self.state.tree()  # type: ignore[attr-defined]
        return {**({"params": params} if params else {}), **state}

    def _program(self, frame: Frame, method: str, args: Any, kwargs: Any) -> Program:
        training = frame.mode == "train"
        module = _in_mode(self.model.value, method, training)
        if takes_flag(getattr(module, method)):
            where = paths.name(frame.path)
            args, kwargs = flagged(where, module, method, args, kwargs, training)
        return Program(module, method, args, kwargs)

    def _refuse_misfits(self, frame: Frame, program: Program) -> None:
        problems = self._problems(frame, program, missing=False)
        if problems:
            raise _misfit(frame, problems)

    def _problems(self, frame: Frame, program: Program, missing: bool) -> list[str]:
        """In what the variables differ from those that an init makes, a line for each."""
        keys = {"params": jax.random.key(0)}
        wanted = _places(jax.eval_shape(lambda: _made(frame, program, {}, keys)[1]))
        have = _places(self.native())
        problems = [
            f"{paths.join(place)}: missing; the model makes {_shown(leaf)}"
            for place, leaf in wanted.items()
            if missing and place not in have
        ]
        return problems + [
            f"{paths.join(place)}: is {_shown(have[place])}; the model makes {_shown(leaf)}"
            for place, leaf in wanted.items()
            if place in have and not _fits(place, have[place], leaf)
        ]


@dataclasses.dataclass(frozen=True)
class Program:
    """A call of a method of a Linen module; given a watch, a function of a scope."""

    module: nn.Module
    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, watch: Watch) -> Callable[[Any], Any]:
        def call(scope: Any) -> Any:
            bound = self.module.copy(parent=watch.follow(scope), name=self.module.name)
            return getattr(bound, self.method)(*self.args, **self.kwargs)

        return call


def _made(frame: Frame, program: Program, params: Any, keys: Any) -> tuple[Any, Any, Watch]:
    """The output and the variables of an init that makes no params but new ones, and its watch.

    Other collections are made anew: a decoder looks whether it has a cache.
    """
    watch = Watch(frame)
    flags = {"initializing": True, **_unlike_any(True)}
    init = flax.core.apply(program(watch), flax.core.DenyList(SOWN), flags)
    try:
        with nn.intercept_methods(watch):
            out, variables = init({"params": params} if params else {}, rngs=keys)
    except MISFITS as error:
        raise _misfit(frame, [_said(error)]) from None
    return out, variables, watch


def _refuse_leaks(variables: Any, watch: Watch) -> None:
    """Raises TraceError where a variable that a raw JAX transform made has not left it.

    While `init` itself is traced JAX alone can tell, and does so at the end of the trace.
    """
    traced = isinstance(jnp.zeros(()), Tracer)
    if not traced and any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(variables)):
        raise watch.trace_error(watch.elsewhere[0], f"makes {watch.elsewhere[1]}")


def _unlike_any(anew: bool) -> dict[str, int]:
    """A flag for a scope with which nn.jit traces anew, so that a watch sees what is inside."""
    return {"call": next(_calls)} if anew else {}


def wrap(module: Any, variables: Any) -> LinenModule:
    """A Linen module as a Module; raises ModelError for anything else."""
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    if _is_class(module):
        raise ModelError(
            f"from_linen was given the class {name}; make it first: from_linen({name}(...))"
        )
    if isinstance(module, Node):
        raise ModelError(f"from_linen was given a {name}, which is a bridge.Module already")
    if not isinstance(module, nn.Module):
        library = library_of(module)
        fix = "; wrap it with bridge.wrap(model)" if library else ""
        raise ModelError(f"from_linen takes a flax.linen.Module; it was given a {name}{fix}")
    if module.scope is not None:
        if variables is not None:
            raise ModelError(
                f"from_linen was given a {name} that is bound to variables, and variables besides; give"
                f" one of them: from_linen(bound), or from_linen(bound.unbind()[0], variables)"
            )
        module, variables = module.unbind()
    problems = list(_unfit(module, (name,)))
    if problems:
        raise ModelError(f"{name} cannot be wrapped:\n{listed(problems)}")
    if variables is None:
        return LinenModule(Opaque(module, form_of), LAZY, LAZY)
    params, state = _divided(_checked(variables))
    return LinenModule(Opaque(module, form_of), Leaves.of(params), Leaves.of(state))


def form_of(module: nn.Module) -> Any:
    """What is equal for two models exactly if they are built alike.

    Linen's own `==` takes 1 for True, and two parts that are alike for one part in two places.
    """
    parts: dict[int, int] = {}

    def form(value: Any) -> Any:
        if not isinstance(value, nn.Module):
            leaves, treedef = jax.tree.flatten(value)
            whole = len(leaves) == 1 and leaves[0] is value
            return (type(value), _exact(value)) if whole else (treedef, *map(form, leaves))
        if id(value) in parts:
            return parts[id(value)]
        parts[id(value)] = len(parts)
        attributes = [(name, form(given)) for name, given in _attributes(value)]
        return type(value), value.name, tuple(attributes)

    return form(module)


def _exact(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else value


def _is_class(value: Any) -> TypeGuard[type[nn.Module]]:
    return isinstance(value, type) and issubclass(value, nn.Module)


def _unfit(module: nn.Module, path: Path) -> Iterator[str]:
    """What among the attributes of a module, and of the modules among them, would be lost."""
    for name, value in _attributes(module):
        place = (*path, name)
        for leaf in jax.tree.leaves(value):
            if isinstance(leaf, (jax.Array, np.ndarray)):
                yield (
                    f"{paths.join(place)}: an array among the attributes would be compiled in and never"
                    f" trained; hand it to the call, or make it a variable"
                )
            elif isinstance(leaf, nn.Module) and leaf.scope is not None:
                yield (
                    f"{paths.join(place)}: a module bound to variables, which Linen would make anew;"
                    f" give it unbound, and its variables under the name of the attribute"
                )
            elif isinstance(leaf, nn.Module):
                yield from _unfit(leaf, place)


def _checked(variables: Any) -> Mapping[str, Any]:
    """Variables as a call takes them; raises ModelError for another form, or for what would be lost."""
    if not isinstance(variables, Mapping) or not all(
        isinstance(collection, Mapping) for collection in variables.values()
    ):
        raise ModelError(
            f'variables are collections by name, {{"params": ..., "batch_stats": ...}}, as'
            f" module.init makes them; from_linen was given {jax.tree.structure(variables)}"
        )
    if "params" in variables.get("params", {}):
        raise ModelError(
            'variables have "params" below "params", which Linen refuses; from_linen takes'
            ' {"params": ...} once'
        )
    perturbed = jax.tree.leaves(variables.get(PERTURBED, {}))
    if any(isinstance(leaf, Tracer) or np.any(leaf) for leaf in perturbed):
        raise ModelError(
            f"variables have {PERTURBED!r} that are not known to be zero, and would be lost; leave that"
            f" collection out, and read what passes there by module.capture(..., paths=[...])"
        )
    return variables


def _divided(variables: Mapping[str, Any]) -> tuple[Any, Any]:
    """Params, and the collections that are carried from call to call."""
    variables = flax.core.unfreeze(variables)  # type: ignore[arg-type]
    given_out = ("params", SOWN, PERTURBED)
    state = {name: tree for name, tree in variables.items() if name not in given_out}
    return variables.get("params", {}), state


def _in_mode(module: nn.Module, method: str, training: bool) -> nn.Module:
    """The module with each train flag that is an attribute alone set by the mode, deep ones too.

    What stands in two places among the attributes is still one module.
    """
    made: dict[int, nn.Module] = {}

    def changed(module: nn.Module, method: str) -> nn.Module:
        if id(module) not in made:
            attributes = dict(_attributes(module))
            flags = attribute_flags(type(module), attributes, method, training)
            below = {name: visited(value) for name, value in attributes.items() if name not in flags}
            below = {name: value for name, value in below.items() if value is not attributes[name]}
            made[id(module)] = module.clone(**flags, **below) if flags or below else module
        return made[id(module)]

    def visited(value: Any) -> Any:
        leaves, treedef = jax.tree.flatten(value)
        new = [visit(leaf) for leaf in leaves]
        same = all(one is other for one, other in zip(new, leaves, strict=True))
        return value if same else jax.tree.unflatten(treedef, new)

    def visit(leaf: Any) -> Any:
        if isinstance(leaf, functools.partial) and _is_class(leaf.func):
            flags = attribute_flags(leaf.func, leaf.keywords, "__call__", training)
            return functools.partial(leaf, **flags) if flags else leaf
        return changed(leaf, "__call__") if isinstance(leaf, nn.Module) else leaf

    return changed(module, method)


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each attribute that a module is made with."""
    for field in dataclasses.fields(module):
        if field.init and field.name not in ("parent", "name"):
            yield field.name, getattr(module, field.name, None)


def _joined(there: Any, made: Any) -> bool:
    """Whether something new was made beside something that was there, in the same part."""
    old, new = ({place for place, _ in named(tree)} for tree in (there, made))
    return bool({place[:-1] for place in new - old} & {place[:-1] for place in old})


def _places(variables: Mapping[str, Any]) -> dict[Path, Any]:
    """The arrays of variables by their places in a Module, those in a box by its place."""
    params, state = _divided(variables)
    return {
        (field, *path, *([str(number)] if len(leaves) > 1 else [])): leaf
        for field, tree in (("params", params), ("state", state))
        for path, value in named(tree)
        for leaves in [jax.tree.leaves(value)]
        for number, leaf in enumerate(leaves)
    }


def _fits(place: Path, have: Any, wanted: Any) -> bool:
    """Whether an array can stand where the model makes another: a precision is the user's choice."""
    kinds = [next(kind for kind in KINDS if jnp.issubdtype(one.dtype, kind)) for one in (have, wanted)]
    fixed = place[0] == "params" or place[1] in FIXED
    return kinds[0] is kinds[1] and not (fixed and tuple(have.shape) != tuple(wanted.shape))


def _said(error: Exception) -> str:
    return str(error).partition(" (https://")[0]


def _shown(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _misfit(frame: Frame, problems: list[str]) -> ModelError:
    return ModelError(
        f"the variables of {paths.name(frame.path)} do not fit the model and its input:\n"
        f"{listed(problems)}\n"
        f"Give from_linen what the model's own init makes, or none and call module.init(key, *sample);"
        f" what only another method needs is made by module.init(key, *sample, method=...)"
    )


def _same_variables(frame: Frame, before: Any, after: Any) -> None:
    """Raises StructureError, by collection, where a call made variables."""
    if jax.tree.structure(before) == jax.tree.structure(after):
        return
    old, new = ({path for path, _ in leaves_of(tree)} for tree in (before, after))
    problems = [f"{paths.join(path)}: made by the call, not by init" for path in sorted(new - old)]
    if problems:
        raise StructureError(
            f"{paths.name(frame.path)} has other variables after the call than before:\n"
            + listed(problems)
            + "\nMake them in init as well; what a call only gives out is sown, and read by"
            " module.capture(..., paths=[...])"
        )
