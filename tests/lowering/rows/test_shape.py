import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.shape import ROWS

MATRIX = np.arange(15, dtype=np.float32).reshape(3, 5)
CUBE = np.arange(105, dtype=np.float32).reshape(3, 5, 7)


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


def joined(arrays, dim=0):
    return ROWS["aten.cat.default"]([jnp.asarray(array) for array in arrays], dim)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((2, 3), (1, 2), 3),
        ((3, 5), (5, 1), 0),
        ((2, 2), (5, 1), 6),
        ((5, 3), (1, 5), None),
        ((), (), 7),
    ],
)
def test_strided_views_agree_with_torch(size, stride, offset):
    agrees("as_strided.default", MATRIX, size, stride, offset)


def test_places_that_a_strided_view_shares_add_their_gradients():
    agrees("as_strided.default", MATRIX, (4, 3), (1, 1), 2)


@pytest.mark.parametrize("offset", [-3, -1, 0, 2, 4, 9])
def test_diagonals_agree_with_torch(offset):
    agrees("diagonal.default", CUBE, offset, 2, 0, gradients=offset < 3)


@pytest.mark.parametrize(
    ("shifts", "dims"), [((1, -7), (0, 1)), ((4,), ()), ((3,), (0,)), ((-9,), (-1,))]
)
def test_rolls_agree_with_torch(shifts, dims):
    agrees("roll.default", MATRIX, shifts, dims)


@pytest.mark.parametrize(
    ("start", "end", "step"), [(-2, None, 1), (1, 99, 2), (4, 1, 1), (None, -1, 3)]
)
def test_slices_agree_with_torch(start, end, step):
    agrees("slice.Tensor", MATRIX, 1, start, end, step)


@pytest.mark.parametrize("dims", [(0,), (0, 2), (1,), (-1, 0)])
def test_only_axes_of_size_one_are_squeezed(dims):
    agrees("squeeze.dims", MATRIX[None, :, None], dims)


def test_joining_skips_empty_arrays_of_one_axis_but_for_their_dtype():
    result = joined([np.zeros(0, np.float32), np.ones((2, 3), np.int32), np.ones((1, 3), np.int8)])
    assert result.shape == (3, 3)
    assert result.dtype == jnp.float32
    assert joined([np.zeros(0, np.int32), np.zeros(0, bool)]).dtype == jnp.int32


@pytest.mark.parametrize(
    ("given", "dtype", "wanted"),
    [
        (np.array([1.0, -2.0], np.float32), "int32", [1065353216, -1073741824]),
        (np.array([[258, 3]], np.int16), "uint8", [[2, 1, 3, 0]]),
        (np.array([2, 1, 3, 0], np.uint8), "int16", [258, 3]),
        (np.array([True, False]), "int8", [1, 0]),
    ],
)
def test_bits_are_read_as_another_dtype(given, dtype, wanted):
    result = ROWS["aten.view.dtype"](jnp.asarray(given), np.dtype(dtype))
    assert result.dtype == dtype
    assert result.tolist() == wanted


def test_bits_of_complex_numbers_are_refused():
    with pytest.raises(LoweringError) as raised:
        ROWS["aten.view.dtype"](jnp.zeros(3, jnp.complex64), np.dtype("float32"))
    assert str(raised.value) == (
        "JAX does not read the bits of complex64 as float32; type torch.view_as_real(x) or"
        " torch.view_as_complex(x) in the torch model"
    )


def test_a_place_may_be_a_value_that_the_program_computes():
    select = jax.jit(lambda index: ROWS["aten.select.int"](jnp.asarray(MATRIX), 1, index))
    assert select(2).tolist() == [2, 7, 12]
    assert select(-1).tolist() == [4, 9, 14]
    assert jnp.isnan(select(5)).all()


def test_a_slice_with_bounds_that_the_program_computes_is_refused():
    with pytest.raises(LoweringError) as raised:
        jax.jit(lambda start: ROWS["aten.slice.Tensor"](jnp.asarray(MATRIX), 1, start, start + 2))(1)
    assert str(raised.value) == (
        "A slice of axis 1 has bounds that the program computes, and JAX needs its length beforehand;"
        " type x.index_select(1, start + torch.arange(length)) in the torch model"
    )


def test_sizes_are_python_numbers_under_jit():
    sizes = []
    jax.jit(
        lambda x: sizes.append((ROWS["aten.sym_size.int"](x, -1), ROWS["aten.sym_numel.default"](x)))
    )(MATRIX)
    assert sizes == [(5, 15)]
    assert all(type(size) is int for size in sizes[0])
