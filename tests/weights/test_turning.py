"""Arrays that are turned while they are read, panel by panel."""

import jax
import ml_dtypes
import numpy as np
import pytest

import bridge as br
from bridge.core import tensorfile
from bridge.core.errors import WeightsError, WeightsWarning
from bridge.core.notation import read
from bridge.weights import placing, turning
from bridge.weights.placing import array_of
from bridge.weights.report import Pair
from bridge.weights.sources import open_source

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float64, np.int8, np.bool_, np.complex64, np.int32)
# From an array's axes to the target's; in the numbers of the axes in words, what a turn says of them.
TURNED = {
    "a matrix": (("out=67 in=131", "in=131 out=67"), turning.Turn((67, 131), (1, 0), 0, 131)),
    "a head-split kernel": (
        ("(heads=5 d=7) in=131", "in=131 heads=5 d=7"),
        turning.Turn((35, 131), (1, 0), 0, 131),
    ),
    "a convolution": (
        ("out=13 in=11 h=3 w=5", "h=3 w=5 in=11 out=13"),
        turning.Turn((13, 11, 15), (2, 1, 0), 0, 165),
    ),
    "a wide matrix": (("out=3 in=4099", "in=4099 out=3"), turning.Turn((3, 4099), (1, 0), 0, 4099)),
    "a high matrix": (("out=4099 in=2", "in=2 out=4099"), turning.Turn((4099, 2), (1, 0), 0, 2)),
    "some rows of a matrix": (
        ("out[5:67]of131 in=13", "in=13 out=62"),
        turning.Turn((62, 13), (1, 0), 65, 13),
    ),
    "some columns of a matrix": (
        ("out=67 in[7:50]of131", "in=43 out=67"),
        turning.Turn((67, 43), (1, 0), 7, 131),
    ),
    "one of two that are stacked": (
        ("1of2 out=17 in=13", "in=13 out=17"),
        turning.Turn((17, 13), (1, 0), 221, 13),
    ),
    "some inputs of a convolution": (
        ("out=13 in[2:9]of11 h=3 w=5", "h=3 w=5 in=7 out=13"),
        turning.Turn((13, 7, 15), (2, 1, 0), 30, 165),
    ),
}
OTHERS = {
    "as it lies": ("out=5 in=3", "out=5 in=3"),
    "its last axis stays": ("a=2 b=3 c=5", "b=3 a=2 c=5"),
    "backwards": ("out=5 -in=3", "in=3 out=5"),
    "its rows have gaps": ("out=13 in=11 h[1:3]of3 w=5", "h=2 w=5 in=11 out=13"),
    "one number of each row": ("out=13 in=7 0of2", "in=7 out=13"),
    "it has no numbers": ("a=0 b=3 c=5", "b=3 c=5 a=0"),
    "a part of the target": ("out=5 in=3", "in[0:3]of4 out=5"),
}


@pytest.fixture(params=["small panels", "panels as they are"])
def panels(request, monkeypatch):
    """Small ones, so that an array is of many in both directions, and the last ones are cut short."""
    monkeypatch.setattr(placing, "_LEAST", 0)
    if request.param == "small panels":
        monkeypatch.setattr(tensorfile, "PIECE", 256)
        monkeypatch.setattr(turning, "_PANEL", 2048)


@pytest.fixture(params=["XLA", "NumPy"])
def mover(request, monkeypatch):
    if request.param == "NumPy":
        monkeypatch.setattr(turning, "_host", lambda: None)


def numbers(shape, dtype):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("name", TURNED)
def test_what_a_turn_is(name):
    axes, turn = TURNED[name]
    assert turning.turn_of(read(*axes)) == turn


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_turn(name):
    assert turning.turn_of(read(*OTHERS[name])) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", TURNED)
@pytest.mark.usefixtures("panels", "mover")
def test_every_number_comes_to_its_place_and_is_shown_once(name, dtype):
    axes, turn = TURNED[name]
    translation = read(*axes)
    source = numbers(translation.source_shape, dtype)
    flat, shown = source.reshape(-1), []

    def fill(block, first, pitch):
        for number, row in enumerate(block):
            row[:] = flat[first + number * pitch :][: row.size]
            shown.append(row.copy())

    made = turning.turned(turn, source.dtype, fill)
    assert made.ctypes.data % tensorfile.ALIGNMENT == 0
    np.testing.assert_array_equal(made.reshape(translation.target_shape), translation(source))
    np.testing.assert_array_equal(np.sort(np.concatenate(shown)), np.sort(made.reshape(-1)))


class Kernel(br.Module):
    w: br.Parameter


@pytest.fixture(params=["arrays", "safetensors", "a file of torch", "torch"])
def source(request, tmp_path):
    """One matrix, w, wherever it may come from."""

    def of(array):
        if request.param == "arrays":
            return {"w": array}
        torch = pytest.importorskip("torch")
        tensors = {"w": torch.from_numpy(array)}
        if request.param == "torch":
            return tensors
        path = tmp_path / f"model.{'pt' if request.param == 'a file of torch' else 'safetensors'}"
        if path.suffix == ".pt":
            torch.save(tensors, path)
        else:
            from safetensors.torch import save_file

            save_file(tensors, path)
        return path

    return of


PAIR = Pair("w", ("w",), read("out=67 in=131", "in=131 out=67"), "by hand")


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_array_is_turned_and_cast_from_anywhere(source, dtype):
    array = np.random.default_rng(0).normal(size=(67, 131)).astype(np.float32)
    made = array_of([PAIR], open_source(source(array)), np.dtype(dtype))
    np.testing.assert_array_equal(made, array.T.astype(dtype))


@pytest.mark.usefixtures("panels")
def test_numbers_that_are_not_finite_are_found_while_it_is_turned(source):
    array = np.zeros((67, 131), np.float32)
    array[66, 130], array[3, 5] = np.nan, -np.inf
    plan = br.Match((PAIR,), {}, {}, {}, (), ())
    with pytest.warns(WeightsWarning, match="w: 1 NaN and 1 infinite of 8777"):
        br.load_state_dict(Kernel(jax.numpy.zeros((131, 67))), source(array), plan=plan)


@pytest.mark.usefixtures("panels")
def test_a_number_that_is_too_large_is_refused_while_it_is_turned(source):
    array = np.zeros((67, 131), np.float32)
    array[66, 130] = 70_000
    with pytest.raises(WeightsError, match=r"^w: 70000 is too large for float16"):
        array_of([PAIR], open_source(source(array)), np.dtype(np.float16))


def test_the_callers_array_is_left_alone(source):
    array = np.ones((67, 131), np.float32)
    made = array_of([PAIR], open_source(source(array)), np.dtype(np.float32))
    made[:] = 0
    assert array.all()


def test_the_host_is_found_once_and_may_be_missing(monkeypatch):
    assert turning._host() in jax.local_devices(backend="cpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend: jax.devices("no such platform"))
    assert turning._host.__wrapped__() is None
