"""Each kind of layer in each library, back under torch's names: by a plan, and by names of its own."""

import functools

import jax
import numpy as np
import pytest
import torch

import bridge as br
from bridge.weights import plans
from tests.weights.kinds.cases import CASES, NAMED
from tests.weights.kinds.twins import twin

PAIRS = [(library, case.name) for case in CASES for library in case.libraries]
KINDS = pytest.mark.parametrize(
    ("library", "name"), PAIRS, ids=[f"{name}-{library}" for library, name in PAIRS]
)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's older norms are old


@functools.cache
def loaded(library, name):
    """A layer of torch, the plan for its twin, the twin, and the twin with the layer's weights."""
    layer, module = NAMED[name].layer(), twin(library, NAMED[name])
    match = br.match(module, layer)
    return layer, match, module, br.load_state_dict(module, layer.state_dict(), plan=match)


def summed(match):
    """The keys of which the Module has a sum."""
    places = [(pair.path, pair.translation.region) for pair in match.pairs]
    return {
        pair.key for pair, place in zip(match.pairs, places, strict=True) if places.count(place) > 1
    }


def assert_same_bits(one, other):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert one.flags.c_contiguous
    assert one.tobytes() == other.tobytes()


def assert_same_leaves(one, other):
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@KINDS
def test_what_was_loaded_by_a_plan_goes_back_bit_for_bit(library, name):
    layer, match, module, full = loaded(library, name)
    assert plans.parsed(plans.text_of(match)) == match
    expected = {key: tensor.numpy() for key, tensor in layer.state_dict().items()}
    exported = br.state_dict(full, like=match)
    assert exported.keys() | match.unused.keys() == expected.keys()
    for key in exported.keys() - summed(match):
        assert_same_bits(exported[key], expected[key])
    tensors = {key: torch.from_numpy(array) for key, array in exported.items()}
    NAMED[name].layer().load_state_dict(tensors, strict=True)
    again = br.load_state_dict(module, {**expected, **exported}, plan=match)
    assert_same_leaves(again, full)


@KINDS
def test_its_own_names_load_again(library, name):
    _, _, module, full = loaded(library, name)
    assert_same_leaves(br.load_state_dict(module, br.state_dict(full)), full)
