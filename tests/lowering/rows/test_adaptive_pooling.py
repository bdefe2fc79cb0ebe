import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.adaptive_pooling import ROWS

SPATIAL = (11, 8, 6)


def levels(*shape):
    """Few distinct numbers, so that most windows have ties."""
    return np.random.default_rng(0).integers(0, 3, shape).astype("float32")


def agrees(name, array, *settings, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    assert_as_torch(name, torch.tensor(array), *settings, **named)


@pytest.mark.parametrize("out", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_adaptive_means_agree_with_torch(rank, out):
    agrees(f"aten.adaptive_avg_pool{rank}d.default", levels(2, 3, *SPATIAL[:rank]), [out] * rank)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (4, 2), (3, 5), (13, 8)])
def test_adaptive_maxima_and_their_places_agree_with_torch_at_ties(sizes, batched):
    array = levels(2, 3, *SPATIAL[1:])
    agrees("aten.adaptive_max_pool2d.default", array if batched else array[0], list(sizes))


def test_adaptive_maxima_of_volumes_agree_with_torch():
    agrees("aten.adaptive_max_pool3d.default", levels(2, 3, *SPATIAL), [3, 5, 2])


def test_an_infinity_stays_in_its_windows():
    row = jnp.array([[np.inf, 1, 2, 3, 4, 5, 6, 7]])
    got = ROWS["aten.adaptive_avg_pool1d.default"](row, [3])
    assert got.tolist() == [[np.inf, 3.5, 6.0]]


def test_no_windows_give_an_empty_array():
    assert ROWS["aten.adaptive_avg_pool1d.default"](jnp.ones((2, 8)), [0]).shape == (2, 0)


@pytest.mark.parametrize("out", [1, 2, 4])
@pytest.mark.parametrize("rank", [2, 3])
def test_windows_at_random_places_agree_with_torch(rank, out):
    torch = pytest.importorskip("torch")
    samples = torch.rand(2, 3, rank, generator=torch.Generator().manual_seed(0))
    name = f"aten.fractional_max_pool{rank}d.default"
    from tests.lowering.rows.against_torch import assert_as_torch

    array = torch.tensor(levels(2, 3, *SPATIAL[-rank:]))
    assert_as_torch(name, array, [2] * rank, [out] * rank, samples, gradients=False)


@pytest.mark.parametrize("rank", [2, 3])
def test_an_example_alone_takes_the_samples_of_the_first(rank):
    row = ROWS[f"aten.fractional_max_pool{rank}d.default"]
    samples = np.random.default_rng(0).random((2, 3, rank), "float32")
    array = levels(2, 3, *SPATIAL[-rank:])
    settings = [2] * rank, [4] * rank
    alone = row(jnp.asarray(array[0]), *settings, jnp.asarray(samples))
    both = row(jnp.asarray(array), *settings, jnp.asarray(samples))
    for one, two in zip(alone, both, strict=True):
        np.testing.assert_array_equal(one, two[0])
