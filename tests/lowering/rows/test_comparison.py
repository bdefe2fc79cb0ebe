import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.comparison import ROWS

VALUES = [-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]
OTHERS = [-1.0, -1.0, 0.0, 2.0, 1.0, -3.0]


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, list | np.ndarray) else arg for arg in args]
    assert_as_torch(name, *given, **named)


@pytest.mark.parametrize("bounds", [(-1, 1), (None, 1), (-1, None), (0.5, 0.5), (3, -1), (-1.0, 3.0)])
def test_at_a_bound_clamp_passes_the_whole_gradient(bounds):
    agrees("aten.clamp.default", VALUES, *bounds)


def test_clamp_has_no_gradient_where_there_is_no_number():
    slope = jax.grad(lambda x: ROWS["aten.clamp.default"](x, -1, 1).sum())
    assert slope(jnp.array([jnp.nan, 1.0])).tolist() == [0.0, 1.0]


def test_clamp_between_tensors_shares_the_gradient_as_torch_does():
    torch = pytest.importorskip("torch")
    low, high = torch.tensor(OTHERS), torch.tensor(OTHERS) + torch.tensor([1, 0, 2, -1, 0.5, 1])
    agrees("aten.clamp.Tensor", VALUES, low, high)
    agrees("aten.clamp.Tensor", VALUES, low)
    agrees("aten.clamp.Tensor", VALUES, None, high)


@pytest.mark.parametrize("name", ["maximum", "minimum", "fmax", "fmin"])
def test_the_gradient_of_equal_operands_is_torchs(name):
    agrees(f"aten.{name}.default", VALUES, OTHERS)


@pytest.mark.parametrize("name", ["fmax", "fmin"])
def test_a_number_is_preferred_to_none(name):
    row = ROWS[f"aten.{name}.default"]
    got = row(jnp.array([jnp.nan, 1, jnp.nan]), jnp.array([2, jnp.nan, jnp.nan]))
    assert str(got.tolist()) == "[2.0, 1.0, nan]"


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_what_is_no_number_stays_so(name):
    got = ROWS[f"aten.{name}.default"](jnp.array([jnp.nan, 1]), jnp.array([2, jnp.nan]))
    assert jnp.isnan(got).all()


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
@pytest.mark.parametrize("other", [1, 0.5, True])
def test_comparisons_agree_with_torch(name, other):
    agrees(f"aten.{name}.Scalar", [0, 1, 2], other)
    agrees(f"aten.{name}.Scalar", VALUES, other, gradients=False)


@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32"])
def test_bits_agree_with_torch(name, dtype):
    left, right = np.array([[0, 1, 5, 7], [3, 1, 0, 6]]).astype(dtype)
    agrees(f"aten.{name}.Tensor", left, right)


@pytest.mark.parametrize("name", ["bitwise_left_shift", "bitwise_right_shift"])
def test_shifts_agree_with_torch(name):
    agrees(f"aten.{name}.Tensor", [5, -5, 1, 0], [1, 1, 3, 2])


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logic_of_numbers_agrees_with_torch(name):
    agrees(f"aten.{name}.default", VALUES, OTHERS, gradients=False)


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        (jnp.ones(3), 0, "float32"),
        (jnp.arange(3), 0.5, "float32"),
        (jnp.ones(3, "bfloat16"), 0.1, "bfloat16"),
    ],
)
def test_a_choice_has_the_dtype_of_both(left, right, wanted):
    assert ROWS["aten.where.self"](left > 0, left, right).dtype == wanted
