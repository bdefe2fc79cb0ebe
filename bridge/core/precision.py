"""Mixed precision: a model computes in half of its precision, and keeps its arrays in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import bridge.core.paths as paths
from bridge.core.errors import FieldError, UninitialisedError
from bridge.core.frames import Frame
from bridge.core.leaves import Lazy, ParamInit, is_array
from bridge.core.module import Module, plain
from bridge.core.node import put
from bridge.core.paths import Path
from bridge.core.reparametrizing import Reparametrized
from bridge.core.tree import Entry, entries, map_entries, walk

_CASTS = ("cast_to_compute", "cast_to_param", "cast_to_output")


class WithPolicy(Reparametrized):
    """A module that sees its parameters and inputs as a policy casts them for computing."""

    @plain
    def invoke(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a method of the module returns, computed and cast as the policy says."""
        if self._running(method).initialising:
            # In full precision: libraries make arrays of the dtype of their inputs.
            return (self.module.own_method(method) or getattr(self.module, method))(*args, **kwargs)
        policy: Any = self.transform
        args, kwargs = policy.cast_to_compute((args, dict(kwargs)))
        nodes = {id(node): node for _, node in walk(self.module)}.values()
        kept = [(node, _states(node)) for node in nodes]
        seen = [policy.cast_to_compute(old) if node.mode == "eval" else old for node, old in kept]
        for (node, _), states in zip(kept, seen, strict=True):
            put(node, states)
        out = super().invoke(method, args, kwargs)
        for (node, old), states in zip(kept, seen, strict=True):
            put(node, {name: _as_kept(old[name], states[name], getattr(node, name)) for name in old})
        return policy.cast_to_output(out)

    @plain
    def seen(self, frame: Frame, found: list[tuple[Entry, Path]]) -> dict[Path, Any]:
        """Every parameter, also a frozen one, in the dtype to compute in, by the place that owns it."""
        stored = {o: e.value for e, o in found if e.kind.name == "parameter" and is_array(e.value)}
        policy: Any = self.transform
        return policy.cast_to_compute(stored)

    @plain
    def completed(self, _root: Any, _path: Path, _keys: Mapping[str, Any]) -> Any:
        """The module itself: a policy has nothing that `init` would make."""
        return self

    def extra_repr(self) -> str:
        """The policy."""
        return str(self.transform)


def with_policy(module: Any, policy: Any) -> WithPolicy:
    """The module computing in the precision of a policy, such as one of jmp, its own code untouched.

    `policy` has `cast_to_param`, `cast_to_compute` and `cast_to_output`, functions of a tree that cast
    its floating arrays. Parameters are kept as the first one casts them, below `.module` under the
    names that they had, and so are their gradients. In a call the module sees parameters and inputs as
    the second one casts them, and its outputs go through the third. States keep their dtype. In train
    mode they are seen as they are kept, so that averages lose nothing; in eval mode they are seen cast,
    and what is written there has that precision. What a layer promotes by itself, it computes in the
    wider dtype. `init` runs in full precision. Weights are loaded before, and exported from `.module`.
    Raises UninitialisedError before init.

    A captured PyTorch model computes in the dtypes that it was captured with: capture it under torch's
    own policy, `with torch.autocast("cpu", torch.bfloat16): from_torch(model, x)`.

    >>> import bridge as br, jax.numpy as jnp
    >>> class Half:
    ...     def cast_to_param(self, tree):
    ...         return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    ...
    ...     def cast_to_compute(self, tree):
    ...         return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)
    ...
    ...     cast_to_output = cast_to_param
    >>> import jax
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    ...
    ...     def __call__(self, x):
    ...         return self.slope * x
    >>> line = br.with_policy(Line(jnp.array(1.001)), Half())
    >>> x = jnp.array(2.0)
    >>> float(line(x)), line(x).dtype.name, line.grad(x).module.slope.dtype.name
    (2.0, 'float32', 'float32')
    """
    missing = [name for name in _CASTS if not callable(getattr(policy, name, None))]
    if missing:
        raise FieldError(
            f"with_policy takes a policy, such as jmp.get_policy('params=float32,compute=bfloat16,"
            f"output=float32'), and this {type(policy).__name__} has no {', '.join(missing)}"
        )
    module = Module.adopt(module, "with_policy")
    held = list(entries(module))
    late = [entry.path for entry in held if isinstance(entry.value, (Lazy, ParamInit))]
    if late:
        raise UninitialisedError(
            f"{paths.name(late[0])} is not initialised, and a policy casts what is there; type module ="
            f" module.init(key, *sample) first"
        )
    stored = {e.path: e.value for e in held if e.kind.name == "parameter" and is_array(e.value)}
    cast = policy.cast_to_param(stored)
    module = map_entries(module, lambda path, leaf: cast.get(path, leaf))
    return WithPolicy(module=module, transforms={}, transform=policy, where=None, places=())


def _states(node: Any) -> dict[str, Any]:
    """The state fields of a node, by name."""
    fields = type(node)._fields.items()
    return {name: getattr(node, name) for name, field in fields if field.kind.name == "state"}


def _as_kept(old: Any, seen: Any, new: Any) -> Any:
    """A state after a call, in the dtypes that it had: what was not written is what it was before."""
    if new is seen or jax.tree.structure(new) != jax.tree.structure(old):
        return old if new is seen else new
    return jax.tree.map(_leaf_as_kept, old, seen, new)


def _leaf_as_kept(old: Any, seen: Any, new: Any) -> Any:
    if new is seen:
        return old
    return new.astype(old.dtype) if jnp.issubdtype(old.dtype, jnp.floating) else new
