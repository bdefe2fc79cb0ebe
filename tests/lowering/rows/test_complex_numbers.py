import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.complex_numbers import ROWS

angle, sgn = ROWS["aten.angle.default"], ROWS["aten.sgn.default"]
POINTS = np.array([0, 1, -1, 2j, -3 - 4j], "complex64")


def test_angles_of_real_numbers_are_zero_pi_or_nan():
    x = jnp.array([0.0, -0.0, -1, 2, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(angle(x), np.array([0, 0, np.pi, 0, np.nan], "float32"))


def test_angles_of_integers_are_floats():
    result = angle(jnp.array([3, -3]))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, np.array([0, np.pi], "float32"))


def test_sgn_keeps_zero_and_real_dtypes():
    np.testing.assert_array_equal(sgn(jnp.array([-2, 0, 5])), [-1, 0, 1])
    np.testing.assert_allclose(sgn(POINTS), [0, 1, -1, 1j, -0.6 - 0.8j], rtol=1e-6)


@pytest.mark.parametrize("name", ["angle", "sgn"])
def test_gradients_at_zero_are_zero_like_those_of_torch(name):
    torch = pytest.importorskip("torch")
    leaf = torch.tensor(POINTS, requires_grad=True)
    loss = getattr(torch, name)(leaf) * torch.tensor([1, 2, 3, 5, 7.0])
    loss.real.sum().backward()
    row = ROWS[f"aten.{name}.default"]
    weights = jnp.array([1, 2, 3, 5, 7.0])
    grad = jax.jit(jax.grad(lambda z: jnp.real(row(z) * weights).sum()))(jnp.asarray(POINTS))
    np.testing.assert_allclose(np.conj(grad), leaf.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_parts_broadcast_and_come_back():
    real, imag = jnp.ones((3, 5)), jnp.arange(5.0)
    z = ROWS["aten.complex.default"](real, imag)
    assert z.shape == (3, 5)
    pairs = ROWS["aten.view_as_real.default"](z)
    np.testing.assert_array_equal(pairs[..., 1], np.broadcast_to(np.arange(5.0), (3, 5)))
    np.testing.assert_array_equal(ROWS["aten.view_as_complex.default"](pairs), z)


def test_polar_is_absolute_value_and_angle():
    z = ROWS["aten.polar.default"](jnp.array([2.0, 3.0]), jnp.array([0.0, jnp.pi / 2]))
    np.testing.assert_allclose(z, [2, 3j], atol=1e-6)
