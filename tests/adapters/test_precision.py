"""Mixed precision by a policy, for a model of each library and without touching its code."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import LoweringError
from tests.adapters.subjects import NATIVE, initialised, subject_of

jmp = pytest.importorskip("jmp")

KEY = jax.random.key(0)
HALF = jmp.get_policy("params=float32,compute=bfloat16,output=float32")
FULL = jmp.get_policy("float32")
# Its BatchNorm computes in float32 and gives float32, whatever it is given, in these modes.
WIDER = {("nnx", "train"), ("equinox", "eval")}


@functools.partial(jax.jit, static_argnames="mode")
def called(module, x, mode):
    return module.apply(x, rng=KEY, mode=mode)


def odd(leaf):
    """A statistic that no bfloat16 is."""
    return jnp.full_like(leaf, 0.3) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def gradients(module, x, mode):
    def loss(module):
        out, _ = module.apply(x, rng=KEY, mode=mode)
        return (out.astype(jnp.float32) ** 2).mean()

    return jax.eval_shape(br.grad(loss), module)


def close(got, wanted):
    """Asserts that two calls differ by what half precision loses, and by no dtype of a state."""
    (out, after), (full, full_after) = got, wanted
    out = out.astype(jnp.float32)
    assert float(abs(out - full).max()) < 0.05 * float(abs(full).max())
    pairs = zip(jax.tree.leaves(after.states()), jax.tree.leaves(full_after.states()), strict=True)
    for state, expected in pairs:
        assert state.dtype == expected.dtype
        if jnp.issubdtype(state.dtype, jnp.floating):
            np.testing.assert_allclose(state, expected, rtol=0.05, atol=2e-3)


def contractions(function, *arguments):
    """The dtypes of what the matrix products and convolutions of a function give, in order."""
    text = str(jax.make_jaxpr(function)(*arguments))
    return re.findall(r":(\w+)\[[\d,]*\] = (?:dot_general|conv_general_dilated)", text)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("library", NATIVE)
def test_a_wrapped_model_computes_in_half_and_keeps_all_in_full_precision(library, mode):
    module, x = initialised(library), subject_of(library).inputs
    module = module.update(jax.tree.map(odd, module.states()))
    half, full = br.with_policy(module, HALF), br.with_policy(module, FULL)
    got = called(half, x, mode)
    assert got[0].dtype == jnp.float32
    close(got, called(full, x, mode))
    ops = contractions(lambda m, x: m.apply(x, rng=KEY, mode=mode)[0], half, x)
    assert ops == ["bf16", "f32" if (library, mode) in WIDER else "bf16"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients(half, x, mode))} == {"float32"}
    if mode == "eval":  # a call that writes no averages leaves each bit of them
        pairs = zip(jax.tree.leaves(got[1]), jax.tree.leaves(half), strict=True)
        assert all((new == old).all() for new, old in pairs if old.dtype == jnp.float32)


def test_init_runs_in_full_precision():
    hk = pytest.importorskip("haiku")

    class Net(br.Module):
        half: br.Module
        late: br.Module

        def __call__(self, x):
            return self.late(self.half(x))

    x = jnp.ones((2, 3))
    half = br.with_policy(
        br.from_haiku(hk.Linear)(5).init(KEY, x),
        jmp.get_policy("params=float32,compute=bfloat16,output=bfloat16"),
    )
    net = Net(half, br.from_haiku(hk.Linear)(2))
    made = net.init(KEY, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made.late)} == {"float32"}
    assert made.half.at["module.params"].get() is half.at["module.params"].get()


def test_a_torch_model_is_captured_under_torchs_own_policy():
    torch = pytest.importorskip("torch")
    from tests.adapters.subject_torch import INPUTS, Net, made

    with torch.autocast("cpu", torch.bfloat16):
        half = made(Net, 7, 3, 13)
    full = initialised("torch")
    close(called(half, INPUTS, "train"), called(full, INPUTS, "train"))
    ops = contractions(lambda m: m.apply(INPUTS, rng=KEY, mode="train")[0], half)
    assert ops == ["bf16", "bf16"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients(half, INPUTS, "train"))} == {
        "float32"
    }
    with pytest.raises(LoweringError, match="bfloat16, and the model was captured with float32"):
        br.with_policy(full, HALF)(INPUTS)
