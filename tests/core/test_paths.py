"""Paths: dotted strings and back, globs, fingerprints, references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bridge as br
from bridge.core import paths

SEGMENTS = st.text(alphabet=st.sampled_from("ab.\\0*[]/ é"), min_size=1, max_size=5)
PATHS = st.lists(SEGMENTS, max_size=4).map(tuple)


@given(PATHS)
def test_split_is_the_inverse_of_join(path):
    assert paths.split(paths.join(path)) == path


@given(PATHS, PATHS)
def test_two_paths_never_join_to_one_string(one, other):
    assert (paths.join(one) == paths.join(other)) == (one == other)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("encoder", "layers", "0"), "encoder.layers.0"),
        (("a.b", "c"), "a\\.b.c"),
        (("a\\", "b"), "a\\\\.b"),
        (("a\\.b",), "a\\\\\\.b"),
    ],
)
def test_spelling(path, text):
    assert paths.join(path) == text
    assert paths.split(text) == path


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "cdef"), ("abc", "def")),
        (("a", "b"), ("b", "a")),
        (("a.b",), ("a", "b")),
        (("a",), ("a", "")),
        ((), ("",)),
    ],
)
def test_fingerprints_have_separators(one, other):
    assert paths.fingerprint(one) != paths.fingerprint(other)


def test_fingerprints_never_change_between_versions():
    assert paths.fingerprint(("encoder", "0")) == 3093736456
    assert paths.fingerprint(()) == 634351890


@pytest.mark.parametrize(
    ("path", "pattern", "matching"),
    [
        (("encoder", "0", "bias"), "*.bias", True),
        (("encoder", "0", "bias"), "encoder.*", True),
        (("encoder", "0", "bias"), "encoder.?.bias", True),
        (("encoder", "10", "bias"), "encoder.?.bias", False),
        (("encoder", "0", "bias"), "*.Bias", False),
        (("encoder", "0"), "*.bias", False),
    ],
)
def test_globs(path, pattern, matching):
    assert paths.matches(path, pattern) is matching


@given(PATHS, PATHS)
def test_a_relative_reference_leads_back(position, target):
    assert paths.absolute(position, *paths.relative(position, target)) == target


def test_a_reference_does_not_climb_above_the_root():
    with pytest.raises(IndexError):
        paths.absolute(("a",), 2, ("b",))


@pytest.mark.parametrize(
    ("wanted", "candidates", "text"),
    [
        ("laier", ["layer", "head"], "'laier' selects nothing in this module; the nearest are 'layer'"),
        (
            "zzz",
            ["layer", "head"],
            "'zzz' selects nothing in this module; there are 'layer', 'head'",
        ),
        (
            "zzz",
            ["layer", "head", "stem", "body"],
            "'zzz' selects nothing in this module; there are 'layer', 'head', 'stem', ...",
        ),
        ("zzz", [], "'zzz' selects nothing in this module; there is nothing to select"),
    ],
)
def test_nothing_there_names_what_is_nearest(wanted, candidates, text):
    error = paths.nothing_there(wanted, candidates)
    assert isinstance(error, br.BridgeError)
    assert str(error) == text
