"""Linear systems: inverses, triangular systems, Cholesky and LU factors and what they solve.

Where PyTorch raises on a matrix that has no factor or inverse, these give NaN or infinity, as JAX does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bridge.core.errors import LoweringError

Factored = tuple[jax.Array | None, ...]


def turned(a: jax.Array) -> jax.Array:
    """The matrices transposed and conjugated."""
    return jnp.conj(jnp.swapaxes(a, -1, -2)) if jnp.iscomplexobj(a) else jnp.swapaxes(a, -1, -2)


def _one_batch(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both stacks of matrices with the batch axes of the two together."""
    batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return jnp.broadcast_to(a, batch + a.shape[-2:]), jnp.broadcast_to(b, batch + b.shape[-2:])


def _first(failed: jax.Array) -> jax.Array:
    """LAPACK's info: 0, or the place of the first pivot that failed, counted from 1."""
    if not failed.shape[-1]:
        return jnp.zeros(failed.shape[:-1], jnp.int32)
    return jnp.where(failed.any(-1), failed.argmax(-1) + 1, 0).astype(jnp.int32)


def _singular(a: jax.Array) -> jax.Array:
    lu, _, _ = lax.linalg.lu(a)
    return _first(jnp.diagonal(lu, axis1=-2, axis2=-1) == 0)


def inverse(a: jax.Array, *, check_errors: bool = False) -> Factored:
    """The inverse and LAPACK's info."""
    return jnp.linalg.inv(a), _singular(a)


def solve(a: jax.Array, b: jax.Array, *, left: bool = True, check_errors: bool = False) -> Factored:
    """The solution of ``a x = b`` or ``x a = b``, None for factor and pivots, and LAPACK's info."""
    vector = b.ndim == 1 or (
        b.ndim == a.ndim - 1 and b.shape == a.shape[:-1]
    )  # torch.linalg.solve's docs
    b = b[..., None] if vector else b
    if left:
        x = jnp.linalg.solve(*_one_batch(a, b))
    else:
        x = jnp.swapaxes(
            jnp.linalg.solve(*_one_batch(jnp.swapaxes(a, -1, -2), jnp.swapaxes(b, -1, -2))), -1, -2
        )
    return (x[..., 0] if vector else x), None, None, _singular(a)


