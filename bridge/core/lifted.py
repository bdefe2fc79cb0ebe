"""`scan`, `vmap` and `remat` over code that calls modules: state is threaded, keys differ by step."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

import bridge.core.hosts as hosts
import bridge.core.paths as paths
from bridge.core.calling import settled
from bridge.core.errors import StructureError
from bridge.core.frames import current_trace, frame_of
from bridge.core.node import Node, put
from bridge.core.tree import walk

_AXIS = "bridge.vmap"


def scan(
    function: Callable[..., Any],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    modules: Iterable[Any] = (),
) -> tuple[Any, Any]:
    """`jax.lax.scan` for a body that calls modules of the running call.

    `function(carry, x) -> (carry, y)` is a module, a method of one, or a function that closes over
    modules (name others in `modules`). Each step draws other keys; a state written in one step is read
    in the next. Outside of a call it is `jax.lax.scan`.

    >>> import bridge as br, jax, jax.numpy as jnp
    >>> class Sum(br.Module):
    ...     steps: br.State
    ...
    ...     def add(self, carry, x):
    ...         self.steps = self.steps + 1
    ...         return carry + x, carry
    ...
    ...     def __call__(self, xs):
    ...         return br.scan(self.add, 0.0, xs)[0]
    >>> total, module = Sum(0).apply(jnp.arange(5.0))
    >>> float(total), int(module.steps)
    (10.0, 5)
    """
    lift = _Lift(function, modules)

    def body(carry: Any, step_and_x: Any) -> Any:
        (user, states), (step, x) = carry, step_and_x
        with lift.inside(states, step):
            user, y = function(user, x)
            return (user, lift.after(states)), y

    count = length if length is not None else jax.tree.leaves(xs)[0].shape[0]
    steps = jax.numpy.arange(count)
    (carry, states), ys = jax.lax.scan(
        body, (init, lift.states()), (steps, xs), length, reverse, unroll
    )
    lift.keep(states)
    return carry, ys


def vmap(
    function: Callable[..., Any],
    in_axes: int | Sequence[Any] | None = 0,
    out_axes: Any = 0,
    axis_name: str | None = None,
    axis_size: int | None = None,
    modules: Iterable[Any] = (),
) -> Callable[..., Any]:
    """`jax.vmap` for a function that calls modules of the running call.

    Each example draws other keys. Parameters and state are not mapped; a state that is written must
    come out the same for every example (reduce it with `jax.lax.pmean(..., axis_name)`), or a
    StructureError names it.

    >>> import bridge as br, jax, jax.numpy as jnp
    >>> class Jitter(br.Module):
    ...     def __call__(self, xs):
    ...         return br.vmap(lambda x: x + jax.random.normal(self.rng))(xs)
    >>> out, _ = Jitter().apply(jnp.zeros(3), rng=jax.random.key(0))
    >>> len(set(out.tolist()))
    3
    """
    axis = axis_name or _AXIS

    def mapped(*args: Any, **kwargs: Any) -> Any:
        lift = _Lift(function, modules)

        def body(states: Any, *args: Any, **kwargs: Any) -> Any:
            with lift.inside(states, jax.lax.axis_index(axis)):
                return function(*args, **kwargs), lift.after(states)

        axes = tuple(in_axes) if isinstance(in_axes, Sequence) else (in_axes,) * len(args)
        vmapped = jax.vmap(body, (None, *axes), (out_axes, None), axis_name=axis, axis_size=axis_size)
        try:
            out, states = vmapped(lift.states(), *args, **kwargs)
        except ValueError as error:
            if "out_axes is None" not in str(error):
                raise
            raise StructureError(
                f"{', '.join(lift.written())} came out of bridge.vmap with another value for each"
                f" example; reduce it there: jax.lax.pmean(value, {axis_name or 'axis_name'!r})"
            ) from None
        lift.keep(states)
        return out

    return mapped


def remat(
    function: Callable[..., Any],
    policy: Callable[..., bool] | None = None,
    prevent_cse: bool = True,
    modules: Iterable[Any] = (),
) -> Callable[..., Any]:
    """`jax.checkpoint` for a function that calls modules of the running call.

    What is no array among the arguments stays static. The same keys are drawn with and without it.

    >>> import bridge as br, jax.numpy as jnp
    >>> class Cheap(br.Module):
    ...     block: br.Module
    ...
    ...     def __call__(self, x):
    ...         return br.remat(self.block)(x)
    >>> float(Cheap(jnp.sin)(jnp.array(0.0)))
    0.0
    """

    def rematerialised(*args: Any, **kwargs: Any) -> Any:
        lift = _Lift(function, modules)
        leaves, treedef = jax.tree.flatten((args, kwargs))
        traced = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

        def body(states: Any, traced: dict[int, Any]) -> Any:
            inner = [traced.get(i, leaf) for i, leaf in enumerate(leaves)]
            inner_args, inner_kwargs = jax.tree.unflatten(treedef, inner)
            with lift.inside(states):
                return function(*inner_args, **inner_kwargs), lift.after(states)

        checkpointed = jax.checkpoint(body, policy=policy, prevent_cse=prevent_cse)
        out, states = checkpointed(lift.states(), traced)
        lift.keep(states)
        return out

    return rematerialised


class _Lift:
    """The private copies that a lifted function uses: their states become values of the transform."""

    def __init__(self, function: Callable[..., Any], modules: Iterable[Any]) -> None:
        roots = [*_modules_in(function), *_modules_in(tuple(modules))]
        self.host = hosts.running()
        if self.host is not None:  # what the function calls are parts of the host's module
            roots.append(self.host.node)
            self.mark = self.host.mark()
        found = {id(node): node for root in roots for _, node in walk(root)}
        self.nodes = [node for node in found.values() if self._is_ours(node)]
        self.fields = [
            (node, name)
            for node in self.nodes
            for name, field in type(node)._fields.items()
            if field.kind.name in ("state", "key")
        ]
        self._written: set[tuple[int, str]] = set()
        for streams in {id(s): s for node in self.nodes if (s := node._call.streams)}.values():
            streams.take()

    @staticmethod
    def _is_ours(node: Any) -> bool:
        """Whether a node belongs to the running call; one under a raw transform keeps refusing."""
        frame = frame_of(node)
        return frame is not None and not frame.foreign()

    def states(self) -> list[Any]:
        """The states of the nodes, in a fixed order."""
        return [getattr(node, name) for node, name in self.fields]

    @contextlib.contextmanager
    def inside(self, states: list[Any], step: Any = None) -> Iterator[None]:
        """The nodes as part of the trace that runs now, with these states and this step's keys."""
        outer = self.states()
        frames = [(node, frame_of(node)) for node in self.nodes]
        saved = [(frame, frame.trace, frame.lifts, frame.written) for _, frame in frames if frame]
        trace = current_trace()
        if self.host is not None:
            self.host.rewind(self.mark)
        for frame, _, lifts, _ in saved:
            frame.trace, frame.written = trace, set()
            frame.lifts = lifts if step is None else (*lifts, step)
        self._set(states)
        try:
            yield
        finally:
            for node, frame in frames:
                if frame is not None:
                    self._written |= {(id(node), name) for name in frame.written}
            for frame, outer_trace, lifts, written in saved:
                frame.trace, frame.lifts, frame.written = outer_trace, lifts, written
            self._set(outer)

    def after(self, before: list[Any]) -> list[Any]:
        """The states as the function left them, in the form that they had."""
        return [
            settled(old, getattr(node, name), (*node._call.path, *type(node)._fields[name].prefix))
            for old, (node, name) in zip(before, self.fields, strict=True)
        ]

    def keep(self, states: list[Any]) -> None:
        """Gives the nodes the states that came out, where the function wrote them."""
        for (node, name), value in zip(self.fields, states, strict=True):
            if (id(node), name) in self._written:
                put(node, {name: value})
                node._call.written.add(name)

    def written(self) -> list[str]:
        """The paths of the states that the function wrote."""
        return [
            paths.join((*node._call.path, name))
            for node, name in self.fields
            if (id(node), name) in self._written
        ]

    def _set(self, states: list[Any]) -> None:
        for (node, name), value in zip(self.fields, states, strict=True):
            put(node, {name: value})


def _modules_in(value: Any) -> list[Any]:
    """The modules that a function reaches: itself, what it is bound to, and what it closes over."""
    found: list[Any] = []
    seen: dict[int, Any] = {}  # with the values, so that no other one gets the id of a temporary list

    def visit(value: Any) -> None:
        if id(value) in seen:
            return
        seen[id(value)] = value
        if isinstance(value, Node):
            found.append(value)
        elif isinstance(value, (list, tuple, set)):
            for item in value:
                visit(item)
        elif isinstance(value, dict):
            visit(list(value.values()))
        elif isinstance(value, functools.partial):
            visit([value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            visit([value.__self__, value.__func__])
        elif isinstance(value, types.FunctionType):
            cells = [content(cell) for cell in value.__closure__ or ()]
            visit([cells, value.__defaults__ or (), value.__kwdefaults__ or {}])

    visit(value)
    return found


def content(cell: Any) -> Any:
    """The value of a variable that a function closes over; None where it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not assigned yet
        return None
