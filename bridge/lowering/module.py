"""A torch model as a Module: a tree of its parts, which run the captured program."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import jax
import ml_dtypes
import numpy as np

import bridge.core.paths as paths
from bridge.core.errors import LoweringError
from bridge.core.frames import Frame
from bridge.core.kinds import INLINE, PARAMETER, Kind
from bridge.core.leaves import Tied
from bridge.core.module import Module, plain
from bridge.core.node import Alias, children_of, field_values, map_children, rebuild, spec_of
from bridge.core.opaque import Opaque
from bridge.core.paths import Path
from bridge.core.tree import entries, find, owner_path, walk
from bridge.lowering.program import Call, Exported, Form, Part, Program
from bridge.lowering.promotion import narrowed
from bridge.lowering.running import Runner


class TorchModule(Module):
    """A part of a torch model: its parameters and buffers in torch's layout, and the parts below it.

    Their paths are the names of torch's state_dict. A part that the model calls can be called alone,
    and another Module of the same inputs and outputs can be put in its place.
    """

    params: Annotated[dict[str, jax.Array], PARAMETER, INLINE]
    buffers: Annotated[dict[str, jax.Array], Kind("state", "state"), INLINE]
    parts: Annotated[dict[str, Module], INLINE]
    exported: Opaque
    place: Path
    title: str
    described: str
    persistent: tuple
    dtypes: Mapping

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the torch model's forward returns, with JAX arrays for tensors."""
        frame = self._running("__call__")
        exported: Exported = self.exported.value
        program = exported.programs.get(frame.mode)
        where = paths.name(frame.path)
        if program is None:
            raise LoweringError(
                f"{where} runs in {frame.mode} mode, and the model was captured for"
                f" {', '.join(exported.programs)} alone; type bridge.from_torch(model, *example)"
            )
        call, bound = self._bound(program, args, kwargs, where)
        runner = Runner(program, self, self.place, functools.partial(self._in_step, frame))
        out = runner.run(call, bound, where)
        self._write(runner, program.writes if call is program.main else _writes(call))
        return out

    @plain
    def _bound(
        self, program: Program, args: Any, kwargs: Any, where: str
    ) -> tuple[Call, dict[str, Any]]:
        """The call of this part that these arguments fit, and the arguments by name."""
        calls = [call for call in program.calls() if call.path == self.place]
        if not calls:
            raise LoweringError(
                f"{where}: the torch model never calls its {self.title} as a module in"
                f" this mode, so it has no program of its own; call what uses it"
            )
        problems: list[LoweringError] = []
        for call in calls:
            try:
                bound = call.signature.bind(args, kwargs, where)
                list(call.leaves(bound, where))
                return call, bound
            except LoweringError as problem:
                problems.append(problem)
        raise problems[0]

    def _in_step(self, frame: Frame, node: Any, path: Path) -> bool:
        """Whether a module below is still the captured part, and runs in this call's mode."""
        captured = isinstance(node, TorchModule) and node.exported == self.exported
        return captured and node.place == path and node.mode == frame.mode

    @plain
    def _write(self, runner: Runner, writes: Mapping[str, Any]) -> None:
        """Puts the buffers that a call has changed into the parts that hold them."""
        changed: dict[Path, dict[str, Any]] = {}
        for place, ref in writes.items():
            *owner, name = paths.split(place)
            changed.setdefault(tuple(owner), {})[name] = ref
        for owner, refs in changed.items():
            if runner.ran(owner):
                node = find(self, owner[len(self.place) :])
                node.buffers = {
                    **node.buffers,
                    **{name: runner.value(ref) for name, ref in refs.items()},
                }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        for held in field_values(self).values():
            if name in held:
                return held[name]
        raise AttributeError(f"the captured {self.title} has no part, parameter or buffer {name!r}")

    @property
    def _title(self) -> str:
        return self.title

    def extra_repr(self) -> str:
        """What torch's own `extra_repr` says of the part."""
        return self.described


def _writes(call: Call) -> dict[str, Any]:
    """The buffers that a call of a part changes, below it too."""
    found: dict[str, Any] = {}
    for item in call.body:
        if isinstance(item, Call):
            found |= _writes(item)
    return {**found, **call.writes}


def _digest(exported: Exported) -> str:
    return exported.digest


