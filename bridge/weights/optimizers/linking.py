"""Which parameter of a torch optimizer is which of a Module's, and how their state is turned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import WeightsError
from bridge.core.optimizer import Optimizer, paths_in
from bridge.core.paths import Path
from bridge.weights.optimizers.optax_states import Moments, Place, places
from bridge.weights.optimizers.rehearsing import spoken, twins
from bridge.weights.optimizers.torch_states import Group, Kind, TorchOptimizer
from bridge.weights.report import Match, Pair, by_path

Told = Iterator[tuple[bool, str]]


class Links:
    """The parameters of a torch optimizer and those that an optimizer of a Module was made for.

    `of_path` and `of_name` are the pairs of the plan, their keys torch's names; `placed` are the torch
    groups of the trained parameters.
    """

    def __init__(self, optimizer: Optimizer, plan: Match, torch_one: TorchOptimizer) -> None:
        self.torch, self.groups = torch_one, torch_one.group_of
        self.trained = paths_in(optimizer.structure)
        named = {**torch_one.aliases}
        named |= {owner: name for name, owner in plan.ties.items() if name in self.groups}
        pairs = [replace(pair, key=named.get(pair.key, pair.key)) for pair in plan.pairs]
        self.of_path = by_path(pairs)
        self.of_name: dict[str, list[Pair]] = {name: [] for name in self.groups}
        for pair in pairs:
            self.of_name.setdefault(pair.key, []).append(pair)
        keys = {path: self.of_path[path][0].key for path in self.trained if path in self.of_path}
        self.placed = {path: self.groups[key] for path, key in keys.items() if key in self.groups}

    @property
    def kind(self) -> Kind:
        """The kind of torch's optimizer."""
        return self.torch.groups[0].kind

    @property
    def trained_names(self) -> list[str]:
        """The parameters of torch's optimizer that the Module trains, or parts of them."""
        trained = {*self.trained}
        return [n for n in self.groups if any(pair.path in trained for pair in self.of_name[n])]

    def placed_in(self, group: Group) -> list[Path]:
        """The trained parameters whose torch group it is."""
        return [path for path, one in self.placed.items() if one is group]

    def problems(self, plan: Match) -> Iterator[str]:
        """What the plan itself cannot do, and arrays of which torch trains the parts otherwise."""
        yield from plan.complaints(strict=False)
        for path in self.trained:
            pairs = self.of_path.get(path, ())
            keys = " and ".join(dict.fromkeys(pair.key for pair in pairs))
            settings = [self.groups[pair.key].settings for pair in pairs if pair.key in self.groups]
            if any(one != settings[0] for one in settings):
                yield (
                    f"{paths.join(path)}: is made of {keys}, which are in several"
                    f" param_groups of torch, with other settings each: keep them apart"
                )
            if len({pair.translation.region for pair in pairs}) < len(pairs):
                yield (
                    f"{paths.join(path)}: is the sum of {keys}, which"
                    f" torch trains apart: one array cannot make their steps"
                )

    def loaded(self, held: Moments) -> Iterator[tuple[tuple[str, Path], np.ndarray]]:
        """The moments of the trained parameters in the layouts of the Module; zeros before any step."""
        for path, group in self.placed.items():
            pairs = self.of_path[path]
            for role in group.keeps if self.torch.state else ():
                came = [self._moment(pair, role) for pair in pairs]
                whole = np.zeros(pairs[0].translation.target_shape, np.result_type(*came))
                for pair, array in zip(pairs, came, strict=True):
                    pair.translation.put(array, whole)
                yield (role, path), whole
        if not self.torch.state:
            yield from ((place, np.zeros(leaf.shape, leaf.dtype)) for place, leaf in held.items())

    def _moment(self, pair: Pair, role: str) -> np.ndarray:
        array, wanted = self.torch.state[pair.key][role], pair.translation.source_shape
        if array.shape != wanted:
            raise WeightsError(
                f"{pair.key}: its {role} has shape {array.shape}, and the plan's array {wanted}: the"
                f" names are not in the order of the optimizer, or the plan is for another model"
            )
        return array

    def exported(self, moments: Moments) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """The state of each of torch's parameters that the Module trains, in torch's layouts."""
        for name in self.trained_names:
            pairs, entry = self.of_name[name], dict[str, np.ndarray]()
            for role in self.groups[name].keeps:
                parts = [np.asarray(moments[role, pair.path]) for pair in pairs]
                entry[role] = np.zeros(pairs[0].translation.source_shape, parts[0].dtype)
                for pair, part in zip(pairs, parts, strict=True):
                    pair.translation.inverse().put(part, entry[role])
            yield name, entry


