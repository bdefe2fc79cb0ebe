"""Determinants, decompositions and functions of matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bridge.lowering.promotion import narrowed, promoted
from bridge.lowering.rows.solving import turned

Arrays = tuple[jax.Array | None, ...]
_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def determinant(a: jax.Array) -> Arrays:
    """The determinant; None for the factor and pivots that PyTorch keeps for its gradient."""
    value = jnp.linalg.det(a) if a.size else jnp.ones(a.shape[:-2], a.dtype)
    return value, None, None


def sign_and_log_determinant(a: jax.Array) -> Arrays:
    """Sign and logarithm of the determinant; None for the factor and pivots."""
    sign, logarithm = jnp.linalg.slogdet(a)
    return sign, logarithm, None, None


def qr(a: jax.Array, mode: str = "reduced") -> Arrays:
    """An orthonormal and an upper triangular factor; None for the first in mode "r"."""
    rows, columns = a.shape[-2:]
    if rows >= columns:
        q, r = jnp.linalg.qr(a, mode="complete" if mode == "complete" else "reduced")
    else:  # JAX has no gradient for a wide matrix; its first columns alone give q
        q, r = jnp.linalg.qr(a[..., :rows])
        r = jnp.concatenate((r, _product(turned(q), a[..., rows:])), axis=-1)
    return (None if mode == "r" else q), r


def _thin_svd(a: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.linalg.svd(a, full_matrices=False))


@jax.custom_jvp
def _full_svd(a: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.linalg.svd(a))


@_full_svd.defjvp
def _full_svd_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """The vectors beyond the singular values have no gradient: ``_linalg_svd`` in derivatives.yaml."""
    u, s, vh = _full_svd(*primals)
    (thin_u, _, thin_vh), (du, ds, dvh) = jax.jvp(_thin_svd, primals, tangents)
    count = s.shape[-1]
    # Both decompositions have singular vectors of a phase of their own
    phase = jnp.sum(jnp.conj(thin_u) * u[..., :count], axis=-2, keepdims=True)
    back = jnp.sum(jnp.conj(thin_vh) * vh[..., :count, :], axis=-1, keepdims=True)
    du = jnp.zeros_like(u).at[..., :count].set(du * phase)
    return (u, s, vh), (du, ds, jnp.zeros_like(vh).at[..., :count, :].set(dvh * back))


def svd(
    a: jax.Array, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None
) -> Arrays:
    """Left vectors, singular values, right vectors as rows; None for the vectors without compute_uv."""
    if not compute_uv:
        return None, jnp.linalg.svd(a, compute_uv=False), None
    rows, columns = a.shape[-2:]
    return (_full_svd if full_matrices and rows != columns else _thin_svd)(a)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _eigh(a: jax.Array, triangle: str) -> tuple[jax.Array, ...]:
    return tuple(jnp.linalg.eigh(a, UPLO=triangle, symmetrize_input=False))


@_eigh.defjvp
def _eigh_jvp(triangle: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    # JAX's own rule reads both triangles, whichever was asked for
    half = jnp.tril(primals[0], -1) if triangle == "L" else jnp.triu(primals[0], 1)
    whole = half + turned(half) + jnp.eye(half.shape[-1], dtype=half.dtype) * primals[0]
    return jax.jvp(lambda a: tuple(jnp.linalg.eigh(a, UPLO=triangle)), (whole,), tangents)


def eigh(a: jax.Array, triangle: str = "L", compute_v: bool = True) -> Arrays:
    """Eigenvalues and eigenvectors of the symmetric matrix in one triangle of ``a``."""
    values, vectors = _eigh(a, triangle)
    return values, vectors if compute_v else None


@jax.custom_jvp
def eig(a: jax.Array) -> tuple[jax.Array, ...]:
    """Eigenvalues and eigenvectors of unit length, complex."""
    return tuple(jnp.linalg.eig(a))


@eig.defjvp
def _eig_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """Eigenvectors keep unit length: ``linalg_eig_jvp`` in PyTorch's FunctionsManual.cpp."""
    values, vectors = eig(*primals)
    change = jnp.linalg.solve(vectors, _product(tangents[0].astype(vectors.dtype), vectors))
    gaps = values[..., None, :] - values[..., :, None]
    same = jnp.eye(values.shape[-1], dtype=bool)
    turn = _product(vectors, jnp.where(same, 0, change / jnp.where(same, 1, gaps)))
    along = jnp.sum(jnp.conj(vectors) * turn, axis=-2, keepdims=True).real
    return (values, vectors), (jnp.diagonal(change, axis1=-2, axis2=-1), turn - vectors * along)


def _counted(values: jax.Array, atol: Any, rtol: Any, size: int) -> jax.Array:
    """Which of the values do not count as zero: torch.linalg.pinv's docs."""
    sizes = jnp.abs(values)
    if rtol is None:
        default = size * jnp.finfo(sizes.dtype).eps
        rtol = default if atol is None else jnp.where(jnp.asarray(atol) > 0, 0, default)
    limit = jnp.asarray(rtol)[..., None] * jnp.max(sizes, axis=-1, keepdims=True, initial=0)
    limit = limit if atol is None else jnp.maximum(jnp.asarray(atol)[..., None], limit)
    return sizes > limit


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _pseudo_inverse(a: jax.Array, atol: Any, rtol: Any, hermitian: bool) -> jax.Array:
    if hermitian:
        values, right = jnp.linalg.eigh(a, symmetrize_input=False, UPLO="L")
        left = turned(right)
    else:
        u, values, vh = jnp.linalg.svd(a, full_matrices=False)
        right, left = turned(vh), turned(u)
    kept = _counted(values, atol, rtol, max(a.shape[-2:]))
    scale = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0).astype(a.dtype)
    return _product(right * scale[..., None, :], left)


