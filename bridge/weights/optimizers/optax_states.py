"""Optax's states as a list of places: what each of their arrays is in torch's words."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge.core.leaves import segments
from bridge.core.parameters import ParameterTree
from bridge.core.paths import Path

STEP, SETTING, SCHEDULED = "step", "setting", "scheduled"

_INJECTED = {"count": STEP, "hyperparams": SETTING}

# What the fields of a state hold, by its class: the names are those of torch's own state.
ROWS: Mapping[str, Mapping[str, str]] = {
    "ScaleByAdamState": {"count": STEP, "mu": "exp_avg", "nu": "exp_avg_sq"},
    "ScaleByAmsgradState": {
        "count": STEP,
        "mu": "exp_avg",
        "nu": "exp_avg_sq",
        "nu_max": "max_exp_avg_sq",
    },
    "ScaleByRmsState": {"nu": "square_avg"},
    "ScaleByRStdDevState": {"mu": "grad_avg", "nu": "square_avg"},
    "TraceState": {"trace": "momentum_buffer"},
    "ScaleByScheduleState": {"count": STEP},
    "WrappedScheduleState": {"count": STEP},
    "InjectHyperparamsState": _INJECTED,
    "InjectStatefulHyperparamsState": _INJECTED,
}

Moments = Mapping[tuple[str, Path], Any]


class Place(NamedTuple):
    """An array of a state: its role, the path of its parameter, and where it stands, as one types it.

    The role is None where torch has nothing like it. A setting has its name for a path; a scheduled one
    is what the schedule gave at the last step.
    """

    role: str | None
    path: Path
    text: str

    @property
    def is_moment(self) -> bool:
        """Whether it belongs to a parameter."""
        return self.role not in (None, STEP, SETTING, SCHEDULED)


def places(state: Any) -> list[Place]:
    """A place for each array of a state, in the order of `jax.tree.leaves`."""
    return list(_places(state, None, (), "optimizer.state", {}))


def _places(
    part: Any, role: str | None, path: Path, text: str, scheduled: Container[str]
) -> Iterator[Place]:
    if isinstance(part, ParameterTree):
        keyed = jax.tree_util.tree_flatten_with_path(part)[0]
        yield from (Place(role, segments(keys), text) for keys, _ in keyed)
        return
    row = ROWS.get(type(part).__name__, {})
    scheduled = getattr(part, "hyperparams_states", scheduled)
    children, _ = jax.tree_util.tree_flatten_with_path(part, is_leaf=lambda one: one is not part)
    for keys, below in children:
        at = segments(keys)
        if not at:
            yield Place(SCHEDULED if role == SETTING and path[-1] in scheduled else role, path, text)
        else:
            known = row.get(at[-1], role)
            yield from _places(below, known, at, text + jax.tree_util.keystr(keys), scheduled)


def filled(state: Any, moments: Moments, step: int | None) -> Any:
    """The state with moments and the count of steps in their places; dtypes and shardings stay."""
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(
        structure,
        [_filling(p, leaf, moments, step) for p, leaf in zip(places(state), leaves, strict=True)],
    )


def _filling(place: Place, leaf: Any, moments: Moments, step: int | None) -> Any:
    if place.role == STEP and step is not None:
        array = np.asarray(step, leaf.dtype)
    elif place.is_moment and (place.role, place.path) in moments:
        array = jnp.asarray(moments[str(place.role), place.path], leaf.dtype)
    else:
        return leaf
    return jax.device_put(array, leaf.sharding if getattr(leaf, "committed", False) else None)


def moments_of(state: Any) -> dict[tuple[str, Path], Any]:
    """The arrays of a state that belong to parameters, by role and path."""
    found = zip(places(state), jax.tree.leaves(state), strict=True)
    return {(str(place.role), place.path): leaf for place, leaf in found if place.is_moment}


def steps_of(state: Any) -> dict[str, int]:
    """The counts of a state, by where they stand."""
    found = zip(places(state), jax.tree.leaves(state), strict=True)
    return {place.text: int(leaf) for place, leaf in found if place.role == STEP}


def settings_of(state: Any) -> dict[str, tuple[str, float]]:
    """The hyper-parameters that a state holds: by where they stand, the name and the value."""
    found = zip(places(state), jax.tree.leaves(state), strict=True)
    return {p.text: (p.path[-1], float(leaf)) for p, leaf in found if p.role == SETTING}
