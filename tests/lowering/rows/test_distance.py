import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.distance import ROWS

FIRST = np.round(2 * np.sin(np.arange(24, dtype=np.float32))).reshape(2, 4, 3)
ORDERS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf")]
MATRICES, DIRECT = 1, 2  # torch.cdist's compute_mode


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


@pytest.mark.parametrize("order", ORDERS)
def test_distances_agree_with_torch_where_they_are_zero_or_tie(order):
    agrees("_cdist_forward.default", FIRST, FIRST[:, :3].copy(), order, None)
    agrees("_pdist_forward.default", np.concatenate([FIRST[0], FIRST[0, :2]]), order)


@pytest.mark.parametrize("mode", [None, MATRICES, DIRECT])
def test_distances_by_a_product_of_matrices_agree_with_torch(mode):
    many = np.round(3 * np.cos(np.arange(116, dtype=np.float32))).reshape(29, 4)
    agrees("cdist.default", many, many[:27].copy(), 2.0, mode)


@pytest.mark.parametrize("order", ORDERS)
def test_second_derivatives_are_finite_at_zero(order):
    row = ROWS["aten._cdist_forward.default"]
    second = jax.hessian(lambda x: row(x, x, order, None).sum())(jnp.asarray(FIRST[0]))
    assert jnp.isfinite(second).all()
