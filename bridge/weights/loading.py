"""A Module with the weights of a source in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import WeightsError, listed
from bridge.core.paths import Path
from bridge.core.tree import map_entries
from bridge.weights.finite import warn_of_non_finite
from bridge.weights.matching import match_source, model_of
from bridge.weights.report import Match, Pair, by_path
from bridge.weights.sources import Source, open_source
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
    inputs: Sequence[Any] | None = None,
) -> M:
    """The module with PyTorch weights in it, each turned into the layout of its own library.

    `source` is a mapping of names to arrays or tensors, a `torch.nn.Module`, or a path: a
    `.safetensors`, `.pt`, `.pth`, `.bin` or `.msgpack` file, the index of a sharded one, or a folder.
    No code of a file is run. The source is never changed, and what somebody else can still write to is
    copied; a file may be mapped, and must not be overwritten in place while the arrays are in use.
    `rename` and `inputs` are those of `match`, whose plan this follows. With `strict=False` keys may be
    left over and hyper-parameters differ; a place without a key is an error always.

    Nothing is cast by itself: with `dtype=None` the source has the module's dtypes, or it is an error.
    "source" keeps those of the source, "module" casts to the module's, any dtype casts floating
    numbers to it. `sharding` says where the arrays go, one for all or a function of the path.

    Raises WeightsError with everything that does not fit; then nothing is loaded. Warns of numbers that
    are NaN or infinite.

    >>> import bridge as br, equinox as eqx, jax, numpy as np
    >>> linear = br.from_equinox(eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0)))
    >>> linear = br.load_state_dict(linear, {"fc.weight": np.array([[3.0, 5.0]], np.float32)})
    >>> float(linear(np.array([1.0, 10.0], np.float32))[0])
    53.0
    """
    opened = open_source(source)
    match = match_source(module, opened, rename or {}, model_of(source, inputs), inputs)
    leaves = targets_of(module).leaves
    problems = [*match.complaints(strict), *_wrong_dtypes(match, opened, leaves, dtype)]
    if problems:
        raise WeightsError(f"these weights do not fit the Module:\n{listed(problems)}")
    arrays = dict(_arrays(match, opened, leaves, dtype))
    warn_of_non_finite({paths.join(path): array for path, array in arrays.items()}, stacklevel=2)
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
    for path, pairs in by_path(match.pairs).items():
        came = jnp.result_type(*(source.tensors[pair.key].dtype for pair in pairs))
        yield path, _array(pairs, source, _wanted_dtype(came, leaves[path].dtype, dtype))
    for path, value in match.constants.items():
        yield path, np.full(leaves[path].shape, value, leaves[path].dtype)


def _array(pairs: Sequence[Pair], source: Source, dtype: np.dtype) -> np.ndarray:
    """The translated array, in memory that nobody else can write to."""
    first, tensor = pairs[0], source.tensors[pairs[0].key]
    if len(pairs) == 1 and first.translation.fills and not first.offset:
        came = tensor.read()
        array = np.ascontiguousarray(first.translation(came)).astype(dtype, copy=False)
        array = array.reshape(first.translation.target_shape)  # ascontiguousarray makes () into (1,)
        return array.copy() if tensor.shared and np.may_share_memory(array, came) else array
    array = np.empty(first.translation.target_shape, dtype)
    filled: set[Any] = set()
    for pair in pairs:
        came = source.tensors[pair.key].read()
        came = came + np.asarray(pair.offset, came.dtype) if pair.offset else came
        pair.translation.put(came, array, add=pair.translation.region in filled)
        filled.add(pair.translation.region)
    return array


def _placed(array: np.ndarray, path: Path, sharding: Any) -> jax.Array:
    """The array on its device; on a CPU it may share the memory, which is nobody else's."""
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return jax.device_put(array, sharding)
    return jax.device_put(array, sharding(paths.join(path)))
