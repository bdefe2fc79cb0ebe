"""What JAXnet could do to the parameters of a model, for a model of any library, its code untouched.

Penalties on chosen parameters; weight norm, spectral norm, LoRA, fake quantisation and Bayes by
backprop as transforms of a few lines; first values that come from data; models of one example for a
batch. Each part ends with numbers that are known before.

    python examples/ancestors/reparametrisation.py
"""

from __future__ import annotations

import importlib.util

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bridge as br

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (32, 5))
TORCH = importlib.util.find_spec("torch") is not None


class Dense(br.Module):
    weight: br.Parameter
    bias: br.Parameter

    def __init__(self, inputs: int, outputs: int):
        self.weight = br.ParamInit((outputs, inputs), jax.nn.initializers.normal(1.0))
        self.bias = br.ParamInit((outputs,), jax.nn.initializers.zeros)

    def __call__(self, x):
        return x @ self.weight.T + self.bias


class MeanSquare(br.Module):
    network: br.Module

    def __call__(self, x, y):
        return jnp.mean((self.network(x) - y) ** 2)


class WeightNorm(br.Module):
    """A direction for each row, and its length as a parameter, which begins as it is."""

    length: br.Parameter = br.LAZY

    def __call__(self, weight):
        length = jnp.linalg.norm(weight, axis=1, keepdims=True)
        if self.initialising:
            self.fill(length=length)
        return self.length * weight / length


def spectral_norm(weight):
    return weight / jnp.linalg.norm(weight, 2)


class LoRA(br.Module):
    """A product of two thin matrices, added to a weight; nothing at the start."""

    rank: int
    down: br.Parameter = br.LAZY
    up: br.Parameter = br.LAZY

    def __call__(self, weight):
        if self.initialising:
            rows, columns = weight.shape
            self.fill(
                down=jax.random.normal(self.rng, (self.rank, columns)) / self.rank,
                up=jnp.zeros((rows, self.rank)),
            )
        return weight + self.up @ self.down


def four_bits(weight):
    """Each weight as one of 15 values; the gradient goes straight through."""
    step = jax.lax.stop_gradient(jnp.abs(weight).max() / 7)
    rounded = jnp.round(weight / step) * step
    return jax.lax.stop_gradient(rounded) + (weight - jax.lax.stop_gradient(weight))


class Gaussian(br.Module):
    """A weight drawn anew in each call in train mode; its mean in eval mode."""

    log_scale: br.Parameter = br.LAZY

    def __call__(self, mean):
        if self.initialising:
            self.fill(log_scale=jnp.full_like(mean, -2.0))
        if not self.training:
            return mean
        return mean + jnp.exp(self.log_scale) * jax.random.normal(self.rng, mean.shape)


class Standardised(br.Module):
    """Weight norm whose outputs on the first batch have mean 0 and variance 1."""

    weight: br.Parameter = br.ParamInit((5, 3), jax.nn.initializers.normal())
    gain: br.Parameter = br.LAZY
    bias: br.Parameter = br.LAZY

    def __call__(self, x):
        x = x @ (self.weight / jnp.linalg.norm(self.weight, axis=0))
        if self.initialising:
            self.fill(gain=1 / x.std(0), bias=-x.mean(0) / x.std(0))
        return self.gain * x + self.bias


def trained(module, loss, rate=0.05, steps=100):
    """The module after so many steps of Adam in one compiled loop; `loss` has a module and a key."""
    optimizer = br.Optimizer(optax.adam(rate)).init(module)

    def step(carry, key):
        module, optimizer = carry
        return optimizer.step(br.grad(loss)(module, key), module), None

    keys = jax.random.split(KEY, steps)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])((module, optimizer))[0]


def penalties():
    @br.parametrized
    def loss():
        ones, twos = jax.nn.initializers.ones, jax.nn.initializers.constant(2.0)
        return br.parameter((), ones, "a") + br.parameter((), twos, "b")

    loss = loss.init(KEY, method=lambda module: module())
    assert float(br.regularized(loss, lambda x: x * x)()) == 1 + 2 + 1 + 4
    assert float(br.regularized(loss, br.l2(2))()) == 1 + 2 + 1 + 4
    assert float(br.regularized(loss, br.l2(2), "b")()) == 1 + 2 + 4
    print("a loss of 3 with the squares of 1 and 2 as penalties is 8; with that of 2 alone 7")


