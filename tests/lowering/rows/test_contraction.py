import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.contraction import ROWS


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


EQUATIONS = {
    "an axis of size one": ("ij,jk->ik", (3, 1), (5, 7)),
    "an axis of size one, output left out": ("ij,jk", (3, 1), (5, 7)),
    "the output in the alphabet's order": ("ba,ca", (3, 5), (7, 5)),
    "an ellipsis": ("...ij,...jk->...ik", (2, 3, 5), (5, 7)),
    "an ellipsis of ones": ("...i,...i->...", (3, 1, 5), (1, 7, 5)),
    "an axis of size one beside an ellipsis": ("i...,ij->j...", (1, 2), (3, 5)),
    "a diagonal": ("ii,ij->j", (3, 3), (3, 5)),
    "spaces and capitals": (" Ba , aB ", (3, 5), (5, 3)),
}


@pytest.mark.parametrize("case", EQUATIONS.values(), ids=EQUATIONS)
def test_einsum_reads_equations_as_torch_does(case):
    torch = pytest.importorskip("torch")
    equation, *shapes = case
    arrays = [numbers(*shape, seed=place) for place, shape in enumerate(shapes)]
    wanted = torch.einsum(equation, *(torch.tensor(np.asarray(array)) for array in arrays))
    got = ROWS["aten.einsum.default"](equation, arrays)
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)


PRODUCTS = {
    "aten.addmm.default": ((5,), (3, 2), (2, 5)),
    "aten.addmv.default": ((3,), (3, 2), (2,)),
    "aten.baddbmm.default": ((3, 5), (7, 3, 2), (7, 2, 5)),
    "aten.addbmm.default": ((3, 5), (7, 3, 2), (7, 2, 5)),
    "aten.addr.default": ((3, 5), (3,), (5,)),
}


@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "alpha": 2}, {"alpha": -1}])
@pytest.mark.parametrize("name", PRODUCTS)
def test_sums_with_products_agree_with_torch(name, settings):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in PRODUCTS[name]]
    assert_as_torch(name, *tensors, **settings)


@pytest.mark.parametrize("name", PRODUCTS)
def test_beta_of_zero_forgets_the_nan_in_what_is_added(name):
    added, left, right = (numbers(*shape) for shape in PRODUCTS[name])
    got = ROWS[name](jnp.full_like(added, jnp.nan), left, right, beta=0)
    np.testing.assert_array_equal(got, ROWS[name](jnp.zeros_like(added), left, right))


def test_linear_is_one_product_without_a_transposed_weight():
    program = jax.make_jaxpr(ROWS["aten.linear.default"])(numbers(3, 5), numbers(7, 5))
    assert [equation.primitive.name for equation in program.eqns] == ["dot_general"]


@pytest.mark.parametrize("weight", [(7, 5), (5,)])
@pytest.mark.parametrize("input", [(5,), (3, 5), (2, 3, 5)])
def test_linear_multiplies_the_last_axis(input, weight):
    got = ROWS["aten.linear.default"](numbers(*input), numbers(*weight))
    np.testing.assert_allclose(got, numbers(*input) @ numbers(*weight).T, atol=1e-5)


def test_integer_products_wrap_and_keep_their_dtype():
    row = jnp.full((3,), 100, jnp.int8)
    got = ROWS["aten.dot.default"](row, row)
    assert got.dtype == jnp.int8
    assert got == np.int64(30000).astype(np.int8)


def test_tensordot_sums_an_axis_that_meets_one_of_size_one():
    left, right = numbers(2, 1), numbers(3, 5)
    got = ROWS["aten.tensordot.default"](left, right, [1], [0])
    np.testing.assert_allclose(got, left * right.sum(0), atol=1e-6)


def test_trilinear_sums_the_expanded_product():
    left, middle, right = numbers(2, 3), numbers(2, 5, 3), numbers(5, 3)
    got = ROWS["aten._trilinear.default"](left, middle, right, [1], [], [0], [2])
    np.testing.assert_allclose(got, jnp.einsum("nc,nmc,mc->nm", left, middle, right), atol=1e-5)
