"""`capture` inside of an Equinox model: the outputs of its parts, by path."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import PathError, TraceError

eqx = pytest.importorskip("equinox")
nn = eqx.nn

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (7, 5))


class Block(eqx.Module):
    linear: nn.Linear
    norm: nn.BatchNorm
    dropout: nn.Dropout

    def __init__(self, key):
        self.linear = nn.Linear(5, 5, key=key)
        self.norm = nn.BatchNorm(5, "batch", mode="batch")
        self.dropout = nn.Dropout(0.5)

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.linear(x), state)
        return self.dropout(x, key=key), state


class Net(eqx.Module):
    blocks: list
    activation: Callable

    def __init__(self, key):
        self.blocks = [Block(one) for one in jax.random.split(key, 2)]
        self.activation = jax.nn.relu

    def __call__(self, x, state, *, key=None):
        keys = [None] * 2 if key is None else jax.random.split(key)
        for block, one in zip(self.blocks, keys, strict=True):
            x, state = block(x, state, one)
        return self.activation(x), state

    def stem(self, x):
        return self.blocks[0].linear(self.blocks[0].linear(x))


NET = br.from_equinox(nn.make_with_state(Net)(KEY), vmap=True)
PARTS = ["linear", "norm", "dropout"]


class Holder(br.Module):
    child: br.Module

    def __call__(self, x):
        return self.child(x)


def refusal(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_every_part_that_is_called_is_captured_in_the_order_of_the_calls():
    captured = NET.capture(X, paths=["*"], rng=KEY, mode="train")
    blocks = [[*(f"blocks.{i}.{name}" for name in PARTS), f"blocks.{i}"] for i in range(2)]
    assert list(captured) == [*blocks[0], *blocks[1], ""]
    np.testing.assert_array_equal(captured["blocks.0"], captured["blocks.0.dropout"])
    np.testing.assert_array_equal(captured[""], jax.nn.relu(captured["blocks.1"]))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_what_is_captured_is_what_equinox_gives(mode):
    (model, state), keys = NET.native(), jax.random.split(KEY, 7)
    model = eqx.nn.inference_mode(model, mode == "eval")

    def own(x, state, key):
        block = model.blocks[0]
        x = block.linear(x)
        normed, state = block.norm(x, state)
        return (x, normed, block.dropout(normed, key=jax.random.split(key)[0])), state

    outs, _ = jax.vmap(own, (0, None, 0), (0, None), axis_name="batch")(X, state, keys)
    paths = [f"blocks.0.{name}" for name in PARTS]
    captured = NET.capture(X, paths=paths, rng=KEY, mode=mode)
    for path, out in zip(paths, outs, strict=True):
        np.testing.assert_array_equal(captured[path], out)


def test_it_works_deep_in_a_tree_and_under_jit_and_grad():
    path = "child.blocks.1.linear"
    captured = jax.jit(lambda module: module.capture(X, paths=[path]))(Holder(NET))
    np.testing.assert_allclose(
        captured[path], NET.capture(X, paths=["*"])["blocks.1.linear"], rtol=1e-6
    )
    grads = br.grad(lambda module: module.capture(X, paths=[path])[path].sum())(Holder(NET))
    assert grads.child.params.tree().blocks[1].linear.bias.tolist() == [7.0] * 5


def test_later_calls_are_numbered_and_other_methods_watched():
    captured = NET.capture(X, paths=["blocks.0.linear"], method="stem")
    linear = NET.native()[0].blocks[0].linear
    assert list(captured) == ["blocks.0.linear", "blocks.0.linear#2"]
    np.testing.assert_array_equal(captured["blocks.0.linear"], jax.vmap(linear)(X))


def test_a_path_of_no_part_is_refused_with_the_nearest():
    assert refusal(PathError, lambda: NET.capture(X, paths=["blocks.0.lines"])) == (
        "no module at 'blocks.0.lines' was called; the nearest are 'blocks.0.linear',"
        " 'blocks.1.linear', 'blocks.0.norm'"
    )


def test_capture_changes_neither_the_model_nor_its_program():
    def program(module):
        return module.apply(X, rng=KEY, mode="train")

    before = jax.jit(program).lower(NET).as_text()
    NET.capture(X, paths=["*"])
    assert jax.jit(program).lower(NET).as_text() == before
    assert type(NET.native()[0].blocks[0]) is Block


class Looks(eqx.Module):
    """Looks at its parts in every way that a model does."""

    parts: tuple
    bound: Callable
    shared: nn.Shared

    def __init__(self, key):
        first, second = nn.Linear(5, 5, key=key), nn.WeightNorm(nn.Linear(5, 5, key=key))
        self.parts = (first, second)
        self.bound = Named(first).run
        self.shared = nn.Shared((first, first), lambda p: p[1].weight, lambda p: p[0].weight)

    def __call__(self, x):
        first, second = self.parts
        if not (isinstance(first, nn.Linear) and isinstance(first, eqx.Module)):
            raise TypeError(type(first))
        changed = eqx.tree_at(lambda linear: linear.bias, first, jnp.zeros(first.out_features))
        arrays, static = eqx.partition(second, eqx.is_array)
        x = eqx.combine(arrays, static)(changed(x))
        tied, _ = self.shared()
        return tied(self.bound(x))


class Named(eqx.Module):
    linear: nn.Linear

    def run(self, x):
        return self.linear(x)


def test_parts_are_still_of_their_class_and_trees():
    model = Looks(KEY)
    module = br.from_equinox(model)
    captured = module.capture(X[0], paths=["*"])
    assert list(captured) == [
        "parts.0",
        "parts.1.layer",
        "parts.1",
        "bound.__self__.linear",
        "bound",
        "shared.pytree.0",
        "",
    ]
    np.testing.assert_array_equal(captured[""], model(X[0]))


class Inside(eqx.Module):
    """Calls one part inside a transform of its own, and another outside of it."""

    inner: nn.Linear
    outer: nn.Linear
    how: Callable

    def __call__(self, x):
        return self.outer(self.how(self.inner, x))


def scanned(part, x):
    return jax.lax.scan(lambda x, _: (part(x), None), x, None, length=2)[0]


def mapped(part, x):
    return eqx.filter_vmap(part)(jnp.stack([x, x]))[0]


def compiled(part, x):
    return eqx.filter_jit(lambda part, x: part(x))(part, x)


def saved(part, x):
    return eqx.filter_checkpoint(part)(x)


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("how", [scanned, mapped, compiled, saved])
def test_what_runs_in_a_transform_of_the_model_is_refused_and_what_is_beside_it_captured(how, vmap):
    linear = nn.Linear(5, 5, key=KEY)
    module = br.from_equinox(Inside(linear, linear, how), vmap=vmap)
    x = X if vmap else X[0]
    assert refusal(TraceError, lambda: module.capture(x, paths=["inner"])) == (
        "inner runs inside a JAX transform (scan, vmap, checkpoint) that was started during the call,"
        " where its output cannot be captured; return it instead"
    )
    np.testing.assert_array_equal(module.capture(x, paths=["outer"])["outer"], module(x))
