import collections

import jax.numpy as jnp
import pytest

import bridge as br
from bridge.lowering.structure import Signature, Structure

LEAF = Structure("leaf")
NESTED = Structure(
    "dict",
    (
        Structure("tuple", (LEAF, Structure("literal", value=3))),
        Structure("named", (LEAF, LEAF), ("Pair", "first", "second")),
        Structure("list", (LEAF,)),
    ),
    ("a", "b", "c"),
)


def test_a_nesting_is_built_from_its_leaves_in_order():
    built = NESTED.build(iter("wxyz"))
    assert built == {"a": ("w", 3), "b": ("x", "y"), "c": ["z"]}
    assert built["b"]._fields == ("first", "second")


def test_the_leaves_come_back_with_what_they_are_called():
    Pair = collections.namedtuple("Pair", "first second")
    value = {"a": ("w", 3), "b": Pair("x", "y"), "c": ["z"]}
    assert list(NESTED.flatten(value, "out")) == [
        ("out['a'][0]", "w"),
        ("out['b'][0]", "x"),
        ("out['b'][1]", "y"),
        ("out['c'][0]", "z"),
    ]
    assert NESTED.leaves == 4


@pytest.mark.parametrize(
    ("structure", "value", "message"),
    [
        (LEAF, None, "x is missing: the model was captured with an array there"),
        (
            Structure("literal", value=2.0),
            3.0,
            "x is 3.0, and the model was captured with 2.0. What is no array is part of what was"
            " captured: call bridge.from_torch again with that value",
        ),
        (
            Structure("literal", value=1),
            jnp.ones((2, 3)),
            "x is an array float32[2, 3], and the model was captured with 1. What is no array is part"
            " of what was captured: call bridge.from_torch again with that value",
        ),
        (
            Structure("tuple", (LEAF, LEAF)),
            (1,),
            "x is one of 1, and the model was captured with a tuple of 2",
        ),
        (
            Structure("dict", (LEAF,), ("a",)),
            {"b": 1},
            "x is a dict of 'b', and the model was captured with a dict of 'a'",
        ),
        (Structure("list", (LEAF,)), 5, "x is a int, and the model was captured with a list of 1"),
    ],
)
def test_another_value_than_was_captured_is_an_error(structure, value, message):
    with pytest.raises(br.BridgeError) as error:
        list(structure.flatten(value, "x"))
    assert str(error.value) == message


FORWARD = Signature(("x", "scale"), ("flag",), {"scale": 2.0, "flag": None}, None, None)


def test_arguments_get_their_names_and_give_them_back():
    bound = FORWARD.bind(("array",), {"flag": True}, "net")
    assert bound == {"scale": 2.0, "x": "array", "flag": True}
    assert FORWARD.unbind(bound) == (("array",), {"flag": True})
    assert FORWARD.unbind(FORWARD.bind(("array", 3.0), {}, "net")) == (("array", 3.0), {})


def test_rest_and_other_arguments_are_kept():
    anything = Signature((), (), {}, "args", "kwargs")
    bound = anything.bind((1, 2), {"more": 3}, "net")
    assert bound == {"*args": (1, 2), "more": 3}
    assert anything.unbind(bound) == ((1, 2), {"more": 3})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 2, 3), {}, "net takes 2 positional arguments, 3 came"),
        ((1,), {"x": 2}, "net: 'x' came twice; it takes x, scale, flag"),
        ((1,), {"y": 2}, "net: 'y' is none of its arguments; it takes x, scale, flag"),
    ],
)
def test_arguments_that_the_forward_does_not_take_are_an_error(args, kwargs, message):
    with pytest.raises(br.BridgeError) as error:
        FORWARD.bind(args, kwargs, "net")
    assert str(error.value) == message
