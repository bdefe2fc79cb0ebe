"""Everything in which a saved file and the tree to load it into differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import bridge.core.paths as paths
from bridge.core.errors import listed
from bridge.core.leaves import Lazy, ParamInit, is_array
from bridge.core.manifest import CLASS, Manifest, modules_in
from bridge.core.paths import Path
from bridge.core.tree import entries

Problems = list[tuple[Path, str]]

UNINITIALISED = (
    "is not initialised; type module = module.init(key, *sample), or optimizer = optimizer.init(module)"
)
_NOTHING = "<nothing>"
_LONGEST = 60


def misfits(
    stored: Mapping[str, Any],
    manifest: Manifest,
    like: Any,
    leaves: Mapping[Path, Any],
    keep_static: Iterable[str],
) -> str:
    """The problems, one a line, and what to type; empty where the file fits.

    `stored` are the saved arrays by their dotted paths: anything that has a shape and a dtype.
    """
    wanted = Manifest.of(like, {})
    lazy = uninitialised(like)
    problems = [(place, f"like {UNINITIALISED}") for place in lazy]
    problems += _sharing(manifest, wanted)
    problems += _arrays(stored, manifest, leaves, {place for place, _ in problems})
    problems += _modules(manifest, wanted, {place for place, _ in problems})
    statics = [
        (place, problem)
        for place, problem in _statics(manifest, wanted, {paths.join(place[:-1]) for place in lazy})
        if not any(paths.matches(place, p) or paths.covers(p, place) for p in keep_static)
    ]
    if not problems and not statics:
        return ""
    advice = "\nBuild like as the saved tree was built"
    if statics:
        places = sorted(paths.join(place) for place, _ in statics)
        chosen = places if len(places) <= 3 else ["*"]
        advice += f"; to load all the same and keep what like has, add keep_static={chosen}"
    return told(sorted(problems + statics)) + advice


def told(problems: Problems) -> str:
    """Places and what is wrong with them, one a line."""
    return listed([f"{named(place)}: {problem}" for place, problem in problems])


def named(place: Path) -> str:
    """The dotted string of a place for a message."""
    return paths.join(place) or "the tree itself"


def uninitialised(tree: Any) -> list[Path]:
    """The places of a tree where `init` has still to make arrays."""
    return [
        (*prefix, *entry.path)
        for prefix, module in modules_in(tree)
        for entry in entries(module)
        if isinstance(entry.value, (Lazy, ParamInit))
    ]


def is_typed_key(leaf: Any) -> bool:
    """Whether a leaf holds keys of `jax.random.key`, whose bits are behind a dtype of their own."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _sharing(manifest: Manifest, wanted: Manifest) -> Problems:
    """The ties and shared modules that only one side has, or that lead elsewhere."""
    saved, here = manifest.shared, wanted.shared
    return [
        (
            paths.split(name),
            f"{_owned('the file', saved.get(name))}, {_owned('like', here.get(name))}; share one module"
            f" object at both places, or use bridge.tie, as it was when saved",
        )
        for name in sorted(saved.keys() | here.keys())
        if saved.get(name) != here.get(name)
    ]


def _owned(side: str, owner: str | None) -> str:
    return f"{side} shares it with {owner}" if owner is not None else f"{side} does not share it"


def _arrays(
    tensors: Mapping[str, Any], manifest: Manifest, leaves: Mapping[Path, Any], told_of: set[Path]
) -> Problems:
    """The arrays that only one side has, or that are another array, outside of the places told of."""
    stored = {paths.split(name): name for name in tensors}
    problems: Problems = []
    for place in {**stored, **leaves}:
        saved = _saved(tensors, manifest, stored[place]) if place in stored else None
        problem = _misfit(saved, leaves.get(place))
        if problem and not paths.under(place, told_of):
            attached = "; module.new_state(key) attaches keys" if "_rng" in place else ""
            problems.append((place, problem + attached))
    return problems


def _saved(tensors: Mapping[str, Any], manifest: Manifest, name: str) -> Any:
    """The abstract array of a tensor in the file; a string where its keys cannot be made."""
    tensor = tensors[name]
    array = jax.ShapeDtypeStruct(tuple(tensor.shape), tensor.dtype)
    if name not in manifest.keys:
        return array
    impl = manifest.keys[name]
    try:
        return jax.eval_shape(lambda bits: jax.random.wrap_key_data(bits, impl=impl), array)
    except (TypeError, ValueError):
        return f"{_spelled(array)} for a key of {impl!r}, which jax does not make of it"


def _misfit(saved: Any, leaf: Any) -> str | None:
    came = f"the file has {_spelled(saved)}, like has {_spelled(leaf)}"
    if not is_array(saved) or not is_array(leaf):
        return came
    if is_typed_key(saved) != is_typed_key(leaf):
        return f"{came}; turn like's key with jax.random.key_data or jax.random.wrap_key_data"
    if (saved.shape, saved.dtype) != (leaf.shape, leaf.dtype):
        return came
    if not is_typed_key(saved) and jax.dtypes.canonicalize_dtype(saved.dtype) != saved.dtype:
        return (
            f'it is {saved.dtype}, which JAX has only after jax.config.update("jax_enable_x64", True)'
        )
    return None


def _spelled(leaf: Any) -> str:
    if is_array(leaf):
        return f"{leaf.dtype}{list(leaf.shape)}"
    if isinstance(leaf, str):
        return leaf
    return "nothing there" if leaf is None else f"a {type(leaf).__name__}, which is no array"


def _modules(manifest: Manifest, wanted: Manifest, told_of: set[Path]) -> Problems:
    """The modules that only one side has, where no array told of it."""
    holders = {place[:length] for place in told_of for length in range(len(place))}
    places = sorted(paths.split(name) for name in manifest.modules.keys() ^ wanted.modules.keys())
    problems: Problems = []
    for place in paths.outermost(places):
        if place in holders or paths.under(place, told_of):
            continue
        name = paths.join(place)
        saved = manifest.modules.get(name, {}).get(CLASS, _NOTHING)
        here = wanted.modules.get(name, {}).get(CLASS, _NOTHING)
        problems.append((place, f"the file has the module {saved}, like has {here}"))
    return problems


def _statics(manifest: Manifest, wanted: Manifest, lazy: set[str]) -> Iterator[tuple[Path, str]]:
    """What differs in the classes, static fields and kinds of what both sides have.

    A module among the lazy ones is left out: `init` may give it static fields as well.
    """
    for saved, here in ((manifest.modules, wanted.modules), (manifest.kinds, wanted.kinds)):
        for name in sorted((saved.keys() & here.keys()) - lazy):
            yield from _differences(saved[name], here[name], paths.split(name))


def _differences(saved: Any, wanted: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        other_class = saved.get(CLASS) != wanted.get(CLASS)
        for name in [CLASS] if other_class else {**saved, **wanted}:
            pair = saved.get(name, _NOTHING), wanted.get(name, _NOTHING)
            yield from _differences(*pair, (*path, name))
    elif isinstance(saved, list) and isinstance(wanted, list) and len(saved) == len(wanted):
        for index, pair in enumerate(zip(saved, wanted, strict=True)):
            yield from _differences(*pair, (*path, str(index)))
    elif json.dumps(saved) != json.dumps(wanted):
        yield path, f"the file has {_shown(saved)}, like has {_shown(wanted)}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
