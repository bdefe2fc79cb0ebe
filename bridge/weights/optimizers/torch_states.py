"""A torch optimizer as plain values: its kind, its groups, and the state of each parameter by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.errors import WeightsError
from bridge.weights.files import checkpoint
from bridge.weights.tensors import Tensor

_OPTIMIZER = {"state", "param_groups"}
_DEEPEST = 4  # a pickle may hold a mapping within itself
_SUPPORTED = "a torch optimizer, its state_dict(), or a .pt file with one in it"

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Kind:
    """A class of torch's optimizers: its name, the settings that tell it, what it keeps.

    `keeps` has the setting without which a parameter lacks that state.
    """

    name: str
    marks: frozenset[str]
    keeps: Mapping[str, str | None]
    counts: bool


# torch.optim's sources: the `defaults` of each class, and its `_init_group`. RAdam and NAdam keep the
# state of Adam under the same names and use it otherwise; they have no amsgrad.
KINDS = (
    Kind(
        "Adam",
        frozenset({"betas", "amsgrad"}),
        {"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad"},
        counts=True,
    ),
    Kind("SGD", frozenset({"dampening", "nesterov"}), {"momentum_buffer": "momentum"}, counts=False),
    Kind(
        "RMSprop",
        frozenset({"alpha", "centered"}),
        {"square_avg": None, "grad_avg": "centered", "momentum_buffer": "momentum"},
        counts=True,
    ),
)


@dataclass(frozen=True)
class Group:
    """Parameters that share their settings: the indices that torch gives them, and their names."""

    kind: Kind
    settings: Mapping[str, Any]
    indices: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def keeps(self) -> tuple[str, ...]:
        """What torch keeps for each parameter of the group."""
        needs = self.kind.keeps.items()
        return tuple(name for name, setting in needs if setting is None or self.settings[setting])


@dataclass(frozen=True)
class TorchOptimizer:
    """Groups, the state of each parameter that has any, by name, and how many steps were made.

    `step` is None where torch keeps no count. `untrained` are names of which it is known that no
    gradient reaches them, `aliases` other names of tied parameters with the one that is used here.
    `param_groups` are torch's own.
    """

    param_groups: Sequence[Mapping[str, Any]]
    groups: tuple[Group, ...]
    state: Mapping[str, Mapping[str, np.ndarray]]
    step: int | None
    untrained: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def group_of(self) -> dict[str, Group]:
        """The group of each parameter."""
        return {name: group for group in self.groups for name in group.names}


def opened(source: Any, names: Any = None) -> TorchOptimizer:
    """What `load_optimizer_state` takes, its parameters named; raises WeightsError for what is none."""
    live = source if _is_live(source) else None
    raw = source.state_dict() if live is not None else _found(_content(source))
    groups = _groups(raw["param_groups"], _names(raw["param_groups"], names, live))
    pairs = (pair for group in groups for pair in zip(group.indices, group.names, strict=True))
    called = dict(pairs)
    if unknown := [repr(index) for index in raw["state"] if index not in called]:
        raise WeightsError(f"the optimizer has state for parameter {', '.join(unknown)}, in no group")
    found = {called[index]: _arrays(entry) for index, entry in raw["state"].items()}
    state = {name: {r: a for r, a in entry.items() if r != "step"} for name, entry in found.items()}
    _check(groups, state)
    held = _held(live) if live is not None else []
    return TorchOptimizer(
        raw["param_groups"],
        groups,
        {name: entry for name, entry in state.items() if entry},
        _step({name: entry["step"] for name, entry in found.items() if "step" in entry}),
        frozenset(n for n, one in zip(called.values(), held, strict=False) if not one.requires_grad),
        _aliases(names, called.values()),
    )


def _held(live: Any) -> list[Any]:
    """The parameters of a torch optimizer, in the order of its groups."""
    return [parameter for group in live.param_groups for parameter in group["params"]]


def _aliases(model: Any, used: Iterable[str]) -> dict[str, str]:
    """The other names of a model's tied parameters."""
    if not hasattr(model, "named_parameters"):
        return {}
    every = dict(model.named_parameters(remove_duplicate=False))
    first = {id(every[name]): name for name in used}
    return {name: first[id(one)] for name, one in every.items() if first.get(id(one), name) != name}


def _is_live(source: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.optim.Optimizer)


def _content(source: Any) -> Any:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise WeightsError(f"{path}: there is no such file")
        return checkpoint.read(path)
    return source


def _found(root: Any) -> Mapping[str, Any]:
    """The one state_dict of an optimizer in what was saved, which may hold a model and more."""
    found = dict(_nested(root, ()))
    if len(found) > 1:
        raise WeightsError(
            f"there are {len(found)} optimizers, at {', '.join(found)}; give the one that is meant"
        )
    if not found:
        raise WeightsError(
            f"optimizer state comes from {_SUPPORTED}; a {type(root).__name__} was given, and no"
            f" mapping with 'state' and 'param_groups' is in it"
        )
    return next(iter(found.values()))


