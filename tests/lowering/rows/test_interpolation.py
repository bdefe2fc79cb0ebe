import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.interpolation import ROWS

SIZES = (5, 7, 6)
TWICE, OTHER, ONE = (10, 14, 12), (11, 4, 5), (1, 1, 1)
NEAREST = [
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact2d",
]
WEIGHTED = [
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
]


def rank(name):
    return next(int(letter) for letter in name if letter.isdigit())


def image(name):
    sizes = SIZES[: rank(name)]
    return np.sin(np.arange(6 * np.prod(sizes), dtype=np.float32)).reshape(2, 3, *sizes)


def agrees(name, array, *args, dtype=None, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    tensor = torch.tensor(array)
    tensor = tensor if dtype is None else tensor.to(getattr(torch, dtype))
    assert_as_torch(f"aten.{name}", tensor, *args, **named)


@pytest.mark.parametrize("sizes", [TWICE, OTHER, ONE])
@pytest.mark.parametrize("name", NEAREST)
def test_nearest_sizes_agree_with_torch(name, sizes):
    agrees(f"{name}.default", image(name), sizes[: rank(name)])


@pytest.mark.parametrize("factor", [2.3, 0.7, 4.0])
@pytest.mark.parametrize("name", NEAREST)
def test_nearest_factors_agree_with_torch(name, factor):
    agrees(f"{name}.vec", image(name), None, [factor] * rank(name))


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("sizes", [TWICE, OTHER, ONE])
@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_sizes_agree_with_torch(name, sizes, align):
    agrees(f"{name}.default", image(name), sizes[: rank(name)], align, tolerance=1e-5)


@pytest.mark.parametrize("factor", [2.3, 0.7, 4.0])
@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_factors_agree_with_torch(name, factor):
    agrees(f"{name}.vec", image(name), None, False, [factor] * rank(name))


@pytest.mark.parametrize("name", ["upsample_bilinear2d", "upsample_bicubic2d"])
def test_bfloat16_is_computed_in_float32(name):
    agrees(f"{name}.default", image(name), (10, 9), False, dtype="bfloat16", tolerance=8e-3)


@pytest.mark.parametrize("size", [6, 12])
def test_what_is_infinite_or_no_number_stays_in_its_place(size):
    array = jnp.ones((1, 1, 3)).at[0, 0, 2].set(jnp.nan)
    result = ROWS["aten.upsample_linear1d.default"](array, (size,), False)[0, 0]
    assert not jnp.isnan(result[: size // 2]).any()
    assert jnp.isnan(result[-1])


def test_twice_as_many_are_no_gather():
    for name in ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"):
        more = () if "nearest" in name else (False,)
        row = ROWS[f"aten.{name}.default"]
        lowered = jax.jit(lambda array, row=row, more=more: row(array, (10, 14), *more)).lower(
            image(name)
        )
        assert "gather" not in lowered.as_text()


def test_integers_are_repeated_and_not_weighted():
    array = jnp.arange(6, dtype=jnp.uint8).reshape(1, 1, 2, 3)
    assert ROWS["aten.upsample_nearest2d.default"](array, (4, 3)).dtype == jnp.uint8
    with pytest.raises(LoweringError) as raised:
        ROWS["aten.upsample_bilinear2d.default"](array, (4, 3), False)
    assert str(raised.value) == (
        "Linear and cubic interpolation are for floats alone, and uint8 came; type x.float() before it,"
        " and round() after it, in the torch model"
    )
