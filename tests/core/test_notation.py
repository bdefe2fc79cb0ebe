"""Translations as text and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import WeightsError
from bridge.core.notation import read, written
from bridge.core.translation import Atom, Translation, translation

WORDS = ("in", "out:heads", "out:features", "spatial1", "free0", "axis12", "a-b", "x")


@st.composite
def atoms(draw, word, size):
    """A factor of so many places of a word, a part of a larger whole or all of one."""
    before, after = (draw(st.integers(0, 3)) for _ in range(2))
    return Atom(word, size, before + size + after, before, draw(st.booleans()))


@st.composite
def units(draw):
    """A factor of one place that has no word."""
    whole = draw(st.integers(1, 5))
    return Atom(None, 1, whole, draw(st.integers(0, whole - 1)), draw(st.booleans()))


@st.composite
def translations(draw):
    """A translation of any form: its words on both sides, in any order, grouped in any way."""
    sizes = draw(st.dictionaries(st.sampled_from(WORDS), st.integers(0, 7), max_size=4))
    sides = []
    for _ in range(2):
        own = [draw(atoms(word, sizes[word])) for word in draw(st.permutations(sorted(sizes)))]
        own += draw(st.lists(units(), max_size=2))
        axes = [()] * draw(st.integers(0, 1))
        while own:
            count = draw(st.integers(1, len(own)))
            axes.append(tuple(own[:count]))
            own = own[count:]
        sides.append(tuple(axes))
    return Translation(*sides)


@given(translations())
def test_every_translation_reads_back_as_it_was(turned):
    assert read(written(turned.source), written(turned.target)) == turned


@pytest.mark.parametrize(
    ("axes", "shapes", "texts"),
    [
        (("out in", "in out"), ((5, 7), None), ("out=7 in=5", "in=5 out=7")),
        (("out in", "in| out"), ((7, 2), (2, 3)), ("out=2 in=3", "in[0:3]of7 out=2")),
        (("(1of3 out) -in", "in out 1"), ((7, 5, 1), None), ("(1of3 out=5) -in=7", "in=7 out=5 1")),
        (("", ""), ((), None), ("", "")),
    ],
)
def test_it_reads_as_one_would_write_it(axes, shapes, texts):
    turned = translation(*axes, *shapes)
    assert (written(turned.source), written(turned.target)) == texts


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("out=7", "out=5", "the axes 'out=7' and 'out=5' do not name the same things, each once"),
        (
            "a=3 a=3",
            "a=3 a=3",
            "the axes 'a=3 a=3' and 'a=3 a=3' do not name the same things, each once",
        ),
        ("out", "out", "'out' does not tell an axis and its size"),
        ("in[2:9]of8", "in=7", "'in[2:9]of8' takes places that are not there"),
        ("in[5:2]of8", "in=3", "'in[5:2]of8' takes places that are not there"),
        ("3of3", "", "'3of3' takes places that are not there"),
        ("(out=3", "out=3", "'(out=3' does not tell the axes of an array"),
        (
            "out=99999999999999999999",
            "",
            "'out=99999999999999999999' does not tell an axis and its size",
        ),
    ],
)
def test_text_that_tells_no_translation(source, target, text):
    with pytest.raises(WeightsError) as caught:
        read(source, target)
    assert str(caught.value) == text
