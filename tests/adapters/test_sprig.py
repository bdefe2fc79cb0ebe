"""What the adapter of `examples/write_an_adapter.py` does besides what every adapter does."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import MissingRngError, ModelError, UninitialisedError
from tests.adapters.subject_sprig import example, net
from tests.adapters.subjects import initialised, subject_of

sprig = example().sprig


def test_what_is_no_model_of_sprig_is_refused():
    with pytest.raises(ModelError) as caught:
        example().SprigModule.from_sprig(sprig.Dense)
    assert str(caught.value) == ("from_sprig takes a sprig.Layer; it was given <class 'sprig.Dense'>")


def test_its_arrays_are_asked_for_after_init():
    with pytest.raises(UninitialisedError) as caught:
        br.wrap(net()).native()
    assert str(caught.value) == "a sprig model has params after module.init(key, *sample)"


def test_a_key_and_a_flag_of_the_call_go_before_those_of_the_tree():
    module, inputs = initialised("sprig"), subject_of("sprig").inputs
    key = jax.random.key(7)
    out, after = module.apply(inputs, key=key, train=True)
    expected, averages = net()(*module.native(), inputs, key=key, train=True)
    np.testing.assert_array_equal(out, expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, after.native()[1], averages))
    with pytest.raises(MissingRngError, match=r"^the root module draws from the stream"):
        module.apply(inputs, train=True)


def test_the_parts_of_a_chain_in_a_chain_are_captured_by_path():
    module, inputs = initialised("sprig"), subject_of("sprig").inputs
    captured = module.capture(inputs, paths=["chain_0.*", "chain_0"])
    assert list(captured) == ["chain_0.norm_0", "chain_0.dense_1", "chain_0"]
    np.testing.assert_array_equal(captured["chain_0.dense_1"], captured["chain_0"])


@dataclass(frozen=True)
class Doubling(sprig.Dense):
    def doubled(self, params, averages, x, **call):
        out, averages = self(params, averages, x, **call)
        return 2 * out, averages


def test_a_method_of_the_model_is_called_by_its_name():
    x = jnp.ones((2, 3))
    module = br.wrap(Doubling(5)).init(jax.random.key(0), x)
    np.testing.assert_array_equal(module.doubled(x), 2 * module(x))


def test_pytorch_weights_find_their_places_by_the_table_of_layers():
    numbers = np.random.default_rng(0)
    sizes = {
        "stem.bn.weight": 5,
        "stem.bn.bias": 5,
        "stem.bn.running_mean": 5,
        "stem.bn.running_var": 5,
    }
    sizes |= {"stem.fc.weight": (5, 5), "stem.fc.bias": 5, "head.weight": (3, 5), "head.bias": 3}
    state = {key: numbers.uniform(0.5, 1.5, size).astype(np.float32) for key, size in sizes.items()}
    model = sprig.Chain((sprig.Norm(), sprig.Dense(5), sprig.Relu(), sprig.Dense(3)))
    x = numbers.normal(size=(7, 5)).astype(np.float32)

    module = br.load_state_dict(br.wrap(model).init(jax.random.key(0), x), state)
    h = (x - state["stem.bn.running_mean"]) / np.sqrt(state["stem.bn.running_var"] + 1e-5)
    h = h * state["stem.bn.weight"] + state["stem.bn.bias"]
    h = np.maximum(h @ state["stem.fc.weight"].T + state["stem.fc.bias"], 0)
    expected = h @ state["head.weight"].T + state["head.bias"]
    np.testing.assert_allclose(module(x), expected, rtol=1e-5, atol=1e-5)
