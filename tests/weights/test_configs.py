"""What the config.json beside a checkpoint says: eps, and norms that multiply by one more."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import bridge as br
from bridge.core.errors import WeightsError

SCALE = np.arange(7, dtype=np.float32)
KEYS = {"model.norm.weight": SCALE, "lm_head.weight": np.ones((5, 7), np.float32)}


class Head(nn.Module):
    """A norm and a layer."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        x = nn.RMSNorm(epsilon=self.epsilon, name="norm")(x)
        return nn.Dense(5, use_bias=False, name="lm_head")(x)


@pytest.fixture
def folder(tmp_path):
    """A function that writes a checkpoint with a config beside it."""

    def write(**config):
        save_file(KEYS, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def head(epsilon):
    return br.from_linen(Head(epsilon)).init(jax.random.key(0), np.ones((2, 7), np.float32))


@pytest.mark.parametrize(("model", "more"), [("gemma2", 1.0), ("llama", 0.0), ("unheard_of", 0.0)])
def test_norms_of_some_models_multiply_by_one_more(folder, model, more):
    loaded = br.load_state_dict(head(1e-6), folder(model_type=model, rms_norm_eps=1e-6))
    np.testing.assert_array_equal(loaded.at["params.norm.scale"].get(), SCALE + more)


def test_another_eps_than_the_configs_is_told(folder):
    path = folder(model_type="llama", rms_norm_eps=1e-5)
    with pytest.raises(WeightsError) as caught:
        br.load_state_dict(head(1e-6), path / "model.safetensors")
    assert str(caught.value) == (
        "these weights do not fit the Module:\n"
        "  params.norm: eps is 1e-06, and 1e-05 in model.norm: build the model with 1e-05, or type"
        " strict=False to keep 1e-06"
    )
    br.load_state_dict(head(1e-5), path)


def test_a_config_of_an_unknown_model_says_nothing_of_its_norms(folder):
    br.load_state_dict(head(1e-6), folder(model_type="unheard_of", rms_norm_eps=1e-5))
    br.load_state_dict(head(1e-6), folder(architectures=["Nothing"]))
