"""`.safetensors` files: the header read and checked at once, each array when it is wanted."""

from __future__ import annotations

from pathlib import Path

import bridge.core.tensorfile as tensorfile
from bridge.core.errors import CheckpointError
from bridge.weights.tensors import Source, Tensor


def read(path: Path) -> Source:
    """The arrays of a file; raises CheckpointError where it is damaged."""
    try:
        with path.open("rb") as file:
            places = tensorfile.read_header(file).tensors
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return Source({key: Tensor.of_file(path, place) for key, place in places.items()})
