"""Flax models of transformers, loaded from PyTorch: bit for bit what its own converter gives."""

import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
traverse_util = pytest.importorskip("flax.traverse_util")
language = pytest.importorskip("tests.weights.twins.language")

# No dropout, and two heads: the hidden size has to be even.
SIZES = {
    "hidden_size": 34,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 53,
}
TEXT = {"vocab_size": 97, "max_position_embeddings": 41, "type_vocab_size": 3}
IMAGE = {"image_size": 21, "patch_size": 7}
GPT2 = {"vocab_size": 97, "n_embd": 34, "n_layer": 1, "n_head": 2, "n_inner": 53, "n_positions": 41}
IDS = np.random.default_rng(0).integers(0, 97, (2, 11))
POSITIONS = np.tile(np.arange(11), (2, 1))
PIXELS = np.random.default_rng(0).normal(size=(2, 3, 21, 21)).astype(np.float32)

# The class, its configuration, and what both forwards take.
MODELS = {
    "BertModel": ("BertConfig", SIZES | TEXT, (IDS, np.ones_like(IDS), IDS % 3, POSITIONS)),
    "ViTModel": ("ViTConfig", SIZES | IMAGE, (PIXELS,)),
    "GPT2LMHeadModel": ("GPT2Config", GPT2, (IDS,)),
}


def models(name):
    """The PyTorch model, the Flax one as a Module of zeros, what the converter gives, and inputs."""
    config, sizes, inputs = MODELS[name]
    config = getattr(transformers, config)(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    flax_model = getattr(transformers, f"Flax{name}")(config, _do_init=False)
    source, inner = model, flax_model.module
    if name.startswith("GPT2"):
        source = language.TorchText(model)
        inner = language.FlaxText(flax_model.module)
    given = tuple(np.moveaxis(x, 1, -1) if x.ndim == 4 else x for x in inputs)
    abstract = jax.eval_shape(br.from_linen(inner).init, jax.random.key(0), *given)
    module = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    return module, source, converted(model, params_of(module), flax_model.base_model_prefix), inputs


def params_of(module):
    """The params of a Flax model, as Flax has them."""
    params = module.params.tree()
    return params.get("inner", params)


def converted(model, params, prefix):
    """What transformers makes of a state_dict, by path; it takes a Flax model for its shapes alone."""
    convert = importlib.import_module("transformers.modeling_flax_pytorch_utils")
    like = SimpleNamespace(base_model_prefix=prefix, params=params)
    given = convert.convert_pytorch_state_dict_to_flax(dict(model.state_dict()), like)
    wanted = traverse_util.flatten_dict(given)
    if "lm_head" not in params:  # tied to the embedding: Flax has no array for it
        wanted.pop(("lm_head", "kernel"), None)
    return wanted


def assert_equal(loaded, wanted):
    found = traverse_util.flatten_dict(params_of(loaded))
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, wanted[path], err_msg=".".join(path))


@pytest.mark.parametrize("name", ["BertModel", "ViTModel"])
def test_names_alone_give_what_the_converter_gives(name):
    module, model, wanted, _ = models(name)
    assert_equal(br.load_state_dict(module, model.state_dict()), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_the_forward_of_both_gives_what_the_converter_gives(name):
    module, model, wanted, inputs = models(name)
    match = br.match(module, model, inputs=inputs)
    assert match.complete, str(match)
    evidence = [pair.evidence for pair in match.pairs]
    assert all(one.startswith(("proved", "probe", "any order")) for one in evidence), str(match)
    assert_equal(br.load_state_dict(module, model, plan=match), wanted)
