"""Optax for modules: every transformation sees what is trained, whatever library it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import jax

import bridge.core.paths as paths
from bridge.core.errors import FieldError, PathError, StructureError, UninitialisedError, listed
from bridge.core.kinds import State
from bridge.core.leaves import LAZY, Lazy, Leaves, ParamInit, segments
from bridge.core.module import Module, plain
from bridge.core.node import Node, rebuild, spec_of
from bridge.core.parameters import ParameterTree, trainable, updated
from bridge.core.paths import Path
from bridge.core.tree import entries

if TYPE_CHECKING:  # importing optax takes as long as all of bridge, so it waits for an optimizer
    import optax


class Optimizer(Module):
    """An Optax transformation and its state: an immutable Module, a legal scan carry.

    `transform` is a transformation, or a dict of them by path: `{"head.*": optax.adam(1e-3),
    "*": optax.sgd(1e-4)}`, where the first pattern that selects a parameter has it.

    >>> import bridge as br, jax.numpy as jnp, optax
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    ...
    ...     def __call__(self, x):
    ...         return self.slope * x
    >>> line = Line(3.0)
    >>> optimizer = br.Optimizer(optax.sgd(0.5)).init(line)
    >>> line, optimizer = optimizer.step(line.grad(1.0), line)
    >>> float(line.slope), len(optimizer.state)
    (2.5, 2)
    """

    transform: Any
    structure: Any
    opt_state: State

    def __init__(self, transform: Any) -> None:
        groups = transform.values() if isinstance(transform, Mapping) else [transform]
        for member in groups:
            if not (hasattr(member, "init") and hasattr(member, "update")):
                raise FieldError(
                    f"Optimizer takes an optax transformation such as optax.adam(1e-3), or a dict of"
                    f" them by path; it was given a {type(member).__name__}"
                )
        self.transform = transform
        self.structure = None
        self.opt_state = LAZY

    @plain
    def init(self, module: Any) -> Self:
        """The optimizer with the state for a module's trained parameters.

        Frozen parameters cost nothing. Raises UninitialisedError for an uninitialised module, and
        PathError for a group that selects nothing or a parameter that no group selects.
        """
        if not isinstance(module, Node):
            raise FieldError(
                f"Optimizer.init takes the module to train; it was given a {type(module).__name__}"
            )
        lazy = [e.path for e in entries(module) if isinstance(e.value, (Lazy, ParamInit))]
        if lazy:
            raise UninitialisedError(
                f"{paths.name(lazy[0])} is not initialised, so there is nothing to optimize; type"
                f" module = module.init(key, *sample) first"
            )
        params: Any = trainable(module)
        if isinstance(self.transform, Mapping):
            _check_groups(self.transform, params)
        state = Leaves.of(as_optax(self.transform).init(params))
        statics = {**spec_of(self).statics, "structure": jax.tree.structure(params)}
        return rebuild(self, spec=spec_of(self).replace(statics=statics), opt_state=state)

    @plain
    def step(self, grads: ParameterTree, module: Any, **extra: Any) -> tuple[Any, Self]:
        """The module after one update, and the optimizer after it.

        `extra` goes to the transformation: `value=loss, value_fn=lambda module: ...` for line
        searches, where `value_fn` takes a module. Raises StructureError where the gradients or the
        trained parameters are not those that the optimizer was made for.
        """
        import optax

        if isinstance(self.opt_state, Lazy):
            raise UninitialisedError(
                "the optimizer has no state yet; type optimizer = optimizer.init(module) first"
            )
        params: Any = trainable(module)
        self._check("the module's trained parameters", params)
        self._check("the gradients", grads)
        if "value_fn" in extra:
            value_fn: Callable[..., Any] = extra["value_fn"]
            extra = {"grad": grads, **extra, "value_fn": lambda p: value_fn(updated(module, p))}
        state: Any = self.opt_state
        gradients: Any = grads
        updates, after = as_optax(self.transform).update(gradients, state.tree(), params, **extra)
        module = updated(module, optax.apply_updates(params, updates))
        return module, rebuild(self, opt_state=state.replace(after))

    @property
    def state(self) -> Any:
        """Optax's own state, as the transformation's `init` and `update` give it."""
        return self.opt_state.tree() if isinstance(self.opt_state, Leaves) else None

    def extra_repr(self) -> str:
        """The groups, where there are any."""
        return ", ".join(self.transform) if isinstance(self.transform, Mapping) else ""

    def _check(self, what: str, tree: Any) -> None:
        structure = jax.tree.structure(tree)
        if structure == self.structure:
            return
        if not isinstance(tree, ParameterTree):
            raise StructureError(
                f"{what} are a {type(tree).__name__}; a tree like module.parameters() was wanted, as"
                f" module.grad(...) and bridge.grad(f)(module) give it"
            )
        made_for, came = paths_in(self.structure), paths_in(structure)
        problems = [f"{paths.join(path)}: new" for path in came if path not in made_for]
        problems += [f"{paths.join(path)}: gone" for path in made_for if path not in came]
        raise StructureError(
            f"{what} are not those that the optimizer was made for:\n"
            + listed(problems or ["the static fields differ"])
            + "\nAfter freezing, unfreezing or surgery, type optimizer = optimizer.init(module)"
        )


def paths_in(structure: Any) -> list[Path]:
    """The paths of the parameters of a tree of this structure, in order."""
    tree = jax.tree.unflatten(structure, range(structure.num_leaves))
    return [segments(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def as_optax(transform: Any) -> optax.GradientTransformationExtraArgs:
    """What optax makes of a transformation or of a dict of them by path."""
    import optax

    if isinstance(transform, Mapping):
        groups = {pattern: as_optax(member) for pattern, member in transform.items()}

        def labels(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda keys, _: _group_of(segments(keys), transform), params
            )

        return optax.with_extra_args_support(optax.multi_transform(groups, labels))
    if isinstance(transform, optax.MultiSteps):
        return optax.with_extra_args_support(transform.gradient_transformation())
    return optax.with_extra_args_support(transform)


def _group_of(path: Path, patterns: Mapping[str, Any]) -> str | None:
    return next((pattern for pattern in patterns if paths.selects(pattern, path)), None)


def _check_groups(patterns: Mapping[str, Any], params: ParameterTree) -> None:
    trained = paths_in(jax.tree.structure(params))
    problems = [
        f"{pattern!r} selects no trained parameter"
        for pattern in patterns
        if not any(paths.selects(pattern, path) for path in trained)
    ]
    problems += [
        f"{paths.join(path)} is in no group" for path in trained if _group_of(path, patterns) is None
    ]
    if problems:
        raise PathError(
            "the groups of the optimizer do not fit the module:\n"
            + listed(problems)
            + '\nA group "*" at the end takes what is left; freeze what is not to be trained'
        )
