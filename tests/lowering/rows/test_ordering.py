import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.ordering import ROWS

TIES = [[1.0, 3.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, 5.0, 2.0, 0.0, 4.0]]
DISTINCT = [[1.0, 3.0, 7.0, 2.0, 0.0], [-1.0, 5.0, 2.0, 0.0, 4.0]]
HOLES = [[1.0, float("nan"), 3.0, 2.0], [float("nan"), float("nan"), 0.0, 5.0]]


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, list | np.ndarray) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, -1])
def test_equal_values_keep_their_order(dim, descending):
    agrees("sort.stable", TIES, stable=True, dim=dim, descending=descending)


@pytest.mark.parametrize("descending", [False, True])
def test_what_is_no_number_counts_as_the_largest(descending):
    agrees("sort.default", HOLES, 1, descending, gradients=False)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_the_largest_and_smallest_agree_with_torch(dtype, largest):
    agrees("topk.default", np.array(DISTINCT, dtype), 3, 1, largest)


def test_the_k_th_smallest_agrees_with_torch():
    agrees("kthvalue.default", DISTINCT, 2, 1)
    agrees("kthvalue.default", DISTINCT, 4, -1, True)


@pytest.mark.parametrize("name", ["median", "nanmedian"])
def test_medians_agree_with_torch(name):
    agrees(f"{name}.dim", DISTINCT, 1)
    agrees(f"{name}.dim", HOLES, 1, gradients=False)
    agrees(f"{name}.default", TIES)


def test_the_mode_agrees_with_torch_at_ties():
    agrees("mode.default", TIES, 1)
    agrees("mode.default", [[2, 2, 1, 1, 3], [5, 4, 3, 2, 1]], 1, True)


@pytest.mark.parametrize("name", ["cummax", "cummin"])
def test_running_extremes_give_the_last_of_equal_places(name):
    agrees(f"{name}.default", TIES, 1)
    agrees(f"{name}.default", HOLES, 1, gradients=False)


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "logcumsumexp"])
@pytest.mark.parametrize("dim", [0, -1])
def test_cumulative_rows_agree_with_torch_at_zeros(name, dim):
    agrees(f"{name}.default", TIES, dim)


@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_cumulative_sums_of_small_integers_are_of_the_largest(dtype):
    agrees("cumsum.default", np.array([1, 0, 1, 1]).astype(dtype), 0)


@pytest.mark.parametrize("right", [False, True])
def test_places_among_sorted_values_agree_with_torch(right):
    agrees("bucketize.Tensor", TIES, [0.0, 1.0, 1.0, 3.0], right=right, gradients=False)
    rows = np.sort(np.array(TIES, "float32"), 1)
    agrees("searchsorted.Tensor", rows, TIES, right=right, gradients=False)
    agrees("searchsorted.Scalar", [0.0, 1.0, 1.0, 3.0], 1, right=right, gradients=False)


@pytest.mark.parametrize("bounds", [(0, 3), (0, 0), (-5, 5)])
def test_histograms_agree_with_torch(bounds):
    agrees("histc.default", TIES, 4, *bounds, gradients=False)


@pytest.mark.parametrize("name", ["sort", "cummax", "cumsum", "median", "mode", "topk", "kthvalue"])
def test_an_array_without_axes_has_an_axis_zero(name):
    settings = {"sort": (0,), "topk": (1,), "kthvalue": (1,)}.get(name, (0,))
    row = ROWS["aten.median.dim" if name == "median" else f"aten.{name}.default"]
    got = row(jnp.float32(7), *settings)
    assert jax.tree.leaves(got)[0] == 7


def test_places_are_of_64_bits_where_jax_has_them():
    with jax.enable_x64(True):
        for name in ("sort.default", "cummax.default", "mode.default"):
            assert ROWS[f"aten.{name}"](jnp.ones(3), 0)[1].dtype == "int64"
        assert ROWS["aten.topk.default"](jnp.ones(3), 2)[1].dtype == "int64"


def test_a_result_of_unknown_size_is_refused():
    with pytest.raises(LoweringError) as caught:
        ROWS["aten._unique2.default"](jnp.ones(3), True, False, False)
    assert str(caught.value) == (
        "its result has a size that depends on values, and JAX compiles for sizes alone. "
        "Compute it before the model, and pass it in"
    )
