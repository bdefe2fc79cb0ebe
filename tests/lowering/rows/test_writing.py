import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.writing import ROWS

MATRIX = np.arange(15, dtype=np.float32).reshape(3, 5)
CUBE = np.arange(105, dtype=np.float32).reshape(3, 5, 7)
MASK = CUBE % 3 == 1


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    def tensors(arg):
        if isinstance(arg, list):
            return [tensors(one) for one in arg]
        return torch.tensor(arg) if isinstance(arg, np.ndarray | np.generic) else arg

    assert_as_torch(f"aten.{name}", *[tensors(arg) for arg in args], **named)


def values(*shape):
    return np.arange(1, np.prod(shape, dtype=int) + 1, dtype=np.float32).reshape(shape)


INDICES = [
    ([np.array([2, -3])], (2, 5, 7)),
    ([None, np.array([[4], [-5]])], (1, 7)),
    ([np.array([0, 2]), None, np.array([1, -7])], (2, 5)),
    ([None, np.array([0, 2]), np.array([[1], [-7]])], (2, 2)),
    ([None, np.array([0, 2]), None], ()),
]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("indices", "shape"), INDICES)
def test_several_indices_agree_with_torch(indices, shape, accumulate):
    agrees("index_put.default", CUBE, indices, values(*shape), accumulate)


def test_a_place_named_twice_adds_up_or_gives_each_value_its_gradient():
    agrees("index_put.default", MATRIX, [np.array([1, 1, 0])], values(5), True)
    agrees("index_put.default", MATRIX, [np.array([1, 1, 0])], values(5))
    agrees("put.default", MATRIX, np.array([[0, -1], [0, 3]]), values(2, 2), True)


@pytest.mark.parametrize(
    ("indices", "shape"),
    [
        ([MASK], ()),
        ([MASK], (1,)),
        ([MASK[:, :, 0]], (7,)),
        ([MASK[:, :, 0]], (1, 7)),
        ([None, MASK[0]], (3, 1)),
        ([None, MASK[0, :, 0]], (3, 1, 7)),
        ([None, MASK[0, :, 0], None], (7,)),
    ],
)
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_mask_writes_the_same_value_everywhere_as_in_torch(indices, shape, accumulate):
    agrees("index_put.default", CUBE, indices, values(*shape), accumulate)


@pytest.mark.parametrize(
    ("indices", "value"),
    [([jnp.asarray(MASK)], jnp.ones(35)), ([jnp.asarray(MASK[:, 0, 0]), jnp.array([1])], jnp.ones(()))],
)
def test_a_mask_with_a_value_for_each_element_or_with_other_indices_is_refused(indices, value):
    with pytest.raises(LoweringError) as raised:
        ROWS["aten.index_put.default"](jnp.asarray(CUBE), indices, value)
    assert str(raised.value) == (
        "x[mask] = y is lowered for a y that is the same for all that the mask selects, which this one"
        " is not; type torch.where(mask, y, x), or x.masked_scatter(mask, y) in the torch model"
    )


def test_an_index_out_of_range_is_an_error_or_writes_no_number():
    def put(index):
        return ROWS["aten.index_put.default"](jnp.asarray(MATRIX), [None, index], jnp.ones(()))

    with pytest.raises(LoweringError) as raised:
        put(jnp.array([0, -6]))
    assert str(raised.value) == "Index -6 is out of range for axis 1, which has size 5"
    assert jnp.isnan(jax.jit(put)(jnp.array([0, 5]))).any()
    assert not jnp.isnan(jax.jit(put)(jnp.array([0, -5]))).any()


@pytest.mark.parametrize("shape", [(3, 5), (5,)])
def test_a_source_fills_a_mask_in_order_as_in_torch(shape):
    mask = (np.arange(np.prod(shape)) % 4 != 2).reshape(shape)
    agrees("masked_scatter.default", MATRIX, mask, values(2, 7))


def test_a_source_that_runs_out_leaves_no_number():
    row = ROWS["aten.masked_scatter.default"]
    result = row(jnp.zeros(4), jnp.array([True, False, True, True]), jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(result, [1, 0, 2, np.nan])


@pytest.mark.parametrize(("start", "end", "step"), [(1, 4, 1), (-2, None, 1), (0, 5, 2), (None, 99, 1)])
def test_slices_are_written_as_in_torch(start, end, step):
    count = len(range(5)[start:end:step])
    agrees("slice_scatter.default", MATRIX, values(3, count), 1, start, end, step)


@pytest.mark.parametrize("index", [1, -1])
def test_a_place_is_written_as_in_torch(index):
    agrees("select_scatter.default", MATRIX, values(3), 1, index)


def test_a_place_that_the_program_computes_is_written():
    write = jax.jit(
        lambda index: ROWS["aten.select_scatter.default"](jnp.asarray(MATRIX), jnp.zeros(3), 1, index)
    )
    assert (write(-2)[:, 3] == 0).all()
    assert jnp.isnan(write(5)).any()


@pytest.mark.parametrize("offset", [-1, 0, 2])
def test_diagonals_are_written_as_in_torch(offset):
    count = min(7 + min(offset, 0), 3 - max(offset, 0))
    agrees("diagonal_scatter.default", CUBE, values(5, count), offset, 2, 0)


def test_strided_views_are_written_as_in_torch():
    agrees("as_strided_scatter.default", MATRIX, values(2, 2), (2, 2), (1, 5), 3, gradients=False)


def test_what_a_strided_view_overwrites_gets_no_gradient():
    # PyTorch 2.13 gives it to what was overwritten; a write in place, which is lowered so, has it right
    row = ROWS["aten.as_strided_scatter.default"]
    slope = jax.grad(lambda array: row(array, jnp.zeros(2), (2,), (3,), 1).sum())(jnp.asarray(MATRIX))
    assert slope.reshape(-1).tolist() == [1, 0, 1, 1, 0, *[1] * 10]
