"""Axes in words: permutations, reshapes and parts of arrays, derived and invertible."""

import numpy as np
import pytest

from bridge.core.errors import WeightsError
from bridge.core.translation import labelled, translation


def counted(shape):
    return np.arange(np.prod(shape)).reshape(shape)


CASES = {
    "linear": ("out in", "in out", (5, 7), lambda w: w.T),
    "square": ("out in", "in out", (7, 7), lambda w: w.T),
    "same": ("out in", "out in", (5, 7), lambda w: w),
    "convolution 1d": ("out in *spatial", "*spatial in out", (3, 5, 7), lambda w: w.transpose(2, 1, 0)),
    "convolution 3d": (
        "out in *spatial",
        "*spatial in out",
        (2, 3, 5, 7, 11),
        lambda w: w.transpose(2, 3, 4, 1, 0),
    ),
    "heads out": ("out in", "in out:heads out:features", (7, 2, 3), lambda w: w.T.reshape(7, 2, 3)),
    "heads in": ("out in", "in:heads in:features out", (2, 3, 7), lambda w: w.T.reshape(2, 3, 7)),
    "heads bias": ("out", "out:heads out:features", (2, 3), lambda b: b.reshape(2, 3)),
    "leading ones": ("features", "*1 features", (1, 1, 5), lambda b: b.reshape(1, 1, 5)),
    "trailing ones": ("out", "out *1", (5, 1, 1), lambda b: b.reshape(5, 1, 1)),
    "no ones": ("features", "*1 features", (5,), lambda b: b),
    "a number": ("", "", (), lambda b: b),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_one_writes_by_hand_and_goes_back(case):
    source, target, shape, by_hand = CASES[case]
    there = translation(source, target, shape)
    array = counted(there.source_shape)
    assert there.target_shape == shape
    np.testing.assert_array_equal(there(array), by_hand(array))
    np.testing.assert_array_equal(there.inverse()(there(array)), array)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_part_of_a_packed_array(index):
    packed = counted((3 * 10, 7))
    taken = translation(f"({index}of3 out) in", "in out:heads out:features", (7, 2, 5))
    assert taken.source_shape == packed.shape
    np.testing.assert_array_equal(taken(packed), np.split(packed, 3)[index].T.reshape(7, 2, 5))
    with pytest.raises(WeightsError, match="is a part of an array; it has no inverse"):
        taken.inverse()


def test_the_sizes_of_one_part_tell_those_of_the_packed_array():
    assert translation("out in", "(1of3 out) in", (15, 7)).source_shape == (5, 7)


def test_the_argument_is_not_changed_and_a_view_may_share_it():
    array = counted((5, 7))
    before = array.copy()
    out = translation("out in", "in out", (7, 5))(array)
    np.testing.assert_array_equal(array, before)
    assert np.shares_memory(out, array)


@pytest.mark.parametrize(
    ("source", "target", "shape", "text"),
    [
        (
            "out in",
            "in features",
            (5, 7),
            "the axes (out in) and (in features) do not name the same things",
        ),
        ("out in", "in out", (5, 7, 3), "(in out) names 2 axes and the array has 3"),
        ("out", "out 1", (5, 7), "the axes (out 1) do not divide the shape (5, 7)"),
        ("out", "(1of3 out)", (5,), "the axes ((1of3 out)) do not divide the shape (5,)"),
        ("out in", "(out in)", (6,), "the axes ((out in)) of (6,) leave the size of in open"),
    ],
)
def test_axes_that_do_not_agree(source, target, shape, text):
    with pytest.raises(WeightsError) as caught:
        translation(source, target, shape)
    assert str(caught.value) == text


def test_it_prints_in_words():
    assert str(translation("out in", "in out:heads out:features", (7, 2, 3))) == (
        "(heads features) in -> in heads features"
    )
    assert str(translation("out in *spatial", "*spatial in out", (3, 3, 5, 7))) == (
        "out in spatial1 spatial2 -> spatial1 spatial2 in out"
    )
    assert str(translation("out in", "out in", (5, 7))) == "out in"


def test_sizes_with_their_words():
    assert labelled("out in", (5, 7)) == "out=5, in=7"
    assert labelled("(0of3 out) in", (15, 7)) == "(0of3 out)=15, in=7"
    assert labelled("out in", (5, 7, 3)) == "shape (5, 7, 3)"
