import jax
import jax.numpy as jnp
import pytest

from bridge.lowering.rows.special import ROWS

ANYWHERE = [-3.3, -1.0, -0.5, 0.0, 0.5, 1.0, 3.3]
POSITIVE = [0.2, 0.5, 1.0, 2.0, 7.3]
CASES = [
    (ANYWHERE, "erf erfc sinc i0 special_i0e special_i1 special_i1e special_log_ndtr special_erfcx"),
    (POSITIVE, "lgamma digamma special_entr special_modified_bessel_i0 special_modified_bessel_i1"),
    ([0.1, 0.5, 0.9], "erfinv special_ndtri"),
]


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, list) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


@pytest.mark.parametrize(("numbers", "names"), CASES)
def test_special_functions_agree_with_torch(numbers, names):
    for name in names.split():
        agrees(f"{name}.default", numbers, gradients="modified" not in name)


@pytest.mark.parametrize("name", ["xlogy.Tensor", "special_xlog1py.default"])
def test_products_with_a_logarithm_agree_with_torch_at_zero(name):
    agrees(name, [0.0, 0.0, 1.0, 2.0, 0.0], [2.0, -3.0, 1.0, 0.5, 0.5])


def test_zero_times_an_endless_logarithm_is_zero():
    row = ROWS["aten.xlogy.Tensor"]
    got = row(jnp.zeros(4), jnp.array([0.0, jnp.inf, -1.0, jnp.nan]))
    assert str(got.tolist()) == "[0.0, 0.0, 0.0, nan]"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_derivatives_of_digamma_agree_with_torch(n):
    agrees("polygamma.default", n, POSITIVE)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_derivatives_of_digamma_agree_with_torch_far_below_zero(n):
    agrees("polygamma.default", n, [-0.3, -2.6, -8.3, -20.7, -101.4])


@pytest.mark.parametrize("n", [2, 3])
def test_derivatives_of_digamma_are_endless_at_their_poles(n):
    agrees("polygamma.default", n, [0.0, -1.0, -3.0, -float("inf"), float("nan")], gradients=False)


def test_zeta_agrees_with_torch_below_zero():
    agrees("special_zeta.self_scalar", 3, [-0.3, -8.3, -20.7, 0.0, 2.0], gradients=False)


@pytest.mark.parametrize("name", ["igamma", "igammac"])
def test_incomplete_gammas_agree_with_torch(name):
    agrees(f"{name}.default", [0.0, 0.5, 2.0, 3.0], [0.5, 0.2, 1.0, 7.0], gradients=False)


def test_digamma_has_poles_at_the_two_zeros():
    assert ROWS["aten.digamma.default"](jnp.array([0.0, -0.0])).tolist() == [-jnp.inf, jnp.inf]


@pytest.mark.parametrize("name", ["i0", "sinc"])
def test_even_functions_are_flat_at_zero(name):
    assert jax.grad(ROWS[f"aten.{name}.default"])(0.0) == 0.0


def test_entropy_is_endless_in_slope_at_zero():
    assert jax.grad(ROWS["aten.special_entr.default"])(0.0) == jnp.inf


def test_special_functions_of_integers_are_floating():
    assert ROWS["aten.erf.default"](jnp.arange(3)).dtype == "float32"
