"""The train flag of a call: where it is said already, and where the mode says it."""

from typing import Any

import pytest

from bridge.core.errors import ModelError
from bridge.core.flags import TRAIN_FLAGS, attribute_flags, flagged, train_flags, unsaid_flags


class Model:
    deterministic: bool | None = None

    def call(self, x: Any, train: bool = False, deterministic: bool | None = None) -> None: ...

    def named(self, x: Any, *, train: bool) -> None: ...

    def plain(self, x: Any) -> None: ...

    def open(self, x: Any, **rest: Any) -> None: ...


@pytest.mark.parametrize("name", TRAIN_FLAGS)
def test_each_spelling_says_whether_it_trains(name):
    names: dict[str, Any] = {}
    exec(f"def function(x, {name}): ...", names)
    assert train_flags(names["function"], {}, True) == {name: TRAIN_FLAGS[name]}
    assert train_flags(names["function"], {}, False) == {name: not TRAIN_FLAGS[name]}
    assert train_flags(names["function"], {name: True}, True) == {}


@pytest.mark.parametrize("default", ["exact", 3, ()])
def test_a_parameter_with_another_default_is_no_flag(default):
    def function(x, inference=default): ...

    assert train_flags(function, {}, True) == {}


def test_what_the_call_or_an_attribute_says_is_not_said_again():
    model = Model()
    assert unsaid_flags(model, "call", (1,), {}, True) == {"train": True, "deterministic": False}
    assert unsaid_flags(model, "call", (1, True), {}, True) == {"deterministic": False}
    model.deterministic = True
    assert unsaid_flags(model, "call", (1,), {"train": False}, True) == {}


def test_flags_go_by_position_where_they_follow_and_else_by_name():
    model = Model()
    assert flagged("net", model, "call", (1,), {}, True) == ((1, True, False), {})
    assert flagged("net", model, "call", (), {"x": 1}, True) == (
        (),
        {"x": 1, "train": True, "deterministic": False},
    )
    assert flagged("net", model, "named", (1,), {}, True) == ((1,), {"train": True})
    assert flagged("net", model, "plain", (1,), {}, True) == ((1,), {})


def test_a_flag_by_position_and_by_name_says_where():
    with pytest.raises(ModelError) as caught:
        flagged("net.core", Model(), "call", (1, True), {"train": True}, True)
    assert str(caught.value) == (
        "net.core: 'train' is given twice, by position and by name; give it once, or leave it to the"
        " mode: apply(..., mode='train')"
    )


ATTRIBUTES = [
    ("plain", {"train": False}, {"train": True}),
    ("plain", {"train": True}, {}),
    ("plain", {"train": None, "deterministic": None}, {"train": True, "deterministic": False}),
    ("plain", {"train": "always", "width": 3}, {}),
    ("call", {"train": False, "inference": True}, {"inference": False}),
    ("open", {"train": None}, {}),
    ("open", {"train": False}, {"train": True}),
]


@pytest.mark.parametrize(("method", "attributes", "changed"), ATTRIBUTES)
def test_the_mode_changes_attributes_that_the_call_cannot_say(method, attributes, changed):
    assert attribute_flags(Model, attributes, method, True) == changed
