"""The vocabulary of layers, and the tables that speak it."""

import importlib
from dataclasses import replace

import pytest

from bridge.core.layers import SUM, Fixed, Layer, Refusal, Row, row_of, slot

ROW = Row(
    kind="linear",
    classes=(f"{__name__.partition('.')[0]}.Dense",),
    slots=(slot("weight", "params.*.kernel", "in out"), slot("mean", "state.*/~/mean.average", "out")),
    settings={"eps": "epsilon", "stride": "strides", "groups": "absent"},
)


class Dense:
    epsilon = 1e-3

    def __init__(self):
        self.strides = [2, 3]


class Denser(Dense):
    pass


class Other:
    pass


def test_a_row_reads_a_layer_with_its_place_and_its_settings():
    layer = ROW.layer(("net", "Dense_0"), Dense())
    assert [one.path for one in layer.slots] == [
        ("params", "net", "Dense_0", "kernel"),
        ("state", "net/Dense_0/~/mean", "average"),
    ]
    assert layer.settings == (("eps", 1e-3), ("stride", (2, 3)))
    assert layer.kind == "linear"


def test_a_layer_is_part_of_a_treedef():
    one, other = ROW.layer(("a",), Dense()), ROW.layer(("a",), Dense())
    assert one == other
    assert hash(one) == hash(other)
    assert one != ROW.layer(("b",), Dense())


def test_the_row_of_a_class_is_that_of_its_nearest_known_ancestor():
    assert row_of(Denser(), (ROW,)) is ROW
    assert row_of(Other(), (ROW,)) is None


def test_a_class_of_another_package_is_not_known_by_its_name_alone():
    elsewhere = Row("linear", ("flax.Dense",), (), {})
    assert row_of(Dense(), (elsewhere,)) is None


KINDS = {
    *("linear", "embedding", "convolution", "transposed convolution", "prelu"),
    *("layer norm", "rms norm", "group norm", "batch norm", "lstm", "gru", "rnn"),
}
LACKING = {"haiku": {"prelu"}, "equinox": {"rnn"}}
# The parts that a library has none of, or has beside torch's.
OTHER_PARTS = {
    ("nnx", "gru"): {"bias_hh.n"},
    ("haiku", "gru"): {"bias_hh.r", "bias_hh.z", "bias_hh.n"},
    ("equinox", "rms norm"): {"bias"},
}


@pytest.mark.parametrize("library", ["linen", "nnx", "haiku", "equinox", "torch"])
def test_every_dialect_has_the_same_kinds_and_the_same_parts(library):
    rows = importlib.import_module(f"bridge.adapters.{library}._dialect").ROWS
    torch_rows = importlib.import_module("bridge.adapters.torch._dialect").ROWS
    assert {row.kind for row in rows} == KINDS - LACKING.get(library, set())
    for row in rows:
        wanted = {slot.part for other in torch_rows if other.kind == row.kind for slot in other.slots}
        slots = (slot for slot in row.slots if slot.value is None)
        parts = {part for slot in slots for part in slot.part.split(SUM)}
        assert parts ^ wanted == OTHER_PARTS.get((library, row.kind), set()), row.kind


class Strided:
    flipped = True
    norm: object = None

    def __init__(self, stride):
        self.stride = stride


FIXED = Row(
    kind="convolution",
    classes=(f"{__name__.partition('.')[0]}.Strided",),
    slots=(slot("weight", "params.*.kernel", "in out"),),
    settings={"groups": Fixed(1, "it has no groups"), "stride": "stride"},
    where={"flipped": True},
    refused=(
        Refusal("norm", lambda norm: norm is None, "it is normed"),
        Refusal("absent", lambda _: False, "never said"),
    ),
)


def test_a_row_says_what_is_fixed_and_what_cannot_be():
    layer, strided = FIXED.layer((), Strided(2)), Strided((2, 3))
    assert layer.settings == (("groups", 1), ("stride", 2))
    assert layer.fixed == (("groups", "it has no groups"),)
    assert layer.refused == ()
    assert layer.sizes == {"groups": 1}
    strided.norm = 2.0
    assert FIXED.layer((), strided).refused == ("it is normed",)
    assert FIXED.layer((), strided).settings == (("groups", 1), ("stride", (2, 3)))


def test_a_row_may_be_for_some_objects_of_a_class_alone():
    other = replace(FIXED, where={"flipped": False})
    assert row_of(Strided(1), (other, FIXED)) is FIXED
    assert row_of(Strided(1), (other,)) is None


def test_layers_without_settings_are_equal_by_their_arrays():
    assert Layer(("a",), "linear", ()) != Layer(("a",), "embedding", ())
