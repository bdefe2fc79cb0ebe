"""Hyper-parameters of layers in one form, so that those of two libraries can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# The groups of a normalisation that has one for each channel, however many those are.
EACH = "one for each channel"
SAME, VALID = "SAME", "VALID"
# What Linen types as a padding and torch as a mode of it: the padded places are none of zeros.
_MODES = {"CIRCULAR": "circular", "REFLECT": "reflect"}
# Settings that others are worked out from; they show in shapes, or are no setting by themselves.
_BESIDE = ("kernel", "output padding", "group size")
_FLOAT32_EPS = 2.0**-23


def normalised(kind: str, came: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a layer in one form: what means the same is equal, whatever library it is of.

    A number for each axis is that number where all are equal; padding is a pair (before, after) where
    all axes have the same, that of a transposed convolution what is put around the stretched input.
    """
    found = {name: _FORMS[name](value) if name in _FORMS else value for name, value in came.items()}
    if "momentum" in found:  # torch counts what is new, the others what is kept
        momentum = found.pop("momentum")
        found |= {} if momentum is None else {"decay": 1 - momentum}
    if found.get("group size") == 1:
        found["groups"] = EACH
    if found.get("groups") == EACH and "channels" in found:
        found["groups"] = found["channels"]
    if found.get("groups", 1) is None:  # Flax works it out from the size of a group
        found.pop("groups")
    if "padding" in found:
        found |= _padded(kind, found)
    return {name: value for name, value in found.items() if name not in _BESIDE}


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """The names of the settings that two layers both have, and not the same."""
    channels = {**theirs, **mine}.get("channels")
    for name in sorted(mine.keys() & theirs.keys() - {"channels"}):
        one, other = (channels if way[name] == EACH else way[name] for way in (mine, theirs))
        if not _equal(one, other):
            yield name


def shown(value: Any) -> str:
    """A setting as text, a number without the digits that computing it has left."""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)  # 1 - 0.1 is not 0.9, nor 1e-5 in float32 1e-5
    return bool(one == other)


def _one(value: Any) -> Any:
    """A number for all axes, or a tuple where they differ; None is 1."""
    if value is None:
        return 1
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def _several(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _named(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _eps(value: Any) -> float:
    # torch.nn.RMSNorm, "eps": None is that of the dtype.
    return _FLOAT32_EPS if value is None else float(value)


_FORMS = {
    "stride": _one,
    "dilation": _one,
    "kernel": _several,
    "eps": _eps,
    "activation": _named,
    "gate activation": _named,
    "padding mode": lambda mode: mode.lower(),
}

Pads = tuple[tuple[int, int], ...]


def _padded(kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The padding of a convolution and its mode, as far as they do not depend on the input."""
    padding, mode = found["padding"], found.get("padding mode", "zeros")
    if isinstance(padding, str):
        padding = padding.upper()
        mode = _MODES.get(padding, mode)
    kernel = found.get("kernel")
    if kernel is None:
        return {"padding": padding, "padding mode": mode}
    strides = _for_each(found.get("stride", 1), len(kernel))
    dilations = _for_each(found.get("dilation", 1), len(kernel))
    reaches = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(padding, len(kernel))
    if kind == "transposed convolution":
        outside = found.get("output padding")
        found_pads = _transposed(pads or padding, strides, reaches, outside)
    else:
        found_pads = pads or _named_pads(padding, strides, reaches)
    return {"padding": _pair(found_pads), "padding mode": mode}


def _for_each(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def _pads(padding: Any, count: int) -> Pads | None:
    """The pair of each axis, where numbers were given."""
    if isinstance(padding, int):
        return ((padding, padding),) * count
    if isinstance(padding, str) or len(padding) != count:
        return None
    return tuple((p, p) if isinstance(p, int) else (p[0], p[-1]) for p in padding)


def _pair(pads: Pads | str) -> Any:
    return pads[0] if not isinstance(pads, str) and len(set(pads)) == 1 else pads


def _named_pads(name: Any, strides: Sequence[int], reaches: Sequence[int]) -> Any:
    """What a padding by name puts around an input; the name where that depends on the input."""
    if name == VALID:
        return ((0, 0),) * len(reaches)
    if name == "CAUSAL":
        return tuple((reach, 0) for reach in reaches)
    if name in _MODES or (name == SAME and set(strides) == {1}):
        # Flax pads a circular or reflected input as for stride 1, whatever the stride.
        return tuple((reach // 2, reach - reach // 2) for reach in reaches)
    return name


def _transposed(padding: Any, strides: Sequence[int], reaches: Sequence[int], outside: Any) -> Any:
    """What is put around the stretched input; where `outside` is given, by torch's numbers."""
    if outside is not None and not isinstance(padding, str):
        extra = _for_each(_one(outside), len(reaches))
        return tuple(
            (reach - before, reach - after + more)
            for reach, (before, after), more in zip(reaches, padding, extra, strict=True)
        )
    if padding not in (SAME, VALID):
        return padding
    # jax.lax.conv_transpose, "padding": as if the gradient of a convolution with such a padding.
    pairs = zip(strides, reaches, strict=True)
    if padding == VALID:
        return tuple((reach, reach + max(stride - reach - 1, 0)) for stride, reach in pairs)
    totals = [(reach + stride - 1, stride, reach) for stride, reach in pairs]
    firsts = [reach if stride > reach else -(-total // 2) for total, stride, reach in totals]
    return tuple((first, total - first) for first, (total, *_) in zip(firsts, totals, strict=True))
