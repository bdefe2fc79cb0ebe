"""One case of each of torch's modules and some of its ops; benchmarks/databases.py runs all of them."""

import jax
import jax.numpy as jnp
import pytest

from bridge.lowering import table

pytest.importorskip("torch")

import torch

from tests.lowering.databases import (
    TOLERANCE,
    Called,
    NoCase,
    check_module,
    chosen_cases,
    op_cases,
    op_entries,
    op_name,
)

CASES = {case.name: case for case in chosen_cases()}
OPS = (
    "einsum",
    "fft.rfft2",
    "index_put",
    "linalg.svd",
    "masked.softmax",
    "nn.functional.conv_transpose2d",
    "nn.functional.embedding_bag",
    "nn.functional.interpolate.bicubic",
    "nn.functional.scaled_dot_product_attention",
    "normal",
    "scatter_reduce.amax",
    "sort",
    "special.log_ndtr",
    "view_as_complex",
)
ENTRIES = {op_name(info): info for info in op_entries()}


def test_every_class_of_the_database_has_a_case():
    assert len({case.info.name for case in CASES.values()}) == 94


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_module_of_torch_is_computed_as_torch_does(name):
    far = CASES[name].checked()
    assert far, "nothing was compared"
    assert max(far.values()) < TOLERANCE, far


@pytest.mark.parametrize("name", OPS)
def test_an_op_of_torch_is_computed_as_torch_does(name):
    *_, case = op_cases(ENTRIES[name], 3)
    far = case.checked()
    assert far, "nothing was compared"
    assert max(far.values()) < TOLERANCE, far


@pytest.mark.parametrize(
    ("row", "what"),
    [(jnp.cos, "forward"), (lambda x: jnp.sin(jax.lax.stop_gradient(x)), "gradient")],
    ids=["value", "gradient"],
)
def test_a_wrong_row_is_far_from_torch(monkeypatch, row, what):
    monkeypatch.setitem(table._added, "aten.sin.default", table.Row(row))
    x = torch.ones(3, 2, requires_grad=True)
    far = check_module(Called(torch.sin, (x,), {}, lambda out: out), [x], {}, False)
    assert far[what] > TOLERANCE


def test_what_gives_no_tensor_is_no_case():
    (case,) = op_cases(ENTRIES["item"], 1)
    with pytest.raises(NoCase, match="it gives no tensor"):
        case.checked()
