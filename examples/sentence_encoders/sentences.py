"""From sentences to arrays, and from hidden states to one vector for each sentence."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

MAX_TOKENS = 256  # max_seq_length of the checkpoint's sentence_bert_config.json


def tokenize(tokenizer: Path, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids (batch tokens) as int32, and the mask (batch tokens): True at a token.

    Sentences are padded to the longest of the batch and cut at MAX_TOKENS.
    """
    reader = Tokenizer.from_file(str(tokenizer))
    reader.enable_truncation(MAX_TOKENS)
    reader.enable_padding()  # the file itself asks for 128 tokens, always
    rows = reader.encode_batch(list(sentences))
    token_ids = np.array([row.ids for row in rows], np.int32)
    mask = np.array([row.attention_mask for row in rows], np.bool_)
    return token_ids, mask


def sentence_vectors(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean (batch features) of hidden states (batch tokens features), at length 1."""
    tokens = mask[..., None].astype(hidden.dtype)
    mean = jnp.sum(hidden * tokens, axis=1) / jnp.sum(tokens, axis=1)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def cosine_similarity(vectors: np.ndarray) -> np.ndarray:
    """Returns the cosine (batch batch) of each pair of vectors (batch features) of length 1."""
    return vectors @ vectors.T