@_pseudo_inverse.defjvp
def _pseudo_inverse_jvp(
    hermitian: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Golub and Pereyra's derivative for a constant rank, without a division by singular values."""
    a, da = primals[0], tangents[0]
    p = _pseudo_inverse(*primals, hermitian)
    p_h, da_h = turned(p), turned(da)
    rows, columns = a.shape[-2:]
    outside_rows = jnp.eye(rows, dtype=a.dtype) - _product(a, p)
    outside_columns = jnp.eye(columns, dtype=a.dtype) - _product(p, a)
    first = _product(_product(p, da), p)
    second = _product(_product(p, p_h), _product(da_h, outside_rows))
    third = _product(_product(outside_columns, da_h), _product(p_h, p))
    return p, second + third - first


def pseudo_inverse(
    a: jax.Array,
    *,
    atol: Any = None,
    rtol: Any = None,
    hermitian: bool = False,
) -> jax.Array:
    """The Moore-Penrose inverse; singular values up to max(atol, rtol * the largest) count as zero."""
    return _pseudo_inverse(a, atol, rtol, hermitian)


def pseudo_inverse_above(a: jax.Array, rcond: float = 1e-15, hermitian: bool = False) -> jax.Array:
    """The Moore-Penrose inverse; singular values up to `rcond` times the largest count as zero."""
    return _pseudo_inverse(a, None, rcond, hermitian)


def matrix_rank(
    a: jax.Array, *, atol: Any = None, rtol: Any = None, hermitian: bool = False
) -> jax.Array:
    """How many singular values are above max(atol, rtol * the largest)."""
    if hermitian:
        values = jnp.linalg.eigh(a, symmetrize_input=False, UPLO="L")[0]
    else:
        values = jnp.linalg.svd(a, compute_uv=False)
    kept = _counted(values, atol, rtol, max(a.shape[-2:]))
    return jnp.sum(kept, -1, dtype=narrowed("int64"))


def matrix_rank_above(input: jax.Array, tol: Any, hermitian: bool = False) -> jax.Array:
    """How many singular values are above `tol`."""
    return matrix_rank(input, atol=tol, rtol=0.0, hermitian=hermitian)


def raw_qr(a: jax.Array) -> Arrays:
    """The reflections of a QR decomposition with R above them, and their factors."""
    reflectors, tau = jnp.linalg.qr(a, mode="raw")  # NumPy's raw mode gives them transposed
    return jnp.swapaxes(reflectors, -1, -2), tau


def householder_product(reflectors: jax.Array, tau: jax.Array) -> jax.Array:
    """The product of the reflections ``1 - tau v v^H``, of its columns as many as are given."""
    return _reflections(reflectors, tau, reflectors.shape[-1])


def _reflections(reflectors: jax.Array, tau: jax.Array, columns: int) -> jax.Array:
    """Compact WY form: ``1 - v t v^H``, with ``t`` from one triangular system instead of a loop."""
    rows, count = reflectors.shape[-2], tau.shape[-1]
    v = jnp.tril(reflectors[..., :count], -1) + jnp.eye(rows, count, dtype=reflectors.dtype)
    v_h = turned(v)
    scale = tau[..., None]
    system = jnp.triu(_product(v_h, v), 1) * scale
    right = scale * v_h[..., :columns]
    solved = lax.linalg.triangular_solve(system, right, left_side=True, lower=False, unit_diagonal=True)
    return jnp.eye(rows, columns, dtype=reflectors.dtype) - _product(v, solved)


def multiply_by_reflections(
    reflectors: jax.Array, tau: jax.Array, other: jax.Array, left: bool = True, transpose: bool = False
) -> jax.Array:
    """``q other``, or ``other q``, with the whole product ``q`` of the reflections, or its adjoint."""
    q = _reflections(reflectors, tau, reflectors.shape[-2])
    q = turned(q) if transpose else q
    return _product(q, other) if left else _product(other, q)


def cross(a: jax.Array, b: jax.Array, *, dim: int = -1) -> jax.Array:
    """The cross product of the vectors of three along ``dim``."""
    a, b = promoted(a, b)
    return jnp.cross(a, b, axis=dim)


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten._linalg_det.default": determinant,
    "aten._linalg_slogdet.default": sign_and_log_determinant,
    "aten.linalg_qr.default": qr,
    "aten.geqrf.default": raw_qr,
    "aten.linalg_householder_product.default": householder_product,
    "aten.ormqr.default": multiply_by_reflections,
    "aten._linalg_svd.default": svd,
    "aten._linalg_eigh.default": eigh,
    "aten.linalg_eig.default": eig,
    "aten.linalg_eigvals.default": jnp.linalg.eigvals,
    "aten.linalg_pinv.default": pseudo_inverse_above,
    "aten.linalg_pinv.atol_rtol_float": pseudo_inverse,
    "aten.linalg_pinv.atol_rtol_tensor": pseudo_inverse,
    "aten.pinverse.default": pseudo_inverse_above,
    "aten.linalg_matrix_rank.default": matrix_rank_above,
    "aten.linalg_matrix_rank.tol_tensor": matrix_rank_above,
    "aten.linalg_matrix_rank.atol_rtol_float": matrix_rank,
    "aten.linalg_matrix_rank.atol_rtol_tensor": matrix_rank,
    "aten.linalg_matrix_exp.default": jax.scipy.linalg.expm,
    "aten.linalg_cross.default": cross,
}
