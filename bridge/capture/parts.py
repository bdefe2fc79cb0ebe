"""The parts of a torch model, and the place in it of each of its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

import bridge.core.paths as paths
from bridge.capture.tensors import form_of
from bridge.core.errors import ModelError, listed
from bridge.core.paths import Path
from bridge.lowering.program import Form, Part

_UNINITIALISED = (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)


def skeleton(
    model: torch.nn.Module, constants: Mapping[Path, torch.Tensor]
) -> tuple[Part, dict[str, torch.Tensor]]:
    """The tree of a model's parts, and its tensors by their place in it.

    `constants` are tensors that no part has registered, by place; they count as buffers. Raises
    ModelError for tensors that JAX cannot have.
    """
    tree = _Tree(constants)
    part = tree.part(model, ())
    if tree.problems:
        raise ModelError(f"this {type(model).__name__} cannot be captured:\n{listed(tree.problems)}")
    return part, tree.tensors


class _Tree:
    """The parts of a model while they are gathered."""

    def __init__(self, constants: Mapping[Path, torch.Tensor]) -> None:
        self.constants = constants
        self.places: dict[int, str] = {}
        self.owners: dict[int, str] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.problems: list[str] = []

    def part(self, module: torch.nn.Module, path: Path) -> Part:
        """A part and all below it; a part that has come before is only named again."""
        self.places[id(module)] = paths.join(path)
        if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
            self.problems.append(
                f"{paths.name(path)} keeps more than tensors in its state_dict (get_extra_state), which"
                f" no Module has; give the tensors in it names: register_buffer"
            )
        params = {name: one for name, one in module._parameters.items() if one is not None}
        buffers = {name: one for name, one in module._buffers.items() if one is not None}
        buffers |= {at[-1]: one for at, one in self.constants.items() if at[:-1] == path}
        unsaved = {*module._non_persistent_buffers_set, *buffers.keys() - module._buffers.keys()}
        return Part(
            title=type(module).__name__,
            described=_described(module),
            params=self._forms(params, path),
            buffers=self._forms(buffers, path),
            frozen=tuple(name for name, one in params.items() if not one.requires_grad),
            persistent=tuple(name for name in buffers if name not in unsaved),
            ties=self._ties(params, path) | self._ties(buffers, path),
            parts={
                name: self.places[id(child)]
                if id(child) in self.places
                else self.part(child, (*path, name))
                for name, child in module._modules.items()
                if child is not None
            },
        )

    def _forms(self, tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, Form]:
        faults = [(name, fault) for name, one in tensors.items() for fault in _faults(one)]
        self.problems += [f"{paths.join((*path, name))} {fault}" for name, fault in faults]
        return {} if faults else {name: form_of(one) for name, one in tensors.items()}

    def _ties(self, tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, str]:
        """The parameters that have come before; the others get their place here."""
        ties: dict[str, str] = {}
        for name, tensor in tensors.items():
            place = paths.join((*path, name))
            owner = self.owners.setdefault(id(tensor), place)
            if owner != place and isinstance(tensor, torch.nn.Parameter):
                ties[name] = owner
            else:
                self.tensors[place] = tensor
        return ties


def _faults(tensor: torch.Tensor) -> list[str]:
    """Why a tensor cannot become an array, and what to do."""
    if isinstance(tensor, _UNINITIALISED):
        return ["is not initialised: the model has lazy layers; call it once on an example first"]
    if tensor.is_meta:
        return ["is on the meta device, without values; load the weights first"]
    if tensor.is_sparse or tensor.layout != torch.strided:
        return [f"is sparse ({tensor.layout}); make it dense: tensor.to_dense()"]
    if tensor.is_quantized:
        return ["is quantised; use the model before quantisation, or tensor.dequantize()"]
    return []


def _described(module: torch.nn.Module) -> str:
    """What torch prints between the brackets of a module."""
    try:
        return str(module.extra_repr())
    except Exception:  # noqa: BLE001 - the model's own code, and nothing depends on what it says
        return ""


class Places:
    """The one place in the model of each tensor of a graph.

    `owners` are the first names of registered tensors by all of their names; `placed` the tensors that
    are no parameter or buffer, by the place that they get.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.placed: dict[Path, torch.Tensor] = {}
        self.targets: dict[Path, str] = {}
        self.owners: dict[str, str] = {}
        first: dict[int, str] = {}
        for named in (model.named_parameters, model.named_buffers):
            for name, tensor in named(remove_duplicate=False):
                self.owners[name] = first.setdefault(id(tensor), name)

    def place(self, target: str, tensor: torch.Tensor) -> Path:
        """The place of a constant: its own where it is an attribute of a part, else at the root."""
        path = tuple(target.split("."))
        if not self._is_attribute(path, tensor):
            # One program may have two constants of equal values; another mode's has them again.
            again = [at for at, name in self.targets.items() if name == target]
            again = [at for at in again if _same(self.placed[at], tensor)]
            path = again[0] if again else (f"constant_{len(self.placed)}",)
            self.targets[path] = target
        self.placed[path] = tensor
        return path

    def _is_attribute(self, path: Path, tensor: torch.Tensor) -> bool:
        try:
            found = getattr(self.model.get_submodule(".".join(path[:-1])), path[-1])
        except AttributeError:
            return False
        return isinstance(found, torch.Tensor) and _same(found, tensor)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
