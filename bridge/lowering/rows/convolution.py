"""Convolutions, forward and transposed: each one lax.conv_general_dilated in PyTorch's layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Sizes = Sequence[int]
LETTERS = {1: "W", 2: "HW", 3: "DHW"}


def convolution(
    input: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> jax.Array:
    """The convolution of (batch in *spatial) or (in *spatial), over as many axes as the weight has."""
    if transposed:
        return transposed_convolution(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return forward_convolution(input, weight, bias, stride, padding, dilation, groups)


def forward_convolution(
    input: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    stride: Sizes = (1,),
    padding: Sizes | str = (0,),
    dilation: Sizes = (1,),
    groups: int = 1,
) -> jax.Array:
    """The convolution with a weight of (out in/groups *spatial)."""
    rank = weight.ndim - 2
    dilation = each(dilation, rank)
    return _convolved(
        input,
        weight,
        bias,
        kernel="OI",
        window_strides=each(stride, rank),
        padding=_edges(padding, weight.shape[2:], dilation),
        rhs_dilation=dilation,
        feature_group_count=groups,
    )


def transposed_convolution(
    input: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    stride: Sizes = (1,),
    padding: Sizes = (0,),
    output_padding: Sizes = (0,),
    groups: int = 1,
    dilation: Sizes = (1,),
) -> jax.Array:
    """The transposed convolution with a weight of (in out/groups *spatial)."""
    rank = weight.ndim - 2
    dilation = each(dilation, rank)
    reach = [apart * (size - 1) for apart, size in zip(dilation, weight.shape[2:], strict=True)]
    edges = zip(reach, each(padding, rank), each(output_padding, rank), strict=True)
    if groups > 1:  # lax wants the groups side by side on the out axis
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        weight = jnp.moveaxis(grouped, 0, 1).reshape(grouped.shape[1], -1, *weight.shape[2:])
    return _convolved(
        input,
        lax.rev(weight, tuple(range(2, weight.ndim))),
        bias,
        kernel="IO",
        window_strides=(1,) * rank,
        padding=[(far - pad, far - pad + more) for far, pad, more in edges],
        lhs_dilation=each(stride, rank),
        rhs_dilation=dilation,
        feature_group_count=groups,
    )


def time_convolution(input: jax.Array, weight: jax.Array, bias: jax.Array, pad: int = 0) -> jax.Array:
    """The convolution of (time batch in) with a weight of (width in out): (time batch out)."""
    return bias + lax.conv_general_dilated(
        input, weight, (1,), [(pad, pad)], dimension_numbers=("WNC", "WIO", "WNC")
    )


def _convolved(
    input: jax.Array, weight: jax.Array, bias: jax.Array | None, kernel: str, **settings: Any
) -> jax.Array:
    rank = weight.ndim - 2
    batched = input if input.ndim == rank + 2 else input[None]
    spatial = LETTERS[rank]
    layout = (f"NC{spatial}", kernel + spatial, f"NC{spatial}")
    output = lax.conv_general_dilated(batched, weight, dimension_numbers=layout, **settings)
    output = output if input.ndim == rank + 2 else output[0]
    return output if bias is None else output + bias.reshape(-1, *(1,) * rank)


def each(sizes: Sizes, rank: int) -> tuple[int, ...]:
    """One number for each spatial axis: PyTorch takes a single one for all."""
    return tuple(sizes) * rank if len(sizes) == 1 else tuple(sizes)


def _edges(padding: Sizes | str, kernel: Sizes, dilation: Sizes) -> list[tuple[int, int]]:
    """What is put before and behind each spatial axis."""
    if not isinstance(padding, str):
        return [(pad, pad) for pad in each(padding, len(kernel))]
    totals = [0] * len(kernel)
    if padding == "same":
        totals = [apart * (size - 1) for apart, size in zip(dilation, kernel, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]  # the odd one goes behind


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten.convolution.default": convolution,
    "aten.conv1d.default": forward_convolution,
    "aten.conv2d.default": forward_convolution,
    "aten.conv3d.default": forward_convolution,
    "aten.conv1d.padding": forward_convolution,
    "aten.conv2d.padding": forward_convolution,
    "aten.conv3d.padding": forward_convolution,
    "aten.conv_transpose1d.default": transposed_convolution,
    "aten.conv_transpose2d.input": transposed_convolution,
    "aten.conv_transpose3d.input": transposed_convolution,
    "aten.conv_tbc.default": time_convolution,
}
