import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.indexing import ROWS

TABLE = np.arange(35, dtype=np.float32).reshape(7, 5)
CUBE = np.arange(105, dtype=np.float32).reshape(3, 5, 7)


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    def tensors(arg):
        if isinstance(arg, list):
            return [tensors(one) for one in arg]
        return torch.tensor(arg) if isinstance(arg, np.ndarray | np.generic) else arg

    assert_as_torch(f"aten.{name}", *[tensors(arg) for arg in args], **named)


READS = {
    "index_select": lambda index: ROWS["aten.index_select.default"](jnp.asarray(TABLE), 0, index),
    "gather": lambda index: ROWS["aten.gather.default"](jnp.asarray(TABLE), 0, index[:, None]),
    "index": lambda index: ROWS["aten.index.Tensor"](jnp.asarray(TABLE), [index]),
    "take": lambda index: ROWS["aten.take.default"](jnp.asarray(TABLE[:, 0]), index),
}


@pytest.mark.parametrize(
    "indices",
    [
        [np.array([2, -1, 0])],
        [None, np.array([[4], [-5]])],
        [np.array([0, 2]), None, np.array([1, -7])],
        [None, np.array([0, 2]), np.array([[1], [-7]])],
        [np.array(-1), None, np.array([1, 6])],
    ],
)
def test_several_indices_agree_with_torch(indices):
    agrees("index.Tensor", CUBE, indices)


@pytest.mark.parametrize("index", [np.array([[6, 0], [2, 2]]), np.array([[1, 2, 3, 4, 0]])])
def test_gather_takes_an_index_smaller_than_its_input(index):
    agrees("gather.default", TABLE, 0, index)


def test_gather_adds_the_gradients_of_what_is_read_twice():
    agrees("gather.default", TABLE, 1, np.array([[1, 1, 4, 1]]))
    agrees("gather.default", np.float32(3), 0, np.array([0, 0]))


def test_places_of_all_elements_agree_with_torch():
    agrees("take.default", TABLE, np.array([[34, -1], [0, 0]]))


@pytest.mark.parametrize("name", READS)
def test_a_known_index_out_of_range_is_an_error(name):
    with pytest.raises(LoweringError) as raised:
        READS[name](jnp.array([1, 7]))
    assert str(raised.value) == "Index 7 is out of range for axis 0, which has size 7"


@pytest.mark.parametrize("name", ["index_select", "gather"])
def test_a_negative_index_is_an_error_where_torch_has_none(name):
    with pytest.raises(LoweringError) as raised:
        READS[name](jnp.array([-1, 1]))
    assert str(raised.value) == "Index -1 is out of range for axis 0, which has size 7"
    assert jnp.isnan(jax.jit(READS[name])(jnp.array([-1, 1]))[0]).all()


@pytest.mark.parametrize("name", READS)
def test_a_traced_index_out_of_range_reads_no_number(name):
    read = jax.jit(READS[name])(jnp.array([7, 1, -8]))
    assert jnp.isnan(read).reshape(3, -1).all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_a_mask_that_selects_is_refused(dtype):
    with pytest.raises(LoweringError) as raised:
        ROWS["aten.index.Tensor"](jnp.asarray(TABLE), [jnp.zeros(7, dtype)])
    assert str(raised.value) == (
        "x[mask] has as many elements as the data say, and JAX needs shapes beforehand; type"
        " torch.where(mask, x, other) and reduce that, in the torch model"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "nonzero",
            "nonzero gives as many elements as the data say, and JAX needs shapes beforehand; type"
            " torch.nonzero_static(x, size=n), or torch.where(mask, x, other), in the torch model",
        ),
        (
            "masked_select",
            "masked_select gives as many elements as the data say, and JAX needs shapes beforehand;"
            " type torch.where(mask, x, other) in the torch model",
        ),
    ],
)
def test_what_has_no_static_shape_is_refused(name, text):
    with pytest.raises(LoweringError) as raised:
        ROWS[f"aten.{name}.default"](jnp.asarray(TABLE), mask=jnp.zeros((7, 5), bool))
    assert str(raised.value) == text


def test_classes_agree_with_torch():
    agrees("one_hot.default", np.array([[1, 4, 0], [2, 2, 3]]), 5)


def test_a_class_out_of_range_is_an_error_or_no_class_to_be_mistaken_for_one():
    row = ROWS["aten.one_hot.default"]
    with pytest.raises(LoweringError, match="Index 5 is out of range"):
        row(jnp.array([5]), 5)
    traced = jax.jit(lambda classes: row(classes, 5))(jnp.array([-1, 4, 5]))
    assert traced[1].tolist() == [0, 0, 0, 0, 1]
    assert (traced[::2] == jnp.iinfo(traced.dtype).min).all()


def test_classes_without_their_number_are_refused():
    with pytest.raises(LoweringError) as raised:
        ROWS["aten.one_hot.default"](jnp.array([3, 1]))
    assert str(raised.value) == (
        "one_hot without num_classes counts the classes in the data, and JAX needs shapes beforehand;"
        " type F.one_hot(x, num_classes=n) in the torch model"
    )


def test_repeats_take_their_length_from_the_program_or_from_what_is_known():
    row = ROWS["aten.repeat_interleave.Tensor"]
    repeats = jnp.array([2, 0, 3])
    assert row(repeats).tolist() == [0, 0, 2, 2, 2]
    assert jax.jit(lambda repeats: row(repeats, output_size=5))(repeats).tolist() == [0, 0, 2, 2, 2]
    with pytest.raises(LoweringError) as raised:
        jax.jit(row)(repeats)
    assert str(raised.value) == (
        "repeat_interleave has a length that depends on the data, and JAX needs shapes beforehand; type"
        " x.repeat_interleave(repeats, dim, output_size=n) in the torch model"
    )


@pytest.mark.parametrize("size", [2, 5])
def test_so_many_places_that_are_not_zero_agree_with_torch(size):
    agrees("nonzero_static.default", np.array([[0, 2, 0], [3, 0, 5]]), size=size, fill_value=-7)


@pytest.mark.parametrize("shape", [(0,), (5, 0, 3), ()])
def test_so_many_places_of_an_empty_array_are_the_fill_value(shape):
    agrees("nonzero_static.default", np.ones(shape, int), size=2, fill_value=-7)


def test_classes_and_places_are_int64_with_x64_on():
    with jax.enable_x64(True):
        assert ROWS["aten.one_hot.default"](jnp.array([1]), 3).dtype == jnp.int64
        assert ROWS["aten.nonzero_static.default"](jnp.ones((2, 3)), 2).dtype == jnp.int64