def _nested(root: Any, place: Place) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The state_dicts of optimizers in what was saved, by where they are."""
    if isinstance(root, Mapping) and root.keys() >= _OPTIMIZER:
        yield "".join(f"[{step!r}]" for step in place), root
    elif len(place) < _DEEPEST and isinstance(root, (Mapping, list, tuple)):
        for step, below in root.items() if isinstance(root, Mapping) else enumerate(root):
            yield from _nested(below, (*place, step))


def _names(groups: Sequence[Mapping[str, Any]], names: Any, live: Any) -> list[str]:
    """The name of each parameter, in the order of the groups."""
    count = sum(len(group["params"]) for group in groups)
    if names is None:
        if not all("param_names" in group for group in groups):
            raise WeightsError(
                "torch numbers the parameters of an optimizer and here keeps no names: type"
                " names=model, the torch model, or a list of names in the order of the param_groups"
            )
        return [str(name) for group in groups for name in group["param_names"]]
    if hasattr(names, "named_parameters"):
        return _names_in(names, groups, live)
    found = [str(name) for name in names]
    if len(found) != count or len({*found}) != count:
        raise WeightsError(
            f"the optimizer has {count} parameters, and names has {len(found)}, {len({*found})}"
            f" different ones: give each its own, in the order of the param_groups"
        )
    return found


def _names_in(model: Any, groups: Sequence[Mapping[str, Any]], live: Any) -> list[str]:
    """The names of an optimizer's parameters in a torch model; by identity where both are live."""
    named = list(model.named_parameters())
    if live is not None:
        found = {id(parameter): name for name, parameter in named}
        held = _held(live)
        strange = [str(number) for number, one in enumerate(held) if id(one) not in found]
        if strange:
            raise WeightsError(
                f"parameters {', '.join(strange)} of the optimizer are none of the model's: give the"
                f" model that it was made for"
            )
        return [found[id(one)] for one in held]
    count = sum(len(group["params"]) for group in groups)
    if len(groups) > 1:
        raise WeightsError(
            f"the optimizer has {len(groups)} param_groups, and which parameter is in which is not in a"
            f" model: give the live optimizer, or names in the order of the param_groups"
        )
    if len(named) != count:
        raise WeightsError(
            f"the optimizer has {count} parameters and the model {len(named)}: type names=[...] with"
            f" those that it was given, such as [name for name, p in model.named_parameters() if"
            f" p.requires_grad]"
        )
    return [name for name, _ in named]


def _groups(raw: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[Group, ...]:
    made, start = [], 0
    for group in raw:
        settings = {k: _plain(v) for k, v in group.items() if k not in ("params", "param_names")}
        end = start + len(group["params"])
        made.append(Group(_kind(settings), settings, tuple(group["params"]), tuple(names[start:end])))
        start = end
    return tuple(made)


def _kind(settings: Mapping[str, Any]) -> Kind:
    for kind in KINDS:
        if kind.marks <= settings.keys():
            return kind
    raise WeightsError(
        f"the state of torch's Adam, AdamW, SGD and RMSprop can be carried; this one, with"
        f" {', '.join(sorted(settings))}, is none of them and keeps other numbers"
    )


def _check(groups: Sequence[Group], state: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises WeightsError where a parameter's state is not that of its kind."""
    for group in groups:
        for name in group.names:
            entry = state.get(name, {})
            if any(np.iscomplexobj(array) for array in entry.values()):
                raise WeightsError(f"{name}: is complex; optax keeps other moments of it than torch")
            if entry and {*entry} != {*group.keeps}:
                raise WeightsError(
                    f"{name}: its state has {_listed(entry)}; torch's {group.kind.name} with these"
                    f" settings keeps {_listed(group.keeps)}"
                )


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _step(steps: Mapping[str, np.ndarray]) -> int | None:
    counts = {name: int(step) for name, step in steps.items()}
    if len({*counts.values()}) > 1:
        few, many = min(counts, key=lambda n: counts[n]), max(counts, key=lambda n: counts[n])
        raise WeightsError(
            f"torch has made {counts[few]} steps with {few} and {counts[many]} with {many}; optax has"
            f" one count for all parameters"
        )
    return next(iter(counts.values()), None)


def _arrays(entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state of a parameter; torch writes None for what it has not made yet."""
    return {role: _array(value) for role, value in entry.items() if value is not None}


def _array(value: Any) -> np.ndarray:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        from bridge.adapters.torch._layers import as_numpy

        return as_numpy(value)
    return value.read() if isinstance(value, Tensor) else np.asarray(value)


def _plain(setting: Any) -> Any:
    """A setting as a Python value; torch takes tensors for some."""
    if isinstance(setting, (tuple, list)):
        return tuple(_plain(one) for one in setting)
    return (
        setting if isinstance(setting, (bool, int, float, str, type(None))) else _array(setting).item()
    )
