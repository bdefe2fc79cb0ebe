"""Optimizer state from torch into optax, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.core.errors import UninitialisedError, WeightsError, listed
from bridge.core.leaves import Leaves
from bridge.core.node import rebuild
from bridge.core.optimizer import Optimizer
from bridge.core.paths import Path
from bridge.weights.optimizers.linking import Links, apart, misplaced, partial, several
from bridge.weights.optimizers.optax_states import Moments, filled, moments_of, settings_of, steps_of
from bridge.weights.optimizers.rehearsing import rehearsed
from bridge.weights.optimizers.torch_states import Group, opened
from bridge.weights.report import Match

# What the settings that optax.inject_hyperparams shows are in a torch group.
SETTINGS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "learning_rate": lambda settings: settings.get("lr"),
    "b1": lambda settings: settings.get("betas", (None, None))[0],
    "b2": lambda settings: settings.get("betas", (None, None))[1],
    "eps": lambda settings: settings.get("eps"),
    "weight_decay": lambda settings: settings.get("weight_decay"),
    "momentum": lambda settings: settings.get("momentum"),
    "decay": lambda settings: settings.get("alpha"),
}


def load_optimizer_state(
    optimizer: Optimizer,
    source: Any,
    plan: Match,
    names: Any = None,
    strict: bool = True,
    step: int | None = None,
) -> Optimizer:
    """The optimizer with the state of a torch optimizer in it, so that training goes on where it was.

    `optimizer` is initialised for the module; `source` is a torch optimizer, its `state_dict()`, or a
    `.pt` file with one in it; `plan` is what `bridge.match(module, torch_model)` gives. torch numbers
    parameters: `names` is the torch model or a list of names in the order of the param_groups, and may
    be left out where the torch optimizer was given `model.named_parameters()`.

    Adam, AdamW, AMSGrad, SGD with momentum and RMSprop are carried, in any chain and in groups by path.
    Every count in optax's state, those of schedules too, becomes torch's count of steps; SGD keeps
    none, so `step` gives it. The settings of a transformation cannot be read, except those that
    `optax.inject_hyperparams` shows, which are compared. So both optimizers make one step with made-up
    parameters and gradients, and must agree up to rounding; a setting that does not change this step is
    not found. With `strict=False` settings may differ, state of torch's be left out, what torch has
    nothing for stay as it is, and dtypes be cast to the optimizer's.

    Raises WeightsError with everything that does not fit; then nothing is loaded.

    >>> import bridge as br, equinox as eqx, jax, optax, torch
    >>> model = torch.nn.Linear(3, 5)
    >>> theirs = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> theirs.step()
    >>> linear = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)))
    >>> plan = br.match(linear, model)
    >>> optimizer = br.Optimizer(optax.adamw(0.1, weight_decay=0.01)).init(linear)
    >>> optimizer = br.load_optimizer_state(optimizer, theirs, plan)
    >>> int(optimizer.state[0].count)
    1
    """
    told = _Complaints("this optimizer state does not fit:", strict)
    state = _state_of(optimizer)
    links = Links(optimizer, plan, opened(source, names))
    told.problems.extend(links.problems(plan))
    told.take(apart(links, needs_state=True))
    told.take(misplaced(state, links))
    count = links.torch.step if step is None else step
    if links.torch.step not in (None, count):
        told.problems.append(f"step={step}: torch's optimizer has made {links.torch.step} steps")
    if count is None and steps_of(state) and not links.kind.counts:
        told.problems.append(
            f"{', '.join(steps_of(state))}: torch's {links.kind.name} keeps no count: type step=<how"
            f" many steps it has made>"
        )
    told.raise_if_any()
    moments = dict(links.loaded(moments_of(state)))
    told.differences.extend(_casts(moments_of(state), moments))
    _compare(optimizer, links, moments, count or 0, told)
    told.raise_if_any()
    held: Any = optimizer.opt_state
    return rebuild(optimizer, opt_state=held.replace(filled(state, moments, count or 0)))


def optimizer_state_dict(
    optimizer: Optimizer, plan: Match, like: Any, names: Any = None, strict: bool = True
) -> dict[str, Any]:
    """The state of an optimizer as a torch optimizer's `load_state_dict` takes it.

    `like` is that torch optimizer, or its `state_dict()`: its groups and settings are kept. `plan`,
    `names` and `strict` are those of `load_optimizer_state`, which this undoes. SGD keeps no count of
    steps, and a scheduler of torch's is its own: step it, or load its own state.

    Raises WeightsError with everything that torch's optimizer has no place for, or lacks.

    >>> import bridge as br, equinox as eqx, jax, optax, torch
    >>> model = torch.nn.Linear(3, 5)
    >>> theirs = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    >>> linear = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)))
    >>> plan = br.match(linear, model)
    >>> optimizer = br.Optimizer(optax.sgd(0.1, momentum=0.9)).init(linear)
    >>> theirs.load_state_dict(br.optimizer_state_dict(optimizer, plan, theirs))
    >>> theirs.state[model.bias]["momentum_buffer"]
    tensor([0., 0., 0., 0., 0.])
    """
    from bridge.adapters.torch._export import as_tensor

    told = _Complaints("this optimizer state does not fit the torch optimizer:", strict)
    state = _state_of(optimizer)
    links = Links(optimizer, plan, opened(like, names))
    counts = steps_of(state)
    told.problems.extend(links.problems(plan))
    told.take(apart(links, needs_state=False))
    told.take(misplaced(state, links))
    told.problems.extend(partial(links))
    if len({*counts.values()}) > 1:
        shown = ", ".join(f"{place} is {count}" for place, count in counts.items())
        told.problems.append(f"the counts of steps differ: {shown}; torch would have one")
    told.raise_if_any()
    count = next(iter(counts.values()), 0)
    _compare(optimizer, links, moments_of(state), count, told)
    told.raise_if_any()
    entries = dict(links.exported(moments_of(state)))
    found: dict[int, dict[str, Any]] = {}
    for group in links.torch.groups:
        for index, name in zip(group.indices, group.names, strict=True):
            entry = {role: as_tensor(array) for role, array in entries.get(name, {}).items()}
            if entry and group.kind.counts:
                # torch keeps it as a float32 by itself: torch.optim.optimizer's _get_scalar_dtype
                entry = {"step": as_tensor(np.asarray(count, np.float32)), **entry}
            if entry:
                found[index] = entry
    return {"state": found, "param_groups": [dict(group) for group in links.torch.param_groups]}


@dataclass
class _Complaints:
    """What stands against carrying a state: problems always, differences where it is strict."""

    headline: str
    strict: bool
    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def take(self, told: Iterable[tuple[bool, str]]) -> None:
        """Takes sentences, each with whether it stands against carrying always."""
        for always, sentence in told:
            (self.problems if always else self.differences).append(sentence)

    def raise_if_any(self) -> None:
        found = [*self.problems, *(self.differences if self.strict else ())]
        if found:
            raise WeightsError(f"{self.headline}\n{listed(list(dict.fromkeys(found)))}")


def _state_of(optimizer: Any) -> Any:
    if not isinstance(optimizer, Optimizer):
        raise WeightsError(
            f"the state of a bridge.Optimizer is carried; a {type(optimizer).__name__} was given"
        )
    if not isinstance(optimizer.opt_state, Leaves):
        raise UninitialisedError(
            "the optimizer has no state yet; type optimizer = optimizer.init(module) first"
        )
    return optimizer.state


def _compare(
    optimizer: Optimizer, links: Links, moments: Moments, step: int, told: _Complaints
) -> None:
    """Adds the settings that differ; where none is seen to, the step that does."""
    if not told.strict:
        return
    told.differences.extend(_differing(settings_of(optimizer.state), links.torch.groups))
    if not told.differences:
        shapes = {path: links.of_path[path][0].translation.target_shape for path in links.trained}
        told.differences.extend(
            f"{sentence}: build the optimizer so, or type strict=False to keep its own way"
            for sentence in rehearsed(optimizer, links.placed, shapes, moments, step)
        )


def _casts(held: Moments, came: Moments) -> Iterator[str]:
    """A sentence for each sort of moment that torch keeps in another dtype."""
    cast: dict[tuple[str, Any, Any], list[Path]] = {}
    for (role, path), leaf in held.items():
        if came[role, path].dtype != leaf.dtype:
            cast.setdefault((role, came[role, path].dtype, leaf.dtype), []).append(path)
    for (role, there, here), found in cast.items():
        yield (
            f"{several(found)}: torch keeps {role} in {there}, and the optimizer in {here}; type"
            f" strict=False to cast"
        )


def _differing(settings: Mapping[str, tuple[str, float]], groups: Iterable[Group]) -> Iterator[str]:
    """A sentence for each setting that the state shows and that is another one in torch."""
    for place, (name, here) in settings.items():
        there = {SETTINGS[name](group.settings) for group in groups} if name in SETTINGS else set()
        value = next(iter(there), None)
        if value is None or len(there) > 1:  # where the groups differ, the step that is made tells
            continue
        if not np.isclose(here, value, rtol=1e-6, atol=0):  # optax keeps it in float32
            yield f"{place}: is {here:g}, and {value:g} in torch; type strict=False to keep {here:g}"
