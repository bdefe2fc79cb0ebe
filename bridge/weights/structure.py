"""Pairs that the forward of both models proves: no name is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import WeightsError, listed
from bridge.core.layers import SUM, Layer, Slot
from bridge.core.paths import Path
from bridge.core.settings import shown
from bridge.core.translation import translation
from bridge.dataflow.deriving import Derived, derive
from bridge.dataflow.probing import Divergence, probe
from bridge.dataflow.proving import Proof
from bridge.dataflow.tracing import Traced, trace
from bridge.weights.pairing import Couple, Shape, key_of, source_axes
from bridge.weights.planning import differs, sizes_of
from bridge.weights.report import Pair, by_path
from bridge.weights.targets import ARRAY, Targets

PROGRAM = "program"


@dataclass(frozen=True)
class Structure:
    """What the forward of two models says about their arrays: which is which, and what differs."""

    couples: Sequence[Couple]
    differences: Sequence[str]


def compared(
    module: Any,
    model: Any,
    inputs: Sequence[Any],
    targets: Targets,
    sources: Sequence[Layer],
    shapes: Mapping[str, Shape],
) -> Structure:
    """The couples that the programs of a Module and a torch model prove, on one input for both.

    Raises WeightsError where the Module cannot be called with it, LoweringError where the torch model
    cannot be captured.
    """
    mine, theirs = next(readings(module, inputs)), captured(model, inputs)
    proof, divergence = _proven(mine, theirs)
    unkept = {path for path in theirs.arrays if ".".join(path) not in shapes}
    if unkept and proof.classes():  # the Module may work out what is a buffer there
        other, apart = _proven(mine, theirs.holding(unkept))
        if len(other.classes()) < len(proof.classes()):
            proof, divergence = other, apart
    derived = [one for one in derive(proof.pairs) if isinstance(one, Derived)]
    found = [one for one in derived if _key(one) in shapes]
    arrays: dict[Path, list[Derived]] = {}
    for one in found:
        known = arrays.setdefault(one.array.path, [])
        if all((k.source, k.translation.steps) != (one.source, one.translation.steps) for k in known):
            known.append(one)
    pairing = _Couples(arrays, sources, shapes)
    couples = [couple for layer in targets.layers for couple in pairing.of(layer)]
    direct = {one.path for couple in couples for one in couple.pairs}
    own = (one for one in found if one.array.path in direct)  # the tables tell of the others
    unkept = (one for one in derived if _key(one) not in shapes)
    differences = [*dict.fromkeys((*map(_unkept, unkept), *_differences(own)))]
    if divergence is not None:
        differences.append(_diverging(divergence))
    return Structure(couples, differences)


def _proven(mine: Traced, theirs: Traced) -> tuple[Proof, Divergence | None]:
    proof = Proof(mine.flow, theirs.flow)
    return proof, probe(proof, mine, theirs)


def readings(module: Any, inputs: Sequence[Any], rng: Any = None) -> Iterator[Traced]:
    """A Module's program on a torch model's inputs: as they are, and with their channels last.

    Raises WeightsError where the Module cannot be called with either.
    """
    given = jax.tree.map(_array, tuple(inputs))
    last = jax.tree.map(lambda one: jnp.moveaxis(one, 1, -1) if _is_image(one) else one, given)
    found, errors = 0, list[str]()
    for candidate in [given, last] if any(map(_is_image, jax.tree.leaves(given))) else [given]:
        try:
            program = trace(module, candidate, rng)
        except Exception as error:  # noqa: BLE001 - of whatever a model's own code raises
            shapes = ", ".join(str(one.shape) for one in jax.tree.leaves(candidate))
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            errors.append(f"with {shapes}: {why[:300]}")
            continue
        found += 1
        yield program
    if not found:
        raise WeightsError(
            f"the Module cannot be called with these inputs, their axes as they are or the channels"
            f" last:\n{listed(errors)}"
        )


def _array(value: Any) -> jax.Array:
    return jnp.asarray(value.detach().numpy() if hasattr(value, "detach") else value)


def _is_image(value: jax.Array) -> bool:
    return value.ndim > 2 and jnp.issubdtype(value.dtype, jnp.floating)


def captured(model: Any, inputs: Sequence[Any]) -> Traced:
    """The program of a torch model, its arrays under their names.

    Raises LoweringError where it cannot be captured.
    """
    from bridge.adapters.torch import from_torch

    given = tensors(inputs)
    module = from_torch(model, *given, dynamic_batch=False, mode="eval")
    return trace(module, jax.tree.map(_array, given))


def tensors(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs of a torch model as it takes them."""
    import torch

    def tensor(value: Any) -> Any:
        return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))

    return jax.tree.map(tensor, tuple(inputs))


