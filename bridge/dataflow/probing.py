"""What structure leaves open, decided by numbers: two programs with the same random arrays are run.

Blocks that look alike are tried in every order; the value that enters the next pair of blocks shows
which order is right. Values are compared sorted, since the two programs may order axes differently.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import bridge.core.paths as paths
from bridge.core.paths import Path
from bridge.dataflow.comparing import unordered_distance
from bridge.dataflow.deriving import Derived, derive
from bridge.dataflow.flow import (
    CENTRE,
    FREE,
    KERNEL,
    LOOKED_UP,
    SCALE,
    SHIFT,
    VARIANCE,
    Array,
    Block,
    Use,
    layout,
)
from bridge.dataflow.proving import ANCHORS, Class, Pair, Proof
from bridge.dataflow.tracing import OUTPUT, Traced, place

# Two runs with the same arrays are so near. Orders are the same where the values are as near but for
# rounding, and apart where they are much farther; arrays that matter change the values so much.
NEAR, ROUNDING, SAME, APART, SENSITIVE = 2e-5, 1e-6, 5.0, 30.0, 1e-3
# Farther apart than this, two programs are not the same.
DIVERGED = 1e-3
LARGEST = 4
# Values neither vanish nor grow with such matrices, and what all of them have in common stays small: it
# would hide what sets them apart.
SPREAD = 1.0
_SPREADS = {SCALE: (1.0, 0.2), VARIANCE: (1.0, 0.2), SHIFT: (0.0, 0.2), CENTRE: (0.0, 0.2)}
_KEPT = frozenset({"", FREE, LOOKED_UP})
PROBED = "probe: the other orders give other values, {:.0e} against {:.0e}"
EQUIVALENT = "any order gives the same values"


@dataclass(frozen=True)
class Divergence:
    """The first block to which the two programs, with the same arrays, give other values; how far."""

    mine: Block
    theirs: Block
    far: float


def probe(proof: Proof, mine: Traced, theirs: Traced) -> Divergence | None:
    """Settles the classes of blocks, and of parts of blocks, of which one order alone is right.

    Gives where the programs differ then, if they do and no block is left over.
    """
    probing = _Probing(proof, mine, theirs)
    while any(probing.decide(one) for one in proof.classes() if _open(one)):
        pass
    if proof.classes():
        return None
    found = probing.divergence()
    while found is not None and probing.divide(found):
        found = probing.divergence()
    return found


def _open(alike: Class) -> bool:
    return len(alike[0]) == len(alike[1]) <= LARGEST


class _Probing:
    """Two programs that are run with the same random arrays, as far as is known which are the same."""

    def __init__(self, proof: Proof, mine: Traced, theirs: Traced) -> None:
        self.proof = proof
        self.mine, self.theirs = _random(mine), _random(theirs)
        graphs = zip((mine, theirs), proof.graphs, strict=True)
        self.run, run = (
            traced.observe((block.start, block.operand) for block in graph.blocks if block.start)
            for traced, graph in graphs
        )
        self.wanted = run(self.theirs)
        self.there = self.run(self.mine).keys()

    def decide(self, alike: Class) -> bool:
        """Whether one order of a class gives the values of the other program; then it is settled."""
        ahead = list(self._ahead(alike[0]))
        if not ahead or self._far((), ahead) < SENSITIVE:  # where nothing shows, nothing is decided
            return False
        orders = {
            order: self._far(list(map(_bare, alike[0], order)), ahead)
            for order in itertools.permutations(alike[1])
        }
        best, least = min(orders.items(), key=lambda one: one[1])
        near = [far for far in orders.values() if far <= SAME * max(least, ROUNDING)]
        apart = [far for far in orders.values() if far >= APART * max(least, ROUNDING)]
        if least > NEAR or len(near) + len(apart) < len(orders):
            return False
        evidence = EQUIVALENT if len(near) > 1 else PROBED.format(least, min(apart, default=1.0))
        self.proof.settle(map(Pair, alike[0], best, [evidence] * len(best)))
        return True

    def divergence(self) -> Divergence | None:
        """The first pair of blocks whose values are not the same."""
        values = self.run(self._arrays(()))
        order = {block: number for number, block in enumerate(self.proof.graphs[0].blocks)}
        whole = [pair for pair in self.proof.pairs if pair.mine in order and self._seen(pair)]
        for pair in sorted(whole, key=lambda pair: order[pair.mine]):
            if np.issubdtype(values[_at(pair.mine)].dtype, np.integer):
                continue  # places in a table, which libraries write down in their own way
            far = _distance(values, self.wanted, pair.mine, pair.theirs)
            if far > DIVERGED:
                return Divergence(pair.mine, pair.theirs, far)
        return None

    def divide(self, found: Divergence) -> bool:
        """Whether another order of the parts of one block before makes the values the same."""
        ahead = [(found.mine, found.theirs)]
        for pair in reversed(list(self.proof.pairs)):
            mine, theirs = self.proof.parts(pair)
            if not 2 <= len(mine) <= LARGEST:
                continue
            orders = {
                order: self._far(list(map(_bare, mine, order)), ahead, without=pair)
                for order in itertools.permutations(theirs)
            }
            best, least = min(orders.items(), key=lambda one: one[1])
            rest = [far for order, far in orders.items() if order is not best]
            if least <= NEAR and min(rest) >= APART * max(least, ROUNDING):
                evidence = PROBED.format(least, min(rest))
                self.proof.divide(pair, map(Pair, mine, best, [evidence] * len(mine)))
                return True
        return False

    def _far(
        self,
        pairs: Sequence[Pair],
        ahead: Iterable[tuple[Block, Block]],
        without: Pair | None = None,
    ) -> float:
        """How far the values ahead are from the other program's, if these are pairs as well."""
        values = self.run(self._arrays(pairs, without))
        return max(_distance(values, self.wanted, *both) for both in ahead)

    def _ahead(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Block]]:
        """The pairs into which the values of blocks go next."""
        partner = {pair.mine: pair for pair in self.proof.pairs}
        todo, seen = list(blocks), set[Block]()
        while todo:
            for block, _ in self.proof.graphs[0].after[todo.pop()]:
                if block in seen:
                    continue
                seen.add(block)
                pair = partner.get(block)
                if pair is not None and self._seen(pair):
                    yield pair.mine, pair.theirs
                else:
                    todo.append(block)

    def _seen(self, pair: Pair) -> bool:
        """Whether the value that enters two blocks is one that both programs have."""
        if pair.mine.start is None:
            return pair.mine.title == OUTPUT
        # What scales a normalised value may as well scale what it is multiplied by.
        anchored = pair.mine.uses[0].role in ANCHORS
        return anchored and _at(pair.mine) in self.there and _at(pair.theirs) in self.wanted

    def _arrays(self, pairs: Sequence[Pair], without: Pair | None = None) -> Mapping[Path, np.ndarray]:
        """The arrays of the first program, made of those of the second where they are the same."""
        arrays = {path: array.copy() for path, array in self.mine.items()}
        known = [pair for pair in self.proof.pairs if pair is not without]
        for derived in derive([*known, *pairs]):
            if isinstance(derived, Derived):
                source = self.theirs[derived.source.path] + np.float32(derived.offset)
                derived.translation.put(source, arrays[derived.array.path])
        return arrays


