"""Layers of torch's database of modules, each in every library: equal, or refused for a reason."""

import pytest

from bridge.core.errors import BridgeError

pytest.importorskip("torch")
pytest.importorskip("expecttest")

from tests.lowering.databases import module_cases
from tests.weights.kinds.cases import LIBRARIES
from tests.weights.kinds.twins import PACKAGES
from tests.weights.module_db import TOLERANCE, LayerCase, NotBuilt

# A case of each sort, and the libraries that do not load it: not built, or refused with these words.
CHOSEN: dict[str, dict[str, str]] = {
    "nn.Embedding-eval-0": {},
    "nn.LazyConv2d-eval-1": {},
    "nn.LayerNorm-eval-6": {
        "nnx": "its norms have weights for one axis alone",
        "haiku": "weight: torch keeps it as (*features), so it holds features1=2, features2=2,"
        " features3=5; the Module has features1=1, features2=2, features3=2, features4=5",
    },
    "nn.BatchNorm2d-train-2": {},
    "nn.BatchNorm1d-eval-7": {"equinox": "bias: missing; params.bias wants features=10"},
    "nn.PReLU-eval-3": {
        "linen": "slopes is 3 there and 1 here",
        "nnx": "slopes is 3 there and 1 here",
        "haiku": "it has no PReLU",
    },
    "nn.MultiheadAttention-eval-31": {},
    "nn.MultiheadAttention-eval-0": dict.fromkeys(LIBRARIES, "with add_bias_kv"),
    "nn.LSTM-eval-21": {},
    "nn.GRU-eval-11": {
        "nnx": "has no bias_hh.n",
        "haiku": "reset is after the matrix there and before the matrix here",
    },
    "nn.Bilinear-eval-0": dict.fromkeys(LIBRARIES, "it has no bilinear layer"),
}


@pytest.fixture(scope="module")
def cases():
    return {case.name: LayerCase(case) for case in module_cases() if case.name in CHOSEN}


# A value of as many tokens as features is what Linen takes for a mask, as older versions had it.
@pytest.mark.filterwarnings("ignore:You are passing an array of shape:DeprecationWarning")
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", CHOSEN)
def test_a_layer_is_that_of_torch_or_is_refused(name, library, cases):
    pytest.importorskip(PACKAGES[library])
    case, refused = cases[name], CHOSEN[name].get(library)
    if refused is None:
        assert case.checked(library) < TOLERANCE
        return
    with pytest.raises((BridgeError, NotBuilt)) as caught:
        case.checked(library)
    assert refused in str(caught.value)
