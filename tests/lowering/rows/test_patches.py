import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.patches import MOST_SLICES, ROWS, windows

IMAGE = np.sin(np.arange(2 * 3 * 11 * 13, dtype=np.float32)).reshape(2, 3, 11, 13)
PATCHES = [
    ((2, 3), (1, 1), (0, 0), (1, 1)),
    ((2, 2), (1, 1), (0, 0), (2, 2)),
    ((3, 2), (2, 1), (1, 2), (2, 1)),
    ((5, 4), (1, 1), (2, 2), (3, 3)),
]


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


@pytest.mark.parametrize("options", PATCHES)
def test_patches_and_their_sum_agree_with_torch(options):
    agrees("im2col.default", IMAGE, *options)
    agrees("im2col.default", IMAGE[0], *options)
    patches = np.array(ROWS["aten.im2col.default"](jnp.asarray(IMAGE), *options))
    agrees("col2im.default", patches, (11, 13), *options)
    agrees("col2im.default", patches[0], (11, 13), *options)


@pytest.mark.parametrize(("size", "step"), [(3, 1), (3, 3), (5, 2), (11, 1), (4, 7)])
def test_windows_agree_with_torch(size, step):
    agrees("unfold.default", IMAGE, 2, size, step)


def test_an_array_without_axes_has_one_window():
    agrees("unfold.default", np.array(3.0, np.float32), 0, 1, 1)


@pytest.mark.parametrize("size", [MOST_SLICES, MOST_SLICES + 1])
def test_few_windows_are_slices_and_many_are_one_gather(size):
    array = jnp.arange(101.0)
    text = jax.jit(lambda array: windows(array, 0, size, 1)).lower(array).as_text()
    assert ("gather" in text) == (size > MOST_SLICES)
    np.testing.assert_array_equal(
        windows(array, 0, size, 1), np.lib.stride_tricks.sliding_window_view(np.arange(101.0), size)
    )
