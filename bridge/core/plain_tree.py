"""A Module as nested dicts, open to every edit, and back: `to_tree` and `from_tree`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import bridge.core.paths as paths
from bridge.core.errors import FieldError
from bridge.core.global_config import GlobalConfig
from bridge.core.handwritten import Handwritten, arrays, statics
from bridge.core.kinds import CHILD, STATIC
from bridge.core.leaves import map_leaves
from bridge.core.module import Module
from bridge.core.node import Alias, Node, children_of, map_children, rebuild, rng_of, share, spec_of
from bridge.core.paths import Path
from bridge.core.spec import thaw
from bridge.core.tree import find, owner_path
from bridge.core.tree_nodes import CONFIG, FREEZE, MODE, RNG, Slot, classed, handwritten, read


class ClassApply:
    """The `apply` of a tree that `to_tree` made of a class: it says which, and how its fields lie.

    It is called as any `apply`, and gives the tree after the call and the output.
    """

    def __init__(self, cls: Any, forms: Mapping[str, Any]) -> None:
        self.cls, self.forms = cls, forms

    def __call__(self, tree: Any, config: Any = None, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The tree after a call with the arguments of `Module.apply`, and the output."""
        module = from_tree(tree)
        own = spec_of(module)
        out, after = from_tree(tree, config).apply(*args, **kwargs)
        return to_tree(rebuild(after, spec=spec_of(after).replace(config=own.config))), out

    def __repr__(self) -> str:
        return f"<apply of {self.cls.__name__}>"


def to_tree(module: Any) -> dict[str, Any]:
    """A module as nested dicts of the keys params, buffers, aux, apply and submodules, to be edited.

    `params` and `buffers` hold arrays, the module's own ones, `submodules` a tree for each child, by
    their paths below the node: `layers.0` is the first child of the list `layers`, and joined with dots
    the names are the paths of `module.at`. `aux` holds the static fields, and where they are set
    `mode`, `freeze` (names of params) and `global_config`; an attached key is the buffer `_rng`. A
    shared module is one dict at several places. What `init` has still to make and what is tied stands
    among the arrays as it is. `apply(tree, config, *args)` gives a tree and the output.

    `bridge.from_tree` gives back the same module, or one with all that was edited: an array or a child
    replaced, a child cut or added, `apply` another function. Raises SharingError where a shared module
    is not in the tree.

    >>> import bridge as br, jax.numpy as jnp
    >>> class Scale(br.Module):
    ...     factor: br.Parameter
    ...
    ...     def __call__(self, x):
    ...         return self.factor * x
    >>> tree = br.to_tree(Scale(2.0))
    >>> tree["params"]["factor"] = jnp.array(3.0)
    >>> float(br.from_tree(tree)(5.0))
    15.0
    >>> tree["apply"] = lambda tree, config, x: (tree, x - tree["params"]["factor"])
    >>> float(br.from_tree(tree)(5.0))
    2.0
    """
    if not isinstance(module, Node):
        raise FieldError(
            f"to_tree takes a bridge.Module; it was given a {type(module).__name__}. A model of a"
            f" library becomes one by bridge.wrap(model)"
        )
    return _tree(module, (), module, {})


def _tree(node: Any, path: Path, root: Any, made: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    if isinstance(node, Alias):
        path = owner_path(path, node, root)
        node = find(root, path)
    if path not in made:
        made[path] = {**arrays(node), "aux": _aux(node), "apply": _apply(node), "submodules": {}}
        made[path]["buffers"].update(_keys(rng_of(node)))
        for below, child in children_of(node):
            tree = _tree(child, (*path, *below), root, made)
            made[path]["submodules"][paths.join(below)] = tree
    return made[path]


def _aux(node: Any) -> dict[str, Any]:
    spec = spec_of(node)
    added = {
        MODE: spec.mode,
        FREEZE: tuple(sorted(map(paths.join, spec.frozen))) or None,
        CONFIG: spec.config and {name: thaw(value) for name, value in spec.config.items()},
    }
    return {**statics(node), **{name: value for name, value in added.items() if value is not None}}


def _apply(node: Any) -> Callable[..., Any]:
    if isinstance(node, Handwritten):
        return node.function
    forms = map_children(node, lambda path, _: Slot(paths.join(path)))
    for name, field in type(node)._fields.items():
        if field.kind not in (STATIC, CHILD):

            def slot(below: Path, _: Any, prefix: Path = field.prefix) -> Slot:
                return Slot(paths.join((*prefix, *below)))

            forms[name] = map_leaves(getattr(node, name), slot)
    return ClassApply(type(node), forms)


def _keys(rng: Any) -> dict[str, Any]:
    if rng is None:
        return {}
    if not isinstance(rng, dict):
        return {RNG: rng}
    return {paths.join((RNG, stream)): key for stream, key in rng.items()}


def from_tree(tree: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Any:
    """The Module of a plain tree that `to_tree` made, or that was written by hand.

    A tree written by hand has `apply(tree, config, *args)`, which returns the tree, or a tree of the
    params, buffers and submodules that changed, and the output. In it `tree["submodules"][name]` is
    called by its own `apply`, and what that writes is kept by itself; `tree["aux"]` has the `mode` of
    the call, and `draw(stream)` gives its keys. `config` is the global config of the whole module, in
    place of what the tree says. A submodule may also be a Module or a plain function; a child of the
    tree's that is an int gets its name as a string. Raises StructureError, with everything that is
    wrong in a node.

    >>> import bridge as br, jax.numpy as jnp
    >>> def apply(tree, config, x):
    ...     calls = tree["buffers"]["calls"] + 1
    ...     out = config["sign"] * tree["params"]["weight"] * x
    ...     return {**tree, "buffers": {"calls": calls}}, out
    >>> tree = {"params": {"weight": jnp.array(2.0)}, "buffers": {"calls": jnp.array(0)}}
    >>> module = br.from_tree({**tree, "aux": {}, "apply": apply, "submodules": {}}, {"sign": -1})
    >>> out, module = module.apply(5.0)
    >>> float(out), int(module.calls)
    (-10.0, 1)
    """
    module = share(_module(tree, (), {}))
    if config is None:
        return module
    bound = GlobalConfig(config) if config else None
    return rebuild(module, spec=spec_of(module).replace(config=bound))


def _module(tree: Any, path: Path, made: dict[int, Any]) -> Any:
    if isinstance(tree, Node) or not isinstance(tree, Mapping):
        return Module.adopt(tree, paths.name(path))
    if id(tree) not in made:
        place = paths.name(path)
        found = read(tree, path, lambda child, at: _module(child, at, made))
        if isinstance(found.apply, ClassApply):
            made[id(tree)] = classed(found, found.apply.cls, found.apply.forms, place)
        else:
            made[id(tree)] = handwritten(found, place)
    return made[id(tree)]