def module_of(exported: Exported, arrays: Mapping[str, Any]) -> TorchModule:
    """The Module of an exported model, with its parameters and buffers by their place in the model."""
    opaque = Opaque(exported, _digest)
    made: dict[str, TorchModule] = {}

    def build(part: Part, path: Path) -> TorchModule:
        place = paths.join(path)

        def array(name: str) -> Any:
            owner = part.ties.get(name)
            if owner is not None:
                return Tied(*paths.relative((*path, name), paths.split(owner)))
            return arrays[paths.join((*path, name))]

        parts = {
            name: made[child] if isinstance(child, str) else build(child, (*path, name))
            for name, child in part.parts.items()
        }
        node = TorchModule(
            params={name: array(name) for name in part.params},
            buffers={name: array(name) for name in part.buffers},
            parts=parts,
            exported=opaque,
            place=path,
            title=part.title,
            described=part.described,
            persistent=part.persistent,
            dtypes={name: form.dtype for name, form in {**part.params, **part.buffers}.items()},
        )
        frozen = frozenset((name,) for name in part.frozen)
        made[place] = rebuild(node, spec=spec_of(node).replace(frozen=spec_of(node).frozen | frozen))
        return made[place]

    return build(exported.skeleton, ())


def template(exported: Exported) -> TorchModule:
    """The Module of an exported model with the shapes and dtypes of its arrays in their place."""
    forms: dict[str, Form] = {}

    def gather(part: Part, path: Path) -> None:
        for name, form in {**part.params, **part.buffers}.items():
            forms[paths.join((*path, name))] = form
        for name, child in part.parts.items():
            if not isinstance(child, str):
                gather(child, (*path, name))

    gather(exported.skeleton, ())
    return module_of(
        exported,
        {
            place: jax.ShapeDtypeStruct(form.shape, narrowed(form.dtype))
            for place, form in forms.items()
        },
    )


def captured(tree: Any) -> Exported | None:
    """The exported model of a tree that is a whole captured Module, with all of its parts in place."""
    if not isinstance(tree, TorchModule) or tree.place:
        return None
    exported: Exported = tree.exported.value
    same = jax.tree.structure(_bare(tree)) == jax.tree.structure(_bare(template(exported)))
    return exported if same else None


def _bare(module: Any) -> Any:
    """A module without modes, keys and freezing."""
    return rebuild(
        module,
        spec=spec_of(module).bare(),
        rng=None,
        **map_children(module, lambda _, child: child if isinstance(child, Alias) else _bare(child)),
    )


def foreign(module: Any) -> list[str]:
    """The modules of a tree that hold arrays and were not captured, a phrase for each."""
    return [
        f"{paths.name(path)} is a {type(node).__name__}"
        for path, node in walk(module)
        if not isinstance(node, TorchModule) and any(True for _ in own_arrays(node))
    ]


def torch_tensors(module: Any, persistent: bool) -> dict[str, np.ndarray]:
    """The arrays of every captured part of a tree under torch's names, in torch's order and dtypes.

    With `persistent` only those of a state_dict. What other modules hold is left out.
    """
    found: dict[str, np.ndarray] = {}

    def visit(place: Path, path: Path) -> None:
        """What stands at a path of the tree, under the names that begin with `place`."""
        node = find(module, path)
        if isinstance(node, Alias):
            return visit(place, owner_path(path, node, module))
        if isinstance(node, TorchModule):
            values = field_values(node)
            for name, value in {**values["params"], **values["buffers"]}.items():
                if name in values["params"] or name in node.persistent or not persistent:
                    owned = (
                        find(module, owner_path((*path, name), value, module))
                        if isinstance(value, Tied)
                        else value
                    )
                    found[paths.join((*place, name))] = torch_array(node, name, owned)
        for below, _ in children_of(node):
            visit((*place, *below), (*path, *below))
        return None

    visit((), ())
    return found


def torch_array(node: TorchModule, name: str, array: Any) -> np.ndarray:
    """An array of a captured part, of that name there, in the dtype that torch has it in."""
    dtype = node.dtypes[name]
    return np.asarray(array).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))


def own_arrays(node: Any) -> Iterator[Any]:
    """The arrays in a node's own fields."""
    yield from (entry.value for entry in entries(node) if entry.node is node)
