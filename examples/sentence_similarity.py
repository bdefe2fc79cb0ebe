"""Loads PyTorch weights into the same sentence encoder in Linen, NNX, Haiku and Equinox.

Each of the four is native code of its library (see sentence_encoders/), with names of its own.
bridge wraps it, matches the checkpoint to it and loads it; from there on one code serves all four.

    python examples/sentence_similarity.py --library linen --library haiku
"""

import importlib
import importlib.util
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import combinations
from typing import Annotated

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sentence_encoders.checkpoint import Checkpoint, EncoderConfig, find_checkpoint
from sentence_encoders.sentences import cosine_similarity, sentence_vectors, tokenize

import bridge as br

SENTENCES = {
    "cat": "The cat sits on the mat.",
    "feline": "A feline rests on a rug.",
    "markets": "Stock markets fell sharply today.",
}
TOLERANCE = 1e-5  # of a hidden state; they are of size 1

Library = StrEnum("Library", ["linen", "nnx", "haiku", "equinox"])

console = Console(highlight=False)


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Says on the screen what is being done, then how long it took."""
    console.print(f"  {text} ... ", end="")
    start = time.perf_counter()
    yield
    console.print(f"{time.perf_counter() - start:.2f} s")


def wrap(library: str, config: EncoderConfig) -> br.Module:
    """Returns the library's own encoder as a Module; imports no other library."""
    model = importlib.import_module(f"sentence_encoders.{library}").build(config)
    if library == "equinox":  # its encoder takes one sentence
        return br.from_equinox(model, vmap=True)
    return getattr(br, f"from_{library}")(model)


def shortened(table: str) -> str:
    """Returns the table with one encoder layer; the others repeat its rows."""
    lines = table.splitlines()
    shown = [line for line in lines if not re.search(r"\blayer\.[1-9]", line)]
    return "\n".join([*shown, f"({len(lines) - len(shown)} more rows: the other layers, alike)"])


@jax.jit
def embed(module: br.Module, token_ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns hidden states (batch tokens features) and sentence vectors (batch features)."""
    hidden, _ = module(token_ids, mask)
    return hidden, sentence_vectors(hidden, mask)


def run(
    library: str, checkpoint: Checkpoint, token_ids: np.ndarray, mask: np.ndarray, full_table: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns hidden states and sentence vectors of one library, the PyTorch weights loaded."""
    console.rule(f"[bold]{library}", align="left")
    with stage("wrap and initialise"):
        module = wrap(library, checkpoint.config).init(jax.random.key(0), token_ids, mask)
    with stage("match the checkpoint"):
        match = br.match(module, checkpoint.weights)
    print(match if full_table else shortened(str(match)), flush=True)
    with stage("load the weights"):
        module = br.load_state_dict(module, checkpoint.weights)
    with stage("embed, first call: compiles"):
        jax.block_until_ready(embed(module, token_ids, mask))
    with stage("embed, second call"):
        hidden, vectors = jax.block_until_ready(embed(module, token_ids, mask))
    return np.asarray(hidden), np.asarray(vectors)


def torch_hidden(checkpoint: Checkpoint, token_ids: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Returns the hidden states of the PyTorch model; None where PyTorch is not installed."""
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        return None
    console.rule("[bold]torch", align="left")
    with stage("import torch and transformers"):
        import torch
        from transformers import BertModel
    with stage("load and embed"), torch.no_grad():
        model = BertModel.from_pretrained(checkpoint.folder).eval()
        inputs = (torch.from_numpy(array.astype(np.int64)) for array in (token_ids, mask))
        return model(*inputs).last_hidden_state.numpy()


def similarity_table(vectors: dict[str, np.ndarray]) -> Table:
    """Returns one row for each library: the cosine of each pair of sentences."""
    pairs = list(combinations(range(len(SENTENCES)), 2))
    names = list(SENTENCES)
    table = Table("library", *(f"{names[one]} / {names[other]}" for one, other in pairs))
    for library, rows in vectors.items():
        cosines = cosine_similarity(rows)
        table.add_row(library, *(f"{cosines[pair]:.4f}" for pair in pairs))
    return table


def main(
    library: Annotated[
        list[Library] | None, typer.Option(help="Repeat it for several. Default: all four.")
    ] = None,
    full_table: Annotated[bool, typer.Option("--full-table", help="Print every row.")] = False,
) -> None:
    """Embeds three sentences with PyTorch weights in each library, and compares the results."""
    # Without this an accelerator rounds the inputs of a matmul, and 1e-5 is out of reach.
    jax.config.update("jax_default_matmul_precision", "highest")
    with stage("find the checkpoint, check its sha256"):
        checkpoint = find_checkpoint()
    token_ids, mask = tokenize(checkpoint.tokenizer, list(SENTENCES.values()))

    results = {
        str(name): run(str(name), checkpoint, token_ids, mask, full_table)
        for name in library or Library
    }
    expected = torch_hidden(checkpoint, token_ids, mask)

    console.rule("[bold]similarity", align="left")
    for name, sentence in SENTENCES.items():
        console.print(f"  {name:8} {sentence}")
    console.print(similarity_table({name: vectors for name, (_, vectors) in results.items()}))
    hidden = np.stack([states[mask] for states, _ in results.values()])
    differences = {}
    if len(results) > 1:
        differences["between the libraries"] = np.ptp(hidden, axis=0).max()
    if expected is None:
        console.print("PyTorch and transformers are not installed: no comparison with them.")
    else:
        differences["to the PyTorch model"] = np.abs(hidden - expected[mask]).max()
    for what, difference in differences.items():
        console.print(f"Largest difference {what}: {difference:.1e} (at most {TOLERANCE:.0e})")
    if not all(difference <= TOLERANCE for difference in differences.values()):  # NaN fails too
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
