"""Whether an optax transformation makes torch's steps: one of each is made with the same numbers.

A transformation is a closure: its settings cannot be read, but it can be run.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bridge.core.paths as paths
from bridge.core.leaves import segments
from bridge.core.optimizer import Optimizer, as_optax, paths_in
from bridge.core.paths import Path
from bridge.weights.optimizers.optax_states import Moments, filled
from bridge.weights.optimizers.torch_states import Group

# Below what a clipping of gradients lets pass.
GRADIENT_NORM = 0.01
# As small as the usual eps.
SMALL = 1e-7
# What torch keeps of squared gradients.
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A call of an optax function, to be made or to be shown."""

    name: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return f"optax.{self.name}({', '.join(f'{k}={v}' for k, v in self.arguments.items())})"

    def made(self) -> Any:
        """The transformation."""
        import optax

        return getattr(optax, self.name)(**self.arguments)


@dataclass(frozen=True)
class Corrected:
    """The correction of the second moment, which torch's AMSGrad makes after taking the maximum."""

    b2: float

    def __call__(self, count: Any) -> Any:
        """What the steps are multiplied with."""
        return jnp.sqrt(1 - self.b2 ** (count + 1))

    def __str__(self) -> str:
        return f"lambda count: (1 - {self.b2} ** (count + 1)) ** 0.5"


def spoken(calls: Sequence[Call]) -> str:
    """The calls as one types them."""
    return f"optax.chain({', '.join(map(str, calls))})"


def twins(group: Group) -> list[list[Call]]:
    """The optax transformations that make the steps of a group.

    Two where the settings do not tell Adam from AdamW, as those of older torches do not.
    """
    decay = group.settings.get("weight_decay", 0)
    decoupled = group.settings.get(
        "decoupled_weight_decay", None if group.kind.name == "Adam" else False
    )
    choices = (False, True) if decay and decoupled is None else (bool(decoupled),)
    return [
        [
            *_before(group.settings, 0 if last else decay),
            *_core(group),
            *_after(group.settings, decay if last else 0),
        ]
        for last in choices
    ]


def _before(settings: Mapping[str, Any], decay: float) -> Iterator[Call]:
    if settings.get("maximize"):
        yield Call("scale", {"step_size": -1.0})
    if decay:
        yield Call("add_decayed_weights", {"weight_decay": decay})


def _after(settings: Mapping[str, Any], decay: float) -> Iterator[Call]:
    if decay:
        yield Call("add_decayed_weights", {"weight_decay": decay})
    yield Call("scale_by_learning_rate", {"learning_rate": settings["lr"]})


def _core(group: Group) -> Iterator[Call]:
    settings, name = group.settings, group.kind.name
    if name == "Adam":
        b1, b2 = settings["betas"]
        means = {"b1": b1, "b2": b2, "eps": settings["eps"]}
        if not settings["amsgrad"]:
            yield Call("scale_by_adam", means)
            return
        yield Call("scale_by_amsgrad", {**means, "bias_correction_nu": False})
        yield Call("scale_by_schedule", {"step_size_fn": Corrected(b2)})
        return
    if name == "RMSprop":
        scale = "scale_by_stddev" if settings["centered"] else "scale_by_rms"
        yield Call(scale, {"decay": settings["alpha"], "eps": settings["eps"], "eps_in_sqrt": False})
    if settings.get("dampening"):
        yield Call("scale", {"step_size": 1 - settings["dampening"]})
    if settings["momentum"]:
        yield Call(
            "trace", {"decay": settings["momentum"], "nesterov": settings.get("nesterov", False)}
        )


