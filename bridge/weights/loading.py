"""A Module with the weights of a source in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import WeightsError, listed
from bridge.core.paths import Path
from bridge.core.tree import map_entries
from bridge.weights.matching import match_source
from bridge.weights.report import Match, Pair
from bridge.weights.sources import Source, Tensor, open_source
from bridge.weights.targets import Leaf, targets_of

M = TypeVar("M")

SOURCE, MODULE = "source", "module"


def load_state_dict(
    module: M,
    source: Any,
    rename: Mapping[Any, str] | None = None,
    strict: bool = True,
    dtype: Any = None,
    sharding: jax.sharding.Sharding | Callable[[str], jax.sharding.Sharding] | None = None,
) -> M:
    """The module with PyTorch weights in it, each turned into the layout of its own library.

    `source` is a mapping of names to arrays or tensors, a `torch.nn.Module`, or the path of a
    `.safetensors` file; it is never changed, and what somebody else can still write to is copied.
    `rename` is that of `match`, whose plan this follows. With `strict=False` keys may be left over and
    hyper-parameters differ; a place without a key is an error always.

    Nothing is cast by itself: with `dtype=None` the source has the module's dtypes, or it is an error.
    "source" keeps those of the source, "module" casts to the module's, any dtype casts floating
    numbers to it. `sharding` says where the arrays go, one for all or a function of the path.

    Raises WeightsError with everything that does not fit; then nothing is loaded.

    >>> import bridge as br, equinox as eqx, jax, numpy as np
    >>> linear = br.from_equinox(eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0)))
    >>> linear = br.load_state_dict(linear, {"fc.weight": np.array([[3.0, 5.0]], np.float32)})
    >>> float(linear(np.array([1.0, 10.0], np.float32))[0])
    53.0
    """
    opened = open_source(source)
    match = match_source(module, opened, rename or {})
    leaves = targets_of(module).leaves
    problems = [*match.complaints(strict), *_wrong_dtypes(match, opened, leaves, dtype)]
    if problems:
        raise WeightsError(f"these weights do not fit the Module:\n{listed(problems)}")
    arrays = dict(_arrays(match, opened, leaves, dtype))
    placed = {path: _placed(array, path, sharding) for path, array in arrays.items()}
    return map_entries(module, lambda path, leaf: placed.get(path, leaf))


def _wanted_dtype(came: np.dtype, here: np.dtype, dtype: Any) -> np.dtype:
    if dtype is None or dtype == SOURCE:
        return came
    floating = jnp.issubdtype(came, jnp.floating) and jnp.issubdtype(here, jnp.floating)
    return here if dtype == MODULE or not floating else np.dtype(dtype)


def _wrong_dtypes(
    match: Match, source: Source, leaves: Mapping[Path, Leaf], dtype: Any
) -> Iterator[str]:
    for pair in match.pairs:
        came, here = source.tensors[pair.key].dtype, leaves[pair.path].dtype
        wanted = _wanted_dtype(came, here, dtype)
        if _sort(came) != _sort(here):
            place = paths.join(pair.path)
            yield f"{pair.key}: holds {came}; {place} holds {here}, another sort of number"
        elif dtype is None and came != here:
            yield (
                f"{pair.key}: holds {came}; {paths.join(pair.path)} holds {here}: type"
                f' dtype="source" to keep {came}, dtype="module" to cast'
            )
        elif jax.dtypes.canonicalize_dtype(wanted) != wanted:
            yield (
                f"{pair.key}: {wanted} needs jax.config.update('jax_enable_x64', True); or type"
                f' dtype="module" to cast to {here}'
            )


def _sort(dtype: np.dtype) -> str:
    """What sort of number a dtype is; one is never cast to another."""
    sorts = {"floating": jnp.floating, "complex": jnp.complexfloating, "integer": jnp.integer}
    return next((name for name, sort in sorts.items() if jnp.issubdtype(dtype, sort)), str(dtype))


def _arrays(
    match: Match, source: Source, leaves: Mapping[Path, Leaf], dtype: Any
) -> Iterator[tuple[Path, np.ndarray]]:
    for pair in match.pairs:
        tensor = source.tensors[pair.key]
        wanted = _wanted_dtype(tensor.dtype, leaves[pair.path].dtype, dtype)
        yield pair.path, _array(pair, tensor, wanted)
    for path, value in match.constants.items():
        yield path, np.full(leaves[path].shape, value, leaves[path].dtype)


def _array(pair: Pair, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    """The translated array, in memory that nobody else can write to."""
    came = tensor.read()
    array = np.ascontiguousarray(pair.translation(came)).astype(dtype, copy=False)
    array = array.reshape(pair.translation.target_shape)  # ascontiguousarray makes () into (1,)
    return array.copy() if tensor.shared and np.may_share_memory(array, came) else array


def _placed(array: np.ndarray, path: Path, sharding: Any) -> jax.Array:
    """The array on its device; on a CPU it may share the memory, which is nobody else's."""
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return jax.device_put(array, sharding)
    return jax.device_put(array, sharding(paths.join(path)))
