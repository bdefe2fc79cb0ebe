import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.activation import ROWS

EDGES = [-100.0, -6.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0, 19.0, 21.0, 100.0]
ROWS_AND_SETTINGS = [
    ("relu", ()),
    ("relu6", ()),
    ("hardtanh", ()),
    ("hardtanh", (-3.0, 0.5)),
    ("hardsigmoid", ()),
    ("hardswish", ()),
    ("leaky_relu", ()),
    ("leaky_relu", (0.5,)),
    ("elu", ()),
    ("elu", (0.5, 2.0, 3.0)),
    ("celu", (0.3,)),
    ("gelu", ()),
    ("silu", ()),
    ("mish", ()),
    ("softplus", ()),
    ("softplus", (2.0, 3.0)),
    ("_softmax", (0, False)),
    ("_log_softmax", (0, False)),
]


def agrees(name, array, *settings, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    assert_as_torch(f"aten.{name}.default", torch.tensor(array), *settings, **named)


@pytest.mark.parametrize(("name", "settings"), ROWS_AND_SETTINGS)
def test_at_its_bends_an_activation_has_torchs_gradient(name, settings):
    agrees(name, EDGES, *settings)


def test_the_tanh_form_of_gelu_agrees_with_torch():
    agrees("gelu", EDGES, approximate="tanh")


@pytest.mark.parametrize(("name", "settings"), ROWS_AND_SETTINGS)
def test_sixteen_bits_compute_in_32(name, settings):
    torch = pytest.importorskip("torch")
    numbers = torch.linspace(-4, 4, 23).bfloat16()
    from tests.lowering.rows.against_torch import assert_as_torch

    assert_as_torch(f"aten.{name}.default", numbers, *settings, tolerance=4e-3)


@pytest.mark.parametrize("name", ["_softmax", "_log_softmax"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_softmax_of_any_shape_agrees_with_torch(name, shape):
    agrees(name, np.ones(shape, "float32"), -1, False)


def test_a_row_of_minus_infinity_has_no_softmax():
    got = ROWS["aten._softmax.default"](jnp.full((1, 3), -jnp.inf), 1, False)
    assert jnp.isnan(got).all()


def test_softplus_has_a_gradient_where_its_exponential_overflows():
    assert jax.grad(ROWS["aten.softplus.default"])(1000.0) == 1.0


def test_relu_of_integers_stays_integer():
    got = ROWS["aten.relu.default"](jnp.array([-2, 3]))
    assert got.dtype == "int32"
    assert got.tolist() == [0, 3]
