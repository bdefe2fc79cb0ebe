"""Signs of where the call of each part begins and ends, in what torch.export captures."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bridge.capture.containers import check_output, structure_of
from bridge.capture.draws import KnownDraws, refused_host_draws
from bridge.capture.functions import Kept
from bridge.core import paths
from bridge.core.errors import LoweringError
from bridge.core.paths import Path
from bridge.lowering.structure import Signature, Structure

# A size of so many operations on the sizes of the inputs, each as nested as this, costs minutes per op.
_OPERATIONS = 30


@dataclass
class Mark:
    """One sign of a part's call among the outputs of the captured graph, and how many values it has."""

    kind: str
    path: Path
    signature: Signature
    structure: Structure
    values: int
    buffers: tuple[str, ...] = ()


class _Record:
    """What the hooks have noted; torch.export undoes what a forward does to a module's own lists."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.copies: list[Any] = []


class Marked(torch.nn.Module):
    """A model whose graph gives a copy of all that goes into its parts and comes out of them.

    The copies say, in a graph of ops, where the call of a part begins and ends and what its values are.
    """

    def __init__(self, model: torch.nn.Module, rebuild: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.rebuild = model, rebuild
        self.record = _Record()

    def forward(self, *tensors: Any) -> list[Any]:
        """The copies, in order; the marks of the record say what they are."""
        self.record.marks.clear()
        self.record.copies.clear()
        args, kwargs = self.rebuild(tensors)
        with Kept(), KnownDraws(), refused_host_draws():
            output = self.model(*args, **kwargs)
        check_output(self.model, output)
        return list(self.record.copies)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Marks the calls of all parts while it lasts."""
        handles: list[Any] = []
        for name, module in self.model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                path = tuple(name.split(".")) if name else ()
                before = functools.partial(self._before, path, signature_of(module))
                after = functools.partial(self._after, path, signature_of(module))
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, path: Path, signature: Signature, _: Any, args: Any, kwargs: Any) -> None:
        self._mark("begin", path, signature, signature.bind(args, kwargs, ""), {})

    def _after(
        self, path: Path, signature: Signature, module: Any, _args: Any, _kwargs: Any, out: Any
    ) -> None:
        self._mark("end", path, signature, out, module._buffers)

    def _mark(
        self,
        kind: str,
        path: Path,
        signature: Signature,
        value: Any,
        buffers: Mapping[str, torch.Tensor | None],
    ) -> None:
        if torch.compiler.is_dynamo_compiling():  # the branch of a cond: its values never leave it
            return
        structure, leaves = structure_of(value)
        for leaf in leaves:
            _check_sizes(path, leaf)
        buffers = {name: one for name, one in buffers.items() if one is not None}
        marks, copies = self.record.marks, self.record.copies
        marks.append(Mark(kind, path, signature, structure, len(leaves), tuple(buffers)))
        # Copies first: a view of what an op has written into is made again where it is next used.
        values = [_copied(leaf) for leaf in (*leaves, *buffers.values())]
        copies.extend([torch.full((), len(marks)), *values])


def _check_sizes(path: Path, leaf: Any) -> None:
    """Refuses a tensor one of whose sizes is a formula too long for torch.export to go on with."""
    sizes = leaf.shape if isinstance(leaf, torch.Tensor) else ()
    longest = max(
        (size.node.expr.count_ops() for size in sizes if not isinstance(size, int)), default=0
    )
    if longest > _OPERATIONS:
        raise LoweringError(
            f"{paths.name(path)} has a size that takes {longest} operations on those of the inputs"
        )


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def signature_of(module: torch.nn.Module) -> Signature:
    """How the arguments of a module's forward are named."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return Signature((), (), {}, "args", "kwargs")
    kinds = inspect.Parameter
    positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    rest = [one.name for one in parameters if one.kind == kinds.VAR_POSITIONAL]
    others = [one.name for one in parameters if one.kind == kinds.VAR_KEYWORD]
    plain = (bool, int, float, str, type(None))
    return Signature(
        names=tuple(one.name for one in parameters if one.kind in positional),
        keywords=tuple(one.name for one in parameters if one.kind == kinds.KEYWORD_ONLY),
        defaults={one.name: one.default for one in parameters if isinstance(one.default, plain)},
        rest=rest[0] if rest else None,
        others=others[0] if others else None,
    )
