"""A Module's weights under PyTorch's names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bridge.core.errors import ModelError, WeightsError, listed
from bridge.core.leaves import Tied
from bridge.core.module import Module
from bridge.core.paths import Path
from bridge.core.tree import Entry, entries
from bridge.weights.following import target_faults
from bridge.weights.matching import match_source
from bridge.weights.naming import named
from bridge.weights.report import Match
from bridge.weights.sources import Source, open_source
from bridge.weights.targets import Targets, refuse_reparametrized, targets_of
from bridge.weights.undoing import undone


def state_dict(
    module: Any, like: Any = None, rename: Mapping[Any, str] | None = None
) -> dict[str, np.ndarray]:
    """The state_dict of a Module: arrays under PyTorch's names, in its layouts, copied.

    `like` says which names: a torch model, whatever else `match` takes as a source, or a plan, which
    is what `match` gives or the file that its `save` has written. The result has every key of it, in
    contiguous arrays with the Module's numbers and dtypes bit for bit. What the Module does not hold,
    a `num_batches_tracked`, is that of `like`; keys that are one array there have equal arrays here.
    A plan holds no arrays and is followed as it is: what it leaves over or unused has no key.
    `rename` is that of `match`.

    Without `like`, each layer has its own path and torch.nn's names for its parts; an array of no known
    layer has its path for a name, a part from `bridge.from_torch` all names of the torch model, and a
    tied array is there once. States of no known layer, such as counters and caches, are no weights.

    Not all of loading can be undone to the bit: what was added is taken away again, and where torch has
    two biases for one of the Module's, the first has the sum, and the second is zero.

    Raises WeightsError, with everything that does not fit: a key of which nothing holds a part, or that
    two places would fill with different numbers, and layers that torch does not have. Raises ModelError
    for what is no Module.

    >>> import bridge as br, equinox as eqx, jax, numpy as np
    >>> linear = br.from_equinox(eqx.nn.Linear(3, 5, key=jax.random.key(0)))
    >>> {name: array.shape for name, array in br.state_dict(linear).items()}
    {'weight': (5, 3), 'bias': (5,)}
    >>> like = {"fc.weight": np.zeros((5, 3), np.float32), "fc.bias": np.zeros(5, np.float32)}
    >>> list(br.state_dict(linear, like))
    ['fc.weight', 'fc.bias']
    """
    if not isinstance(module, Module):
        raise ModelError(f"state_dict takes a bridge.Module; it was given a {type(module).__name__}")
    if like is None and rename is not None:
        raise WeightsError("rename is for the names of like, and there is none: type like=...")
    from bridge.lowering.module import foreign, torch_tensors

    refuse_reparametrized(module)
    captured = torch_tensors(module, persistent=True)
    if like is None and not foreign(module):
        return captured
    targets = targets_of(module)
    if like is None:
        own = {entry.path for entry in entries(module) if _is_captured(entry)}
        return _all(named(targets, own), targets, module) | captured
    plan = _plan(like)
    if plan is not None:
        if rename is not None:
            raise WeightsError("a plan says where everything goes: leave rename out")
        problems = [*plan.problems, *target_faults(plan, targets)]
        if problems:
            raise WeightsError(f"this plan does not fit the Module:\n{listed(problems)}")
        return _all(plan, targets, module)
    source = open_source(like)
    match = match_source(module, source, rename or {})
    if not match.complete:
        raise WeightsError(
            f"the Module does not hold what like has; a plan, like=bridge.match(module, like), is"
            f" followed without what strict=False leaves out:\n{listed(match.complaints())}"
        )
    found = _all(match, targets, module) | {
        key: captured[key] if key in captured else _copied(source, key) for key in match.unused
    }
    if problems := [*_untied(source, found)]:
        raise WeightsError(f"the Module does not fit the ties of like:\n{listed(problems)}")
    return {key: found[key] for key in source.tensors}


def _untied(source: Source, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The keys that are one array in a source, and would not be equal."""
    for first, *others in source.ties:
        yield from (
            f"{first} and {key}: are one array in like, and the Module holds two that differ; tie them"
            f" there, bridge.tie(module, ...), or untie them in like"
            for key in others
            if arrays[first].tobytes() != arrays[key].tobytes()
        )


def _plan(like: Any) -> Match | None:
    """The plan that like is, if it is one."""
    if isinstance(like, Match):
        return like
    if isinstance(like, (str, os.PathLike)):
        name = os.fspath(like)
        if name.endswith(".json") and not name.endswith(".index.json"):
            return Match.load(like)
    return None


def _all(match: Match, targets: Targets, module: Any) -> dict[str, np.ndarray]:
    """The arrays of all keys of a plan."""
    wanted = {pair.path for pair in match.pairs}
    arrays = {
        entry.path: _array(entry)
        for entry in entries(module)
        if entry.path in wanted and not isinstance(entry.value, Tied)
    }
    return undone(match, arrays, _echoes(targets))


def _is_captured(entry: Entry) -> bool:
    from bridge.lowering.module import TorchModule

    return isinstance(entry.node, TorchModule)


def _array(entry: Entry) -> np.ndarray:
    """An array of a Module on the host, in the dtype that torch knows it by."""
    from bridge.lowering.module import torch_array

    if _is_captured(entry):
        return torch_array(entry.node, entry.within[-1], entry.value)
    return np.asarray(entry.value)


def _echoes(targets: Targets) -> frozenset[Path]:
    """The places that hold a part of their layer once more: Haiku's average, before its bias goes."""
    found: set[Path] = set()
    for layer in targets.layers:
        first: dict[str, Path] = {}
        for slot in layer.slots:
            if first.setdefault(slot.part, slot.path) != slot.path:
                found.add(slot.path)
    return frozenset(found)


def _copied(source: Source, key: str) -> np.ndarray:
    tensor = source.tensors[key]
    return np.array(tensor.read(), order="C")
