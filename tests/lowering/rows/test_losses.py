import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.losses import ROWS

cross_entropy, nll, bce, multi_margin, multilabel_margin = (
    ROWS[f"aten.{name}.default"]
    for name in (
        "cross_entropy_loss", "nll_loss_forward", "binary_cross_entropy", "multi_margin_loss",
        "multilabel_margin_loss_forward",
    )
)  # fmt: skip
REDUCTIONS = ["none", "mean", "sum"]
LOGITS = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(2, 7, 3)).astype("float32")
WEIGHT = np.linspace(0.5, 2, 7, dtype="float32")
TARGETS = {
    "classes": (LOGITS, np.array([0, 6, -100, 3, 3])),
    "pixels": (IMAGES, np.array([[1, -100, 3], [6, 0, 2]])),
}


def compare(row_loss, torch_loss, *arrays):
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    wanted = torch_loss(torch.nn.functional, torch, *leaves)
    wanted.sum().backward()
    got = jax.jit(row_loss)(*arrays)
    assert got.shape == tuple(wanted.shape)
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
    grads = jax.jit(jax.grad(lambda *a: row_loss(*a).sum(), argnums=tuple(range(len(arrays)))))(*arrays)
    for grad, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", range(3), ids=REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", TARGETS)
def test_cross_entropy_of_classes(kind, weight, smoothing, reduction):
    x, target = TARGETS[kind]
    compare(
        lambda x: cross_entropy(x, target, weight, reduction, -100, smoothing),
        lambda F, torch, x: F.cross_entropy(
            x, torch.tensor(target), None if weight is None else torch.tensor(weight),
            reduction=REDUCTIONS[reduction], label_smoothing=smoothing,
        ),
        x,
    )  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", range(3), ids=REDUCTIONS)
def test_cross_entropy_of_probabilities_weighted(reduction, smoothing):
    compare(
        lambda x, p: cross_entropy(x, p, WEIGHT, reduction, -100, smoothing),
        lambda F, torch, x, p: F.cross_entropy(
            x, p, torch.tensor(WEIGHT), reduction=REDUCTIONS[reduction], label_smoothing=smoothing
        ),
        IMAGES,
        np.array(jax.nn.softmax(IMAGES, 1)),
    )


def test_cross_entropy_of_only_ignored_targets_is_nan_like_that_of_torch():
    assert jnp.isnan(cross_entropy(LOGITS, np.full(5, -100)))


@pytest.mark.parametrize("target", [7, -1], ids=["too large", "negative"])
def test_a_class_that_there_is_not_gives_nan(target):
    targets = jnp.array([0, 1, target, 3, 4])
    losses = cross_entropy(LOGITS, targets, reduction=0)
    assert jnp.isnan(losses).tolist() == [False, False, True, False, False]
    assert jnp.isnan(nll(LOGITS, targets, None, 1, -100)[0])


def test_infinite_logits_of_other_classes_keep_the_gradient_finite():
    x = jnp.array([[0.0, 1.0, -jnp.inf]])
    grad = jax.grad(lambda x: cross_entropy(x, jnp.array([1])))(x)
    np.testing.assert_allclose(grad, jax.nn.softmax(x) - jnp.array([[0.0, 1, 0]]), atol=1e-6)


def test_cross_entropy_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(LOGITS, jnp.bfloat16)
    targets = jnp.array([0, 1, 2, 3, 4])
    loss = cross_entropy(x, targets)
    assert loss.dtype == jnp.bfloat16
    assert loss == cross_entropy(x.astype(jnp.float32), targets).astype(jnp.bfloat16)


def test_likelihood_comes_with_the_weight_of_all_that_counted():
    _, total = nll(LOGITS, jnp.array([0, 6, 2, 3, 3]), WEIGHT, 1, 2)
    np.testing.assert_allclose(total, WEIGHT[[0, 6, 3, 3]].sum(), rtol=1e-6)
    assert nll(LOGITS, jnp.array([0, 6, 2, 3, 3]), WEIGHT, 0, 2)[1] == 0


def test_binary_cross_entropy_keeps_its_gradient_where_it_saturates():
    x = np.array([0, 0, 1, 1, 0.3, 1e-30], "float32")
    target = np.array([0, 1, 0, 1, 0.2, 1], "float32")
    compare(
        lambda x: bce(x, target, None, 2),
        lambda F, torch, x: F.binary_cross_entropy(x, torch.tensor(target), reduction="sum"),
        x,
    )


def test_binary_cross_entropy_has_a_gradient_for_its_target():
    x, target = np.array([0.3, 0.9], "float32"), np.array([0.2, 1.0], "float32")
    compare(bce, lambda F, torch, x, target: F.binary_cross_entropy(x, target), x, target)


TIED = np.array([[0, 1, 2], [1, 1, 2], [2, 1, 0.5]], "float32")


@pytest.mark.parametrize("p", [1, 2])
def test_multi_margin_has_no_gradient_where_the_hinge_is_zero(p):
    compare(
        lambda x: multi_margin(x, jnp.array([0, 1, 2]), p, 1.0, jnp.array([1.0, 2, 3]), 0),
        lambda F, torch, x: F.multi_margin_loss(
            x, torch.tensor([0, 1, 2]), p=p, weight=torch.tensor([1.0, 2, 3]), reduction="none"
        ),
        TIED,
    )


def test_multilabel_margin_reads_labels_up_to_the_first_below_zero():
    target = np.array([[0, -1, 2], [1, 2, -1], [-1, 0, 1]])
    compare(
        lambda x: multilabel_margin(x, target, 0)[0],
        lambda F, torch, x: F.multilabel_margin_loss(x, torch.tensor(target), reduction="none"),
        TIED,
    )
    assert multilabel_margin(TIED, target, 0)[1].tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
