import numpy as np

import bridge as br
from bridge.core.translation import Atom, Translation
from bridge.weights.pairing import Couple
from bridge.weights.planning import planned
from bridge.weights.report import Pair
from bridge.weights.targets import array_layer, targets_of


class Row(br.Module):
    row: br.Parameter


def piece(start):
    """Two numbers, which go to two of four."""
    return Translation(((Atom("in", 2, 2, 0),),), ((Atom("in", 2, 4, start),),))


def test_pieces_that_overlap_do_not_count_for_what_stays_empty():
    targets = targets_of(Row(np.zeros(4, np.float32)))
    (layer,) = targets.layers
    pairs = tuple(Pair(key, ("row",), piece(start), "") for key, start in (("a", 0), ("b", 1)))
    couple = Couple(layer, array_layer(("a",)), "", pairs)
    match = planned(targets, {"a": (2,), "b": (2,)}, [couple], [], {})
    assert match.problems == (
        "row: would be a and b at once: it is used in two places, and each has its own array in the"
        " source; make it two in the Module, or tie the source's",
        "row: only 3 of its 4 numbers are known to be in the source; the forward does not tell where"
        " the others are",
    )
