import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.normalization import ROWS

SHAPE = (3, 4, 5, 7)
STATS = (True, 0.3, 1e-3)
CASES = {
    "layer norm": ("aten.native_layer_norm.default", [5, 7], (5, 7), (1e-5,)),
    "group norm": ("aten.group_norm.default", 2, (4,), (1e-5,)),
    "native group norm": ("aten.native_group_norm.default", None, (4,), (3, 4, 35, 2, 1e-5)),
    "batch norm": ("aten._native_batch_norm_legit.no_stats", None, (4,), STATS),
}


@pytest.mark.parametrize("learned", ["both", "weight", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_norms_agree_with_torch(case, dtype, tolerance, learned):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    generator = torch.Generator().manual_seed(0)
    name, first, shape, rest = case
    input = (2 * torch.randn(SHAPE, generator=generator) + 1).to(getattr(torch, dtype))
    weight = torch.randn(shape, generator=generator).to(input.dtype) if learned != "none" else None
    bias = torch.randn(shape, generator=generator).to(input.dtype) if learned == "both" else None
    between = () if first is None else (first,)
    assert_as_torch(name, input, *between, weight, bias, *rest, tolerance=tolerance)


@pytest.mark.parametrize("eps", [None, 1e-2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rms_norm_takes_the_eps_of_the_dtype_it_computes_in(dtype, eps):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    small = torch.full((2, 3), 1e-4, dtype=getattr(torch, dtype))  # where eps decides
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    assert_as_torch(
        "aten.rms_norm.default", small, [3], None, eps, tolerance=tolerance, gradients=False
    )


def test_batch_norm_in_training_moves_its_stats_by_the_unbiased_variance():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5)), jnp.float32)
    mean, var = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
    *_, new_mean, new_var = ROWS["aten._native_batch_norm_legit_functional.default"](
        x, None, None, mean, var, *STATS
    )
    np.testing.assert_allclose(new_mean, 0.7 * mean + 0.3 * x.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(new_var, 0.7 * var + 0.3 * x.var((0, 2), ddof=1), rtol=1e-5)


def test_batch_norm_with_its_update_agrees_with_torch():
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    generator = torch.Generator().manual_seed(0)
    input = torch.randn(5, 3, 2, generator=generator)
    learned = torch.randn(3, generator=generator), torch.randn(3, generator=generator)
    stats = torch.zeros(3), torch.ones(3)
    name = "aten._batch_norm_with_update_functional.default"
    assert_as_torch(name, input, *learned, *stats, 0.1, 1e-5, gradients=False)


def test_the_new_running_stats_have_no_gradient():
    def moved(x, mean):
        *_, new_mean, new_var = ROWS["aten._native_batch_norm_legit_functional.default"](
            x, None, None, jax.lax.stop_gradient(mean), jnp.ones(2), *STATS
        )
        return (new_mean + new_var).sum()

    gradient = jax.grad(moved)(jnp.arange(30.0).reshape(3, 2, 5), jnp.zeros(2))
    np.testing.assert_array_equal(gradient, 0)


def test_batch_norm_takes_a_momentum_that_was_computed():
    x = jnp.arange(30.0).reshape(3, 2, 5)
    run = ROWS["aten._native_batch_norm_legit_functional.default"]
    traced = jax.jit(
        lambda momentum: run(x, None, None, jnp.zeros(2), jnp.ones(2), True, momentum, 1e-5)
    )
    for got, wanted in zip(
        traced(0.3), run(x, None, None, jnp.zeros(2), jnp.ones(2), True, 0.3, 1e-5), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_batch_norm_in_training_refuses_one_value_for_each_feature():
    with pytest.raises(LoweringError) as raised:
        ROWS["aten._native_batch_norm_legit_functional.default"](
            jnp.ones((1, 2)), None, None, jnp.zeros(2), jnp.ones(2), *STATS
        )
    assert str(raised.value) == (
        "Batch norm in training needs more than one value for each feature; an input of shape (1, 2)"
        " has one. Give it a larger batch, or capture the model after model.eval()"
    )


def test_batch_norm_in_inference_agrees_with_torch():
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    generator = torch.Generator().manual_seed(0)
    input, stats = torch.randn(SHAPE, generator=generator), torch.rand((4, 4), generator=generator)
    assert_as_torch(
        "aten._native_batch_norm_legit_no_training.default", input, *stats, 0.1, 1e-5, gradients=False
    )


@pytest.mark.parametrize("name", ["layer norm", "group norm", "batch norm"])
def test_norms_of_bfloat16_are_computed_in_float32(name):
    op, first, _, rest = CASES[name]
    between = () if first is None else (first,)
    far = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE) + 100, jnp.bfloat16)
    got, wanted = (
        jax.tree.leaves(ROWS[op](x, *between, None, None, *rest))[0]
        for x in (far, far.astype(jnp.float32))
    )
    np.testing.assert_array_equal(got, wanted.astype(jnp.bfloat16))
