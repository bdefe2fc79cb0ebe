"""Hyper-parameters in one form, and which of two layers' differ."""

import jax
import pytest

from bridge.core.settings import EACH, differing, normalised

CONVOLUTION = {"kernel": (3, 5), "stride": 1, "dilation": 1}


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (2, (2, 2)),
        ((1, 2), ((1, 1), (2, 2))),
        ([(1, 1), (1, 1)], (1, 1)),
        ([(1,), (2,)], ((1, 1), (2, 2))),
        ("VALID", (0, 0)),
        ("valid", (0, 0)),
        ("same", ((1, 1), (2, 2))),
        ("CAUSAL", ((2, 0), (4, 0))),
        ("CIRCULAR", ((1, 1), (2, 2))),
    ],
)
def test_padding_becomes_a_pair_for_each_axis(padding, expected):
    found = normalised("convolution", {**CONVOLUTION, "padding": padding})
    assert found["padding"] == expected
    assert found["padding mode"] == ("circular" if padding == "CIRCULAR" else "zeros")


def test_same_padding_of_an_even_kernel_puts_more_behind():
    found = normalised("convolution", {"kernel": 4, "stride": 1, "padding": "SAME"})
    assert found["padding"] == (1, 2)


def test_same_padding_with_a_stride_depends_on_the_input():
    found = normalised("convolution", {**CONVOLUTION, "stride": (2, 2), "padding": "SAME"})
    assert found["padding"] == "SAME"
    assert found["stride"] == 2


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["SAME", "VALID"])
def test_a_transposed_convolution_pads_by_name_as_jax_does(name, kernel, stride, dilation):
    found = normalised(
        "transposed convolution",
        {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": name},
    )
    x, w = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((1, 11, 1), (kernel, 1, 1)))

    def pads(padding):
        def run(x, w):
            return jax.lax.conv_transpose(
                x, w, (stride,), padding, (dilation,), dimension_numbers=("NWC", "WIO", "NWC")
            )

        (equation,) = jax.make_jaxpr(run)(x, w).eqns
        return equation.params["padding"]

    assert pads(name) == pads([found["padding"]])


def test_torchs_padding_of_a_transposed_convolution_is_what_is_left_of_the_kernel():
    given = {"kernel": (3,), "stride": 2, "dilation": 2, "padding": (1,), "output padding": (1,)}
    assert normalised("transposed convolution", given) == {
        "stride": 2,
        "dilation": 2,
        "padding": (3, 4),
        "padding mode": "zeros",
    }


def test_torch_counts_what_is_new_and_the_others_what_is_kept():
    assert normalised("batch norm", {"momentum": 0.25}) == {"decay": 0.75}
    assert normalised("batch norm", {"momentum": None}) == {}


def test_groups_of_one_channel_are_one_for_each():
    mine = normalised("group norm", {"groups": None, "group size": 1})
    theirs = normalised("group norm", {"groups": 7, "channels": 7})
    assert mine == {"groups": EACH}
    assert [*differing(mine, theirs)] == []
    assert [*differing(mine, {"groups": 7, "channels": 14})] == ["groups"]


def test_rounding_is_no_difference():
    assert [*differing({"decay": 0.9, "eps": 1e-5}, {"decay": 1 - 0.1, "eps": 1.00000003e-5})] == []
    assert [*differing({"decay": 0.9, "eps": 1e-5}, {"decay": 0.99, "eps": 1e-6})] == ["decay", "eps"]
