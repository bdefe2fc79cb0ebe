import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.scatter import ROWS

ZEROS = np.array([[2, 0, 1, 3, 0], [0, 0, 2, 1, 5], [4, 1, 1, 0, 2]], np.float32)
INDEX = np.array([[1, 1, 4, 1], [0, 2, 0, 0]])
SOURCE = np.array([[3, 0, 5, 2], [2, 2, 0, 0]], np.float32)
MODES = ["sum", "prod", "mean", "amax", "amin"]


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, np.ndarray | np.generic) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


BASE = jnp.ones((7, 3))
WRITES = {
    "scatter": lambda index: ROWS["aten.scatter.src"](BASE, 0, index[:, None], jnp.ones((2, 1))),
    "scatter_add": lambda index: ROWS["aten.scatter_add.default"](
        BASE, 0, index[:, None], jnp.ones((2, 1))
    ),
    "index_add": lambda index: ROWS["aten.index_add.default"](BASE, 0, index, jnp.ones((2, 3))),
    "index_copy": lambda index: ROWS["aten.index_copy.default"](BASE, 0, index, jnp.ones((2, 3))),
    "index_fill": lambda index: ROWS["aten.index_fill.int_Scalar"](BASE, 0, index, 2.0),
    "index_reduce": lambda index: ROWS["aten.index_reduce.default"](
        BASE, 0, index, jnp.ones((2, 3)), "amax"
    ),
}


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_reductions_agree_with_torch_at_ties_and_zeros(mode, include_self):
    agrees("scatter_reduce.two", ZEROS, 1, INDEX, SOURCE, mode, include_self=include_self)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_reductions_of_integers_agree_with_torch(mode, include_self):
    integers = [(ZEROS - 2).astype(np.int32), 1, INDEX, (SOURCE - 3).astype(np.int32)]
    agrees("scatter_reduce.two", *integers, mode, include_self=include_self)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("mode", MODES[1:])
def test_reductions_of_slices_agree_with_torch(mode, include_self):
    source = np.array([[3, 0, 2, 2, 1], [1, 0, 0, 2, 1], [3, 0, 2, 2, 5]], np.float32)
    agrees(
        "index_reduce.default", ZEROS, 0, np.array([2, 0, 2]), source, mode, include_self=include_self
    )


@pytest.mark.parametrize(
    ("source", "second"),
    [
        ([2.0, 3.0, 5.0], [[0, 5, 3], [5, 0, 2], [3, 2, 0]]),
        ([2.0, 3.0, 0.0], [[0, 0, 3], [0, 0, 2], [3, 2, 0]]),
        ([2.0, 0.0, 0.0], [[0, 0, 0], [0, 0, 2], [0, 2, 0]]),
        ([0.0, 0.0, 0.0], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_the_gradient_of_a_product_has_a_gradient(source, second):
    def product(source):
        return ROWS["aten.scatter_reduce.two"](jnp.ones(2), 0, jnp.array([1, 1, 1]), source, "prod")[1]

    np.testing.assert_allclose(jax.hessian(product)(jnp.array(source)), second, atol=1e-6)


def test_each_of_several_values_for_a_place_gets_its_gradient():
    agrees("scatter.src", ZEROS, 1, INDEX, SOURCE)


@pytest.mark.parametrize("name", ["scatter.value", "scatter.value_reduce"])
def test_a_number_is_written_as_in_torch(name):
    more = {"reduce": "multiply"} if name.endswith("reduce") else {}
    agrees(name, ZEROS, 1, INDEX, 2.5, gradients=not more, **more)


@pytest.mark.parametrize("reduce", ["add", "multiply"])
def test_a_source_is_added_and_multiplied_as_in_torch(reduce):
    agrees("scatter.reduce", ZEROS, 1, INDEX, SOURCE, reduce=reduce, gradients=False)


def test_arrays_without_axes_are_written_as_in_torch():
    agrees("scatter.src", np.float32(1), 0, np.array(0), np.float32(3))
    agrees("scatter_add.default", np.float32(1), 0, np.array([0]), np.array([3], np.float32))
    agrees("scatter_reduce.two", np.float32(2), 0, np.array(0), np.float32(2), "amax")
    agrees("scatter_reduce.two", np.float32(2), 0, np.array(0), np.float32(0), "prod")


def test_slices_are_added_and_copied_as_in_torch():
    source = np.arange(10, dtype=np.float32).reshape(2, 5)
    agrees("index_add.default", ZEROS, 0, np.array([2, 2]), source, alpha=3)
    agrees("index_add.default", ZEROS.astype(np.int32), 0, np.array([2, 2]), source.astype(np.int32))
    agrees("index_copy.default", ZEROS, 0, np.array([2, 0]), source)


def test_a_value_filled_in_twice_gets_one_gradient():
    agrees("index_fill.int_Tensor", ZEROS, 1, np.array([2, 1, 2]), np.float32(7))


@pytest.mark.parametrize("wrong", [7, -1])
@pytest.mark.parametrize("name", WRITES)
def test_a_known_index_out_of_range_is_an_error(name, wrong):
    with pytest.raises(LoweringError) as raised:
        WRITES[name](jnp.array([wrong, 0]))
    assert str(raised.value) == f"Index {wrong} is out of range for axis 0, which has size 7"


@pytest.mark.parametrize("wrong", [7, -1])
@pytest.mark.parametrize("name", WRITES)
def test_a_traced_index_out_of_range_writes_no_number(name, wrong):
    assert jnp.isnan(jax.jit(WRITES[name])(jnp.array([wrong, 0]))).any()


@pytest.mark.parametrize(("dtype", "mark"), [("int32", -(2**31)), ("uint8", 255)])
def test_a_traced_index_out_of_range_writes_an_extreme_integer(dtype, mark):
    row = jax.jit(
        lambda index: ROWS["aten.index_copy.default"](jnp.ones(3, dtype), 0, index, jnp.ones(1, dtype))
    )
    assert row(jnp.array([3])).tolist() == [mark, 1, 1]


def test_bfloat16_stays_bfloat16():
    array = jnp.ones((3, 5), jnp.bfloat16)
    for mode in MODES:
        result = ROWS["aten.scatter_reduce.two"](array, 1, jnp.asarray(INDEX), array, mode)
        assert result.dtype == jnp.bfloat16


def test_reductions_work_in_a_batch():
    index, source = jnp.asarray(INDEX), jnp.asarray(SOURCE)
    for mode in MODES:

        def slope(array, mode=mode):
            return jax.grad(
                lambda array: ROWS["aten.scatter_reduce.two"](array, 1, index, source, mode).sum()
            )(array)

        batch = jax.vmap(slope)(jnp.stack([ZEROS, ZEROS + 1]))
        np.testing.assert_allclose(batch, jnp.stack([slope(ZEROS), slope(ZEROS + 1)]), rtol=1e-6)
