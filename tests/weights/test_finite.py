import warnings

import ml_dtypes
import numpy as np
import pytest

from bridge.core import tensorfile
from bridge.core.errors import WeightsWarning
from bridge.weights.finite import warn_of_non_finite

DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.complex64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_array_with_such_numbers_is_named_with_how_many(dtype, monkeypatch):
    monkeypatch.setattr(tensorfile, "PIECE", 16)  # so that they stand in several blocks
    array = np.arange(15, dtype=np.float32).reshape(3, 5)
    array[0, 1] = array[2, 3] = np.nan
    array[1, 0] = -np.inf
    nan = np.full((), np.nan, dtype)
    with pytest.warns(WeightsWarning) as caught:
        warn_of_non_finite({"a": array.astype(dtype), "b": array[1].astype(dtype)[1:], "c": nan})
    (one,) = caught
    assert one.filename == __file__
    assert str(one.message) == (
        "these weights hold numbers that are not finite; they were loaded as they are:\n"
        "  a: 2 NaN and 1 infinite of 15\n"
        "  c: 1 NaN and 0 infinite of 1"
    )


def test_a_transposed_array_and_one_with_gaps_are_looked_at():
    array = np.zeros((3, 5), np.float32)
    array[2, 4] = np.nan
    with pytest.warns(WeightsWarning, match="a: 1 NaN and 0 infinite of 15"):
        warn_of_non_finite({"a": array.T})
    with pytest.warns(WeightsWarning, match="a: 1 NaN and 0 infinite of 6"):
        warn_of_non_finite({"a": array[::2, ::2]})


def test_finite_numbers_and_whole_ones_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_non_finite(
            {"a": np.ones(3), "b": np.arange(5), "c": np.ones((), bool), "d": np.ones(0)}
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite(dtype):
    array = np.zeros(5, dtype)
    array[2], array[3] = ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).min
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        warn_of_non_finite({"a": array})