class _Couples:
    """The layers of a source to which the arrays of a Module's layers are proven to belong."""

    def __init__(
        self,
        arrays: Mapping[Path, Sequence[Derived]],
        sources: Iterable[Layer],
        shapes: Mapping[str, Shape],
    ) -> None:
        self.arrays, self.shapes = arrays, shapes
        self.holders: dict[str, list[Layer]] = {}
        for layer in sources:
            for slot in layer.slots:
                self.holders.setdefault(key_of(slot), []).append(layer)

    def of(self, target: Layer) -> Iterator[Couple]:
        """The couple of a layer of the Module; none where nothing is proven of it."""
        proven = [one for slot in target.slots for one in self.arrays.get(slot.path, ())]
        if not proven:
            return
        evidence = ", ".join(dict.fromkeys(one.evidence for one in proven))
        for source in dict.fromkeys(layer for one in proven for layer in self._holders(one)):
            couple = Couple(target, source, evidence)
            if source.kind == target.kind and not self._against(couple):
                yield couple
                return
        pairs = tuple(map(_pair, proven))
        yield Couple(target, _source(proven), evidence, (*pairs, *_copies(target, pairs)))

    def _holders(self, one: Derived) -> Sequence[Layer]:
        return self.holders.get(_key(one), ())

    def _against(self, couple: Couple) -> bool:
        """Whether the tables would put an array of a couple otherwise than the program uses it."""
        try:
            return not all(self._agrees(couple, slot) for slot in couple.target.slots)
        except WeightsError:  # an axis more, as in layers that a scan runs over
            return True

    def _agrees(self, couple: Couple, slot: Slot) -> bool:
        """Whether the tables put what is proven of an array where the program uses it."""
        given = {one.part: one for one in couple.source.slots}
        for one in self.arrays.get(slot.path, ()):
            turned = (
                translation(
                    source_axes(given[part], couple.source, couple.target),
                    slot.axes,
                    one.array.shape,
                    self.shapes[key_of(given[part])],
                    sizes_of(couple),
                )
                for part in slot.part.split(SUM)
                if part in given and given[part].path == one.source.path
            )
            wanted = one.translation.source_shape, one.translation.steps
            if all((other.source_shape, other.steps) != wanted for other in turned):
                return False
        return True


def _copies(target: Layer, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Pairs for arrays that the forward does not read, of the parts of others that it does."""
    known = by_path(pairs)
    parts = {slot.part: known[slot.path] for slot in target.slots if slot.path in known}
    for slot in target.slots:
        if slot.path not in known and slot.value is None:
            yield from (replace(pair, path=slot.path) for pair in parts.get(slot.part, ()))


def _source(proven: Iterable[Derived]) -> Layer:
    """The arrays of a source that belong together, and to no layer that a table knows."""
    found = dict.fromkeys(one.source.path for one in proven)
    return Layer(next(iter(found))[:-1], PROGRAM, tuple(Slot(ARRAY, path, "*axes") for path in found))


def _key(one: Derived) -> str:
    return ".".join(one.source.path)


def _pair(one: Derived) -> Pair:
    return Pair(_key(one), one.array.path, one.translation, one.evidence, one.offset)


def _unkept(one: Derived) -> str:
    return (
        f"{paths.join(one.array.path)}: its place in the source has {_key(one)}, which is not in the"
        f" state_dict: make it a parameter or a persistent buffer there"
    )


def _differences(found: Iterable[Derived]) -> Iterator[str]:
    """Where the two programs add another number to a variance."""
    for one in found:
        mine, theirs = one.epsilon
        if mine != theirs:
            place, there = paths.join(one.array.path), f"{shown(theirs)} in {_key(one)}"
            yield differs(place, "eps", shown(mine), there, shown(theirs))


def _diverging(found: Divergence) -> str:
    mine = [paths.join(use.array.path) for use in found.mine.uses]
    theirs = [".".join(use.array.path) for use in found.theirs.uses]
    where = f"before {mine[0]} ({theirs[0]})" if mine and theirs else "in the output"
    return (
        f"with the same random weights the two models differ first {where}, by {found.far:.1e} of the"
        f" value: a padding, an activation, a mask or a constant is another one; mend it, or type"
        f" strict=False to load all the same"
    )
