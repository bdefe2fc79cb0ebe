import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.linalg import ROWS

det, qr, svd, eigh, eig, pinv, householder, cross = (
    ROWS[f"aten.{name}"]
    for name in (
        "_linalg_det.default", "linalg_qr.default", "_linalg_svd.default", "_linalg_eigh.default",
        "linalg_eig.default", "linalg_pinv.atol_rtol_tensor", "linalg_householder_product.default",
        "linalg_cross.default",
    )
)  # fmt: skip
rng = np.random.default_rng(0)
SQUARE, TALL, WIDE = (rng.normal(size=shape).astype("float32") for shape in ((3, 3), (5, 3), (3, 5)))


def check_gradient(row_loss, torch_loss, array, tolerance=1e-3):
    """The gradient of a real loss is that of torch, conjugated."""
    torch = pytest.importorskip("torch")
    leaf = torch.tensor(array, requires_grad=True)
    torch_loss(torch, leaf).backward()
    grad = jax.jit(jax.grad(row_loss))(jnp.asarray(array))
    np.testing.assert_allclose(np.conj(grad), leaf.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_determinant_of_an_empty_matrix_is_one():
    assert det(jnp.zeros((2, 0, 0)))[0].tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["reduced", "complete", "r"])
@pytest.mark.parametrize("a", [TALL, WIDE], ids=["tall", "wide"])
def test_qr_shapes_are_those_of_numpy(a, mode):
    q, r = qr(jnp.asarray(a), mode)
    wanted = np.linalg.qr(a, mode)
    assert r.shape == (wanted if mode == "r" else wanted[1]).shape
    if mode == "r":
        assert q is None
    else:
        np.testing.assert_allclose(q @ r, a, atol=1e-5)


def test_qr_of_a_wide_matrix_has_a_gradient():
    check_gradient(
        lambda a: sum(
            jnp.square(part[0] * part[1]).sum() for part in [(out, out + 1) for out in qr(a)]
        ),
        lambda torch, a: sum((out * (out + 1)).square().sum() for out in torch.linalg.qr(a)),
        WIDE,
    )


@pytest.mark.parametrize("a", [TALL, WIDE], ids=["tall", "wide"])
def test_svd_with_full_matrices_has_the_gradient_of_the_thin_one(a):
    def loss(u, s, vh, absolute):
        count = s.shape[-1]
        return absolute(u[..., :count]).sum() + (3 * s).sum() + absolute(vh[..., :count, :]).sum()

    check_gradient(
        lambda a: loss(*svd(a, True), jnp.abs),
        lambda torch, a: loss(*torch.linalg.svd(a, full_matrices=True), torch.abs),
        a,
    )
    u, s, vh = svd(jnp.asarray(a), True)
    assert u.shape[-1] == a.shape[0]
    np.testing.assert_allclose((u[:, :3] * s) @ vh[:3], a, atol=1e-5)


def test_singular_values_alone_have_no_vectors():
    u, s, vh = svd(jnp.asarray(TALL), False, False)
    assert (u, vh, s.shape) == (None, None, (3,))


@pytest.mark.parametrize("triangle", ["L", "U"])
def test_eigh_reads_one_triangle_also_under_a_gradient(triangle):
    check_gradient(
        lambda a: (eigh(a, triangle)[0] * jnp.arange(3)).sum(),
        lambda torch, a: (torch.linalg.eigh(a, UPLO=triangle)[0] * torch.arange(3)).sum(),
        SQUARE,
    )


def test_eigenvectors_of_a_general_matrix_have_a_gradient():
    check_gradient(
        lambda a: jnp.abs(eig(a)[1]).sum() + jnp.abs(eig(a)[0]).sum(),
        lambda torch, a: torch.linalg.eig(a)[1].abs().sum() + torch.linalg.eig(a)[0].abs().sum(),
        SQUARE,
    )


@pytest.mark.parametrize(
    "a", [TALL, WIDE, np.ones((3, 3), "float32")], ids=["tall", "wide", "singular"]
)
def test_pseudo_inverse_has_the_gradient_of_its_rank(a):
    check_gradient(
        lambda a: (pinv(a) * (jnp.arange(a.size).reshape(a.T.shape) + 1)).sum(),
        lambda torch, a: (
            torch.linalg.pinv(a) * (torch.arange(a.numel()).reshape(a.T.shape) + 1)
        ).sum(),
        a,
    )


def test_pseudo_inverse_drops_values_below_either_tolerance():
    a = jnp.diag(jnp.array([4.0, 2.0, 1.0]))
    assert jnp.diagonal(pinv(a, atol=jnp.array(1.5))).tolist() == [0.25, 0.5, 0]
    assert jnp.diagonal(pinv(a, rtol=jnp.array(0.5))).tolist() == [0.25, 0, 0]


def test_reflections_are_those_of_lapack_and_have_a_gradient():
    reflectors, tau = ROWS["aten.geqrf.default"](jnp.asarray(TALL))
    q = householder(reflectors, tau)
    np.testing.assert_allclose(q, np.linalg.qr(TALL)[0], atol=1e-5)
    check_gradient(
        lambda a: (householder(a, tau) * TALL).sum(),
        lambda torch, a: (
            torch.linalg.householder_product(a, torch.tensor(np.asarray(tau))) * torch.tensor(TALL)
        ).sum(),
        np.asarray(reflectors),
    )


def test_reflections_multiply_on_either_side():
    reflectors, tau = ROWS["aten.geqrf.default"](jnp.asarray(TALL))
    multiply = ROWS["aten.ormqr.default"]
    q = multiply(reflectors, tau, jnp.eye(5))
    np.testing.assert_allclose(q[:, :3], householder(reflectors, tau), atol=1e-6)
    np.testing.assert_allclose(multiply(reflectors, tau, WIDE, left=False), WIDE @ q, atol=1e-5)
    np.testing.assert_allclose(multiply(reflectors, tau, TALL, transpose=True), q.T @ TALL, atol=1e-5)


def test_cross_product_broadcasts_and_keeps_integers():
    product = cross(jnp.array([[1, 0, 0]]), jnp.array([[0, 1, 0], [0, 0, 1]]))
    assert product.tolist() == [[0, 0, 1], [0, -1, 0]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pinverse.default", {}),
        ("linalg_pinv.default", {"rcond": 0.5}),
        ("linalg_pinv.atol_rtol_float", {"atol": 0.3, "rtol": 0.2}),
        ("linalg_matrix_rank.default", {"tol": 0.7}),
        ("linalg_matrix_rank.atol_rtol_float", {}),
        ("linalg_matrix_rank.atol_rtol_float", {"atol": 0.1, "rtol": 0.5}),
    ],
)
def test_what_counts_as_zero_is_what_torch_takes_for_it(name, settings):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    for a in (TALL, WIDE):
        assert_as_torch(f"aten.{name}", torch.tensor(a), **settings, gradients="pinv" in name)


def test_the_rank_of_a_hermitian_matrix_reads_its_lower_triangle():
    a = jnp.array([[1.0, 9.0], [0.0, 0.0]])
    assert ROWS["aten.linalg_matrix_rank.default"](a, 0.5, hermitian=True) == 1
