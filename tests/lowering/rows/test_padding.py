import numpy as np
import pytest

IMAGE = np.arange(210, dtype=np.float32).reshape(2, 3, 5, 7)
INFINITE = float("inf")


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("pad", [(1, 2), (2, 1, 3, 4), (2, -1, 1, 1), (-1, 2, 0, 1), (-1, -1, 1, -1)])
def test_modes_agree_with_torch(mode, pad):
    agrees("pad.default", IMAGE[0] if len(pad) == 2 else IMAGE, pad, mode)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_modes_agree_with_torch_on_three_axes(mode):
    agrees("pad.default", IMAGE[None, ..., :3, :3], (1, 2, 2, 0, 0, 1), mode)


@pytest.mark.parametrize("value", [None, 0.0, 2.5, INFINITE, -INFINITE])
@pytest.mark.parametrize("pad", [(1, 2), (-1, 2, 3, -2), (0, 0, 0, 0, 1, 0)])
def test_numbers_around_agree_with_torch(pad, value):
    agrees("pad.default", IMAGE, pad, "constant", value)


@pytest.mark.parametrize(("dtype", "value"), [("int32", 7), ("bool", True), ("uint8", 3)])
def test_the_dtype_stays(dtype, value):
    agrees("constant_pad_nd.default", IMAGE.astype(dtype), (1, 2), value)
