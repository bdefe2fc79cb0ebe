import numpy as np
import pytest

IMAGE = np.sin(np.arange(2 * 3 * 5 * 7, dtype=np.float32)).reshape(2, 3, 5, 7)
VOLUME = np.sin(np.arange(2 * 3 * 5 * 7 * 4, dtype=np.float32)).reshape(2, 3, 5, 7, 4)
BILINEAR, NEAREST, BICUBIC = range(3)
PADDINGS = range(3)


def grid(*shape):
    """Places inside, outside, and on the edge: at an end the gradient is the padding's."""
    places = 2 * np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
    places[0, 0] = 1
    places[0, 1] = -1
    places[1, 0] = 0
    return places


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", [BILINEAR, NEAREST, BICUBIC])
def test_samples_of_an_image_agree_with_torch(mode, padding, align):
    agrees("grid_sampler_2d.default", IMAGE, grid(2, 4, 3, 2), mode, padding, align)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", [BILINEAR, NEAREST])
def test_samples_of_a_volume_agree_with_torch(mode, padding):
    agrees("grid_sampler_3d.default", VOLUME, grid(2, 3, 2, 2, 3), mode, padding, False)


@pytest.mark.parametrize("mode", [BILINEAR, NEAREST])
def test_what_is_infinite_outside_of_a_sample_is_not_read(mode):
    image = IMAGE.copy()
    image[:, :, 0] = np.inf
    places = np.full((2, 1, 1, 2), 0.5, np.float32)
    agrees("grid_sampler_2d.default", image, places, mode, 0, False, gradients=False)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(2, 3, 5, 7), (2, 3, 1, 7), (2, 3, 4, 5, 7)])
def test_grids_of_affine_maps_agree_with_torch(size, align):
    axes = len(size) - 2
    theta = np.sin(np.arange(2 * axes * (axes + 1), dtype=np.float32)).reshape(2, axes, axes + 1)
    agrees("affine_grid_generator.default", theta, size, align)
