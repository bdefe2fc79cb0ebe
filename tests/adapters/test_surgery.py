"""Plain trees of wrapped models: taken apart, edited, grafted; and statistics across an axis."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import bridge as br
from tests.adapters.subjects import SUBJECTS, initialised, subject_of

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(7), (24, 3))


def equal(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(a is b for a, b in leaves)


@pytest.mark.parametrize("library", [name for name in SUBJECTS if name != "torch"])
def test_the_round_trip_is_exact(library):
    module = initialised(library)
    lazy = [subject_of(library).build()] if library in ("linen", "haiku") else []
    for form in (module, module.freeze().train(), *lazy):
        assert equal(br.from_tree(br.to_tree(form)), form)


def linear(library):
    """A layer from 3 to 5 of a library, and the names of its weight (as 'in out') and bias."""
    if library == "linen":
        layer = br.wrap(pytest.importorskip("flax.linen").Dense(5))
        return layer.init(KEY, X), "params.kernel", "params.bias", False
    if library == "nnx":
        nnx = pytest.importorskip("flax.nnx")
        return br.wrap(nnx.Linear(3, 5, rngs=nnx.Rngs(0))), "params.kernel", "params.bias", False
    if library == "haiku":
        layer = br.wrap(pytest.importorskip("haiku").Linear)(5)
        return layer.init(KEY, X), "params.linear.w", "params.linear.b", False
    if library == "equinox":
        layer = pytest.importorskip("equinox").nn.Linear(3, 5, key=KEY)
        return br.from_equinox(layer, vmap=True), "params.weight", "params.bias", True
    torch = pytest.importorskip("torch")
    return br.wrap(torch.nn.Linear(3, 5), torch.zeros(2, 3)), "weight", "bias", True


LIBRARIES = ("linen", "nnx", "haiku", "equinox", "torch")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_layer_keeps_its_weights_under_another_behaviour(library):
    layer, weight, bias, turned = linear(library)
    tree = br.to_tree(layer)
    assert set(tree["params"]) == {weight, bias}
    tree["params"][bias] = jnp.arange(5.0)

    def without_bias(tree, config, x):
        kernel = tree["params"][weight]
        return tree, config["times"] * x @ (kernel.T if turned else kernel)

    plain = br.from_tree(tree)
    tree["apply"] = without_bias
    cut = br.from_tree(tree, {"times": 1})
    np.testing.assert_allclose(plain(X) - cut(X), np.tile(np.arange(5.0), (24, 1)), atol=1e-5)
    assert cut.at[weight].get() is layer.at[weight].get()
    twice = cut.with_global_config(times=2).freeze(bias)
    np.testing.assert_allclose(twice(X), 2 * cut(X), rtol=1e-6)
    optimizer = br.Optimizer(optax.sgd(1.0)).init(twice)
    trained, _ = optimizer.step(br.grad(lambda module: module(X).sum())(twice), twice)
    slope = np.tile(2 * X.sum(0)[:, None], (1, 5))
    moved = cut.at[weight].get() - trained.at[weight].get()
    np.testing.assert_allclose(moved, slope.T if turned else slope, atol=1e-4)


class Seq(br.Module):
    layers: list[br.Module]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("library", LIBRARIES)
def test_layers_of_a_library_are_captured_cut_inserted_and_grafted(library):
    layer, weight, _, _ = linear(library)
    model = Seq([layer, jnp.tanh, jnp.negative])
    hidden = model.capture(X, paths=["layers.0"])["layers.0"]
    np.testing.assert_allclose(model(X), -jnp.tanh(hidden), rtol=1e-6)

    tree = br.to_tree(model)
    del tree["submodules"]["layers.1"]
    np.testing.assert_array_equal(br.from_tree(tree)(X), -hidden)

    def inserted(tree, config, x):
        parts = tree["submodules"]
        for name in ("layers.0", "between", "layers.2"):
            _, x = parts[name]["apply"](parts[name], config, x)
        return tree, x

    tree["apply"] = inserted
    tree["submodules"]["between"] = {"params": {"shift": 3.0}, "apply": shifted}
    np.testing.assert_allclose(br.from_tree(tree)(X), -(hidden + 3), rtol=1e-6)

    grafted = br.to_tree(Seq([jnp.negative]))
    grafted["submodules"]["layers.1"] = br.to_tree(model)["submodules"]["layers.0"]
    module = br.from_tree(grafted)
    np.testing.assert_array_equal(module(-X), hidden)
    assert module.at[f"layers.1.{weight}"].get() is layer.at[weight].get()


def shifted(tree, config, x):
    return tree, x + tree["params"]["shift"]


def test_a_part_of_a_captured_torch_model_is_replaced_in_its_tree():
    torch = pytest.importorskip("torch")
    trunk = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    model = br.from_torch(trunk, torch.zeros(2, 3), mode="eval")
    assert all(equal(br.from_tree(br.to_tree(form)), form) for form in (model, model.freeze("0")))
    hidden = model.capture(X, paths=["1"])["1"]
    tree = br.to_tree(model)
    tree["submodules"]["2"] = {"params": {"w": jnp.ones((5, 2))}, "apply": matmul}
    np.testing.assert_allclose(br.from_tree(tree)(X), hidden @ np.ones((5, 2)), rtol=1e-5)
    if importlib.util.find_spec("flax"):
        exported = br.to_linen(br.from_tree(tree))
        np.testing.assert_allclose(exported.apply(exported.init(KEY, X), X), br.from_tree(tree)(X))
    if importlib.util.find_spec("haiku"):
        import haiku as hk

        head = br.from_haiku(hk.Linear)(7).init(KEY, hidden)
        tree["submodules"]["2"] = br.to_tree(head)
        np.testing.assert_array_equal(br.from_tree(tree)(X), head(hidden))


def matmul(tree, config, x):
    return tree, x @ tree["params"]["w"]


class BatchNorm(br.Module):
    mean: br.State
    variance: br.State
    axis_name: str

    def __init__(self, axis_name):
        self.mean, self.variance, self.axis_name = jnp.zeros(3), jnp.ones(3), axis_name

    def __call__(self, x):
        mean = jax.lax.pmean(x.mean(0), self.axis_name)
        variance = jax.lax.pmean((x**2).mean(0), self.axis_name) - mean**2
        self.mean, self.variance = 0.9 * self.mean + 0.1 * mean, 0.9 * self.variance + 0.1 * variance
        return (x - mean) / jnp.sqrt(variance + 1e-5)


def normalised(tree, config, x):
    axis, old = config["batch_axis"], tree["buffers"]
    mean = jax.lax.pmean(x.mean(0), axis)
    variance = jax.lax.pmean((x**2).mean(0), axis) - mean**2
    new = {"mean": mean, "variance": variance}
    buffers = {name: 0.9 * old[name] + 0.1 * new[name] for name in old}
    return {"buffers": buffers}, (x - mean) / jnp.sqrt(variance + 1e-5)


def of_tree(axis):
    tree = {"buffers": {"mean": jnp.zeros(3), "variance": jnp.ones(3)}, "apply": normalised}
    return br.from_tree(tree, {"batch_axis": axis})


def of_linen(axis):
    nn = pytest.importorskip("flax.linen")
    return br.wrap(nn.BatchNorm(momentum=0.9, axis_name=axis)).init(KEY, X)


def of_nnx(axis):
    nnx = pytest.importorskip("flax.nnx")
    return br.wrap(nnx.BatchNorm(3, momentum=0.9, axis_name=axis, rngs=nnx.Rngs(0)))


def of_haiku(axis):
    hk = pytest.importorskip("haiku")
    norm = br.wrap(hk.BatchNorm)(False, False, 0.9, cross_replica_axis=axis)
    return jax.jit(jax.vmap(lambda x: norm.init(KEY, x), axis_name=axis, out_axes=None))(X[None])


NORMS = {
    "class": (BatchNorm, "mean", "variance"),
    "tree": (of_tree, "mean", "variance"),
    "linen": (of_linen, "state.batch_stats.mean", "state.batch_stats.var"),
    "nnx": (of_nnx, "state.batch_stats.mean", "state.batch_stats.var"),
    "haiku": (of_haiku, "state.batch_norm/~/mean_ema.hidden", "state.batch_norm/~/var_ema.hidden"),
}


def check(name, out, norm):
    want = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5)
    np.testing.assert_allclose(out.reshape(X.shape), want, atol=2e-5)
    _, mean, variance = NORMS[name]
    start = 0 if name == "haiku" else 0.9  # Haiku's hidden average begins at zero, and is debiased
    np.testing.assert_allclose(norm.at[mean].get().ravel(), 0.1 * X.mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.at[variance].get().ravel(), start + 0.1 * X.var(0), rtol=1e-5)


def train(module, x):
    return module.apply(x, mode="train")


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_across_a_vmapped_batch(name):
    module = NORMS[name][0]("batch")
    split = X.reshape(4, 6, 3)
    run = jax.vmap(train, (None, 0), (0, None), axis_name="batch")
    out, after = jax.jit(run)(module, split)
    check(name, out, after)
    assert jax.tree.structure(after) == jax.tree.structure(module)


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_across_a_sharded_batch(name):
    module = NORMS[name][0]("batch")
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
    run = jax.shard_map(train, mesh=mesh, in_specs=(P(), P("batch")), out_specs=(P("batch"), P()))
    out, after = jax.jit(run)(module, X)
    assert len(out.sharding.device_set) == 8
    check(name, out, after)


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_under_the_vmap_of_a_parent(name):
    class Split(br.Module):
        norm: br.Module

        def __call__(self, x):
            return br.vmap(self.norm, axis_name="batch")(x.reshape(4, 6, 3))

    module = Split(NORMS[name][0]("batch"))
    if name == "tree":
        module = module.with_global_config(batch_axis="batch")
    out, after = jax.jit(train)(module, X)
    check(name, out, after.norm)


@pytest.mark.parametrize("rate", [0.1, 0.25])
def test_the_gradient_of_a_step_with_respect_to_its_learning_rate(rate):
    class Line(br.Module):
        slope: br.Parameter

        def __call__(self, x):
            return (self.slope * x - 1) ** 2

    line = Line(2.0)
    optimizer = br.Optimizer(optax.inject_hyperparams(optax.sgd)(learning_rate=rate)).init(line)

    def after_one_step(rate):
        place = "opt_state.hyperparams.learning_rate"
        stepped, _ = optimizer.at[place].set(rate).step(line.grad(3.0), line)
        return stepped(3.0)

    # The slope after a step is s = 2 - 30 rate; the loss is (3 s - 1)^2, and ds/drate = -30.
    slope = 2 - 30 * rate
    value, meta = jax.jit(jax.value_and_grad(after_one_step))(rate)
    np.testing.assert_allclose([value, meta], [(3 * slope - 1) ** 2, -180 * (3 * slope - 1)], rtol=1e-5)


def chained(tree, config, x):
    for child in tree["submodules"].values():
        _, x = child["apply"](child, config, x)
    return tree, x * tree["params"]["scale"]


@pytest.mark.parametrize("library", ["linen", "haiku"])
def test_lazy_models_in_a_tree_by_hand_are_made_by_init_train_and_are_exported(library):
    if library == "linen":
        nn = pytest.importorskip("flax.linen")
        parts = {"fc": br.wrap(nn.Dense(5)), "norm": br.wrap(nn.BatchNorm(momentum=0.9))}
    else:
        hk = pytest.importorskip("haiku")
        parts = {"fc": br.wrap(hk.Linear)(5), "norm": br.wrap(hk.BatchNorm)(True, True, 0.9)}
    tree = {"params": {"scale": 2.0}, "apply": chained, "submodules": parts}
    module = br.from_tree(tree).init(KEY, X)
    out, after = jax.jit(train)(module, X)
    np.testing.assert_allclose(out.mean(0), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(out.std(0), np.full(5, 2), rtol=1e-3)
    assert jax.tree.structure(after) == jax.tree.structure(module.with_mode(None))
    assert any(a is not b for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(module), strict=True))
    grads = br.grad(lambda module: (train(module, X)[0] ** 2).sum())(module)
    np.testing.assert_allclose(grads.scale, (out**2).sum(), rtol=1e-5)  # 2 s^2 q, and s is 2
    if library == "linen":
        exported = br.to_linen(module)
        np.testing.assert_allclose(exported.apply(exported.init(KEY, X), X), module(X), rtol=1e-6)
