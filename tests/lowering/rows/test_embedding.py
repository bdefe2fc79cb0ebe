import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.errors import LoweringError
from bridge.lowering.rows.embedding import ROWS

TABLE = np.round(3 * np.sin(np.arange(35, dtype=np.float32))).reshape(7, 5)
BAGS = np.array([1, 3, 1, 2, 3, 3, 6, 0])


def agrees(name, *args, **named):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    given = [torch.tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    assert_as_torch(f"aten.{name}", *given, **named)


def bags_agree(*args, **named):
    """Compares the first output: the others only serve PyTorch's own backward pass."""
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    tensors[0].requires_grad_()
    arrays = [jnp.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    weights = named.pop("per_sample_weights", None)
    theirs_named, ours_named, moving = dict(named), dict(named), [tensors[0]]
    if weights is not None:
        theirs_named["per_sample_weights"] = torch.tensor(weights, requires_grad=True)
        ours_named["per_sample_weights"] = jnp.asarray(weights)
        moving.append(theirs_named["per_sample_weights"])
    wanted = torch.ops.aten._embedding_bag(*tensors, **theirs_named)[0]
    push = torch.sin(torch.arange(wanted.numel(), dtype=torch.float32)).reshape(wanted.shape)

    def run(table, weights):
        named = ours_named if weights is None else ours_named | {"per_sample_weights": weights}
        return ROWS["aten._embedding_bag.default"](table, *arrays[1:], **named)[0]

    got, pull = jax.vjp(run, arrays[0], ours_named.get("per_sample_weights"))
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=0, atol=1e-5)
    slopes = [slope for slope in pull(jnp.asarray(push.numpy())) if slope is not None]
    for ours, theirs in zip(slopes, torch.autograd.grad(wanted, moving, push), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", [-1, 2])
@pytest.mark.parametrize("by_frequency", [False, True])
def test_gradients_agree_with_torch(padding, by_frequency):
    agrees("embedding.default", TABLE, np.array([[1, 2, 2], [1, 1, 5]]), padding, by_frequency)


@pytest.mark.parametrize("padding", [-1, 3])
@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize(("offsets", "last"), [([0, 3, 3, 4, 6], False), ([0, 3, 3, 4, 8], True)])
def test_bags_agree_with_torch_at_ties_and_where_they_are_empty(offsets, last, mode, padding):
    bags_agree(TABLE, BAGS, np.array(offsets), False, mode, False, None, last, padding)


@pytest.mark.parametrize("padding", [-1, 3])
def test_weighted_bags_agree_with_torch(padding):
    weights = np.cos(np.arange(8, dtype=np.float32))
    bags_agree(TABLE, BAGS, np.array([0, 3, 5]), padding_idx=padding, per_sample_weights=weights)


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_long_rows_are_scaled_down_as_in_torch(order):
    torch = pytest.importorskip("torch")
    indices = np.array([[1, 2], [1, 6]])
    wanted = torch.embedding_renorm_(torch.tensor(TABLE), torch.tensor(indices), 2.5, order)
    got = ROWS["aten.embedding_renorm.default"](jnp.asarray(TABLE), jnp.asarray(indices), 2.5, order)
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-6)


def test_scaling_down_has_no_gradient_of_its_own():
    row = ROWS["aten.embedding_renorm.default"]
    slope = jax.grad(lambda table: 3 * row(table, jnp.array([1, 2]), 0.5, 2.0).sum())(
        jnp.asarray(TABLE)
    )
    assert (slope == 3).all()


@pytest.mark.parametrize("wrong", [7, -1])
def test_an_index_out_of_range_is_an_error_or_reads_no_number(wrong):
    row = ROWS["aten.embedding.default"]
    with pytest.raises(LoweringError) as raised:
        row(jnp.asarray(TABLE), jnp.array([0, wrong]))
    assert str(raised.value) == f"Index {wrong} is out of range for axis 0, which has size 7"
    traced = jax.jit(row)(jnp.asarray(TABLE), jnp.array([0, wrong]))
    assert jnp.isnan(traced).all(1).tolist() == [False, True]
