"""Both forwards on the same inputs, and how far their outputs are from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bridge.core.errors import WeightsError
from bridge.dataflow.comparing import distance
from bridge.dataflow.tracing import Traced
from bridge.weights.structure import readings, tensors


@dataclass(frozen=True)
class Run:
    """A Module's forward: the largest distance of its outputs from torch's, and what was left out."""

    traced: Traced
    far: float
    largest: float
    notes: tuple[str, ...]


def torch_outputs(model: Any, inputs: Sequence[Any]) -> tuple[list[np.ndarray], list[str]]:
    """What a torch model gives in eval mode, and which of its parts were in train mode."""
    import torch

    from bridge.capture.containers import structure_of
    from bridge.capture.tensors import as_numpy

    modes = {one: one.training for one in model.modules()}
    try:
        with torch.no_grad():
            out = model.eval()(*tensors(inputs))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise WeightsError(f"the torch model cannot be called with these inputs: {error}") from error
    finally:
        for one, was_training in modes.items():
            one.training = was_training
    structure, found = structure_of(out)
    leaves = jax.tree.leaves(structure.build(iter(found)))
    training = [type(one).__name__ for one, was_training in modes.items() if was_training]
    return [as_numpy(one) for one in leaves if isinstance(one, torch.Tensor)], training


def nearest_run(module: Any, inputs: Sequence[Any], expected: Sequence[np.ndarray]) -> Run:
    """A Module's forward, its inputs' axes in the order that comes nearest to what is expected.

    Raises WeightsError where it takes none, or gives nothing of the expected shapes.
    """
    runs, errors = list[Run](), list[WeightsError]()
    for traced in readings(module, inputs, jax.random.key(0)):
        try:
            runs.append(_compared(traced, _run(module, traced.args), expected))
        except WeightsError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    return min(runs, key=lambda run: run.far)


def _run(module: Any, inputs: Sequence[Any]) -> list[np.ndarray]:
    """What a Module gives in eval mode."""

    def forward(module: Any, inputs: Sequence[Any]) -> list[Any]:
        return jax.tree.leaves(module.apply(*inputs, rng=jax.random.key(0), mode="eval")[0])

    return [np.asarray(one) for one in jax.jit(forward)(module, inputs)]


def _compared(traced: Traced, mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Run:
    """The outputs with those of torch's that have the same shape, each once."""
    left, far, largest = list(theirs), 0.0, 0.0
    for one in mine:
        fitting = (
            (number, turned)
            for number, other in enumerate(left)
            if (turned := _turned(other, one.shape)) is not None
        )
        number, turned = next(fitting, (None, None))
        if number is None or turned is None:
            there = ", ".join(str(other.shape) for other in theirs) or "none"
            raise WeightsError(
                f"the Module gives an output of shape {one.shape}; torch's are {there}: verify compares"
                f" outputs of the same shape"
            )
        del left[number]
        far = max(far, distance(one, turned))
        apart = np.abs(np.asarray(one, np.float64) - np.asarray(turned, np.float64))
        largest = max(largest, float(np.max(apart, initial=0.0)))
    notes = (f"not compared: an output of torch's, of shape {one.shape}" for one in left)
    return Run(traced, far, largest, tuple(notes))


def _turned(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A torch output as it is, or with its channels last, where that has the shape."""
    if array.shape == shape:
        return array
    last = np.moveaxis(array, 1, -1) if array.ndim > 2 else array
    return last if last.shape == shape else None
