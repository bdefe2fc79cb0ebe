"""Which arrays of two programs are one, from what both do with them: no name is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bridge.dataflow.flow import (
    FREE,
    KERNEL,
    MATRIX,
    TABLE,
    Block,
    Cut,
    Feed,
    Flow,
    Use,
    layout,
)

# Ops on the way from one block to the next that every library writes alike.
_TELLING = frozenset({"tanh", "logistic", "erf", "sin", "cos", "sub.1", "div.1"})
ANCHORS = frozenset({MATRIX, KERNEL, TABLE})
PROVED = "proved"

Colours = Sequence[Mapping[Block, Hashable]]


@dataclass(frozen=True)
class Pair:
    """A block of each program that are one, and how that is known."""

    mine: Block
    theirs: Block
    evidence: str


Class = tuple[list[Block], list[Block]]
"""Blocks of the two programs among which structure alone decides nothing."""


class Proof:
    """The pairs of blocks that the structure of two programs leaves no choice about.

    `settle` adds one that is known otherwise, and what follows from it.
    """

    def __init__(self, mine: Flow, theirs: Flow) -> None:
        self.graphs = _Graph(_blocks(mine, theirs)), _Graph(_blocks(theirs, mine))
        self.pairs: list[Pair] = []
        self._anchors: dict[Block, Hashable] = {}
        self._prove()

    def settle(self, pairs: Iterable[Pair]) -> None:
        """Adds pairs, and others that these leave no choice about."""
        for pair in pairs:
            self._add(pair)
        self._prove()

    def parts(self, pair: Pair) -> Class:
        """The parts into which both programs take the value of a pair; none where they differ."""
        blocks = (pair.mine, pair.theirs)
        found = [
            [_part(block, cut) for cut in _cuts(block, _taken(graph.blocks))]
            for block, graph in zip(blocks, self.graphs, strict=True)
        ]
        alike = [sorted(map(_colour, parts), key=repr) for parts in found]
        return (found[0], found[1]) if alike[0] == alike[1] else ([], [])

    def divide(self, pair: Pair, pairs: Iterable[Pair]) -> None:
        """Puts pairs of parts in the place of a pair."""
        at = self.pairs.index(pair)
        self.pairs[at : at + 1] = pairs

    def classes(self) -> list[Class]:
        """The blocks that are in no pair, those that look alike together, in the order of their use."""
        colours = _stable(self.graphs, self._anchors)
        classes: dict[Hashable, Class] = {}
        for side, (graph, colour) in enumerate(zip(self.graphs, colours, strict=True)):
            for block in graph.blocks:
                if block not in self._anchors and block.uses:
                    classes.setdefault(colour[block], ([], []))[side].append(block)
        return list(classes.values())

    def _add(self, pair: Pair) -> None:
        self._anchors.update(dict.fromkeys((pair.mine, pair.theirs), ("pair", len(self.pairs))))
        self.pairs.append(pair)

    def _prove(self) -> None:
        while found := _anchored(self.graphs, self._anchors):
            for pair in found:
                self._add(Pair(*pair, PROVED))


class _Graph:
    """Blocks, the output among them, with what feeds each and what each feeds."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.before: dict[Block, list[tuple[Block, Hashable]]] = {block: [] for block in blocks}
        self.after: dict[Block, list[tuple[Block, Hashable]]] = {block: [] for block in blocks}
        for block in blocks:
            labels: dict[Block, set[str]] = {}
            for feed in block.feeders:
                labels.setdefault(feed.origin, set()).update(feed.ops & _TELLING)
            for origin, ops in labels.items():
                self.before[block].append((origin, tuple(sorted(ops))))
                self.after[origin].append((block, tuple(sorted(ops))))


def _anchored(
    graphs: tuple[_Graph, _Graph], anchors: Mapping[Block, Hashable]
) -> list[tuple[Block, Block]]:
    """New pairs: blocks whose colour is the only one of its kind on both sides."""
    for telling in (False, True):
        for colours in _colourings(graphs, anchors, telling):
            counts = [Counter(colour.values()) for colour in colours]
            there = {colour: block for block, colour in colours[1].items()}
            found = [
                (block, there[colour])
                for block, colour in colours[0].items()
                if block not in anchors and counts[0][colour] == counts[1][colour] == 1
            ]
            if found:
                return found
    return []


def _stable(graphs: tuple[_Graph, _Graph], anchors: Mapping[Block, Hashable]) -> Colours:
    """The finest colours that there are."""
    *_, last = _colourings(graphs, anchors, True)
    return last


def _colourings(
    graphs: tuple[_Graph, _Graph], anchors: Mapping[Block, Hashable], telling: bool
) -> Iterator[Colours]:
    """Finer and finer colours of the blocks, until there are no finer ones."""
    colours: Colours = [
        {block: anchors.get(block, _colour(block)) for block in graph.blocks} for graph in graphs
    ]
    kinds = 0
    while (count := sum(len(set(colour.values())) for colour in colours)) > kinds:
        yield colours
        kinds, colours = count, _refined(graphs, colours, anchors, telling)


