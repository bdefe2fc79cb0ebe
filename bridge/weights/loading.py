"""A Module with the weights of a source in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import WeightsError, listed
from bridge.core.paths import Path
from bridge.core.tree import map_entries
from bridge.weights.finite import Finding, finding, warn_of_non_finite
from bridge.weights.following import followed, plan_of
from bridge.weights.matching import match_source, model_of
from bridge.weights.placing import array_of, sharded
from bridge.weights.report import Match, by_path
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
    plan: Match | str | os.PathLike[str] | None = None,
) -> M:
    """The module with PyTorch weights in it, each turned into the layout of its own library.

    `source` is a mapping of names to arrays or tensors, a `torch.nn.Module`, or a path: a
    `.safetensors`, `.pt`, `.pth`, `.bin` or `.msgpack` file, the index of a sharded one, or a folder.
    No code of a file is run. The source is never changed, and what somebody else can still write to is
    copied; a file may be mapped, and must not be overwritten in place while the arrays are in use.
    `rename` and `inputs` are those of `match`, whose plan this follows; a `plan` that was made before,
    or the file that it was saved to, is followed instead of them. With `strict=False` keys may be left
    over and hyper-parameters differ; a place without a key is an error always.

    Nothing is cast by itself: with `dtype=None` the source has the module's dtypes, or it is an error.
    "source" keeps those of the source, "module" casts to the module's, any dtype casts floating
    numbers to it; a number too large for its dtype is an error. `sharding` says where the arrays go,
    one for all or a function of the path; of an array that several devices hold, each part is read
    straight to its place.

    Raises WeightsError with everything that does not fit; then nothing is loaded. Warns of numbers that
    are NaN or infinite.

    >>> import bridge as br, equinox as eqx, jax, numpy as np
    >>> linear = br.from_equinox(eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0)))
    >>> linear = br.load_state_dict(linear, {"fc.weight": np.array([[3.0, 5.0]], np.float32)})
    >>> float(linear(np.array([1.0, 10.0], np.float32))[0])
    53.0
    """
    opened = open_source(source)
    targets = targets_of(module)
    if plan is None:
        match = match_source(module, opened, rename or {}, model_of(source, inputs), inputs)
    elif rename is None and inputs is None:
        match = followed(plan_of(plan), targets, opened)
    else:
        raise WeightsError("a plan says where everything goes: leave rename and inputs out")
    problems = [*match.complaints(strict), *_wrong_dtypes(match, opened, targets.leaves, dtype)]
    if problems:
        raise WeightsError(f"these weights do not fit the Module:\n{listed(problems)}")
    loaded: dict[Path, jax.Array] = {}
    findings: dict[str, Finding] = {}
    for path, array, found in _arrays(match, opened, targets.leaves, dtype, sharding):
        loaded[path], findings[paths.join(path)] = array, found
    warn_of_non_finite(findings, stacklevel=2)
    return map_entries(module, lambda path, leaf: loaded.get(path, leaf))


def _wanted_dtype(came: np.dtype, here: np.dtype, dtype: Any) -> np.dtype:
    if dtype is None or dtype == SOURCE:
        return came
    floating = jnp.issubdtype(came, jnp.floating) and jnp.issubdtype(here, jnp.floating)
    return here if dtype == MODULE or not floating else np.dtype(dtype)


def _wrong_dtypes(
    match: Match, source: Source, leaves: Mapping[Path, Leaf], dtype: Any
) -> Iterator[str]:
    known = [pair for pair in match.pairs if pair.key in source.tensors and pair.path in leaves]
    for pair in known:
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
    match: Match, source: Source, leaves: Mapping[Path, Leaf], dtype: Any, sharding: Any
) -> Iterator[tuple[Path, jax.Array, Finding]]:
    """Each array on its devices; on a CPU it may share the host's memory, which is nobody else's."""
    for path, pairs in by_path(match.pairs).items():
        came = jnp.result_type(*(source.tensors[pair.key].dtype for pair in pairs))
        wanted, where = _wanted_dtype(came, leaves[path].dtype, dtype), _sharding_of(path, sharding)
        if where is not None and len(where.device_set) > 1:
            yield path, *sharded(pairs, source, wanted, where)
        else:
            array = array_of(pairs, source, wanted)
            yield path, jax.device_put(array, where), finding(array)
    for path, value in match.constants.items():
        array = np.full(leaves[path].shape, value, leaves[path].dtype)
        yield path, jax.device_put(array, _sharding_of(path, sharding)), finding(array)


def _sharding_of(path: Path, sharding: Any) -> Any:
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return sharding
    return sharding(paths.join(path))
