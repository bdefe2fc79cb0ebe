"""Functions of torch's that torch.export cannot look into, kept whole or without their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from bridge.core.errors import ModelError

_REDUCTIONS = ("none", "mean", "sum")  # as ATen numbers them


class Kept(TorchFunctionMode):
    """While it lasts, the functions of the table below are called in place of torch's own.

    `calls` counts the functions of torch's that were called, beside those that read an attribute.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What the function returns."""
        self.calls += getattr(func, "__name__", "") != "__get__"
        return _INSTEAD.get(func, func)(*args, **(kwargs or {}))


@torch.library.custom_op("bridge::ctc_loss", mutates_args=())
def _ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    reduction: int,
    zero_infinity: bool,
) -> torch.Tensor:
    return F.ctc_loss(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        _REDUCTIONS[reduction],
        zero_infinity,
    )


@_ctc_loss.register_fake
def _(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
    reduction: int,
    zero_infinity: bool,
) -> torch.Tensor:
    batch = log_probs.shape[1:2] if log_probs.ndim == 3 else ()
    return log_probs.new_empty(() if reduction else batch)


def _whole_ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str | int = "mean",
    zero_infinity: bool = False,
) -> torch.Tensor:
    """`ctc_loss` as one op: torch's has a table inside whose size the lengths decide."""
    number = _REDUCTIONS.index(reduction) if isinstance(reduction, str) else reduction
    lengths = (torch.as_tensor(input_lengths), torch.as_tensor(target_lengths))
    return _ctc_loss(log_probs, targets, *lengths, blank, number, zero_infinity)


def _unchecked_gaussian_nll_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    var: torch.Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> torch.Tensor:
    """`gaussian_nll_loss` without its look at whether a variance is negative."""
    if not isinstance(var, torch.Tensor):
        var = torch.full_like(input, var)
    elif var.shape == input.shape[:-1]:
        var = var[..., None]
    # Where the bound holds, the gradient goes on as if it did not.
    bounded = var.detach().clamp(min=eps) + (var - var.detach())
    losses = (bounded.log() + (input - target).square() / bounded) / 2
    if full:
        losses = losses + math.log(2 * math.pi) / 2
    return losses if reduction == "none" else getattr(losses, reduction)()


def _refused_packing(*_: Any, **__: Any) -> Any:
    raise ModelError(
        "the model packs a sequence, whose batch shrinks from step to step as the lengths say, and no"
        " JAX program has shapes that depend on values; give the recurrent layer padded sequences"
    )


_INSTEAD: Mapping[Any, Callable[..., Any]] = {
    F.ctc_loss: _whole_ctc_loss,
    torch.ctc_loss: _whole_ctc_loss,
    F.gaussian_nll_loss: _unchecked_gaussian_nll_loss,
    torch._C._VariableFunctions._pack_padded_sequence: _refused_packing,  # type: ignore[attr-defined]
}