def _refined(
    graphs: tuple[_Graph, _Graph],
    colours: Colours,
    anchors: Mapping[Block, Hashable],
    telling: bool,
) -> Colours:
    """The colours in which a block's neighbours show as well, as numbers that both sides share."""
    numbers: dict[Hashable, int] = {}
    found: list[Mapping[Block, Hashable]] = []
    for graph, colour in zip(graphs, colours, strict=True):
        new: dict[Block, Hashable] = {}
        for block in graph.blocks:
            around = tuple(
                tuple(
                    sorted(repr((colour[other], ops if telling else ())) for other, ops in near[block])
                )
                for near in (graph.before, graph.after)
            )
            number = numbers.setdefault((colour[block], around), len(numbers))
            new[block] = anchors.get(block, number)
        found.append(new)
    return found


def _colour(block: Block) -> Hashable:
    """What a block is by itself: the roles and sizes of its arrays."""
    return block.title if not block.uses else tuple(sorted(map(repr, map(signature, block.uses))))


def signature(use: Use) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The role of a use, and how many places its axes have by what they are to it."""
    sizes: dict[str, int] = {}
    for dimension in layout(use):
        for factor in dimension:
            sizes[factor.label] = sizes.get(factor.label, 1) * factor.size
    return use.role, tuple(sorted((label, size) for label, size in sizes.items() if size > 1))


def _blocks(flow: Flow, other: Flow) -> list[Block]:
    """The blocks of a program, the inputs and the output, cut where the other program has the parts."""
    whole = {_anchor(block) for block in other.blocks}
    merged = _merged([*flow.inputs, *flow.blocks, flow.output])
    taken = _taken(merged)
    parts: dict[Block, list[tuple[Cut, Block]]] = {}
    for block in merged:
        cuts = _cuts(block, taken) if _anchor(block) not in whole else []
        parts[block] = [(cut, _part(block, cut)) for cut in cuts]
    if not any(parts.values()):
        return merged
    result = [piece for block in merged for piece in ([p for _, p in parts[block]] or [block])]
    for block in result:
        block.feeders = frozenset(_fed(block.feeders, parts))
    return result


def _anchor(block: Block) -> Hashable:
    return next((signature(use) for use in block.uses if use.role in ANCHORS), block)


def _taken(blocks: Iterable[Block]) -> dict[Block, set[Cut]]:
    """What blocks take of the outputs of others, by whose they are."""
    found: dict[Block, set[Cut]] = {}
    for feed in (feed for block in blocks for feed in block.feeders if feed.cuts):
        found.setdefault(feed.origin, set()).update(feed.cuts)
    return found


def _cuts(block: Block, taken: Mapping[Block, set[Cut]]) -> list[Cut]:
    """Where the output of a block is taken apart on its way to others."""
    axes = {
        factor.axis.one
        for use in block.uses
        if use.role in ANCHORS
        for dimension in layout(use)
        for factor in dimension
        if factor.label == FREE and factor.axis is not None
    }
    found = {(axis.one, start, stop) for axis, start, stop in taken.get(block, ()) if axis.one in axes}
    outer = {axis for axis, _, _ in found}
    return sorted(found, key=lambda cut: cut[1:]) if len(outer) == 1 else []


def _part(block: Block, cut: Cut) -> Block:
    """The part of a block that makes one part of its value."""
    uses = [
        replace(use, segment=cut)
        for use in block.uses
        if not use.cuts or any((axis.one, start, stop) == cut for axis, start, stop in use.cuts)
    ]
    return replace(block, uses=uses)


def _fed(feeders: Iterable[Feed], parts: Mapping[Block, Sequence[tuple[Cut, Block]]]) -> Iterator[Feed]:
    for feed in feeders:
        taken = {(axis.one, start, stop) for axis, start, stop in feed.cuts}
        pieces = parts.get(feed.origin, ())
        chosen = [piece for cut, piece in pieces if cut in taken] or [piece for _, piece in pieces]
        yield from (replace(feed, origin=piece) for piece in chosen or [feed.origin])


def _merged(blocks: Sequence[Block]) -> list[Block]:
    """The blocks, those that only scale and shift one normalised value in one."""
    own = {block: replace(block, uses=list(block.uses)) for block in blocks}
    for block in own.values():
        block.feeders = frozenset(replace(f, origin=own[f.origin]) for f in block.feeders)
    left = list(own.values())
    for block in list(left):
        for first in {feed.origin for feed in block.feeders}:
            if _joins(first, block, left):
                rest = {feed for feed in block.feeders if feed.origin is not first}
                block.feeders = frozenset(rest) | first.feeders
                block.uses[:0] = first.uses
                left.remove(first)
    return left


def _joins(first: Block, second: Block, blocks: Iterable[Block]) -> bool:
    """Whether a block scales what another one shifts, and nothing comes between."""
    if not (_elementwise(first) and _elementwise(second)):
        return False
    others = {feed.origin for feed in second.feeders} - {first}
    alone = all(
        feed.origin is not first for block in blocks if block is not second for feed in block.feeders
    )
    return alone and others <= {feed.origin for feed in first.feeders}


def _elementwise(block: Block) -> bool:
    return bool(block.uses) and not any(use.role in ANCHORS for use in block.uses)