def weight_norm():
    dense = Dense(5, 3).init(KEY)
    module = br.reparametrized(dense, WeightNorm(), "weight").init(KEY)
    module = module.at["transforms.weight.length"].apply(lambda length: 2 * length)
    np.testing.assert_allclose(module(X), 2 * dense(X), rtol=1e-5, atol=1e-5)
    grads = br.grad(lambda module: jnp.sum(module(X) ** 2))(module)
    direction, length = grads.module.weight, grads.transforms["weight"].length
    np.testing.assert_allclose(jnp.sum(direction * dense.weight, 1), 0, atol=2e-3)
    print("weight norm: the gradient of each direction is orthogonal to it")
    if TORCH:
        import torch

        linear = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3))
        with torch.no_grad():
            linear.parametrizations.weight.original1.copy_(torch.tensor(np.asarray(dense.weight)))
            linear.parametrizations.weight.original0.copy_(
                torch.tensor(np.asarray(module.at["transforms.weight.length"].get()))
            )
            linear.bias.zero_()
        (linear(torch.tensor(np.asarray(X))) ** 2).sum().backward()
        theirs = linear.parametrizations.weight
        np.testing.assert_allclose(direction, theirs.original1.grad, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(length, theirs.original0.grad, rtol=1e-3, atol=1e-3)
        print("both gradients are those of torch.nn.utils.parametrizations.weight_norm")


def largest_singular_value():
    module = br.reparametrized(Dense(5, 3).init(KEY), spectral_norm, "weight")
    values = np.linalg.svd(br.materialized(module).weight, compute_uv=False)
    np.testing.assert_allclose(values[0], 1, rtol=1e-5)
    print("spectral norm: the largest singular value is 1")


def low_rank(name, base, where):
    """Trains a LoRA of rank 2 on a frozen model; gives the model with the LoRA merged."""
    y = jnp.sin(X.sum(1, keepdims=True))
    run, square = jax.jit(lambda module: module(X)), jax.jit(lambda loss: loss(X, y))
    before = MeanSquare(br.reparametrized(base.freeze(), LoRA(2), where)).init(KEY)
    np.testing.assert_array_equal(run(before.network), run(base))
    after = trained(before, lambda loss, key: loss(X, y))
    assert square(after) < square(before) / 2
    jax.tree.map(np.testing.assert_array_equal, after.network.module, base.freeze())
    merged = br.materialized(after.network).unfreeze()
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(run(merged), run(after.network), rtol=1e-5, atol=1e-5)
    changes = [new - old for new, old in zip(*map(jax.tree.leaves, (merged, base)), strict=True)]
    ranks = [np.linalg.matrix_rank(change, 1e-4) for change in changes if change.ndim == 2]
    assert ranks == [2, 1]  # the last layer has one output, so its change has rank 1
    print(f"LoRA on {name}: the base is as it was, the change has rank 2, merged equals unmerged")
    return merged


def lora():
    def network(x):
        return hk.Sequential([hk.Linear(16), jnp.tanh, hk.Linear(1)])(x)

    base = jax.jit(br.from_haiku(network).init)(KEY, X)
    low_rank("Haiku", base, "*.w")
    if TORCH:
        import torch

        layers = torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        model = torch.nn.Sequential(*layers)
        merged = low_rank("PyTorch", br.from_torch(model, torch.ones(32, 5)), "*.weight")
        back = br.to_torch(merged, like=model)
        out = back(torch.tensor(np.asarray(X))).detach().numpy()
        np.testing.assert_allclose(out, jax.jit(merged)(X), rtol=1e-4, atol=1e-4)


def quantised():
    module = br.reparametrized(Dense(5, 300).init(KEY), four_bits, "weight")
    merged = br.materialized(module)
    assert len(np.unique(merged.weight)) <= 15
    of_sum = br.grad(lambda module: jnp.sum(module(X) ** 2))
    np.testing.assert_allclose(
        of_sum(module).module.weight, of_sum(merged).weight, rtol=1e-5, atol=1e-4
    )
    print("fake quantisation: at most 15 values, and the gradient is that of the rounded weights")


def bayes_by_backprop():
    noise = 0.5
    truth = jnp.array([1.0, -2.0, 0.5, 0.0, 3.0])
    y = X @ truth + noise * jax.random.normal(KEY, (32,))

    @br.parametrized
    def likelihood(x, y):
        weights = br.parameter((5,), jax.nn.initializers.zeros, "weights")
        return jnp.sum((x @ weights - y) ** 2) / (2 * noise**2)

    # The divergence from a standard normal: half a square of each mean, and this of each scale.
    def spread(log_scale):
        return jnp.sum(jnp.exp(2 * log_scale) / 2 - 0.5 - log_scale)

    loss = br.reparametrized(likelihood, Gaussian())
    loss = br.regularized(br.regularized(loss, br.l2(1), "module.*"), spread, "module.transforms.*")
    loss = loss.init(KEY, X, y)

    def bound(loss, key):
        draws = jax.random.split(key, 16)
        return jax.vmap(lambda key: loss.apply(X, y, rng=key, mode="train")[0])(draws).mean()

    after = trained(trained(loss, bound, 0.05, 400), bound, 0.002, 800)
    precision = np.eye(5) + np.asarray(X.T @ X) / noise**2
    mean = np.linalg.solve(precision, np.asarray(X.T @ y) / noise**2)
    found = after.module.module
    deviation = np.diag(precision) ** -0.5
    np.testing.assert_array_less(jnp.abs(found.module.weights - mean) / deviation, 0.3)
    np.testing.assert_allclose(found.transforms["weights"].log_scale, np.log(deviation), atol=0.1)
    assert float(after(X, y)) == float(after(X, y))
    print("Bayes by backprop: means and scales are those of the posterior in closed form")


def first_values_from_data():
    layer = Standardised().init(KEY, 3 + 2 * X)
    out = layer(3 + 2 * X)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(0), 1, rtol=1e-4)
    print("first values from data: outputs of mean 0 and variance 1")


def one_example_for_a_batch():
    single = br.Function(lambda x: x @ x)
    np.testing.assert_allclose(br.batched(single)(X), (X**2).sum(1), rtol=1e-5)
    print("a model of one example gives the squares of 32")


def main():
    penalties()
    weight_norm()
    largest_singular_value()
    lora()
    quantised()
    bayes_by_backprop()
    first_values_from_data()
    one_example_for_a_batch()


if __name__ == "__main__":
    main()
