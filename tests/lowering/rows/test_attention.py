import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.attention import attention

NAME = "aten.scaled_dot_product_attention.default"
LEAST = float("-inf")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def no_key(stream):
    raise AssertionError(f"a key of {stream} was asked for")


def heads(count=4, batch=2):
    return [
        numbers(batch, count if place else 4, size, 8, seed=place)
        for place, size in enumerate((5, 7, 7))
    ]


BLIND = numbers(5, 7) > 0
BLIND[2] = False  # the third query may meet no key
MASKS = {
    "one for all": BLIND,
    "one for each key": numbers(2, 1, 1, 7) > -1,
    "added": numbers(2, 1, 5, 7),
    "added, with a blind query": np.where(BLIND, numbers(5, 7, seed=1), LEAST).astype("float32"),
    "all blind": np.zeros((5, 7), bool),
    "the least float": np.where(BLIND, 0, np.finfo("float32").min).astype("float32"),
}
CASES = {
    "plain": (heads(), {}),
    "causal": (heads(), {"is_causal": True}),
    "scaled": (heads(), {"scale": 0.7}),
    "shared heads": (heads(2), {"enable_gqa": True}),
    "shared heads with a mask": (heads(2), {"enable_gqa": True, "attn_mask": BLIND}),
    "one head broadcast": (heads(1), {}),
    "three axes": ([array[0] for array in heads()], {}),
    "two axes": ([array[0, 0] for array in heads()], {}),
    "five axes": ([array[None] for array in heads()], {}),
    "values of another width": ([*heads()[:2], numbers(2, 4, 7, 3)], {}),
    "no keys": ([array[..., :size, :] for array, size in zip(heads(), (5, 0, 0), strict=True)], {}),
    **{f"mask: {name}": (heads(), {"attn_mask": mask}) for name, mask in MASKS.items()},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention_agrees_with_torch(case):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    arrays, settings = case
    mask = settings.get("attn_mask")
    mask = mask if mask is None else torch.tensor(mask)
    others = {name: value for name, value in settings.items() if name != "attn_mask"}
    tensors = [torch.tensor(array) for array in arrays]
    assert_as_torch(NAME, *tensors, mask, 0.0, others.pop("is_causal", False), **others)


@pytest.mark.parametrize("mask", [BLIND, np.where(BLIND, 0, LEAST)], ids=["bool", "added"])
def test_a_query_that_may_meet_no_key_gives_zeros_with_finite_gradients(mask):
    arrays = [jnp.asarray(array) for array in heads()]
    mask = jnp.asarray(mask, None if mask.dtype == bool else jnp.float32)
    run = lambda *arrays: attention(no_key, *arrays, mask)  # noqa: E731
    np.testing.assert_array_equal(run(*arrays)[:, :, 2], 0)
    for gradient in jax.grad(lambda *arrays: run(*arrays).sum(), (0, 1, 2))(*arrays):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 4e-3)])
def test_a_softmax_of_nothing_but_infinities_is_zero_and_so_is_its_gradient(dim, dtype, tolerance):
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    least = -float("inf")
    rows = torch.tensor([[least, least], [least, 2.0]], dtype=getattr(torch, dtype))
    assert_as_torch("aten._safe_softmax.default", rows, dim, tolerance=tolerance)


def test_float16_and_bfloat16_are_weighed_in_float32():
    torch = pytest.importorskip("torch")
    from tests.lowering.rows.against_torch import assert_as_torch

    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        tensors = [torch.tensor(array).to(dtype) for array in heads()]
        assert_as_torch(NAME, *tensors, tolerance=tolerance)


def test_float64_is_not_rounded_to_float32():
    with jax.enable_x64(True):
        query, key, value = (jnp.asarray(array, jnp.float64) for array in heads())
        logits = jnp.einsum("bhtd,bhsd->bhts", query, key) / np.sqrt(8)
        wanted = jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(logits), value)
        np.testing.assert_allclose(attention(no_key, query, key, value), wanted, rtol=1e-13)


def test_dropout_drops_weights_and_scales_the_others():
    query, key, _ = heads()
    seen = attention(
        lambda stream: jax.random.key(0), query, key, np.eye(7, dtype="float32"), None, 0.5
    )
    whole = attention(no_key, query, key, np.eye(7, dtype="float32"))
    kept = seen != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(seen, np.where(kept, 2 * whole, 0), rtol=1e-5)


def test_dropout_of_everything_gives_zeros():
    query, key, value = heads()
    np.testing.assert_array_equal(attention(no_key, query, key, value, None, 1.0), 0)


def test_dropout_draws_from_the_dropout_stream():
    streams = []

    def draw(stream):
        streams.append(stream)
        return jax.random.key(0)

    attention(draw, *heads(), dropout_p=0.5)
    assert streams == ["dropout"]