def rehearsed(
    optimizer: Optimizer,
    groups: Mapping[Path, Group],
    shapes: Mapping[Path, Shape],
    moments: Moments,
    step: int | None,
) -> Iterator[str]:
    """A sentence for each torch group whose step from these moments is not the optimizer's."""
    dtypes = {path: array.dtype for (_, path), array in moments.items()}
    wanted = {p: dtypes.get(p, np.dtype(np.float32)) for p in shapes}
    norm = max(sum(math.prod(shape) for shape in shapes.values()), 1) ** 0.5
    rehearsals = [
        _Rehearsal(optimizer, wanted, shapes, moments, step, 1.0, GRADIENT_NORM / norm),
        # eps shows beside small numbers alone, the rest where the gradient is as large as the moments
        _Rehearsal(optimizer, wanted, shapes, _small(moments), step, SMALL, SMALL),
    ]
    ours = [one.updates(as_optax(optimizer.transform), optimizer.state, shapes) for one in rehearsals]
    for group in {id(group): group for group in groups.values()}.values():
        within = {path for path in shapes if groups[path] is group}
        told = [_apart(ours, rehearsals, calls, within) for calls in twins(group)]
        if all(told):
            yield f"{told[-1]}, which is that of {spoken(twins(group)[-1])}"


def _apart(
    ours: Sequence[Mapping[Path, np.ndarray]],
    rehearsals: Sequence[_Rehearsal],
    calls: Sequence[Call],
    within: Container[Path],
) -> str:
    """A sentence for the parameter that the calls move most otherwise; empty where that is rounding."""
    import optax

    found: list[tuple[float, str]] = []
    for here, rehearsal in zip(ours, rehearsals, strict=True):
        there = rehearsal.updates(optax.chain(*(call.made() for call in calls)), None, within)
        for path, right in there.items():
            error, size = _largest(here[path] - right), _largest(right)
            if not error <= size * _tolerance(right.dtype):
                found.append((error / size if size else np.inf, paths.join(path)))
    if not found:
        return ""
    ratio, place = max(found)
    return (
        f"{place}: with the same gradient, the optimizer's next step is {100 * ratio:.3g}% off torch's"
    )


def _tolerance(dtype: np.dtype) -> float:
    return float(jnp.finfo(dtype).eps) ** 0.7  # 1.4e-5 for float32, 0.03 for bfloat16


def _largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array), initial=0))


def _small(moments: Moments) -> Moments:
    """The moments as they would be if the gradients had been of the size SMALL."""
    squares = [_mean_square(array) for (role, _), array in moments.items() if role in SQUARES]
    means = [_mean_square(array) for (role, _), array in moments.items() if role not in SQUARES]
    ratio = SMALL / ((np.mean(squares or means or [0.0]) ** (0.25 if squares else 0.5)) or SMALL)
    powers = dict.fromkeys(SQUARES, 2) | {"momentum_buffer": 0 if squares else 1}
    return {
        (role, path): np.asarray(array) * np.asarray(ratio ** powers.get(role, 1), array.dtype)
        for (role, path), array in moments.items()
    }


def _mean_square(array: Any) -> float:
    return float(np.mean(np.square(np.asarray(array, np.float32))))


@dataclass(frozen=True)
class _Rehearsal:
    """A step with made-up parameters and gradients of these sizes, and the moments to begin with."""

    optimizer: Optimizer
    dtypes: Mapping[Path, np.dtype]
    shapes: Mapping[Path, Shape]
    moments: Moments
    step: int | None
    params: float
    grads: float

    def updates(self, transform: Any, state: Any, within: Container[Path]) -> dict[Path, np.ndarray]:
        """What a transformation adds to the parameters `within`; without a state from its own first."""
        params, grads = self._made_up(within, 0, self.params), self._made_up(within, 1, self.grads)
        state = filled(transform.init(params) if state is None else state, self.moments, self.step)
        updates, _ = transform.update(grads, state, params)
        keyed = jax.tree_util.tree_flatten_with_path(updates)[0]
        return {segments(keys): np.asarray(update) for keys, update in keyed}

    def _made_up(self, within: Container[Path], seed: int, size: float) -> Any:
        random, arrays = np.random.default_rng(seed), []
        for path in paths_in(self.optimizer.structure):
            drawn = random.standard_normal(self.shapes[path], np.float32) * np.float32(size)
            arrays.append(jnp.asarray(drawn, self.dtypes[path]) if path in within else None)
        return jax.tree.unflatten(self.optimizer.structure, arrays)
