"""Where the arrays of a tree lie on a mesh of devices: rules by path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import bridge.core.paths as paths
from bridge.core.errors import FieldError, PathError, listed
from bridge.core.leaves import segments
from bridge.core.paths import Path


class ShardingRules:
    """A mesh and how arrays are split over it, by path; the first pattern that selects a path has it.

    `rules` are PartitionSpecs by path or glob, as for the groups of an Optimizer: `{"*.kernel":
    PartitionSpec(None, "model"), "*": PartitionSpec()}`. The rules are what `sharding=` of
    `load_state_dict` takes; `of(tree)` is the tree of shardings that `jax.device_put` and `jax.jit`
    take. Raises FieldError for what is no mesh, no PartitionSpec, or no axis of the mesh.

    >>> import bridge as br, jax, jax.numpy as jnp
    >>> from jax.sharding import PartitionSpec as P
    >>> class Dense(br.Module):
    ...     kernel: br.Parameter
    ...     bias: br.Parameter
    >>> mesh = jax.make_mesh((len(jax.devices()),), ("model",))
    >>> rules = br.ShardingRules(mesh, {"*kernel": P(None, "model"), "*": P()})
    >>> dense = Dense(jnp.ones((3, 16)), jnp.zeros(16))
    >>> dense = jax.device_put(dense, rules.of(dense))
    >>> dense.kernel.sharding.spec == P(None, "model"), dense.bias.sharding.spec == P()
    (True, True)
    """

    def __init__(self, mesh: Mesh, rules: Mapping[str, PartitionSpec]) -> None:
        if not isinstance(mesh, Mesh):
            raise FieldError(
                f"ShardingRules takes a mesh, such as jax.make_mesh((2, 4), ('data', 'model')); a"
                f" {type(mesh).__name__} was given"
            )
        for pattern, spec in rules.items():
            _check(pattern, spec, mesh)
        self.mesh, self.rules = mesh, dict(rules)

    def of(self, tree: Any) -> Any:
        """The tree with a NamedSharding in the place of each array, or of each `ShapeDtypeStruct`.

        Raises PathError as `places` does.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        places = self.places({segments(keys): leaf.shape for keys, leaf in leaves})
        return jax.tree.unflatten(structure, places.values())

    def places(self, shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, NamedSharding]:
        """The sharding of each of some arrays, whose shapes are given by path.

        Raises PathError with everything that does not fit: an array that no rule selects or that its
        rule cannot split, and a rule that selects no array.
        """
        chosen = {path: self._pattern_of(path) for path in shapes}
        problems = [
            problem
            for path, shape in shapes.items()
            for problem in self._problems(path, chosen[path], shape)
        ]
        texts = [paths.join(path) for path in shapes]
        problems += [
            f"{pattern!r} selects no array; {paths.nearest(pattern, texts)}"
            for pattern in self.rules
            if not any(paths.selects(pattern, path) for path in shapes)
        ]
        if problems:
            raise PathError(
                "the sharding rules do not fit the tree:\n"
                + listed(problems)
                + '\nA rule "*": PartitionSpec() at the end keeps what is left whole on every device'
            )
        return {path: NamedSharding(self.mesh, self.rules[chosen[path]]) for path in shapes}

    def _pattern_of(self, path: Path) -> Any:
        return next((pattern for pattern in self.rules if paths.selects(pattern, path)), None)

    def _problems(self, path: Path, pattern: str | None, shape: tuple[int, ...]) -> Iterator[str]:
        """What speaks against splitting an array as its rule says."""
        place = paths.name(path)
        if pattern is None:
            yield f"{place}: no rule selects it"
            return
        spec = self.rules[pattern]
        if len(spec) > len(shape):
            yield f"{place}: has shape {shape}; the rule {pattern!r} splits {len(spec)} axes: {spec}"
            return
        for axis, names in enumerate(map(_names, spec)):
            devices = math.prod(self.mesh.shape[name] for name in names)
            if shape[axis] % devices:
                yield (
                    f"{place}: has shape {shape}; the rule {pattern!r} splits axis {axis} over"
                    f" {devices} devices, those of {' and '.join(names)}: {shape[axis]} is no multiple"
                )


def _names(part: Any) -> tuple[str, ...]:
    """The axes of the mesh that one axis of an array is split over."""
    if part is None or part is PartitionSpec.UNCONSTRAINED:
        return ()
    return part if isinstance(part, tuple) else (part,)


def _check(pattern: str, spec: Any, mesh: Mesh) -> None:
    if not isinstance(spec, PartitionSpec):
        raise FieldError(
            f"the rule {pattern!r} is a {type(spec).__name__}; a jax.sharding.PartitionSpec was wanted,"
            f" whose entries are axes of the mesh or None"
        )
    unknown = [name for part in spec for name in _names(part) if name not in mesh.shape]
    if unknown:
        raise FieldError(
            f"the rule {pattern!r} splits over {', '.join(map(repr, unknown))}; the mesh has the axes"
            f" {', '.join(map(repr, mesh.shape))}"
        )
