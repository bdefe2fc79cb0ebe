import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.arithmetic import ROWS, add, divide, multiply, power, subtract

VALUES = [0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -7.3, 3.0, 5.0, -3.0, 11.0]


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, list | np.ndarray) else arg for arg in args]
    assert_as_torch(name, *given, **named)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, 5, -1, -2, 2.0, 1.5, 0.5, -0.5])
def test_powers_agree_with_torch(exponent):
    agrees("aten.pow.Tensor_Scalar", [0.5, 1.0, 2.0, 7.3], exponent)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, 5, 2.0, 3.0])
def test_powers_of_zero_and_of_negative_numbers_agree_with_torch(exponent):
    agrees("aten.pow.Tensor_Scalar", VALUES, exponent)


def test_a_power_of_two_tensors_has_torchs_gradient_at_zero():
    agrees("aten.pow.Tensor_Tensor", [0.0, 0.0, 0.0, 2.0, 1.0], [0.0, 1.0, 2.0, 0.0, -1.0])


def test_the_gradient_of_a_negative_base_is_finite_where_the_exponent_has_none():
    slope = jax.jit(jax.grad(lambda base: power(base, jnp.array([2.0, 3.0])).sum()))
    assert slope(jnp.array([-1.0, -2.0])).tolist() == [-2.0, 12.0]


def test_powers_are_differentiated_twice():
    second = jax.grad(jax.grad(lambda base: power(base, jnp.float32(3.0))))
    assert second(2.0) == pytest.approx(12.0)


@pytest.mark.parametrize("mode", [None, "trunc", "floor"])
@pytest.mark.parametrize("divisor", [0.3, -0.3, 2.0])
def test_quotients_agree_with_torch(mode, divisor):
    agrees("aten.div.Tensor_mode", VALUES, divisor, rounding_mode=mode)


@pytest.mark.parametrize("mode", ["trunc", "floor"])
def test_quotients_of_integers_agree_with_torch(mode):
    agrees("aten.div.Tensor_mode", [7, -7, 6, -6], [3, 3, -4, -3], rounding_mode=mode)


def test_the_quotient_of_integers_is_floating():
    assert divide(jnp.arange(3), 2).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["fmod", "remainder"])
@pytest.mark.parametrize("divisor", [0.7, -0.7, 3.0])
def test_remainders_agree_with_torch(name, divisor):
    agrees(f"aten.{name}.Scalar", VALUES, divisor)


@pytest.mark.parametrize("name", ["fmod", "remainder"])
def test_remainders_of_integers_have_torchs_signs(name):
    agrees(f"aten.{name}.Tensor", [7, -7, 6, -6], [3, 3, -4, -4])


@pytest.mark.parametrize("name", ["add", "sub"])
@pytest.mark.parametrize("alpha", [1, 3, 0.5])
def test_a_factor_of_the_second_operand_agrees_with_torch(name, alpha):
    agrees(f"aten.{name}.Tensor", [1.0, 2.0, 3.0], [[5.0], [7.0]], alpha=alpha)


def test_bools_are_added_as_logic():
    got = add(jnp.array([True, False]), jnp.array([True, False]), alpha=3)
    assert got.dtype == bool
    assert got.tolist() == [True, False]


@pytest.mark.parametrize(
    ("row", "number", "wanted"),
    [(multiply, 0.3, 0.30078125), (add, 1.0, 2.0), (divide, 0.7, 1.4296875)],
)
def test_sixteen_bits_round_once(row, number, wanted):
    got = jax.jit(lambda x: row(x, number))(jnp.ones(3, jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    assert got[0] == wanted


def test_a_number_that_sixteen_bits_hold_needs_no_cast():
    program = jax.jit(lambda x: multiply(x, 0.5)).lower(jnp.ones(3, jnp.bfloat16)).as_text()
    assert "convert" not in program


def test_a_number_on_the_left_is_rounded_first():
    assert subtract(1.7, jnp.full(1, 2, jnp.bfloat16)).tolist() == [-0.296875]


def test_small_integers_wrap_around():
    agrees("aten.add.Tensor", np.array([1, 5, 255], np.uint8), -1)
    agrees("aten.mul.Tensor", np.array([1, 5, 100], np.int8), 300)


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        (jnp.arange(3), 1, "int32"),
        (jnp.arange(3), 1.0, "float32"),
        (jnp.ones(3, jnp.bfloat16), 1, "bfloat16"),
        (jnp.ones(3, jnp.bfloat16), jnp.float32(1), "bfloat16"),
        (jnp.ones(3, jnp.bfloat16), jnp.ones(3), "float32"),
        (jnp.ones(3, bool), 1, "int32"),
    ],
)
def test_the_dtype_of_a_sum_is_torchs(left, right, wanted):
    assert ROWS["aten.add.Tensor"](left, right).dtype == wanted


def test_integers_are_of_64_bits_where_jax_has_them():
    with jax.enable_x64(True):
        assert add(jnp.arange(3, dtype="int64"), 2**40).tolist() == [2**40, 2**40 + 1, 2**40 + 2]