def apart(links: Links, needs_state: bool) -> Told:
    """What only one of the two sides trains; whether it stands against carrying always, and a sentence.

    With `needs_state` each parameter must have some in torch, if any has.
    """
    for path in links.trained:
        yield from ((True, told) for told in _untrained(path, links, needs_state))
    trained = {*links.trained_names}
    for name in links.groups:
        pairs = links.of_name[name]
        if not pairs:
            yield False, f"{name}: the plan has no place for it; type strict=False to leave it out"
        elif name not in trained and (name in links.torch.state or not needs_state):
            place = paths.join(pairs[0].path)
            if name not in links.torch.untrained:
                yield (
                    False,
                    f"{name}: torch trains it, and {place} is not trained: type"
                    f" module.unfreeze({place!r}) before optimizer.init(module), or strict=False to"
                    f" leave it out",
                )
        regions = [pair.translation.inverse().region for pair in pairs]
        if len({*regions}) < len(regions):
            places_ = " and ".join(repr(paths.join(pair.path)) for pair in pairs)
            yield (
                True,
                f"{name}: is one parameter in torch, and {places_} are apart: tie them: bridge.tie",
            )


def _untrained(path: Path, links: Links, needs_state: bool) -> Iterator[str]:
    """Why torch does not train a parameter that the Module trains."""
    place = paths.join(path)
    freeze = f"type module.freeze({place!r}) before optimizer.init(module)"
    if path not in links.of_path:
        yield f"{place}: is trained, and the plan has no key for it: {freeze}"
        return
    for key in dict.fromkeys(pair.key for pair in links.of_path[path]):
        if key not in links.groups:
            yield f"{place}: is trained, and torch's optimizer has no {key!r}: {freeze}"
        elif needs_state and links.torch.state and key not in links.torch.state:
            if links.groups[key].keeps:
                yield f"{key}: torch has no state for it, as it made no step with it: {freeze}"
        elif not needs_state and key in links.torch.untrained:
            yield f"{key}: is frozen in torch, and {place} is trained: {freeze}"


def partial(links: Links) -> Iterator[str]:
    """A sentence for each of torch's parameters of which the Module trains a part alone."""
    trained = {*links.trained}
    for name in links.trained_names:
        pairs = links.of_name[name]
        frozen = [paths.join(pair.path) for pair in pairs if pair.path not in trained]
        regions = (pair.translation.inverse().region for pair in pairs)
        known = sum(math.prod(size for _, size, _ in region) for region in regions)
        size = math.prod(pairs[0].translation.source_shape)
        if frozen:
            yield f"{name}: is one parameter in torch, and {', '.join(frozen)} is not trained here"
        elif known < size:
            yield f"{name}: only {known} of its {size} numbers have a place in the Module"


def misplaced(state: Any, links: Links) -> Told:
    """What only one of the two optimizers keeps; see `apart`."""
    held: dict[tuple[str | None, Path], str] = {}
    for place in places(state):
        if place.role is None:
            yield (
                False,
                f"{place.text}: nothing in torch's {links.kind.name} is like it; leave that"
                f" transformation out, or type strict=False to pass it over",
            )
        elif place.is_moment:
            yield from ((True, told) for told in _wrong(place, held, links))
            held[place.role, place.path] = place.text
    for group in links.torch.groups:
        lacking = {p: [r for r in group.keeps if (r, p) not in held] for p in links.placed_in(group)}
        without = [path for path, roles in lacking.items() if roles]
        if without:
            yield (
                True,
                f"{several(without)}: torch's {group.kind.name} keeps {', '.join(lacking[without[0]])},"
                f" and the optimizer does not: build it as {_advice(group)}",
            )


def several(found: Sequence[Path]) -> str:
    """The first of some paths, and how many more there are."""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return paths.join(found[0]) + more


def _wrong(place: Place, held: dict[tuple[str | None, Path], str], links: Links) -> Iterator[str]:
    """What is wrong with a place for a moment."""
    group = links.placed.get(place.path)
    if (place.role, place.path) in held:
        before = held[place.role, place.path]
        yield f"{place.text}: would be torch's {place.role}, as {before} would; torch keeps it once"
    elif group is not None and place.role not in group.keeps:
        yield (
            f"{place.text}: holds what torch calls {place.role}, and this {group.kind.name} keeps none:"
            f" build the optimizer as {_advice(group)}"
        )


def _advice(group: Group) -> str:
    return spoken(twins(group)[-1])