def _at(block: Block) -> str:
    """Where the value that enters a block is among those observed."""
    return OUTPUT if block.start is None else place(block.start, block.operand)


def _bare(mine: Block, theirs: Block) -> Pair:
    return Pair(mine, theirs, "")


def _distance(
    values: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], mine: Block, theirs: Block
) -> float:
    """How far the values are that enter two blocks, their order left aside."""
    return unordered_distance(values[_at(mine)], wanted[_at(theirs)], is_padded(mine))


def is_padded(block: Block) -> bool:
    """Whether what enters a block may be padded there, or have been before."""
    return bool(block.uses) and block.uses[0].role == KERNEL


def _random(traced: Traced) -> dict[Path, np.ndarray]:
    """Random numbers for the arrays of a program.

    Whole numbers stay: they are places, not weights.
    """
    uses = {use.array: use for block in traced.flow.blocks for use in block.uses}
    return {
        path: _numbers(array, uses.get(array))
        if jnp.issubdtype(array.dtype, jnp.floating)
        else np.asarray(traced.arrays[path])
        for path, array in traced.flow.arrays.items()
    }


def _numbers(array: Array, use: Use | None) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(paths.join(array.path).encode()))
    role = use.role if use else ""
    middle, spread = _SPREADS.get(role, (0.0, SPREAD))
    if use is not None and role not in _SPREADS:
        summed = (f.size for dims in layout(use) for f in dims if f.label not in _KEPT)
        spread /= math.sqrt(math.prod(summed))
    return (middle + spread * rng.uniform(-1.7, 1.7, array.shape)).astype(array.dtype)
