"""Checkpoints of a run through Orbax: sharded, asynchronous, whole or not there."""

import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bridge as br

pytest.importorskip("orbax.checkpoint")

KEY = jax.random.key(0)
ADAM = optax.adamw(1e-2)


class Dense(br.Module):
    kernel: br.Parameter
    bias: br.Parameter
    calls: br.State

    def __init__(self, inputs, size):
        self.kernel = br.ParamInit((inputs, size), jax.nn.initializers.normal())
        self.bias = br.ParamInit((size,), jax.nn.initializers.normal())
        self.calls = 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return x @ self.kernel + self.bias


def mesh(*shape):
    kinds = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=kinds)


def placed(tree, sharding):
    """The tree with its matrices split as `sharding` says and all else on each device of its mesh."""

    def put(leaf):
        split = leaf.ndim == 2 and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        return jax.device_put(leaf, sharding if split else NamedSharding(sharding.mesh, P()))

    return jax.tree.map(put, tree)


def run_state(seed=0):
    module = br.tie(
        br.Sequential(Dense(8, 16), jnp.tanh, Dense(16, 16)).init(jax.random.key(seed)),
        "2.bias",
        "0.bias",
    ).freeze("2.kernel")
    optimizer = br.Optimizer(ADAM).init(module)
    return {"module": module, "optimizer": optimizer, "key": jax.random.key(seed + 1)}


@jax.jit
def trained(state):
    key, now = jax.random.split(state["key"])
    x = jax.random.normal(now, (4, 8))

    def loss(module):
        out, module = module.apply(x, mode="train")
        return (out**2).mean(), module

    (_, module), grads = br.value_and_grad(loss, has_aux=True)(state["module"])
    module, optimizer = state["optimizer"].step(grads, module)
    return {"module": module, "optimizer": optimizer, "key": key}


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


def sentence(call, *args):
    with pytest.raises(br.BridgeError) as caught:
        call(*args)
    return str(caught.value)


def test_a_run_on_one_mesh_goes_on_on_another_as_if_nothing_had_been(tmp_path):
    four, two = NamedSharding(mesh(2, 4), P("data", "model")), NamedSharding(mesh(2), P(None, "data"))
    state = trained(placed(run_state(), four))
    with br.Checkpoints(tmp_path) as run:
        run.save(1, state)
        expected = trained(trained(state))
        like = placed(run_state(seed=5), two)
        restored = run.restore(like)
        shapes = jax.eval_shape(run_state)
        anywhere = run.restore(shapes)
    equal(restored, state)
    equal(anywhere, state)
    kernel = restored["module"].at["0.kernel"].get()
    assert kernel.sharding == two
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 8)}
    after = trained(trained(restored))
    for ours, theirs in zip(
        jax.tree.leaves(after["module"]), jax.tree.leaves(expected["module"]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_is_saved_may_be_donated_at_once(tmp_path):
    state = {"module": Dense(97, 89).init(KEY)}
    kept = np.asarray(state["module"].kernel)
    advance = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with br.Checkpoints(tmp_path) as run:
        run.save(0, state)
        state = advance(state)
        assert not np.array_equal(state["module"].kernel, kept)
        np.testing.assert_array_equal(run.restore(state)["module"].kernel, kept)


def test_the_newest_are_kept_and_any_can_be_restored(tmp_path):
    with br.Checkpoints(tmp_path, keep=2) as run:
        for step in (3, 5, 7):
            run.save(step, jnp.full(2, step))
        assert run.steps == (5, 7)
    with br.Checkpoints(tmp_path) as again:
        np.testing.assert_array_equal(again.restore(jnp.zeros(2, int), step=5), [5, 5])
        np.testing.assert_array_equal(again.restore(jnp.zeros(2, int)), [7, 7])


def test_the_names_are_the_paths_and_serve_as_weights(tmp_path):
    module = Dense(3, 5).init(KEY)
    with br.Checkpoints(tmp_path) as run:
        run.save(0, module)
    loaded = br.load_state_dict(
        Dense(3, 5).init(jax.random.key(1)), tmp_path / "0" / "arrays", strict=False
    )
    equal(loaded, module)


KILLED = """
import os, signal, sys
import jax, jax.numpy as jnp
import bridge as br

run = br.Checkpoints(sys.argv[1])
run.save(0, {"weights": jnp.arange(5.0)})
run.wait()
run.save(1, {"weights": jnp.ones((4096, 8192))})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert [path for path in Path(tmp_path).iterdir() if path.name.startswith("1")], "nothing was begun"
    with br.Checkpoints(tmp_path) as run:
        assert run.steps == (0,)
        np.testing.assert_array_equal(run.restore({"weights": jnp.zeros(5)})["weights"], np.arange(5))
        run.save(1, {"weights": jnp.ones(5)})
        assert run.steps == (0, 1)


def test_what_cannot_be_saved_or_restored_is_a_sentence(tmp_path):
    with br.Checkpoints(tmp_path) as run:
        assert sentence(run.restore, jnp.zeros(2)) == (
            f"{tmp_path} has no checkpoint; the steps that are there: none"
        )
        run.save(3, {"a": jnp.zeros(2)})
        assert sentence(run.save, 3, {"a": jnp.zeros(2)}) == (
            f"{tmp_path} has a checkpoint of step 3, and nothing was saved; give the next step, or"
            " another folder"
        )
        assert sentence(run.restore, {"a": jnp.zeros(2)}, 5) == (
            f"{tmp_path} has no checkpoint of step 5; the steps that are there: 3"
        )
        text = sentence(run.restore, {"a": jnp.zeros(3), "b": jnp.zeros(2)})
        assert text.startswith(
            f"step 3 in {tmp_path} does not fit like, and nothing was loaded:\n"
            "  a: the file has float32[2], like has float32[3]\n"
            "  b: the file has nothing there, like has float32[2]"
        )
        assert sentence(run.save, 4, Dense(3, 5)).startswith(
            f"step 4 in {tmp_path} was not written; these cannot be saved:\n  kernel: it is not init"
        )
        assert run.steps == (3,)


def test_without_orbax_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert sentence(br.Checkpoints, tmp_path) == (
        'bridge.Checkpoints needs orbax-checkpoint. Install it with: pip install "bridge-jax[orbax]"'
    )


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder, reason in (("file/run", "Not a directory"), ("file", "File exists")):
        text = sentence(br.Checkpoints, tmp_path / folder)
        assert text == f"{tmp_path / folder} cannot be a folder of checkpoints: {reason}"
