import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.control import ROWS

X = jnp.arange(15.0).reshape(3, 5)


@pytest.mark.parametrize(
    "predicate", [True, jnp.array(True), jnp.array([True])], ids=["python", "array", "one"]
)
def test_cond_takes_the_branch_of_its_predicate(predicate):
    rows = ROWS["cond"](predicate, lambda x, n: [x * n], lambda x, n: [x / n], (X, 2))
    np.testing.assert_array_equal(rows[0], 2 * X)


def test_cond_has_the_gradient_of_the_branch_taken():
    def loss(x):
        return ROWS["cond"](x.sum() > 0, lambda x: [x.sum()], lambda x: [3 * x.sum()], [x])[0]

    grad = jax.jit(jax.grad(loss))
    assert (grad(X) == 1).all()
    assert (grad(-X) == 3).all()


def test_while_loop_reads_what_it_does_not_carry():
    count, value = jax.jit(
        lambda x: ROWS["while_loop"](
            lambda i, y, limit: [i < limit], lambda i, y, limit: [i + 1, y * 2], (jnp.array(0), x), (3,)
        )
    )(X)
    assert count == 3
    np.testing.assert_array_equal(value, 8 * X)


def test_scan_gives_the_last_carry_and_then_each_step():
    last, sums, twice = ROWS["scan"](
        lambda carry, x, scale: [carry + x * scale, carry, 2 * x],
        [jnp.zeros(5)],
        [X],
        (jnp.array(2.0),),
    )
    np.testing.assert_array_equal(last, 2 * X.sum(0))
    np.testing.assert_array_equal(sums[1], 2 * X[0])
    np.testing.assert_array_equal(twice, 2 * X)


def test_map_goes_along_the_first_axis():
    (sums,) = ROWS["map_impl"](lambda x, y: [x.sum() + y], [X], (jnp.array(1.0),))
    np.testing.assert_array_equal(sums, X.sum(1) + 1)
