import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.reduction import ROWS

INF = float("inf")
TIES = [[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -1.0, 2.0, 0.0]]


def agrees(name, array, *settings, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    assert_as_torch(f"aten.{name}", torch.tensor(array), *settings, **named)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("name", ["amax.default", "amin.default", "mean.dim", "sum.dim_IntList"])
@pytest.mark.parametrize("dim", [[1], [-1, 0], []])
def test_reductions_agree_with_torch_at_ties(name, dim, keepdim):
    agrees(name, TIES, dim, keepdim)


@pytest.mark.parametrize("name", ["max.dim", "min.dim", "prod.dim_int"])
@pytest.mark.parametrize("dim", [0, -1])
def test_reductions_along_an_axis_agree_with_torch_at_ties(name, dim):
    agrees(name, TIES, dim)
    agrees(name, TIES, dim, True)


@pytest.mark.parametrize("name", ["max.default", "min.default", "prod.default", "sum.default"])
def test_reductions_of_everything_agree_with_torch_at_ties(name):
    agrees(name, TIES)


@pytest.mark.parametrize("name", ["max.dim", "min.dim", "prod.dim_int", "sum.dim_IntList", "all.dim"])
def test_an_array_without_axes_has_an_axis_zero(name):
    agrees(name, np.float32(7), [0] if name == "sum.dim_IntList" else 0, gradients=name != "all.dim")


@pytest.mark.parametrize("ord", [0, 0.5, 1, 1.5, 2, 3, INF, -INF, -1])
def test_a_norm_of_zeros_has_torchs_gradient(ord):
    agrees("linalg_vector_norm.default", TIES, ord, [1], gradients=ord != 0)


@pytest.mark.parametrize("correction", [None, 0, 1, 2.5])
@pytest.mark.parametrize("name", ["var", "std", "var_mean", "std_mean"])
def test_deviations_agree_with_torch_where_nothing_deviates(name, correction):
    agrees(f"{name}.correction", TIES, [1], correction=correction)


def test_deviations_of_sixteen_bits_compute_in_32():
    numbers = jnp.arange(1000, 1100).astype(jnp.bfloat16)
    got = ROWS["aten.var.correction"](numbers, None, correction=0)
    assert got.dtype == jnp.bfloat16
    assert got == jnp.var(numbers.astype(jnp.float32)).astype(jnp.bfloat16)


def test_the_deviation_of_one_number_is_none():
    assert jnp.isnan(ROWS["aten.std.correction"](jnp.ones((2, 1)), [1])).all()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32"])
@pytest.mark.parametrize("name", ["any.default", "all.default", "sum.default", "prod.default"])
def test_the_dtype_of_a_reduction_is_torchs(name, dtype):
    agrees(name, np.array([0, 1, 3]).astype(dtype))


def test_places_are_of_64_bits_where_jax_has_them():
    with jax.enable_x64(True):
        assert ROWS["aten.argmax.default"](jnp.ones(3)).dtype == "int64"
        assert ROWS["aten.max.dim"](jnp.ones(3), 0)[1].dtype == "int64"
        assert ROWS["aten.sum.default"](jnp.ones(3, bool)).dtype == "int64"


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("settings", [(), (0,), (1, True), (None, True)])
def test_the_first_of_equal_places_is_given(name, settings):
    agrees(f"{name}.default", TIES, *settings, gradients=False)


def test_the_place_of_an_extreme_costs_nothing_where_nobody_asks():
    run = jax.jit(lambda x: ROWS["aten.max.dim"](x, 1)[0])
    assert "select" not in run.lower(jnp.ones((3, 5))).as_text()


def test_extremes_with_places_are_mapped_and_differentiated():
    def first(x):
        return ROWS["aten.max.dim"](x, 0)[0]

    got = jax.jit(jax.vmap(jax.grad(first)))(jnp.array(TIES))
    assert got.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]


def test_logsumexp_agrees_with_torch_at_infinity():
    agrees("logsumexp.default", [[-INF, 1.0], [0.0, 0.0]], [1], True)
    agrees("logsumexp.default", [[-INF, -INF]], [1], gradients=False)


def test_a_long_sum_of_sixteen_bits_keeps_its_digits():
    assert ROWS["aten.sum.default"](jnp.ones(4099, jnp.bfloat16)) == 4096


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_the_distance_of_equal_tensors_has_torchs_gradient(p):
    torch = pytest.importorskip("torch")
    agrees("dist.default", TIES, torch.tensor(TIES) * torch.tensor([1, 2, 1, 1]), p)
    agrees("dist.default", TIES, torch.tensor(TIES), p)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sum.default", "sum.dim_IntList", "mean.default", "mean.dim"])
def test_16_bit_floats_are_added_up_in_float32_and_rounded_once(name, dtype):
    dim = [0] if "dim" in name else None
    array = jnp.full(4099, 1.0, dtype)
    wanted = jnp.asarray(4099.0 if "sum" in name else 1.0, dtype)
    got = jax.jit(lambda array: ROWS[f"aten.{name}"](array, dim))(array)
    assert (got, got.dtype) == (wanted, dtype)


def test_the_sum_of_floats_as_16_bit_ones_rounds_them_first():
    torch = pytest.importorskip("torch")
    array = np.full(300, 1.003, "float32")
    got = ROWS["aten.sum.default"](jnp.asarray(array), dtype=jnp.bfloat16)
    assert float(got) == float(torch.tensor(array).sum(dtype=torch.bfloat16))
