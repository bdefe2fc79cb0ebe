"""A reparametrized model as a plain one: the transformed arrays take the place of the stored ones."""

from __future__ import annotations

from typing import Any

import bridge.core.paths as paths
from bridge.core.errors import SharingError, UninitialisedError, listed
from bridge.core.frames import frame_of
from bridge.core.leaves import Tied
from bridge.core.node import Alias, map_children, rebuild, rng_of, spec_of
from bridge.core.paths import Path
from bridge.core.reaching import reached
from bridge.core.reparametrizing import Reparametrized
from bridge.core.tree import entries, map_entries, owner_path, walk


def materialized(module: Any) -> Any:
    """The module without its reparametrizations: each parameter is what the model saw in eval mode.

    Reparametrized parts anywhere in the tree give way to the modules inside them, under the paths that
    those had; what is frozen stays so. A trained LoRA is merged by it, and can be exported. Raises
    SharingError where such a part shares with what is outside of it, which sees other arrays.

    >>> import bridge as br
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    ...
    ...     def __call__(self, x):
    ...         return self.slope * x
    >>> line = br.materialized(br.reparametrized(Line(3.0), lambda array: 2 * array))
    >>> line, float(line.slope)
    (Line(), 6.0)
    """
    _refuse_crossings(module)

    def visit(_: Path, node: Any) -> Any:
        if isinstance(node, Reparametrized):
            return visit((), _seen(node))
        return rebuild(node, **map_children(node, visit))

    return visit((), module)


def _seen(node: Reparametrized) -> Any:
    """The module inside, with the arrays that it sees, and with the mode and keys of what held it."""
    if node.places is None:
        raise UninitialisedError(
            "there is nothing to put in place yet; type module = module.init(key, *sample) first"
        )
    values, _ = node.apply(mode="eval", method=_by_path)
    inner: Any = map_entries(node.module, lambda path, leaf: values.get(path, leaf))
    spec, own = spec_of(node), spec_of(inner)
    rng = rng_of(inner) if rng_of(inner) is not None else rng_of(node)
    return rebuild(inner, spec=own.replace(mode=own.mode or spec.mode), rng=rng)


def _by_path(node: Any) -> dict[Path, Any]:
    """The arrays that the module inside sees, by their paths there."""
    seen = node.seen(frame_of(node), reached(node.module))
    return {owner[1:]: value for owner, value in seen.items()}


def _refuse_crossings(module: Any) -> None:
    """Raises SharingError for each reference between the inside of such a part and its outside."""
    insides = [(*path, "module") for path, node in walk(module) if isinstance(node, Reparametrized)]
    references = [(path, node) for path, node in walk(module) if isinstance(node, Alias)]
    references += [(e.path, e.value) for e in entries(module) if isinstance(e.value, Tied)]
    problems = []
    for path, reference in references:
        owner = owner_path(path, reference, module)
        if any(paths.below(path, inside) != paths.below(owner, inside) for inside in insides):
            problems.append(f"{paths.join(path)} is shared with {paths.join(owner)}")
    if problems:
        raise SharingError(
            f"these are arrays that one side sees transformed and the other as they are stored, so they"
            f" cannot be one array any more:\n{listed(problems)}\nReparametrize the module that holds"
            f" both, or set one of the two places to a module of its own"
        )
