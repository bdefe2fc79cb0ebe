"""Arrays of a source in another dtype, cast when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bridge.weights.casting import cast
from bridge.weights.tensors import Source, Tensor

DTYPES: Mapping[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def with_dtype(source: Source, dtype: np.dtype) -> Source:
    """A source whose floating numbers are of a dtype; what else it has stays as it is.

    Reading an array raises WeightsError where a finite number would become infinite.
    """

    def of_dtype(key: str, tensor: Tensor) -> Tensor:
        if tensor.dtype == dtype or not jnp.issubdtype(tensor.dtype, jnp.floating):
            return tensor
        return Tensor(
            tensor.shape, dtype, lambda: cast(key, tensor.read(), dtype), memory=tensor.memory
        )

    return replace(source, tensors={key: of_dtype(key, one) for key, one in source.tensors.items()})