def solve_triangular(
    a: jax.Array, b: jax.Array, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> jax.Array:
    """The solution of ``a x = b``, or of ``x a = b``, from one triangle of ``a``."""
    a, b = _one_batch(a, b)
    return lax.linalg.triangular_solve(
        a, b, left_side=left, lower=not upper, unit_diagonal=unitriangular
    )


def triangular_solve(
    b: jax.Array, a: jax.Array, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Factored:
    """The solution of ``a x = b`` and a copy of ``a``, each with the batch axes of both."""
    a, b = _one_batch(a, b)
    x = lax.linalg.triangular_solve(
        a, b, left_side=True, lower=not upper, transpose_a=transpose, unit_diagonal=unitriangular
    )
    return x, a


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _lower_factor(a: jax.Array, upper: bool) -> jax.Array:
    """The lower factor of what one triangle of ``a`` says."""
    return lax.linalg.cholesky(turned(a) if upper else a, symmetrize_input=False)


@_lower_factor.defjvp
def _lower_factor_jvp(
    upper: bool, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Both triangles of ``a`` have a gradient: cholesky_backward in PyTorch's FunctionsManual.cpp
    lower = _lower_factor(*primals, upper)
    half = lax.linalg.triangular_solve(lower, tangents[0], left_side=True, lower=True)
    y = lax.linalg.triangular_solve(lower, half, lower=True, transpose_a=True, conjugate_a=True)
    change = (jnp.tril(y) + jnp.tril(turned(y), -1)) / 2
    return lower, jnp.matmul(lower, change, precision=lax.Precision.HIGHEST)


def cholesky(a: jax.Array, upper: bool = False) -> jax.Array:
    """The triangular factor, read from the triangle of ``a`` on the same side."""
    lower = _lower_factor(a, upper)
    return turned(lower) if upper else lower


def cholesky_ex(a: jax.Array, *, upper: bool = False, check_errors: bool = False) -> Factored:
    """The triangular factor, and 1 where there is none (and it is NaN), else 0."""
    factor = cholesky(a, upper)
    return factor, jnp.isnan(factor).any((-2, -1)).astype(jnp.int32)


@jax.custom_jvp
def _factor_solve(lower: jax.Array, b: jax.Array) -> jax.Array:
    half = lax.linalg.triangular_solve(lower, b, left_side=True, lower=True)
    return lax.linalg.triangular_solve(
        lower, half, left_side=True, lower=True, transpose_a=True, conjugate_a=True
    )


@_factor_solve.defjvp
def _factor_solve_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The factor's other triangle has a gradient too: cholesky_solve_backward in FunctionsManual.cpp
    (lower, _), (d_lower, db) = primals, tangents
    x = _factor_solve(*primals)
    change = jnp.matmul(d_lower, turned(lower), precision=lax.Precision.HIGHEST)
    moved = jnp.matmul(change + turned(change), x, precision=lax.Precision.HIGHEST)
    return x, _factor_solve(lower, db - moved)


def cholesky_solve(b: jax.Array, factor: jax.Array, upper: bool = False) -> jax.Array:
    """The solution of ``a x = b`` from the triangular factor of ``a``."""
    return _factor_solve(*_one_batch(turned(factor) if upper else factor, b))


def cholesky_inverse(factor: jax.Array, upper: bool = False) -> jax.Array:
    """The inverse of the matrix whose triangular factor it is."""
    return cholesky_solve(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor, upper)


def _refuse_unpivoted(pivot: bool) -> None:
    if not pivot:
        raise LoweringError(
            "An LU factorisation came with pivot=False; JAX only has pivot=True. Leave pivot out."
        )


def _lower_and_upper(lu: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, columns = lu.shape[-2:]
    small = min(rows, columns)
    lower = jnp.tril(lu[..., :, :small], -1) + jnp.eye(rows, small, dtype=lu.dtype)
    return lower, jnp.triu(lu[..., :small, :])


def _permutation_matrix(permutation: jax.Array, dtype: Any) -> jax.Array:
    """``p`` of ``a = p l u``, where row ``permutation[i]`` of ``a`` became row ``i``."""
    rows = jnp.arange(permutation.shape[-1], dtype=permutation.dtype)
    return (rows[:, None] == permutation[..., None, :]).astype(dtype)


def lu_factor(a: jax.Array, *, pivot: bool = True, check_errors: bool = False) -> Factored:
    """Both factors in one matrix, the pivots counted from 1, and LAPACK's info."""
    _refuse_unpivoted(pivot)
    factors, pivots, _ = lax.linalg.lu(a)
    return factors, pivots + 1, _first(jnp.diagonal(factors, axis1=-2, axis2=-1) == 0)


def lu(a: jax.Array, *, pivot: bool = True) -> Factored:
    """Permutation, unit lower and upper factor."""
    _refuse_unpivoted(pivot)
    factors, _, permutation = lax.linalg.lu(a)
    return _permutation_matrix(permutation, a.dtype), *_lower_and_upper(factors)


def _permutation(pivots: jax.Array, rows: int) -> jax.Array:
    return lax.linalg.lu_pivots_to_permutation(pivots - 1, rows)


def lu_unpack(
    factors: jax.Array, pivots: jax.Array, unpack_data: bool = True, unpack_pivots: bool = True
) -> Factored:
    """Permutation, unit lower and upper factor; None for those not asked for."""
    p = (
        _permutation_matrix(_permutation(pivots, factors.shape[-2]), factors.dtype)
        if unpack_pivots
        else None
    )
    return p, *(_lower_and_upper(factors) if unpack_data else (None, None))


def lu_solve(
    factors: jax.Array, pivots: jax.Array, b: jax.Array, *, left: bool = True, adjoint: bool = False
) -> jax.Array:
    """The solution of ``a x = b`` or ``x a = b``, from the LU factors of ``a`` or of its adjoint."""
    if not left:
        return turned(lu_solve(factors, pivots, turned(b), adjoint=not adjoint))
    rows = factors.shape[-1]
    factors, b = _one_batch(factors, b)
    order = jnp.broadcast_to(_permutation(pivots, rows), (*b.shape[:-2], rows))
    lower = {"left_side": True, "lower": True, "unit_diagonal": True}
    upper = {"left_side": True, "lower": False}
    if not adjoint:
        half = lax.linalg.triangular_solve(
            factors, jnp.take_along_axis(b, order[..., None], axis=-2), **lower
        )
        return lax.linalg.triangular_solve(factors, half, **upper)
    across = {"transpose_a": True, "conjugate_a": True}
    half = lax.linalg.triangular_solve(factors, b, **upper, **across)
    x = lax.linalg.triangular_solve(factors, half, **lower, **across)
    return jnp.take_along_axis(x, jnp.argsort(order, axis=-1)[..., None], axis=-2)


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten.linalg_inv_ex.default": inverse,
    "aten._linalg_solve_ex.default": solve,
    "aten.linalg_solve_triangular.default": solve_triangular,
    "aten.triangular_solve.default": triangular_solve,
    "aten.cholesky.default": cholesky,
    "aten.linalg_cholesky_ex.default": cholesky_ex,
    "aten.cholesky_solve.default": cholesky_solve,
    "aten.cholesky_inverse.default": cholesky_inverse,
    "aten.linalg_lu_factor_ex.default": lu_factor,
    "aten.linalg_lu.default": lu,
    "aten.lu_unpack.default": lu_unpack,
    "aten.linalg_lu_solve.default": lu_solve,
}
