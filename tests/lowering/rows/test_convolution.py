import functools

import jax
import jax.numpy as jnp
import pytest

from bridge.lowering.rows.convolution import ROWS

SPATIAL = (11, 7, 5)
FORWARD = {
    "strides": ((6, 3), {"stride": [2], "padding": [1]}),
    "dilation": ((6, 3), {"dilation": [2], "padding": [2]}),
    "groups": ((3, 3), {"groups": 2}),
    "one group for each feature": ((1, 3), {"groups": 6, "bias": None}),
}
TRANSPOSED = {
    "strides": ((2, 3), {"stride": [3], "padding": [1], "output_padding": [2]}),
    "dilation": ((2, 3), {"stride": [2], "dilation": [2], "padding": [3]}),
    "groups": ((2, 3), {"stride": [2], "groups": 3}),
    "groups with padding": (
        (5, 2),
        {"stride": [2], "padding": [1], "output_padding": [1], "groups": 2},
    ),
}
OPS = {
    **{(rank, False): f"aten.conv{rank}d.default" for rank in (1, 2, 3)},
    (1, True): "aten.conv_transpose1d.default",
    (2, True): "aten.conv_transpose2d.input",
    (3, True): "aten.conv_transpose3d.input",
}
CASES = [
    pytest.param(rank, transposed, *case, id=f"{OPS[rank, transposed]} {name}")
    for (rank, transposed) in OPS
    for name, case in (TRANSPOSED if transposed else FORWARD).items()
]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("rank", "transposed", "widths", "settings"), CASES)
def test_convolutions_agree_with_torch(rank, transposed, widths, settings, batched):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    given, size = widths
    input = normal((2, 6, *SPATIAL[:rank]) if batched else (6, *SPATIAL[:rank]))
    weight = normal((6, given, *[size] * rank))
    out = given * settings.get("groups", 1) if transposed else 6
    assert_as_torch(OPS[rank, transposed], input, weight, **{"bias": normal(out)} | settings)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2])
def test_same_padding_puts_the_odd_one_behind(rank, size, dilation):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    generator = torch.Generator().manual_seed(0)
    input = torch.randn((2, 3, *(17, 13)[:rank]), generator=generator)
    weight = torch.randn((5, 3, *[size] * rank), generator=generator)
    assert_as_torch(f"aten.conv{rank}d.padding", input, weight, None, [1], "same", [dilation])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_is_one_operation_in_torchs_layout(transposed):
    def run(input, weight):
        return ROWS["aten.convolution.default"](
            input, weight, None, [2, 2], [1, 1], [1, 1], transposed, [0, 0], 1
        )

    program = jax.make_jaxpr(run)(jnp.ones((2, 3, 7, 5)), jnp.ones((3, 3, 2, 2)))
    names = [equation.primitive.name for equation in program.eqns]
    assert names == (["rev"] if transposed else []) + ["conv_general_dilated"]


def test_an_empty_batch_gives_an_empty_batch():
    got = ROWS["aten.conv1d.default"](jnp.ones((0, 3, 7)), jnp.ones((5, 3, 2)), jnp.ones(5))
    assert got.shape == (0, 5, 6)


def test_integers_are_convolved_as_integers():
    got = ROWS["aten.conv1d.default"](jnp.arange(5)[None], jnp.ones((1, 1, 2), int), jnp.array([10]))
    assert got.tolist() == [[11, 13, 15, 17]]


def test_conv_tbc_keeps_time_before_the_batch():
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    tensors = torch.randn(7, 2, 3), torch.randn(3, 3, 5), torch.randn(5)
    assert_as_torch("aten.conv_tbc.default", *tensors, 1)
