"""Products that sum over an axis: matrix products, linear layers, einsum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def linear(input: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`input` times the (out in) weight, plus the bias: (... in) gives (... out)."""
    contracted = (((input.ndim - 1,), (weight.ndim - 1,)), ((), ()))  # the weight stays (out in)
    product = lax.dot_general(input, weight, contracted)
    return product if bias is None else product + bias


def bilinear(
    left: jax.Array, right: jax.Array, weight: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """What both inputs give through the (out left right) weight: (... out)."""
    product = jnp.einsum("...i,oij,...j->...o", left, weight, right)
    return product if bias is None else product + bias


def trilinear(
    i1: jax.Array,
    i2: jax.Array,
    i3: jax.Array,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> jax.Array:
    """The product of three arrays, each first given the axes that it lacks, summed over `sumdim`."""
    rank = i1.ndim + len(expand1)
    factors = [jnp.expand_dims(i, tuple(e)) for i, e in ((i1, expand1), (i2, expand2), (i3, expand3))]
    axes = list(range(rank))
    summed = {axis % rank for axis in sumdim}
    left, middle, right = factors
    return jnp.einsum(
        left, axes, middle, axes, right, axes, [axis for axis in axes if axis not in summed]
    )


def plus(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The op `beta * input + alpha * product(left, right)`."""

    def sum_with_product(
        input: jax.Array, left: jax.Array, right: jax.Array, *, beta: Any = 1, alpha: Any = 1
    ) -> jax.Array:
        scaled = _times(alpha, product(left, right))
        if _is(
            beta, 0
        ):  # torch.addmm's docs: then input is ignored, and its NaN and inf do not propagate
            return jnp.broadcast_to(scaled, jnp.broadcast_shapes(scaled.shape, input.shape))
        return _times(beta, input) + scaled

    return sum_with_product


def batches_summed(left: jax.Array, right: jax.Array) -> jax.Array:
    """The sum over the batch of the matrix products: (b n m), (b m p) gives (n p)."""
    return jnp.einsum("bnm,bmp->np", left, right)


def einsum(equation: str, tensors: Sequence[jax.Array], path: Sequence[int] | None = None) -> jax.Array:
    """The sum of products that the equation names; an axis of size one stands for any size."""
    return jnp.einsum(*_without_broadcast(equation.replace(" ", ""), tensors))


def tensordot(
    left: jax.Array, right: jax.Array, dims_self: Sequence[int], dims_other: Sequence[int]
) -> jax.Array:
    """The sum of products over the paired axes; an axis of size one stands for any size."""
    pairs = list(zip(dims_self, dims_other, strict=True))
    for a, b in pairs:
        if left.shape[a] != right.shape[b]:
            left = left if left.shape[a] == 1 else jnp.sum(left, a, keepdims=True).astype(left.dtype)
            right = (
                right if right.shape[b] == 1 else jnp.sum(right, b, keepdims=True).astype(right.dtype)
            )
    return jnp.tensordot(left, right, (tuple(dims_self), tuple(dims_other)))


def _times(factor: Any, array: jax.Array) -> jax.Array:
    return array if _is(factor, 1) else jnp.asarray(factor, array.dtype) * array


def _is(factor: Any, number: int) -> bool:
    return isinstance(factor, int | float | complex) and factor == number


def _without_broadcast(equation: str, tensors: Sequence[jax.Array]) -> tuple[Any, ...]:
    """The equation and its arrays, both without the axes of size one that broadcast."""
    terms, arrow, output = equation.partition("->")
    names = terms.split(",")
    sizes: dict[str, set[int]] = {}
    for name, tensor in zip(names, tensors, strict=True):
        for letter, axis in _axes(name, tensor.ndim):
            sizes.setdefault(letter, set()).add(tensor.shape[axis])
    broadcast = {letter for letter, seen in sizes.items() if len(seen) > 1}
    if not broadcast:
        return (equation, *tensors)
    squeezed = []
    for place, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
        gone = [(i, a) for i, a in _axes(name, tensor.ndim) if i in broadcast and tensor.shape[a] == 1]
        names[place] = "".join(letter for letter in name if letter not in {i for i, _ in gone})
        squeezed.append(jnp.squeeze(tensor, tuple(axis for _, axis in gone)))
    if not arrow:  # what appears once in the terms as they were given, in the alphabet's order
        letters = sorted(letter for letter in sizes if terms.count(letter) == 1)
        output = ("..." if "..." in terms else "") + "".join(letters)
    return (f"{','.join(names)}->{output}", *squeezed)


def _axes(name: str, rank: int) -> list[tuple[str, int]]:
    """Each letter of a term with its axis; the ellipsis takes the axes that are left."""
    before, _, after = name.partition("...")
    return [
        *zip(before, range(rank), strict=False),
        *((i, a - len(after)) for a, i in enumerate(after)),
    ]


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten.linear.default": linear,
    "aten.mm.default": jnp.matmul,
    "aten.bmm.default": jnp.matmul,
    "aten.mv.default": jnp.matmul,
    "aten.matmul.default": jnp.matmul,
    "aten.dot.default": jnp.dot,
    "aten.vdot.default": jnp.vdot,
    "aten.addmm.default": plus(jnp.matmul),
    "aten.addmv.default": plus(jnp.matmul),
    "aten.baddbmm.default": plus(jnp.matmul),
    "aten.addbmm.default": plus(batches_summed),
    "aten.addr.default": plus(jnp.outer),
    "aten.bilinear.default": bilinear,
    "aten._trilinear.default": trilinear,
    "aten.einsum.default": einsum,
    "aten.tensordot.default": tensordot,
}
