"""Which layer of a source belongs to which layer of a Module: by kind, size, names and numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bridge.core.errors import WeightsError
from bridge.core.layers import Layer, Slot
from bridge.core.paths import Path
from bridge.core.translation import translation
from bridge.weights.catalogue import INCOMPLETE, group_of, torch_row, torch_slots
from bridge.weights.names import Family, alike, contradict, exclusive, families, telling, words
from bridge.weights.report import Pair
from bridge.weights.targets import Leaf

Shape = tuple[int, ...]
Score = Callable[[frozenset[str], frozenset[str], frozenset[str]], float]
# The parts that decide whether two layers are of one size, the first that is there.
LEADING = (
    *("weight", "weight.v", "weight.raw", "weight_hh", "weight_hh.i", "weight_hh.r"),
    *("mean", "bias", "array"),
)


@dataclass(frozen=True)
class Couple:
    """A layer of the Module, the layer of the source that goes there, and why.

    `pairs` are arrays of which more is known than the tables say.
    """

    target: Layer
    source: Layer
    evidence: str
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Sized:
    """A layer, the sizes of its leading array in PyTorch's order of axes, and the words of its name."""

    layer: Layer
    size: Shape | None
    words: tuple[str, ...]

    @property
    def group(self) -> str:
        """What kind of layer it is, as far as a bare state_dict tells."""
        return group_of(self.layer.kind)


def torch_axes(kind: str, part: str) -> str:
    """How torch orders the axes of a part of a kind of layer; as they are where it has none."""
    found = [slot.axes for slot in torch_slots(kind) if slot.part == part]
    return found[0] if found else "*axes"


def source_axes(slot: Slot, source: Layer, target: Layer) -> str:
    """How a source's array is ordered: as its own row says, or as torch keeps the target's kind."""
    return slot.axes if source.kind == target.kind else torch_axes(target.kind, slot.part)


def sized_target(layer: Layer, leaves: Mapping[Path, Leaf]) -> Sized:
    """A layer of the Module as pairing looks at it."""
    return _sized(layer, lambda slot: leaves[slot.path].shape)


def sized_source(layer: Layer, shapes: Mapping[str, Shape]) -> Sized:
    """A layer of the source as pairing looks at it."""
    return _sized(layer, lambda slot: shapes[key_of(slot)])


def key_of(slot: Slot) -> str:
    """The key of a source's array."""
    return ".".join(slot.path)


class Rivals:
    """Layers of the source, by what a layer of the Module may be for all that is known."""

    def __init__(self, sources: Sequence[Sized]) -> None:
        self._alike = _grouped(sources)
        self._found: dict[Hashable, Sequence[Sized]] = {}

    def of(self, target: Sized) -> Sequence[Sized]:
        """The layers that nothing but the names could keep apart from one, and the names do not.

        It is the same object for targets that differ in nothing that matters here.
        """
        named, kind = frozenset(target.words), target.layer.kind
        key = (kind, target.size, exclusive(named))
        if key not in self._found:
            self._found[key] = [
                source
                for source in self._alike.get((target.group, target.size), ())
                if not contradict(named, frozenset(source.words))
                and _kinds_agree(target.layer, source.layer)
            ]
        return self._found[key]


def _sized(layer: Layer, shape_of: Callable[[Slot], Shape]) -> Sized:
    by_part = {slot.part: slot for slot in reversed(layer.slots)}
    leading = next((by_part[part] for part in LEADING if part in by_part), None)
    size = None if leading is None else _size(layer, leading, shape_of(leading))
    extra = ("embedding",) if layer.kind == "embedding" else ()
    return Sized(layer, size, (*words(".".join((*layer.path, layer.role))), *extra))


def _size(layer: Layer, slot: Slot, shape: Shape) -> Shape | None:
    """The sizes of an array in torch's order; None where its axes are not what its row says."""
    if torch_row(layer.kind) is None:  # an array alone, or a layer of a bare state_dict
        return shape
    try:
        axes = torch_axes(layer.kind, slot.part)
        return translation(axes, slot.axes, shape, sizes=layer.sizes).source_shape
    except WeightsError:
        return None


def pair(targets: Sequence[Sized], sources: Sequence[Sized]) -> list[Couple]:
    """The couples that kind, size, names and numbers settle; what they do not is in none."""
    found: list[Couple] = []
    for mine, theirs in _buckets(targets, sources):
        found.extend(_pair_alike(mine, theirs))
    return found


def guess(targets: Sequence[Sized], sources: Sequence[Sized]) -> list[Couple]:
    """The likely couples among what does not fit, for the sentences of an error alone."""
    found: list[Couple] = []
    for group in dict.fromkeys(target.group for target in targets):
        mine = [target for target in targets if target.group == group]
        theirs = [source for source in sources if source.group in (group, INCOMPLETE)]
        for same in (True, False):
            found += _by_names(mine, theirs, 1, same, _likely)
            mine, theirs = _left(mine, theirs, found)
        if len(mine) == len(theirs) == 1 and not (mine[0].words and theirs[0].words):
            found.append(Couple(mine[0].layer, theirs[0].layer, "no other is left"))
    return found


def _likely(one: frozenset[str], other: frozenset[str], _everywhere: frozenset[str]) -> float:
    score = alike(one, other)
    return score if score > 0.3 else 0.0


