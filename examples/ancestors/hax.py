"""What HAX could do: a model as a plain tree of dicts, open to surgery.

A node is a dict of params, buffers, aux, apply and submodules. Trees are written by hand, taken from
models of other libraries, edited and grafted. Each part ends with numbers that are known before.

    python examples/ancestors/hax.py
"""

from __future__ import annotations

import os

# Statistics are gathered from four devices; a CPU passes for as many as it is told to.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import bridge as br

KEY = jax.random.key(0)


def linear(tree, config, x):
    params = tree["params"]
    return tree, x @ params["weight"].T + params["bias"]


def batch_norm(tree, config, x):
    """BatchNorm as torch has it; `batch_axis` names the axis over which a batch is spread."""
    old, eps, rate = tree["buffers"], tree["aux"]["eps"], tree["aux"]["rate"]
    if not config["train_mode"]:
        return tree, (x - old["mean"]) / jnp.sqrt(old["variance"] + eps)
    mean, square, count = x.mean(0), (x**2).mean(0), len(x)
    if config["batch_axis"] is not None:
        mean, square = jax.lax.pmean((mean, square), config["batch_axis"])
        count *= jax.lax.axis_size(config["batch_axis"])
    variance = square - mean**2
    unbiased = variance * count / (count - 1)
    new = {"mean": mean, "variance": unbiased, "batches": old["batches"] + 1}
    kept = {name: (1 - rate) * old[name] + rate * new[name] for name in ("mean", "variance")}
    return {**tree, "buffers": {**new, **kept}}, (x - mean) / jnp.sqrt(variance + eps)


def chain(tree, config, x):
    for child in tree["submodules"].values():
        _, x = child["apply"](child, config, x)  # what the child writes is kept by itself
    return tree, x


def net():
    weight = jnp.array([[1.0, 0, 0], [0, 2.0, 0]])
    first = {"params": {"weight": weight, "bias": jnp.ones(2)}, "apply": linear}
    buffers = {"mean": jnp.zeros(2), "variance": jnp.ones(2), "batches": 0}
    norm = {"buffers": buffers, "aux": {"eps": 0.0, "rate": 0.5}, "apply": batch_norm}
    return {"apply": chain, "submodules": {0: first, 1: norm, 2: jax.nn.relu}}


CONFIG = {"train_mode": True, "batch_axis": None}


def a_tree_by_hand():
    module = br.from_tree(net(), CONFIG)
    x = jnp.array([[1.0, 5, 0], [3.0, 9, 0]])
    out, module = jax.jit(lambda module, x: module.apply(x))(module, x)
    # The linear layer gives (2, 11) and (4, 19): means 3 and 15, deviations 1 and 4.
    np.testing.assert_allclose(out, [[0, 0], [1, 1]])
    norm = module.at["1"].get()
    np.testing.assert_allclose(norm.mean, [1.5, 7.5])
    np.testing.assert_allclose(norm.variance, [1.5, 16.5])  # half of 1, and half of 2 and of 32
    evaluated = module.with_global_config(train_mode=False)
    np.testing.assert_allclose(
        evaluated(x)[1], [(4 - 1.5) / 1.5**0.5, (19 - 7.5) / 16.5**0.5], rtol=1e-6
    )
    print(module)
    print("a tree by hand trains and evaluates by the config that is bound to it")


def across_devices():
    module = br.from_tree(net(), {"train_mode": True, "batch_axis": "batch"})
    whole = br.from_tree(net(), CONFIG)
    x = jax.random.normal(KEY, (12, 3))
    want, after = whole.apply(x)
    run = jax.vmap(lambda m, x: m.apply(x), (None, 0), (0, None), axis_name="batch")
    out, mapped = run(module, x.reshape(4, 3, 3))
    np.testing.assert_allclose(out.reshape(12, 2), want, atol=1e-5)
    mesh = Mesh(jax.devices()[:4], ("batch",))
    specs = {"in_specs": (P(), P("batch")), "out_specs": (P("batch"), P())}
    run = jax.jit(jax.shard_map(lambda m, x: m.apply(x), mesh=mesh, **specs))
    out, sharded = run(module, x)
    np.testing.assert_allclose(out, want, atol=1e-5)
    hidden = np.asarray(x) @ np.array([[1.0, 0], [0, 2], [0, 0]]) + 1
    for moved in (after, mapped, sharded):
        np.testing.assert_allclose(moved.at["1"].get().mean, hidden.mean(0) / 2, atol=1e-6)
        variance = 0.5 + hidden.var(0, ddof=1) / 2
        np.testing.assert_allclose(moved.at["1"].get().variance, variance, rtol=1e-5)
    print("statistics of a batch on 4 devices are those of the whole batch")


