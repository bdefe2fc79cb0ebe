"""Why two models part where they part: a table of what usually does it, each with how it shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from bridge.doctor.stretches import Stretch

# Numbers of GELU's two forms, as libraries write them.
_GELU = frozenset({0.044715, 0.79788, 0.70711, 0.5, 1.4142, 1.5958})
_NARROW = ("float16", "bfloat16")
# Weights of an interpolation are one where they are nearer than this.
_DIGITS = 2e-5


@dataclass(frozen=True)
class Cause:
    """What may set two models apart: `told(mine, theirs)` says how, None where it does not.

    One that is `alone` brings ops along that look like other causes.
    """

    name: str
    told: Callable[[Stretch, Stretch], str | None]
    alone: bool = False


def causes(mine: Stretch, theirs: Stretch) -> Iterator[tuple[str, str]]:
    """The names of the causes that show between two values, with what was seen."""
    for cause in CAUSES:
        told = cause.told(mine, theirs)
        if told is not None:
            yield cause.name, told
            if cause.alone:
                return


def _random(mine: Stretch, theirs: Stretch) -> str | None:
    if not mine.random:
        return None
    return (
        "numbers are drawn at random in eval mode: dropout is on; type module = module.eval(), and look"
        " for a train flag that is set inside the model"
    )


def _activation(mine: Stretch, theirs: Stretch) -> str | None:
    if mine.nonlinear == theirs.nonlinear:
        return None
    if {"tanh", "erf"} <= mine.nonlinear ^ theirs.nonlinear and (mine.scaled | theirs.scaled) & _GELU:
        exact, other = ("the Module", "torch") if "erf" in mine.nonlinear else ("torch", "the Module")
        return (
            f"GELU is exact (erf) in {exact} and its tanh form in {other}: type jax.nn.gelu(x,"
            f" approximate={exact != 'torch'})"
        )
    ours, others = (" and ".join(sorted(one.nonlinear)) or "none" for one in (mine, theirs))
    return f"the activation is {ours} in the Module and {others} in torch"


def _padding(mine: Stretch, theirs: Stretch) -> str | None:
    if _total(mine) == _total(theirs):
        return None
    ours, others = (_told_pads(one) for one in (mine, theirs))
    uneven = any(low != high for pads in mine.padding for low, high in pads)
    why = ' (padding="SAME" puts more at the end where the stride is not 1)' if uneven else ""
    wanted = list(theirs.padding[0]) if theirs.padding else "VALID"
    return f"padding is {ours} in the Module and {others} in torch{why}: type padding={wanted!r}"


def _total(stretch: Stretch) -> list[tuple[tuple[int, int], ...]]:
    return sorted(stretch.padding)


def _told_pads(stretch: Stretch) -> str:
    return " then ".join(str(list(pads)) for pads in stretch.padding) or "nothing"


def _pooling(mine: Stretch, theirs: Stretch) -> str | None:
    ours, others = (_POOLS & one.names for one in (mine, theirs))
    if ours == others:
        return None
    told = [", ".join(sorted(one)) or "no window" for one in (ours, others)]
    return f"the pooling is {told[0]} in the Module and {told[1]} in torch"


_POOLS = frozenset({"reduce_window_max", "reduce_window_sum", "reduce_window"})


def _epsilon(mine: Stretch, theirs: Stretch) -> str | None:
    if mine.added == theirs.added or not (mine.added and theirs.added):
        return None
    ours, others = mine.added - theirs.added or mine.added, theirs.added - mine.added or theirs.added
    return f"eps is {_listed(ours)} in the Module and {_listed(others)} in torch"


def _mask(mine: Stretch, theirs: Stretch) -> str | None:
    if mine.masked == theirs.masked:
        return None
    masked, bare = ("the Module", "torch") if mine.masked else ("torch", "the Module")
    return f"{masked} masks its attention and {bare} does not: give both the same mask"


def _scale(mine: Stretch, theirs: Stretch) -> str | None:
    if mine.scaled == theirs.scaled or _activation(mine, theirs):
        return None
    ours, others = mine.scaled - theirs.scaled, theirs.scaled - mine.scaled
    attends = "exp" in mine.names & theirs.names
    what = "the scale of the attention" if attends else "a factor"
    return f"{what} is {_listed(ours) or 'none'} in the Module and {_listed(others) or 'none'} in torch"


def _corners(mine: Stretch, theirs: Stretch) -> str | None:
    ours, others = (_aligned(one) for one in (mine, theirs))
    if ours is None or others is None or ours == others:
        return None
    aligning, other = ("the Module", "torch") if ours else ("torch", "the Module")
    return (
        f"{other} does not align the corners of what it resizes, and {aligning} does:"
        f" align_corners={others}; jax.image.resize never does"
    )


def _aligned(stretch: Stretch) -> bool | None:
    """Whether a resize puts the corners of both sizes on each other; None where none is seen."""
    sizes = itertools.permutations(sorted(stretch.sizes), 2)
    for small, large in ((one, two) for one, two in sizes if one < two):
        seen = [_seen(_fractions(small, large, corners), stretch.weights) for corners in (False, True)]
        if seen[0] != seen[1]:
            return seen[1]
    return None


def _seen(wanted: np.ndarray, numbers: np.ndarray) -> bool:
    return bool(wanted.size) and all(np.abs(numbers - w).min(initial=1.0) < _DIGITS for w in wanted)


def _fractions(small: int, large: int, corners: bool) -> np.ndarray:
    """The weights by which linear interpolation makes `large` places of `small`."""
    places = np.arange(large)
    at = places * (small - 1) / (large - 1) if corners else (places + 0.5) * small / large - 0.5
    parts = np.unique((at.clip(0, small - 1) % 1).round(6))
    return parts[(parts > 0) & (parts < 1)]


def _precision(mine: Stretch, theirs: Stretch) -> str | None:
    ours = sorted(mine.dtypes & {*_NARROW} - theirs.dtypes)
    if ours:
        return f"the Module computes in {ours[0]} and torch does not"
    backend = jax.default_backend()
    if backend != "cpu" and "dot_general" in mine.names | theirs.names:
        return (
            f"a {backend} multiplies matrices of float32 in lower precision by default: type"
            f' jax.config.update("jax_default_matmul_precision", "highest")'
        )
    return None


def _listed(values: Sequence[object] | frozenset[object]) -> str:
    return ", ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in sorted(values, key=str))


CAUSES = (
    Cause("dropout", _random, alone=True),
    Cause("precision", _precision),
    Cause("padding", _padding),
    Cause("pooling", _pooling),
    Cause("activation", _activation),
    Cause("eps", _epsilon),
    Cause("attention mask", _mask),
    Cause("scale", _scale),
    Cause("align_corners", _corners),
)
