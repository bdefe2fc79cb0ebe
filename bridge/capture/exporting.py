"""The graph of a torch model in a mode, from torch.export."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bridge.capture.containers import flattened
from bridge.capture.marks import Mark, Marked
from bridge.capture.regions import cut_gradients, prepared
from bridge.capture.tensors import form_of
from bridge.core.errors import BridgeError, LoweringError, ModelError
from bridge.lowering import table
from bridge.lowering.guards import holds

_log = logging.getLogger("bridge")
_TALKING = ("torch.export", "torch.export._trace", "torch._subclasses.fake_tensor")
_SIZE = re.compile(r"L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\]")
_NAME = re.compile(r"x\d+_\d+")


@dataclass
class Captured:
    """What torch.export gave for a mode; the last so many outputs are the copies of the marks."""

    program: Any
    marks: list[Mark]
    copies: int
    guards: tuple[str, ...]
    fixed: str | None


@dataclass
class Capture:
    """One export of a model in a mode."""

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    mode: str
    free: bool
    started: float = field(default_factory=time.perf_counter)

    def run(self) -> Captured:
        """The model's graph; raises LoweringError with torch.export's reason where it has none."""
        what = f"{type(self.model).__name__} for {self.mode}"
        _tell(f"capturing {what}", "")
        leaves, made_of = flattened((self.args, dict(self.kwargs)))
        numbers = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        example = tuple(leaves[i].detach() for i in numbers)

        def rebuild(tensors: Sequence[Any]) -> Any:
            full = list(leaves)
            for i, tensor in zip(numbers, tensors, strict=True):
                full[i] = tensor
            return made_of(full)

        marked = Marked(self.model, rebuild)
        try:
            with (
                warnings.catch_warnings(),
                _silenced(),
                prepared(self.model, self.mode),
                marked.listening(),
            ):
                warnings.simplefilter("ignore")  # what torch.export says of itself and its own parts
                captured = self._captured(marked, example)
        except LoweringError:
            self._refuse_example()
            raise
        _tell(f"captured {what} in {time.perf_counter() - self.started:.1f} s", "\n")
        return captured

    def _refuse_example(self) -> None:
        """Raises LoweringError where torch itself cannot run the model with the example."""
        model = copy.deepcopy(self.model).train(self.mode == "train")
        try:
            with torch.no_grad():
                model(*self.args, **self.kwargs)
        except Exception as error:
            raise LoweringError(
                f"this {type(self.model).__name__} fails with this example in torch itself, in"
                f" {self.mode} mode: {_reason(error)}. Give from_torch inputs that the model takes"
            ) from error

    def _captured(self, marked: Marked, example: tuple[torch.Tensor, ...]) -> Captured:
        """The graph with free sizes where torch.export can, or with those of the example."""
        fixed = None
        # All axes free, else the batch alone.
        for count in (max((one.ndim for one in example), default=0), 1) if self.free else ():
            try:
                captured = self._export(marked, _several(example), count)
                if _takes(captured, example):
                    return dataclasses.replace(captured, fixed=fixed)
                fixed = "a batch of one alone"
            except ModelError:
                raise
            except Exception as error:  # noqa: BLE001 - torch.export raises what it meets
                fixed = f"torch.export could not free it: {_reason(error)}"
        try:
            captured = self._export(marked, example, 0)
            return dataclasses.replace(captured, fixed=fixed or "dynamic_batch=False")
        except BridgeError:
            raise
        except Exception as error:
            raise LoweringError(
                f"torch.export cannot capture this {type(self.model).__name__} in {self.mode} mode:"
                f" {_reason(error)}"
            ) from error

    def _export(self, marked: Marked, example: tuple[torch.Tensor, ...], free: int) -> Captured:
        """The graph with so many leading axes of each input free."""
        auto, static = torch.export.Dim.AUTO, torch.export.Dim.STATIC
        shapes = tuple({i: auto if i < free else static for i in range(one.ndim)} for one in example)
        # Fresh ones: torch.export writes on a tensor which of its axes are free.
        example = tuple(one.detach() for one in example)
        try:
            exported = torch.export.export(
                marked, example, dynamic_shapes=(shapes,) if free else None, strict=False
            )
        except Exception as error:
            if isinstance(error.__cause__, BridgeError):
                raise error.__cause__ from None
            raise
        guards = guards_of(exported)
        cut_gradients(exported.graph_module)
        decomposed = exported.run_decompositions(_decompositions(table.names()).copy())
        record = marked.record
        return Captured(decomposed, record.marks, len(record.copies), guards, None)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps torch's own log of what it tries from the terminal: what counts is in the error raised."""
    loggers = [logging.getLogger(name) for name in _TALKING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tell(text: str, end: str) -> None:
    """Says it in the log, and on a line of the terminal, which the next one takes."""
    _log.info(text)
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}{end}")
        sys.stderr.flush()


def guards_of(exported: Any) -> tuple[str, ...]:
    """What torch.export took for granted of the free sizes; LoweringError where it is no size."""
    found = [_SIZE.sub(r"x\1_\2", guard) for guard in exported._guards_code]
    # How a tensor lies in memory is no matter here: a JAX array has no strides.
    found = [guard for guard in found if ".stride()" not in guard and ".storage_offset()" not in guard]
    sizes = {name: 1 for guard in found for name in _NAME.findall(guard)}
    for guard in found:
        holds(guard, sizes)
    return tuple(found)


def _takes(captured: Captured, example: Sequence[torch.Tensor]) -> bool:
    """Whether the sizes of the example are among those of the graph."""
    given = set(captured.program.graph_signature.user_inputs)
    nodes = [node for node in captured.program.graph.nodes if node.name in given]
    forms = [form_of(node.meta["val"]) for node in nodes]
    sizes = {
        f"x{index}_{axis}": size
        for index, one in enumerate(example)
        for axis, size in enumerate(one.shape)
    }
    fit = all(
        wanted in (None, size)
        for one, form in zip(example, forms, strict=True)
        for size, wanted in zip(one.shape, form.shape, strict=True)
    )
    return fit and all(holds(guard, sizes) for guard in captured.guards)


def _several(example: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The example with a batch of two where it is one: torch.export takes a size of one for fixed."""
    batched = [one for one in example if one.ndim]
    if not batched or any(one.shape[0] != 1 for one in batched):
        return example
    return tuple(torch.cat([one, one]) if one.ndim else one for one in example)


def _reason(error: Exception) -> str:
    """Why an export failed: bridge's own words, or the first lines of torch.export's page."""
    if isinstance(error, BridgeError):
        return str(error)
    text = str(error).strip().split("\n\n")[0]
    return f"{type(error).__name__}: {text[:600]}"


@functools.lru_cache(maxsize=1)
def _decompositions(known: frozenset[str]) -> Any:
    """Torch's own decompositions, without those of ops that have a row."""
    decompositions = torch.export.default_decompositions()
    for op in list(decompositions):
        if str(op) in known:
            del decompositions[op]
    return decompositions