def _buckets(
    targets: Sequence[Sized], sources: Sequence[Sized]
) -> Iterator[tuple[list[Sized], list[Sized]]]:
    theirs = _grouped(sources)
    for key, mine in _grouped(targets).items():
        if key[1] is not None and key in theirs:
            yield mine, theirs[key]


def _grouped(layers: Iterable[Sized]) -> dict[tuple[str, Shape | None], list[Sized]]:
    """Layers of one kind and one size together."""
    found: dict[tuple[str, Shape | None], list[Sized]] = {}
    for one in layers:
        found.setdefault((one.group, one.size), []).append(one)
    return found


def _pair_alike(targets: list[Sized], sources: list[Sized]) -> list[Couple]:
    """Couples among layers of one kind and one size."""
    alone = len(_families(targets, None)) == len(_families(sources, None)) == 1
    found: list[Couple] = []
    for depth, same in ((None, True), (1, True), (1, False)):
        found += _by_names(targets, sources, depth, same, telling)
        targets, sources = _left(targets, sources, found)
        found += _what_remains(targets, sources, depth, same, alone)
        targets, sources = _left(targets, sources, found)
    return found


def _left(
    targets: list[Sized], sources: list[Sized], couples: Sequence[Couple]
) -> tuple[list[Sized], list[Sized]]:
    """Those of both sides that are in no couple."""
    done = {id(layer) for couple in couples for layer in (couple.target, couple.source)}
    mine = [target for target in targets if id(target.layer) not in done]
    return mine, [source for source in sources if id(source.layer) not in done]


def _by_names(
    targets: list[Sized], sources: list[Sized], depth: int | None, same: bool, score: Score
) -> list[Couple]:
    """Couples of families whose names speak for each other more than for any other.

    `same` asks for the same numbers in both, up to where counting starts; without it the members
    with the same numbers are paired.
    """
    mine, theirs = _families(targets, depth), _families(sources, depth)
    couples: list[Couple] = []
    while chosen := _mutual(_scores(mine, theirs, same, score)):
        for i, j in chosen:
            common = sorted(mine[i].words & theirs[j].words)
            couples += _members(mine[i], theirs[j], same, "names share " + ", ".join(common))
        mine = [family for i, family in enumerate(mine) if i not in {i for i, _ in chosen}]
        theirs = [family for j, family in enumerate(theirs) if j not in {j for _, j in chosen}]
    return couples


def _families(members: Sequence[Sized], depth: int | None) -> list[Family[Sized]]:
    return families([(member, member.words) for member in members], depth)


def _scores(
    mine: Sequence[Family[Sized]], theirs: Sequence[Family[Sized]], same: bool, score: Score
) -> Mapping[tuple[int, int], float]:
    if not mine or not theirs:
        return {}
    everywhere = frozenset.intersection(*(family.words for family in (*mine, *theirs)))
    scores = {
        (i, j): score(one.words, other.words, everywhere)
        for i, one in enumerate(mine)
        for j, other in enumerate(theirs)
        if _joinable(one, other, same)
    }
    return {pair: value for pair, value in scores.items() if value > 0}


def _joinable(one: Family[Sized], other: Family[Sized], same: bool) -> bool:
    if same and one.ranks.keys() != other.ranks.keys():
        return False
    if not same and not one.members.keys() & other.members.keys():
        return False
    target, source = next(iter(one.members.values())), next(iter(other.members.values()))
    return _kinds_agree(target.layer, source.layer)


def _kinds_agree(target: Layer, source: Layer) -> bool:
    if source.kind in (target.kind, INCOMPLETE):
        return True
    parts = {slot.part for slot in source.slots}
    table = target.kind == "embedding" and "bias" in parts
    return source.kind == group_of(target.kind) and not table


def _mutual(scores: Mapping[tuple[int, int], float]) -> list[tuple[int, int]]:
    """The pairs that are better than any other pair of either of the two."""
    best: dict[tuple[str, int], tuple[float, int]] = {}  # its best score, and how many have that
    for (i, j), score in scores.items():
        for one in (("mine", i), ("theirs", j)):
            most, count = best.get(one, (score, 0))
            if score >= most:
                best[one] = score, count + 1 if score == most else 1
    return [
        (i, j) for (i, j), score in scores.items() if best["mine", i] == best["theirs", j] == (score, 1)
    ]


def _members(one: Family[Sized], other: Family[Sized], same: bool, evidence: str) -> Iterator[Couple]:
    mine, theirs = (one.ranks, other.ranks) if same else (one.members, other.members)
    for numbers, target in mine.items():
        if numbers in theirs:
            number = "; number " + ".".join(map(str, numbers)) if numbers else ""
            yield Couple(target.layer, theirs[numbers].layer, evidence + number)


def _what_remains(
    targets: list[Sized], sources: list[Sized], depth: int | None, same: bool, alone: bool
) -> list[Couple]:
    """The couples of the last family on each side, where the names do not speak against it.

    Families that never had a rival may have names of which each side understands nothing.
    """
    mine, theirs = _families(targets, depth), _families(sources, depth)
    if len(mine) != 1 or len(theirs) != 1 or not _joinable(mine[0], theirs[0], same):
        return []
    one, other = mine[0], theirs[0]
    common = sorted(one.words & other.words)
    strange = bool(one.words and other.words and not common)
    if contradict(one.words, other.words) or (strange and not (alone and same)):
        return []
    evidence = "no other of this kind and size" + ("" if alone else " is left")
    shared = "; names share " + ", ".join(common) if common else ""
    return [*_members(one, other, same, evidence + shared)]
