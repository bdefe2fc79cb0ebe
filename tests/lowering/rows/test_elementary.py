import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.elementary import ROWS

ANYWHERE = [-7.3, -2.5, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.5, 7.3]
POSITIVE = [0.25, 0.5, 1.0, 1.5, 7.3, 100.0]
WITHIN_ONE = [-0.9, -0.5, 0.0, 0.5, 0.9]
PLANE = [[0.0, 0.0, 1.0, -1.0, 2.0], [0.0, 1.0, 0.0, -1.0, -3.0]]


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, list | np.ndarray) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        (ANYWHERE, "abs sign sin cos tan atan sinh cosh tanh asinh exp exp2 expm1 sigmoid floor ceil"),
        (ANYWHERE, "trunc round"),
        (POSITIVE, "sqrt rsqrt log log2 log10 log1p logit"),
        (WITHIN_ONE, "asin acos atanh"),
    ],
)
def test_elementary_functions_agree_with_torch(numbers, names):
    for name in names.split():
        agrees(f"{name}.default", [n for n in numbers if name != "logit" or n < 1])


@pytest.mark.parametrize("name", ["exp", "sqrt", "log1p", "sigmoid", "floor", "round", "sign", "abs"])
def test_functions_of_integers_have_torchs_dtype(name):
    agrees(f"{name}.default", [0, 1, 2, 5])


@pytest.mark.parametrize("name", ["atan2", "copysign", "hypot"])
def test_functions_of_a_point_agree_with_torch_on_the_axes(name):
    overload = "Tensor" if name == "copysign" else "default"
    y, x = (row[1:] if name == "hypot" else row for row in PLANE)
    agrees(f"{name}.{overload}", y, x)


def test_the_size_of_zero_has_no_gradient():
    assert jax.grad(ROWS["aten.abs.default"])(0.0) == 0.0


def test_the_sign_of_what_is_no_number_is_zero():
    assert ROWS["aten.sign.default"](jnp.array([jnp.nan, -2.0])).tolist() == [0.0, -1.0]


def test_logarithms_and_powers_of_two_are_exact():
    whole = np.arange(-100, 100, dtype="float32")
    powers = np.ldexp(np.float32(1), whole.astype(int))
    assert (jax.jit(ROWS["aten.log2.default"])(powers) == whole).all()
    assert (jax.jit(ROWS["aten.exp2.default"])(whole) == powers).all()


@pytest.mark.parametrize("eps", [None, 0.25])
def test_logit_agrees_with_torch_at_its_bounds(eps):
    agrees("logit.default", [0.1, 0.25, 0.5, 0.75, 0.9], eps)


@pytest.mark.parametrize("decimals", [2, 0, -1])
def test_rounding_to_decimals_agrees_with_torch(decimals):
    agrees("round.decimals", [0.125, 0.135, 12.5, 15.0, -25.0, 3.14159], decimals=decimals)


def test_mantissa_and_exponent_agree_with_torch():
    agrees("frexp.Tensor", [0.75, 1.0, 3.0, -10.0])


def test_a_product_with_a_power_of_two_agrees_with_torch():
    agrees("ldexp.Tensor", [0.75, 1.0, 3.0], [3, 2, 0])


@pytest.mark.parametrize("name", ["gcd", "lcm"])
def test_divisors_and_multiples_agree_with_torch(name):
    agrees(f"{name}.default", [12, -18, 0, 7], [8, 12, 5, 7])
