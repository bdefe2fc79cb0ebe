"""Torch's graph written down as a Program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

import bridge.core.paths as paths
from bridge.capture.containers import SYMBOLIC
from bridge.capture.exporting import Captured
from bridge.capture.marks import Mark
from bridge.capture.nodes import is_copy, is_op, op_name, origin, original, symbol
from bridge.capture.parts import Places
from bridge.capture.tensors import dtype_name, form_of
from bridge.core.errors import LoweringError, ModelError, listed
from bridge.core.paths import Path
from bridge.lowering import table
from bridge.lowering.program import Call, Dtype, Form, Graph, Input, Op, Program, Ref

# Where an op runs and how it lies in memory is XLA's to decide.
_DROPPED = ("device", "layout", "pin_memory", "memory_format", "generator", "non_blocking")


@dataclass
class _Scope:
    """The call of a part while its ops are gathered, with the sizes that it has made of its inputs."""

    body: list[Op | Call] = field(default_factory=list)
    inputs: Sequence[Node] = ()
    sizes: dict[Node, Any] = field(default_factory=dict)


class Conversion:
    """Torch's graph written down as a Program."""

    def __init__(self, captured: Captured, places: Places) -> None:
        self.captured, self.places = captured, places
        self.exported = captured.program
        self.module: GraphModule = self.exported.graph_module
        self.numbers: dict[Any, int] = {}
        self.scopes: list[_Scope] = []
        self.scalars: list[Op] = []
        self.arrays: dict[str, int] = {}
        self.forms: dict[str, Form] = {}
        self.inputs: list[Input] = []
        self.missing: dict[str, list[str]] = {}

    def program(self) -> Program:
        """The Program; raises LoweringError that lists every op without a row."""
        nodes = list(self.module.graph.nodes)
        self._take_inputs([node for node in nodes if node.op == "placeholder"])
        main = self._calls(nodes)
        if self.missing:
            raise LoweringError(self._told())
        return Program(
            main=main,
            arrays=self.arrays,
            forms=self.forms,
            inputs=tuple(self.inputs),
            guards=self.captured.guards,
            writes=self._writes(nodes[-1]),
            fixed=self.captured.fixed,
        )

    def _take_inputs(self, nodes: Sequence[Node]) -> None:
        signature = self.exported.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        tokens = {*signature.input_tokens}
        for node in nodes:
            if node.name in tokens:
                continue
            if node.name in named:
                self._hold(node, self._path(named[node.name]), node.meta["val"])
            elif node.name in constants:
                self._take_constant(node, constants[node.name])
            else:
                self.inputs.append(Input(self._number(node), form_of(node.meta["val"])))

    def _path(self, target: str) -> Path:
        """The place of a registered tensor, from its name below what was exported."""
        name = target.removeprefix("model.")
        return tuple(self.places.owners.get(name, name).split("."))

    def _take_constant(self, node: Node, target: str) -> None:
        """A tensor that the model makes of numbers: one number is written down, more are a buffer."""
        tensor = self.exported.constants[target]
        if tensor.ndim:
            self._hold(node, self.places.place(target.removeprefix("model."), tensor), tensor)
            return
        dtype = {"dtype": Dtype(dtype_name(tensor.dtype))}
        form = form_of(tensor)
        self.scalars.append(
            Op("aten.scalar_tensor.default", (tensor.item(),), dtype, self._number(node), (form,))
        )

    def _hold(self, node: Node, path: Path, tensor: torch.Tensor) -> None:
        """Gives a node the array at a place, which other nodes may have as well."""
        place = paths.join(path)
        self.numbers[node] = self.arrays.setdefault(place, len(self.numbers))
        self.forms[place] = form_of(tensor)

    def _number(self, node: Any) -> int:
        return self.numbers.setdefault(node, len(self.numbers))

    def _marks(self, copies: Sequence[Any]) -> dict[Node, list[tuple[Mark, list[Any], list[Any]]]]:
        """The marks by the node at which they stand, with the nodes of their values and buffers."""
        found: dict[Node, list[tuple[Mark, list[Any], list[Any]]]] = {}
        for mark in self.captured.marks:
            values = [copies[place] for place in mark.values]
            buffers = [copies[place] for place in mark.buffers.values()]
            found.setdefault(copies[mark.sign], []).append((mark, values, buffers))
        return found

    def _calls(self, nodes: Sequence[Node]) -> Call:
        """The calls around the ops, from the signs of where each begins and ends."""
        results: Any = nodes[-1].args[0]
        outputs = results[len(results) - self.captured.copies :]
        marks, copies = self._marks(outputs), {one for one in outputs if is_copy(one)}
        self.scopes = [_Scope()]
        begun: list[tuple[Mark, tuple[Any, ...]]] = []
        for node in nodes:
            for mark, values, buffers in marks.get(node, ()):
                if mark.kind == "begin":
                    begun.append((mark, tuple(self._source(value) for value in values)))
                    self.scopes.append(self._scope(values, begun[-1][1]))
                else:
                    call = self._call(begun.pop(), mark, values, buffers)
                    self.scopes.pop()
                    self.scopes[-1].body.append(call)
            if node not in marks and is_op(node) and node not in copies and not self._is_size(node):
                self.scopes[-1].body.append(self._op(node, self.module))
        outside = self.scopes[0].body
        main = next(item for item in outside if isinstance(item, Call))
        at = outside.index(main)
        body = (*self.scalars, *outside[:at], *main.body, *outside[at + 1 :])
        return dataclasses.replace(main, body=body)

    def _scope(self, values: Sequence[Any], inputs: Sequence[Any]) -> _Scope:
        """The scope of a part that is called with these values."""
        given = [original(value) for value in values]
        sizes = {
            node: ref
            for node, ref in zip(given, inputs, strict=True)
            if isinstance(node, Node) and self._is_size(node)
        }
        return _Scope(inputs=[node for node in given if isinstance(node, Node)], sizes=sizes)

    def _call(
        self, begin: tuple[Mark, tuple[Any, ...]], mark: Mark, outputs: list[Any], buffers: list[Any]
    ) -> Call:
        after = {
            paths.join((*mark.path, name)): self._source(node)
            for name, node in zip(mark.buffers, buffers, strict=True)
        }
        before = {place: Ref(self.arrays[place]) for place in after if place in self.arrays}
        return Call(
            path=mark.path,
            signature=mark.signature,
            input_structure=begin[0].structure,
            inputs=begin[1],
            output_structure=mark.structure,
            outputs=tuple(self._source(node) for node in outputs),
            writes={place: ref for place, ref in after.items() if ref != before.get(place)},
            body=tuple(self.scopes[-1].body),  # last: what stands above may add a size to it
        )

    def _is_size(self, node: Node) -> bool:
        """Whether a node computes a number from the sizes of tensors."""
        number = isinstance(node.meta.get("val"), (int, float, *SYMBOLIC))
        of_aten = isinstance(node.target, torch._ops.OpOverload)
        return (
            number
            and node.op == "call_function"
            and node.graph is self.module.graph
            and (not of_aten or node.target is torch.ops.aten.sym_size.int)
        )

    def _size_of(self, node: Node) -> Any:
        """A size, from the inputs of the part that wants it if they have it: then it runs alone."""
        scope = self.scopes[-1]
        if node not in scope.sizes:
            op = self._from_inputs(node, scope) or self._op(node, self.module)
            op = dataclasses.replace(op, result=self._number(object()))
            scope.body.append(op)
            scope.sizes[node] = Ref(op.result)
        return scope.sizes[node]

    def _from_inputs(self, node: Node, scope: _Scope) -> Op | None:
        """The op that reads a size from an axis of an input of the part, if one is that long."""
        wanted = symbol(node.meta["val"])
        for held in scope.inputs if wanted is not None else ():
            for axis, size in enumerate(getattr(held.meta.get("val"), "shape", ())):
                if symbol(size) == wanted:
                    args = (Ref(self._number(held)), axis)
                    return Op("aten.sym_size.int", args, {}, 0, (None,))
        return None

    def _source(self, node: Any) -> Any:
        """What a copy among the outputs is a copy of."""
        return self._argument(original(node), self.module)

    def _op(self, node: Node, module: GraphModule) -> Op:
        name = op_name(node.target)
        if table.find_row(name) is None:
            self.missing.setdefault(name, []).append(origin(node))
        value = node.meta.get("val")
        outputs = value if isinstance(value, (tuple, list)) else (value,)
        return Op(
            name=name,
            args=tuple(self._argument(arg, module) for arg in node.args),
            kwargs={k: self._argument(v, module) for k, v in node.kwargs.items() if k not in _DROPPED},
            result=self._number(node),
            forms=tuple(form_of(one) if isinstance(one, torch.Tensor) else None for one in outputs),
        )

    def _argument(self, value: Any, module: GraphModule) -> Any:
        if isinstance(value, Node):
            if value.op == "get_attr":
                return self._attribute(value, module)
            if self._is_size(value):
                return self._size_of(value)
            return Ref(self._number(value))
        if isinstance(value, (tuple, list)):
            return tuple(self._argument(item, module) for item in value)
        if isinstance(value, torch.dtype):
            return Dtype(dtype_name(value))
        if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
            return None
        return value

    def _attribute(self, node: Node, module: GraphModule) -> Any:
        held = getattr(module, str(node.target))
        if isinstance(held, GraphModule):
            return self._graph(held)
        if node not in self.numbers:
            self._hold(node, self.places.place(str(node.target), held), held)
        return Ref(self.numbers[node])

    def _graph(self, module: GraphModule) -> Graph:
        nodes = list(module.graph.nodes)
        ops = [self._op(node, module) for node in nodes if is_op(node)]
        results: Any = nodes[-1].args[0]
        results = results if isinstance(results, (tuple, list)) else (results,)
        return Graph(
            inputs=tuple(self._number(node) for node in nodes if node.op == "placeholder"),
            body=tuple(ops),
            outputs=tuple(self._argument(result, module) for result in results),
        )

    def _writes(self, output: Node) -> dict[str, Any]:
        """The buffers that the forward changes, by place, and their values after it."""
        signature = self.exported.graph_signature
        if signature.user_inputs_to_mutate:
            names = ", ".join(signature.user_inputs_to_mutate.values())
            raise ModelError(
                f"the model changes its input in place ({names}), which no JAX array can be; let it"
                f" work on a copy: x = x.clone()"
            )
        results: Any = output.args[0]
        by_name = {node.name: node for node in results if isinstance(node, Node)}
        return {
            paths.join(self._path(target)): self._argument(by_name[name], self.module)
            for name, target in signature.buffers_to_mutate.items()
        }

    def _told(self) -> str:
        lines = [
            f"{name}, in {'; '.join(dict.fromkeys(where))}" for name, where in self.missing.items()
        ]
        first = next(iter(self.missing))
        return (
            f"{len(lines)} op{'s' if len(lines) > 1 else ''} of this model have no row in JAX:\n"
            + listed(lines)
            + f"\nAdd one for each: bridge.adapters.torch.register_op({first!r}, function)"
        )
