import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.fourier import ROWS

c2c, r2c, c2r = (ROWS[f"aten._fft_{name}.default"] for name in ("c2c", "r2c", "c2r"))
X = np.random.default_rng(0).normal(size=(3, 5, 7)).astype("float32")
Z = (X + 1j * X[::-1]).astype("complex64")


@pytest.mark.parametrize(("normalization", "divisor"), [(0, 1), (1, 35**0.5), (2, 35)])
@pytest.mark.parametrize("forward", [True, False])
def test_normalization_divides_by_nothing_the_root_or_the_count(normalization, divisor, forward):
    wanted = np.fft.fftn(Z, axes=(1, 2)) if forward else np.fft.ifftn(Z, axes=(1, 2)) * 35
    np.testing.assert_allclose(
        c2c(Z, [1, 2], normalization, forward), wanted / divisor, rtol=1e-4, atol=1e-4
    )


def test_no_dims_leave_the_values():
    assert c2c(Z, [], 0, True) is Z


@pytest.mark.parametrize("size", [8, 9])
def test_one_sided_transform_comes_back_at_even_and_odd_sizes(size):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, size)), jnp.float32)
    back = c2r(r2c(x, [1], 0, True), [1], 2, size)
    assert back.shape == x.shape
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-5)


def test_two_sided_transform_of_real_values_keeps_the_last_dim():
    assert r2c(X, [0, 2], 0, False).shape == X.shape


@pytest.mark.parametrize("size", [6, 7])
def test_gradient_of_a_real_inverse_is_the_conjugate_of_that_of_torch(size):
    torch = pytest.importorskip("torch")
    z = Z[:, 0, :4]
    leaf = torch.tensor(z, requires_grad=True)
    torch.fft.irfft(leaf, n=size).square().sum().backward()
    grad = jax.grad(lambda z: jnp.square(c2r(z, [1], 2, size)).sum())(jnp.asarray(z))
    np.testing.assert_allclose(np.conj(grad), leaf.grad.numpy(), rtol=1e-4, atol=1e-5)
