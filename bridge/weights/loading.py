"""A Module with the weights of a source in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

import bridge.core.paths as paths
from bridge.core.errors import WeightsError, listed
from bridge.core.node import Node
from bridge.core.paths import Path
from bridge.core.sharding import ShardingRules
from bridge.core.storage import sharding_of
from bridge.core.tree import entries, map_entries
from bridge.weights.finite import Finding, warn_of_non_finite
from bridge.weights.following import followed, plan_of
from bridge.weights.matching import match_source, model_of
from bridge.weights.placing import array_of, sharded
from bridge.weights.report import Match, by_path
from bridge.weights.sources import Source, open_source
from bridge.weights.targets import Leaf, targets_of

M = TypeVar("M")

SOURCE, MODULE = "source", "module"
_NOTHING = object()
# So many bytes go to a device in one call: enough to be quick, few beside a model.
_AT_ONCE = 1 << 26


def load_state_dict(
    module: M,
    source: Any,
    rename: Mapping[Any, str] | None = None,
    strict: bool = True,
    dtype: Any = None,
    sharding: Sharding | ShardingRules | Callable[[str], Sharding] | Any = None,
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
    numbers to it; a number too large for its dtype is an error.

    `sharding` says where the arrays go: `ShardingRules`, one sharding for all, a tree of them like the
    module, or a function of the path. Without it each goes to where the module's own was put on
    purpose. Of an array that several devices hold, each part is read straight to its place, and a
    process reads the parts of its own devices alone.

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
    place_of = _places(sharding, module, targets.leaves)
    problems = [*match.complaints(strict), *_wrong_dtypes(match, opened, targets.leaves, dtype)]
    if problems:
        raise WeightsError(f"these weights do not fit the Module:\n{listed(problems)}")
    loaded: dict[Path, jax.Array] = {}
    findings: dict[str, Finding] = {}
    for made, array in _put(_arrays(match, opened, targets.leaves, dtype, place_of)):
        loaded[made.path], findings[paths.join(made.path)] = array, made.found
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


class _Made(NamedTuple):
    """An array, where it goes or is already, and what of it is not finite."""

    path: Path
    array: np.ndarray | jax.Array
    where: Any
    found: Finding


def _arrays(
    match: Match,
    source: Source,
    leaves: Mapping[Path, Leaf],
    dtype: Any,
    place_of: Callable[[Path], Any],
) -> Iterator[_Made]:
    """Each array of a plan; one of several devices is on them already."""
    for path, pairs in by_path(match.pairs).items():
        came = jnp.result_type(*(source.tensors[pair.key].dtype for pair in pairs))
        wanted, where = _wanted_dtype(came, leaves[path].dtype, dtype), place_of(path)
        found = Finding()
        if where is not None and len(where.device_set) > 1:
            array = sharded(pairs, source, wanted, where, found.look)
        else:
            array = array_of(pairs, source, wanted, found.look)
        yield _Made(path, array, where, found)
    for path, value in match.constants.items():
        array = np.full(leaves[path].shape, value, leaves[path].dtype)
        yield _Made(path, array, place_of(path), Finding())


def _put(arrays: Iterator[_Made]) -> Iterator[tuple[_Made, jax.Array]]:
    """Each array on its devices, several at a time, which costs half of one after the other.

    On a CPU they may share the host's memory, which is nobody else's.
    """
    waiting: list[_Made] = []
    size = 0
    for one in arrays:
        if waiting and (size + one.array.nbytes > _AT_ONCE or one.where != waiting[0].where):
            yield from _put_at_once(waiting)
            waiting, size = [], 0
        waiting.append(one)
        size += one.array.nbytes
    if waiting:
        yield from _put_at_once(waiting)


def _put_at_once(arrays: list[_Made]) -> Iterator[tuple[_Made, jax.Array]]:
    placed = jax.device_put([one.array for one in arrays], arrays[0].where)
    return zip(arrays, placed, strict=True)


def _places(sharding: Any, module: Any, leaves: Mapping[Path, Leaf]) -> Callable[[Path], Any]:
    """Where each array goes, by its path: a sharding, or None where JAX may choose.

    Raises WeightsError for what says nothing of that, and PathError for rules that do not fit.
    """
    if sharding is None:
        held = {entry.path: entry.value for entry in entries(module)}
        return lambda path: sharding_of(held[path])
    if isinstance(sharding, Sharding):
        return lambda _: sharding
    if isinstance(sharding, ShardingRules):
        return sharding.places({path: leaf.shape for path, leaf in leaves.items()}).__getitem__
    if isinstance(sharding, Node):
        places = {entry.path: entry.value for entry in entries(sharding)}
        return lambda path: _sharding_at(path, places.get(path, _NOTHING))
    if callable(sharding):
        return lambda path: _sharding_at(path, sharding(paths.join(path)))
    raise WeightsError(
        f"sharding= takes bridge.ShardingRules(mesh, {{...}}), a jax.sharding.Sharding, a tree of them"
        f" like the module, or a function of the path; a {type(sharding).__name__} was given"
    )


def _sharding_at(path: Path, found: Any) -> Any:
    if found is None or isinstance(found, Sharding):
        return found
    given = "nothing" if found is _NOTHING else f"a {type(found).__name__}"
    raise WeightsError(
        f"{paths.join(path)}: sharding= gives {given} for it; a jax.sharding.Sharding"
        f" was wanted, such as NamedSharding(mesh, PartitionSpec())"
    )
