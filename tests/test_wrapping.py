"""`wrap` finds the adapter of a model by its class."""

import pytest

import bridge as br
from bridge.core.errors import ModelError


def test_a_module_is_wrapped_already():
    module = br.Function(abs)
    assert br.wrap(module) is module


def test_what_no_adapter_knows_is_refused_with_the_libraries(monkeypatch):
    monkeypatch.setattr("bridge.wrapping.added_libraries", lambda: ())
    with pytest.raises(ModelError) as caught:
        br.wrap(3)
    assert str(caught.value) == (
        "no adapter knows a int (3); bridge wraps models of Linen, NNX, Haiku, Equinox, PyTorch. A"
        " function of Haiku modules goes to bridge.from_haiku, any other function to bridge.Function"
    )


def test_nnx_modules_that_hold_linen_modules_go_to_nnx_and_the_other_way_round():
    nn, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
    inward = nnx.bridge.ToNNX(nn.Dense(5), rngs=nnx.Rngs(0))
    outward = nnx.bridge.ToLinen(nnx.Linear, (3, 5))
    assert type(br.wrap(inward)).__name__ == "NnxModule"
    assert type(br.wrap(outward)).__name__ == "LinenModule"
