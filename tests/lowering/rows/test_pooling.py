import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.pooling import ROWS

SPATIAL = (11, 7, 5)


def levels(*shape):
    """Few distinct numbers, so that most windows have ties."""
    return np.random.default_rng(0).integers(0, 3, shape).astype("float32")


def agrees(name, array, *settings, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    assert_as_torch(name, torch.tensor(array), *settings, **named)


WINDOWS = [
    (kernel, stride, padding, dilation, ceil_mode)
    for kernel, stride, padding, dilation, ceil_mode in itertools.product(
        ([2], [3]), ([], [1], [3]), ([0], [1]), ([1], [2]), (False, True)
    )
]


@pytest.mark.parametrize("window", WINDOWS[::2] + WINDOWS[1::4], ids=str)
def test_maxima_and_their_places_agree_with_torch_at_ties(window):
    agrees("aten.max_pool2d_with_indices.default", levels(2, 3, 11, 7), *window)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "window", [([2], [], [0], [1], False), ([3], [2], [1], [1], True), ([2], [1], [1], [2])], ids=str
)
def test_maxima_without_places_agree_with_torch_at_ties(rank, window):
    agrees(f"aten.max_pool{rank}d.default", levels(2, 3, *SPATIAL[:rank]), *window)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ceil_mode": True},
        {"count_include_pad": False},
        {"ceil_mode": True, "count_include_pad": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [([2], []), ([3], [2], [1]), ([2], [3], [1])], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_means_agree_with_torch(rank, window, settings):
    agrees(f"aten.avg_pool{rank}d.default", levels(2, 3, *SPATIAL[:rank]), *window, **settings)


def test_a_divisor_of_ones_own_takes_the_place_of_the_count():
    agrees("aten.avg_pool2d.default", levels(3, 11, 7), [3, 2], [2, 1], [1, 1], True, False, 5)


def test_means_of_integers_are_cut_towards_zero():
    row = jnp.array([[-7, 0, 7, 0]])
    assert ROWS["aten.avg_pool1d.default"](row, [2]).tolist() == [[-3, 3]]


def test_means_of_bfloat16_are_summed_in_float32():
    row = jnp.full((1, 1024), 1.0078125, jnp.bfloat16)
    got = ROWS["aten.avg_pool1d.default"](row, [1024])
    assert got.dtype == jnp.bfloat16
    assert got[0, 0] == row[0, 0]


def test_the_last_nan_of_a_window_is_its_maximum():
    plane = np.array([[1, np.nan, 2, 3], [5, 6, np.nan, 1], [0, 0, 0, 0], [1, 1, 1, 1]], "float32")
    agrees("aten.max_pool2d_with_indices.default", plane[None], [3, 3], [2, 2], [1, 1], gradients=False)


def test_maxima_of_integers_keep_their_dtype():
    got, places = ROWS["aten.max_pool2d_with_indices.default"](
        jnp.arange(-9, 0).reshape(1, 3, 3), [2], [1], [1]
    )
    assert got.tolist() == [[[-9, -8, -7, -7], [-6, -5, -4, -4], [-3, -2, -1, -1], [-3, -2, -1, -1]]]
    assert places[0, 0].tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("dilation", [[1], [2]])
def test_maxima_map_and_differentiate_twice(dilation):
    def pooled(array):
        maxima, _ = ROWS["aten.max_pool2d_with_indices.default"](array, [2], [1], [0], dilation)
        return (maxima**3).sum()

    batch = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 5, 5)), jnp.float32)
    curvature = jax.vmap(jax.grad(lambda array: (jax.grad(pooled)(array) * array).sum()))(batch)
    # the sum of cubes is homogeneous: H x = 2 g, and the gradient of g.x is H x + g
    np.testing.assert_allclose(curvature, 3 * jax.vmap(jax.grad(pooled))(batch), rtol=1e-5)


def test_places_are_64_bits_wide_with_x64():
    with jax.enable_x64(True):
        _, places = ROWS["aten.max_pool2d_with_indices.default"](jnp.ones((1, 3, 3)), [2])
    assert places.dtype == jnp.int64
