"""A box of an array is filled as the whole array is."""

import itertools

import numpy as np
import pytest

from bridge.core.narrowing import Uneven, narrowed
from bridge.core.translation import translation

CASES = {  # axes, the shape of the target, that of the source where it is open, the cuts of each axis
    "transposed": (("out in", "in out"), (6, 4), None, (2, 2)),
    "backwards": (("out in *spatial", "-*spatial in out"), (6, 4, 2), None, (3, 2, 1)),
    "backwards at both": (("-time out", "out -time"), (2, 6), None, (1, 3)),
    "heads": (("out in", "in out:heads out:features"), (3, 4, 5), None, (1, 2, 1)),
    "a part of a packed array": (("(1of3 out) in", "in out"), (6, 4), None, (2, 2)),
    "one of several": (("out in", "(1of3 in) out"), (6, 4), None, (3, 2)),
    "the end of an axis": (("out in", "|in out"), (6, 4), (4, 3), (3, 2)),
    "several factors, cut at the outer one": (
        ("in heads out", "in (heads out)"),
        (3, 12),
        None,
        (1, 2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_boxes_together_are_the_array(case):
    axes, shape, source_shape, cuts = CASES[case]
    sizes = {"heads": 4, "out": 3} if "several" in case and "heads" in axes[0] else None
    turned = translation(*axes, shape, source_shape, sizes)
    array = np.arange(np.prod(turned.source_shape)).reshape(turned.source_shape)
    whole, joined = np.full(shape, -1), np.full(shape, -1)
    turned.put(array, whole)
    steps = [range(0, size, size // count) for size, count in zip(shape, cuts, strict=True)]
    for starts in itertools.product(*steps):
        box = tuple(slice(first, first + step.step) for first, step in zip(starts, steps, strict=True))
        part = narrowed(turned, box)
        into = np.full([one.stop - one.start for one in box], -1)
        if part is not None:
            assert part.source_shape == turned.source_shape
            assert part.target_shape == into.shape
            part.put(array, into)
        joined[box] = into
    np.testing.assert_array_equal(joined, whole)


def test_a_box_that_cuts_an_axis_within_its_outer_factor():
    turned = translation("in heads out", "in (heads out)", (3, 12), None, {"heads": 4, "out": 3})
    with pytest.raises(Uneven):
        narrowed(turned, (slice(0, 3), slice(0, 4)))
