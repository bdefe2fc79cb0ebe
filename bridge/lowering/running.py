"""A captured program, run: each op by its row, each part in its own frame."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import LoweringError, TraceError
from bridge.core.frames import Frame
from bridge.core.paths import Path
from bridge.core.tree import find
from bridge.lowering.guards import holds
from bridge.lowering.program import Call, Dtype, Form, Graph, Op, Program, Ref
from bridge.lowering.promotion import narrowed
from bridge.lowering.table import find_row

WIDE = ("float64", "complex128")


class Runner:
    """One run of a program, or of the part of it that one module is.

    `root` is the private copy of that module and `place` its place in the torch model; `in_step` says
    whether a module further down is still the captured part and runs in the program's mode.
    """

    def __init__(self, program: Program, root: Any, place: Path, in_step: Callable[[Any, Path], bool]):
        self.program, self.root, self.place, self.in_step = program, root, place, in_step
        self.values: dict[int, Any] = {}
        self.node = root
        self.replaced: list[Path] = []
        self.within = 0

    def run(self, call: Call, bound: Mapping[str, Any], where: str) -> Any:
        """The output of a call with these arguments."""
        leaves = list(call.leaves(bound, where))
        if call is self.program.main:
            leaves = self._checked(call, leaves)
        for (_, value), ref in zip(leaves, call.inputs, strict=True):
            self.values[ref.number] = value
        return self._body(call)

    def _checked(self, call: Call, leaves: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """The inputs of the model as arrays of their captured forms, which also fit each other."""
        order = {one.number: (index, one.form) for index, one in enumerate(self.program.inputs)}
        sizes: dict[str, int] = {}
        names: dict[str, str] = {}
        checked: list[tuple[str, Any]] = []
        for (name, value), ref in zip(leaves, call.inputs, strict=True):
            index, form = order[ref.number]
            array = _fitted(name, value, form, self.program.fixed)
            checked.append((name, array))
            for axis, size in enumerate(array.shape):
                sizes[f"x{index}_{axis}"] = size
                names[f"x{index}_{axis}"] = f"{name} axis {axis}"
        for guard in self.program.guards:
            if not holds(guard, sizes):
                used = {symbol: size for symbol, size in sizes.items() if symbol in guard}
                told = "; ".join(
                    f"{symbol} is {names[symbol]}, {size}" for symbol, size in used.items()
                )
                raise LoweringError(
                    f"the captured program is for sizes with {guard} alone ({told}). Capture the model"
                    f" with an example of these sizes: bridge.from_torch(...)"
                )
        return checked

    def _body(self, call: Call) -> Any:
        for item in call.body:
            if isinstance(item, Op):
                self._op(item)
            else:
                self._call(item)
        return call.output_structure.build(iter([self.value(ref) for ref in call.outputs]))

    def _call(self, call: Call) -> None:
        """Runs a part: as captured where it still is that, else by calling what is there now."""
        node = self._node(call.path)
        if self.in_step(node, call.path):
            outer, self.node = self.node, node
            _frame(node).enter(node, lambda _: self._body(call), (), {})
            self.node = outer
            return
        self.replaced.append(call.path)
        bound = call.input_structure.build(iter([self.value(ref) for ref in call.inputs]))
        args, kwargs = call.signature.unbind(bound)
        out = node(*args, **kwargs)
        where = f"{paths.name(call.path)}: what it gives"
        for (_, value), ref in zip(
            call.output_structure.flatten(out, where), call.outputs, strict=True
        ):
            if isinstance(ref, Ref):
                self.values[ref.number] = value

    def ran(self, path: Path) -> bool:
        """Whether the part at a place ran as captured, and nothing else was called in its place."""
        return not any(paths.below(path, other) for other in self.replaced)

    def _node(self, path: Path) -> Any:
        return find(self.root, path[len(self.place) :])

    def _op(self, op: Op) -> None:
        try:
            self.values[op.result] = self._result(op)
        except LoweringError as error:
            if getattr(error, "placed", False):
                raise
            where = paths.name(_frame(self.node).path)
            placed = LoweringError(f"{where}, {op.name}: {error}")
            placed.placed = True  # type: ignore[attr-defined]
            raise placed from None

    def _result(self, op: Op) -> Any:
        row = find_row(op.name)
        if row is None:
            raise LoweringError(
                f"it has no row; type bridge.adapters.torch.register_op({op.name!r}, f)"
            )
        args = [self.value(arg) for arg in op.args]
        kwargs = {name: self.value(value) for name, value in op.kwargs.items()}
        result = row.run(self._draw, *args, **kwargs) if row.draws else row.run(*args, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        for output, form in zip(outputs, op.forms, strict=False):
            if form is not None and output is not None:
                _check(output, form)
        return result

    def _draw(self, stream: str = "default") -> Any:
        try:
            return _frame(self.node).draw(stream)
        except TraceError:
            if not self.within:
                raise
            raise LoweringError(
                "it draws random numbers in a branch or a loop (torch.cond, while_loop, scan), where"
                " the same ones would come again; draw them before it"
            ) from None

    def value(self, value: Any) -> Any:
        """An argument of an op with the arrays in it."""
        if isinstance(value, Ref):
            return self._array(value.number)
        if isinstance(value, (tuple, list)):
            return [self.value(item) for item in value]
        if isinstance(value, Dtype):
            return narrowed(value.name)
        if isinstance(value, Graph):
            return functools.partial(self._graph, value)
        return value

    def _array(self, number: int) -> Any:
        if number not in self.values:
            self.values[number] = self._held(number)
        return self.values[number]

    def _held(self, number: int) -> Any:
        """A parameter or a buffer, from the module that has it."""
        path = self.program.places.get(number)
        if path is None or path[: len(self.place)] != self.place:
            what = "a value" if path is None else paths.join(path)
            raise LoweringError(
                f"{paths.name(self.place)} takes {what} from outside of it, so it cannot run alone, nor"
                f" when what is around it was replaced; call the whole module"
            )
        try:
            value = find(self.root, path[len(self.place) :])
        except LookupError:
            raise LoweringError(
                f"{paths.join(path)} is used outside of the part that holds it, and is not there any"
                f" more: the part was replaced"
            ) from None
        form = self.program.forms[paths.join(path)]
        if value.dtype != narrowed(form.dtype) or tuple(value.shape) != form.shape:
            raise LoweringError(
                f"{paths.join(path)} is {value.dtype}{list(value.shape)}, and the model was captured"
                f" with {form.dtype}{list(form.shape)}; convert the torch model, and capture it again"
            )
        return value

    def _graph(self, graph: Graph, *values: Any) -> list[Any]:
        """What a subgraph gives for these inputs."""
        outer, self.within = self.values, self.within + 1
        self.values = {**outer, **dict(zip(graph.inputs, values, strict=True))}
        try:
            for op in graph.body:
                self._op(op)
            return [self.value(output) for output in graph.outputs]
        finally:
            self.values, self.within = outer, self.within - 1


def _frame(node: Any) -> Frame:
    """The frame of a node of the running call."""
    return node._call


def _check(output: Any, form: Form) -> None:
    """Compares what a row gave with what torch gives; raises LoweringError where they differ."""
    if form.dtype in WIDE and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise LoweringError(
            f"torch computes this in {form.dtype}, which JAX has with x64 alone; type"
            f" jax.config.update('jax_enable_x64', True), or compute in float32 in the torch model"
        )
    fits = len(output.shape) == len(form.shape) and all(
        wanted in (None, size) for size, wanted in zip(output.shape, form.shape, strict=True)
    )
    if not fits or np.dtype(output.dtype) != narrowed(form.dtype):
        sizes = ["any" if size is None else size for size in form.shape]
        raise LoweringError(
            f"it gave {output.dtype}{list(output.shape)}, where the captured program has"
            f" {form.dtype}{sizes}"
        )


def _fitted(where: str, value: Any, form: Form, fixed: str | None) -> jax.Array:
    """An input as an array of its captured form; raises LoweringError where it does not fit."""
    array = _converted(where, value, form)
    if len(array.shape) != len(form.shape):
        raise LoweringError(
            f"{where} has {len(array.shape)} axes {list(array.shape)}; the model was captured with"
            f" {len(form.shape)}"
        )
    for axis, (size, wanted) in enumerate(zip(array.shape, form.shape, strict=True)):
        if wanted not in (None, size):
            why = f" ({fixed})" if fixed else ""
            raise LoweringError(
                f"{where} has size {size} on axis {axis}; the captured program is for {wanted} alone"
                f"{why}. Capture the model with an example of that size: bridge.from_torch(...)"
            )
    return array


def _converted(where: str, value: Any, form: Form) -> jax.Array:
    """An input as an array of the captured dtype: integers are converted, floats must agree."""
    if not isinstance(value, jax.Array):
        value = jnp.asarray(value)
    dtype, wanted = value.dtype, narrowed(form.dtype)
    weak = getattr(value, "weak_type", False)
    if dtype == wanted and not weak:
        return value
    integers = jnp.issubdtype(dtype, jnp.integer) and jnp.issubdtype(wanted, jnp.integer)
    if (integers and np.iinfo(dtype).bits <= np.iinfo(wanted).bits) or (
        weak and jnp.promote_types(dtype, wanted) == wanted
    ):
        return value.astype(wanted)
    raise LoweringError(
        f"{where} is {dtype}, and the model was captured with {form.dtype}. Convert it:"
        f" x.astype({str(wanted)!r}), or capture the model with an example of that dtype"
    )
