"""A library's own object among the statics: what is equal, and what is pickled."""

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import jax
import pytest

from bridge.core.errors import CheckpointError
from bridge.core.opaque import Opaque


def scaled(factor: float) -> Callable[[float], float]:
    return lambda x: factor * x


DOUBLED = scaled(2.0)


@dataclasses.dataclass(frozen=True)
class Layer:
    size: int
    initializer: Callable[[float], float] = DOUBLED
    activation: Callable[..., Any] = jax.nn.relu
    parts: tuple[Any, ...] = ()


def kind(value: Any) -> Any:
    return type(value), value


def test_objects_are_compared_by_value_and_those_without_a_hash_by_identity():
    assert Opaque(Layer(3)) == Opaque(Layer(3))
    assert hash(Opaque(Layer(3))) == hash(Opaque(Layer(3)))
    assert Opaque(Layer(3)) != Opaque(Layer(5))
    table = {"a": 3}
    assert Opaque(table) == Opaque(table)
    assert hash(Opaque(table)) == hash(Opaque(table))
    assert Opaque(table) != Opaque({"a": 3})
    assert Opaque(3) != 3


def test_a_form_tells_apart_what_is_equal_and_makes_comparable_what_has_no_hash():
    assert Opaque((1,)) == Opaque((True,))
    assert Opaque((1,), repr) != Opaque((True,), repr)
    assert Opaque({"a": 3}, repr) == Opaque({"a": 3}, repr)


def test_functions_among_the_defaults_of_a_class_are_pickled_though_they_have_no_name():
    layer = Layer(3, parts=(Layer(5), jax.nn.gelu, len, Layer))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(layer)
    assert pickle.loads(pickle.dumps(Opaque(layer))) == Opaque(layer)


def test_what_stands_in_two_places_still_does_when_it_is_pickled():
    part = Layer(5)
    parts = pickle.loads(pickle.dumps(Opaque(Layer(3, parts=(part, part))))).value.parts
    assert parts[0] is parts[1]


def test_a_pickled_object_is_hashed_anew_with_its_form():
    stale = Opaque(Layer(3), kind)
    stale.hashed = 7
    twin = pickle.loads(pickle.dumps(stale))
    assert hash(twin) == hash(Opaque(Layer(3), kind))
    assert twin.form == (Layer, Layer(3))


def test_a_function_without_a_name_says_that_it_cannot_be_pickled():
    with pytest.raises(CheckpointError) as caught:
        pickle.dumps(Opaque(Layer(3, initializer=scaled(3.0))))
    assert str(caught.value).startswith("a Layer cannot be pickled: ")
    assert str(caught.value).endswith(
        ". Functions and classes are pickled by name: define those that the model is made of at the top"
        " level of a file. bridge.save keeps the arrays alone, and needs none of them"
    )