class Model(br.Module):
    layers: list[br.Module]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def scaled(tree, config, x):
    kernel = tree["params"]["params.kernel"]
    return tree, config["scale"] * x @ kernel


def surgery():
    x = jax.random.normal(KEY, (5, 3))
    layers = [br.wrap(nn.Dense(7)), jnp.tanh, br.wrap(nn.Dense(2))]
    model = Model(layers).init(KEY, x)
    kernel = model.at["layers.0.params.kernel"].get()
    hidden = model.capture(x, paths=["layers.0"])["layers.0"]
    np.testing.assert_allclose(hidden, x @ kernel, rtol=1e-4, atol=1e-5)

    tree = br.to_tree(model)
    del tree["submodules"]["layers.1"]  # cut
    head = br.wrap(hk.Linear)(11).init(KEY, hidden)
    tree["submodules"]["layers.2"] = br.to_tree(head)  # a submodule of another library
    tree["submodules"]["layers.3"] = jnp.negative  # inserted
    first = tree["submodules"]["layers.0"]
    first["params"]["params.bias"] = jnp.ones(7)  # an array replaced
    np.testing.assert_allclose(br.from_tree(tree)(x), -head(hidden + 1), rtol=1e-4, atol=1e-5)

    first["apply"] = scaled  # another behaviour of the same weights
    module = br.from_tree(tree, {"scale": 2.0})
    np.testing.assert_allclose(module(x), -head(2 * hidden), rtol=1e-4, atol=1e-5)
    assert module.at["layers.0.params.kernel"].get() is kernel
    assert model(x).shape == (5, 2)
    print("the output of an intermediate layer, a cut, a graft, an insertion and another behaviour")


def add(tree, config, x):
    foo = tree["buffers"]["foo"] + x
    return {**tree, "buffers": {"foo": foo}}, foo


def later_reads():
    def forward(tree, config, x):
        child = tree["submodules"]["child"]
        child["apply"](child, config, x)
        first = child["buffers"]["foo"]
        child["apply"](child, config, 4.0)
        return tree, (first, child["buffers"]["foo"])

    child = {"buffers": {"foo": jnp.arange(1.0, 6)}, "apply": add}
    module = br.from_tree({"apply": forward, "submodules": {"child": child}})
    (first, second), module = module.apply(jnp.arange(1.0, 6))
    assert first.tolist() == [2, 4, 6, 8, 10]
    assert second.tolist() == module.child.foo.tolist() == [6, 8, 10, 12, 14]
    print("what a child writes is read later in the same forward:", second.tolist())


def by_assignments():
    builder = br.Builder("Net")
    builder.scale = jnp.array(2.0)
    builder.register_buffer("calls", 0)
    builder.rate, builder.act = 0.5, jax.nn.relu
    builder.fc = br.wrap(nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.rate * self.scale * self.act(self.fc(x))

    x = jnp.arange(3.0)
    module = builder.build(forward).init(KEY, x)
    out, module = module.apply(x)
    grads = br.grad(lambda module: module.apply(x)[0].sum())(module)
    assert (float(out[0]), int(module.calls), float(grads.scale)) == (3, 1, 1.5)
    assert len(jax.tree.leaves(module.parameters())) == 2
    print("a builder makes parameters of arrays, and of a number of Python none")


class Line(br.Module):
    slope: br.Parameter

    def __call__(self, x):
        return (self.slope * x - 1) ** 2


def learned_learning_rate():
    line = Line(2.0)
    optimizer = br.Optimizer(optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)).init(line)
    place = "opt_state.hyperparams.learning_rate"

    @jax.jit
    def meta(rate):
        def after_a_step(rate):
            stepped, _ = optimizer.at[place].set(rate).step(line.grad(3.0), line)
            return stepped(3.0)

        return jax.value_and_grad(after_a_step)(rate)

    # The slope after a step is s = 2 - 30 rate, and the loss (3 s - 1)^2 changes by -180 (3 s - 1).
    np.testing.assert_allclose(meta(jnp.array(0.0)), [25, -900], rtol=1e-6)
    rate = jnp.array(0.0)
    for _ in range(20):
        rate -= meta(rate)[1] / 16200  # its curvature: 2 * 90^2
    np.testing.assert_allclose(rate, 1 / 18, rtol=1e-4)
    np.testing.assert_allclose(meta(rate)[0], 0, atol=1e-6)
    print(f"gradient descent on the learning rate finds {float(rate):.4f}, one step from the optimum")


def main():
    a_tree_by_hand()
    across_devices()
    surgery()
    later_reads()
    by_assignments()
    learned_learning_rate()


if __name__ == "__main__":
    main()
