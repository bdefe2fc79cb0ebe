import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.creation import ROWS, arange, cast, constant, full


@pytest.mark.parametrize(
    "numbers", [(0, 5), (2, 11, 3), (11, 2, -3), (5, 5), (0.0, 1.0, 0.1), (0, 5.0), (1, -1, -0.3)]
)
def test_arange_agrees_with_torch(numbers):
    torch = pytest.importorskip("torch")
    wanted = torch.arange(*numbers)
    got = arange(*numbers)
    assert got.dtype == jax.dtypes.canonicalize_dtype(wanted.numpy().dtype)
    assert got.tolist() == wanted.tolist()


def test_arange_of_whole_numbers_is_counted_on_the_device():
    program = jax.jit(lambda: arange(0, 1000, dtype=jnp.float32)).lower().as_text()
    assert "iota" in program


@pytest.mark.parametrize(("value", "wanted"), [(True, "bool"), (3, "int32"), (3.0, "float32")])
def test_full_has_the_dtype_of_its_number(value, wanted):
    assert full([2], value).dtype == wanted


def test_an_integer_of_64_bits_is_refused_while_jax_has_32():
    with pytest.raises(LoweringError) as caught:
        full([2], -(2**63), jnp.int32)
    assert str(caught.value) == (
        "The program holds the integer -9223372036854775808, which needs 64 bits; JAX has int32 now. "
        'Turn 64 bits on, before anything else: jax.config.update("jax_enable_x64", True)'
    )


def test_an_integer_of_64_bits_is_held_where_jax_has_them():
    with jax.enable_x64(True):
        assert constant(-(2**63), "int64").item() == -(2**63)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "float16"])
def test_casts_agree_with_torch(dtype):
    torch = pytest.importorskip("torch")
    numbers = torch.tensor([-129.0, -1.5, -0.3, 0.0, 0.7, 2.5, 255.0, 300.0])
    got = cast(jnp.asarray(numbers.numpy()), np.dtype(dtype))
    assert got.tolist() == numbers.to(getattr(torch, dtype)).tolist()


def test_a_cast_to_the_same_dtype_is_none():
    x = jnp.ones(3)
    assert cast(x, x.dtype) is x
    assert cast(x) is x


def test_a_detached_array_has_no_gradient():
    assert jax.grad(lambda x: x * ROWS["aten.detach.default"](x))(3.0) == 3.0


def test_a_scalar_tensor_is_floating_unless_told():
    assert ROWS["aten.scalar_tensor.default"](3).dtype == "float32"


def test_a_copy_takes_shape_and_dtype_of_its_target():
    got = ROWS["aten.copy.default"](jnp.zeros((2, 3), "int32"), jnp.array([1.7, 2.2, 3.9]))
    assert got.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert got.dtype == "int32"


@pytest.mark.parametrize("numbers", [(-2, 3, 7), (0.5, -1.5, 4, 2.0), (1, 1, 1), (0, 1, 0)])
def test_logspace_agrees_with_torch(numbers):
    torch = pytest.importorskip("torch")
    ours = ROWS["aten.logspace.default"](*numbers)
    np.testing.assert_allclose(ours, torch.logspace(*numbers).numpy(), rtol=1e-6)


def test_logspace_of_integers_is_refused():
    with pytest.raises(LoweringError) as raised:
        ROWS["aten.logspace.default"](0, 3, 4, dtype=np.dtype("int32"))
    assert str(raised.value) == (
        "logspace of int32 cuts off what its floats round to; type"
        " torch.logspace(start, end, steps).round().to(dtype) in the torch model"
    )


@pytest.mark.parametrize("name", ["tril_indices", "triu_indices"])
@pytest.mark.parametrize("offset", [-1, 0, 2])
def test_the_places_of_a_triangle_agree_with_torch(name, offset):
    torch = pytest.importorskip("torch")
    got = ROWS[f"aten.{name}.default"](3, 5, offset)
    assert got.tolist() == getattr(torch, name)(3, 5, offset).tolist()
