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
    "backwards": (
        "in out *spatial",
        "-*spatial in out",
        (2, 3, 5, 7),
        lambda w: w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1),
    ),
    "backwards at both": ("-time out", "out -time", (3, 5), lambda w: w.T),
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
    assert taken.fills
    assert not taken.exhausts
    np.testing.assert_array_equal(taken(packed), np.split(packed, 3)[index].T.reshape(7, 2, 5))
    back = np.zeros_like(packed)
    taken.inverse().put(taken(packed), back)
    np.testing.assert_array_equal(np.split(back, 3)[index], np.split(packed, 3)[index])
    assert back.sum() == np.split(packed, 3)[index].sum()


def test_parts_in_another_order_fill_an_array():
    first, second = counted((4 * 5, 2)), 1000 + counted((4 * 5, 3))
    into = np.full((2 + 3, 4 * 5), -1)
    for place, gate in enumerate((0, 2, 1, 3)):
        pieces = ("in| ({}of4 out)", first), ("|in ({}of4 out)", second)
        for axes, array in pieces:
            piece = translation(f"({gate}of4 out) in", axes.format(place), into.shape, array.shape)
            assert not piece.fills
            piece.put(array, into)
    by_hand = np.concatenate([first.T, second.T]).reshape(5, 4, 5)[:, [0, 2, 1, 3]].reshape(5, 20)
    np.testing.assert_array_equal(into, by_hand)


def test_what_fills_one_region_is_added():
    one, other = counted((3,)), 10 * counted((3,))
    into = np.empty(6, int)
    piece = translation("out", "(1of2 out)", (6,))
    piece.put(one, into)
    piece.put(other, into, add=True)
    np.testing.assert_array_equal(into[3:], one + other)


def test_sizes_that_no_shape_shows():
    axes = "(groups in) out *spatial", "(groups out) in -*spatial"
    there = translation(*axes, (6, 5, 7), sizes={"groups": 2})
    assert there.source_shape == (10, 3, 7)
    kernel = counted((10, 3, 7))
    by_hand = kernel[:, :, ::-1].reshape(2, 5, 3, 7).swapaxes(1, 2).reshape(6, 5, 7)
    np.testing.assert_array_equal(there(kernel), by_hand)
    ungrouped = translation(axes[0], "-*spatial in out", (7, 5, 3), sizes={"groups": 1})
    assert ungrouped.source_shape == (5, 3, 7)
    with pytest.raises(WeightsError, match="do not name the same things"):
        translation(axes[0], "-*spatial in out", (7, 5, 3), sizes={"groups": 2})


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
        ("out in", "in| out", (7, 5), "the axes (in| out) of (7, 5) leave the size of in open"),
        ("out", "out|in", (5,), "'out|in' is no word for an axis"),
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


def test_it_prints_parts():
    piece = translation("(1of4 out) -in", "in| (2of4 out)", (8, 12), (12, 5))
    assert str(piece) == "(1of4 out) -in -> in[0:5] (2of4 out)"
    assert piece.region == ((0, 5, 8), (2, 1, 4), (0, 3, 3))


SAME = [  # two ways to write one translation, the shape of the target
    (("out in", "in out"), ("a b", "b a"), (7, 5)),
    (("out in", "in out"), ("(h f) in", "in (h f)"), (7, 6)),
    (("out *spatial", "-*spatial out"), ("o -x -y", "x y o"), (3, 5, 7)),
    (("(1of3 out) in", "in out"), ("(1of3 a) b", "b a"), (7, 5)),
]
OTHER = [
    (("out in", "in out"), ("out in", "out in"), (7, 7)),
    (("(0of3 out) in", "in out"), ("(1of3 out) in", "in out"), (7, 5)),
    (("out time", "time out"), ("out -time", "time out"), (7, 5)),
    (("(a b) in", "in (a b)"), ("(b a) in", "in (a b)"), (7, 6)),
]


@pytest.mark.parametrize(
    ("one", "two", "shape", "equal"), [(*c, True) for c in SAME] + [(*c, False) for c in OTHER]
)
def test_steps_tell_whether_two_translations_are_one(one, two, shape, equal):
    sizes = {"a": 2, "b": 3, "h": 3, "f": 2} if "(" in two[0] and "of" not in two[0] else None
    first, second = (translation(*axes, shape, sizes=sizes) for axes in (one, two))
    array = counted(first.source_shape)
    assert np.array_equal(first(array), second(array)) == equal
    assert (first.steps == second.steps) == equal


def test_sizes_with_their_words():
    assert labelled("out in", (5, 7)) == "out=5, in=7"
    assert labelled("(0of3 out) in", (15, 7)) == "(0of3 out)=15, in=7"
    assert labelled("out in", (5, 7, 3)) == "shape (5, 7, 3)"
