import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.ctc import ROWS

ctc_loss = ROWS["bridge.ctc_loss.default"]
RAW = np.random.default_rng(0).normal(size=(11, 3, 5)).astype("float32")
LOGS = np.array(jax.nn.log_softmax(RAW))
TARGETS = np.array([[1, 2, 2, 0], [1, 1, 3, 4], [2, 2, 0, 0]])
INPUTS, LENGTHS = np.array([11, 7, 5]), np.array([3, 4, 2])
CASES = {
    "padded": (LOGS, TARGETS, INPUTS, LENGTHS, {}),
    "one after another": (LOGS, np.array([1, 2, 2, 1, 1, 3, 4, 2, 2]), INPUTS, LENGTHS, {}),
    "not normalised": (RAW, TARGETS, INPUTS, LENGTHS, {}),
    "another blank": (LOGS, np.array([[0, 1, 1, 3]] * 3), INPUTS, LENGTHS, {"blank": 2}),
    "an empty target": (LOGS, TARGETS, INPUTS, np.array([0, 4, 2]), {}),
    "no path": (LOGS, TARGETS, np.array([11, 4, 5]), LENGTHS, {}),
    "no path, as zero": (LOGS, TARGETS, np.array([11, 4, 5]), LENGTHS, {"zero_infinity": True}),
    "one sequence": (LOGS[:, 0], TARGETS[0, :3], np.array(11), np.array(3), {}),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_torch(case, reduction):
    torch = pytest.importorskip("torch")
    logs, targets, inputs, lengths, options = CASES[case]
    leaf = torch.tensor(logs, requires_grad=True)
    rest = [torch.tensor(part) for part in (targets, inputs, lengths)]
    wanted = torch.nn.functional.ctc_loss(leaf, *rest, reduction=reduction, **options)
    wanted.sum().backward()

    def loss(logs):
        value = ctc_loss(
            logs, jnp.asarray(targets), jnp.asarray(inputs), jnp.asarray(lengths),
            reduction=["none", "mean", "sum"].index(reduction), **options,
        )  # fmt: skip
        return value.sum(), value

    grad, got = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(logs))
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-3, atol=1e-5)


def test_time_is_one_scan():
    jaxpr = jax.make_jaxpr(lambda *arrays: ctc_loss(*arrays))(
        *map(jnp.asarray, (LOGS, TARGETS, INPUTS, LENGTHS))
    ).jaxpr
    assert sum(eqn.primitive.name == "scan" for eqn in jaxpr.eqns) == 1
