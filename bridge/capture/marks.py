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
_OPERATIONS = 15


@dataclass(frozen=True)
class Mark:
    """Where a part's call begins or ends: which outputs of the graph are the sign and its values."""

    kind: str
    path: Path
    signature: Signature
    structure: Structure
    sign: int
    values: tuple[int, ...]
    buffers: Mapping[str, int]


class _Record:
    """What the hooks have noted; torch.export undoes what a forward does to a module's own lists.

    A part mostly takes what the one before it gave: as long as no function of torch's is called in
    between, a tensor is not copied again, and one sign does for the end and the beginning.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets all of it."""
        self.marks: list[Mark] = []
        self.copies: list[Any] = []
        self.sign: int | None = None
        self.calls = -1
        self.known: dict[tuple[int, int], tuple[torch.Tensor, int]] = {}

    def since(self, calls: int) -> None:
        """Forgets the tensors that may have been written into: so many functions were called by now."""
        if calls != self.calls:
            self.known.clear()
            self.sign = None

    def copied(self, leaf: Any) -> int:
        """Which output is a copy of a value."""
        if not isinstance(leaf, torch.Tensor):
            return self._output(leaf)
        key = id(leaf), leaf._version
        if key not in self.known:
            self.sign = None  # a view that is made again for the copy belongs before the sign
            self.known[key] = leaf, self._output(leaf.clone())
        return self.known[key][1]

    def signed(self) -> int:
        """Which output is the sign at this place."""
        if self.sign is None:
            self.sign = self._output(torch.full((), len(self.marks)))
        return self.sign

    def _output(self, value: Any) -> int:
        self.copies.append(value)
        return len(self.copies) - 1


class Marked(torch.nn.Module):
    """A model whose graph gives a copy of all that goes into its parts and comes out of them.

    The copies say, in a graph of ops, where the call of a part begins and ends and what its values are.
    """

    def __init__(self, model: torch.nn.Module, rebuild: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.rebuild = model, rebuild
        self.record, self.kept = _Record(), Kept()

    def forward(self, *tensors: Any) -> list[Any]:
        """The copies, in order; the marks of the record say what they are."""
        self.record.clear()
        args, kwargs = self.rebuild(tensors)
        with self.kept, KnownDraws(), refused_host_draws():
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
        self._mark("end", path, signature, out, {} if _keeps_buffers(module) else module._buffers)

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
        record = self.record
        record.since(self.kept.calls)
        structure, leaves = structure_of(value)
        for leaf in leaves:
            _check_sizes(path, leaf)
        values = tuple(record.copied(leaf) for leaf in leaves)
        held = {name: record.copied(one) for name, one in buffers.items() if one is not None}
        sign = record.signed()
        record.marks.append(Mark(kind, path, signature, structure, sign, values, held))
        record.calls = self.kept.calls


def _keeps_buffers(module: torch.nn.Module) -> bool:
    """Whether a call leaves the buffers as they are: torch's own layers write none but in training."""
    return not module.training and type(module).__module__.startswith("torch.nn.modules.")


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
