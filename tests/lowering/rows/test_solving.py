import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.solving import ROWS

inverse, solve, cholesky, cholesky_ex, cholesky_solve, lu, lu_factor, lu_unpack, lu_solve = (
    ROWS[f"aten.{name}.default"]
    for name in (
        "linalg_inv_ex", "_linalg_solve_ex", "cholesky", "linalg_cholesky_ex", "cholesky_solve",
        "linalg_lu", "linalg_lu_factor_ex", "lu_unpack", "linalg_lu_solve",
    )
)  # fmt: skip
A = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
POSITIVE = A @ A.T + np.eye(3, dtype="float32")
SINGULAR = jnp.array([[1.0, 2], [2, 4]])


def test_info_is_the_first_zero_pivot_counted_from_one():
    info = jax.jit(lambda a: inverse(a)[1])(jnp.stack((SINGULAR, jnp.eye(2))))
    assert info.dtype == jnp.int32
    assert info.tolist() == [2, 0]


def test_empty_matrices_have_an_inverse():
    result, info = inverse(jnp.zeros((3, 0, 0)))
    assert (result.shape, info.shape) == ((3, 0, 0), (3,))


def test_solve_takes_a_stack_of_vectors_as_torch_does():
    a, b = jnp.stack((A, POSITIVE)), jnp.ones((2, 3))
    x = solve(a, b)[0]
    np.testing.assert_allclose(jnp.einsum("bij,bj->bi", a, x), b, atol=1e-4)


def test_solve_from_the_right():
    b = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(solve(A, b, left=False)[0] @ A, b, atol=1e-4)


def test_a_matrix_without_a_cholesky_factor_gives_nan_and_info():
    factor, info = cholesky_ex(jnp.stack((-POSITIVE, POSITIVE)))
    assert jnp.isnan(jnp.diagonal(factor[0])).all()
    assert info.tolist() == [1, 0]


@pytest.mark.parametrize("upper", [False, True])
def test_cholesky_reads_one_triangle_and_has_a_gradient_for_both(upper):
    torch = pytest.importorskip("torch")
    half = np.triu(POSITIVE) if upper else np.tril(POSITIVE)
    leaf = torch.tensor(half, requires_grad=True)
    wanted = torch.linalg.cholesky(leaf, upper=upper)
    (wanted * torch.tensor(A)).sum().backward()
    np.testing.assert_allclose(cholesky(half, upper), wanted.detach().numpy(), rtol=1e-5, atol=1e-5)
    grad = jax.grad(lambda a: (cholesky(a, upper) * A).sum())(jnp.asarray(half))
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_cholesky_solve_has_a_gradient_for_the_whole_factor():
    torch = pytest.importorskip("torch")
    factor = np.linalg.cholesky(POSITIVE)
    leaf = torch.tensor(factor, requires_grad=True)
    torch.cholesky_solve(torch.tensor(A), leaf).square().sum().backward()
    grad = jax.grad(lambda f: jnp.square(cholesky_solve(A, f)).sum())(jnp.asarray(factor))
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-3, atol=1e-3)


def test_pivots_count_from_one():
    assert lu_factor(jnp.array([[0.0, 1], [1, 0]]))[1].tolist() == [2, 2]


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 5, 5)])
def test_lu_factors_multiply_to_the_matrix_packed_or_not(shape):
    a = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    p, lower, upper = lu(a)
    np.testing.assert_allclose(p @ lower @ upper, a, atol=1e-5)
    for one, other in zip(lu_unpack(*lu_factor(a)[:2]), (p, lower, upper), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_lu_unpack_leaves_out_what_is_not_asked_for():
    packed = lu_factor(jnp.asarray(A))[:2]
    assert lu_unpack(*packed, unpack_data=False)[1:] == (None, None)
    assert lu_unpack(*packed, unpack_pivots=False)[0] is None


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("adjoint", [True, False])
def test_lu_solve_on_either_side_and_of_the_adjoint(left, adjoint):
    a = (A + 1j * A[::-1]).astype("complex64")
    b = np.ones((3, 2) if left else (2, 3), "complex64")
    x = lu_solve(*lu_factor(jnp.asarray(a))[:2], jnp.asarray(b), left=left, adjoint=adjoint)
    matrix = a.conj().T if adjoint else a
    np.testing.assert_allclose(matrix @ x if left else x @ matrix, b, atol=1e-3)


@pytest.mark.parametrize("factorise", [lu, lu_factor])
def test_lu_without_pivots_is_refused(factorise):
    with pytest.raises(LoweringError) as caught:
        factorise(jnp.asarray(A), pivot=False)
    assert str(caught.value) == (
        "An LU factorisation came with pivot=False; JAX only has pivot=True. Leave pivot out."
    )
