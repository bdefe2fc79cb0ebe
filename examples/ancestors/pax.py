"""What Pax could do: parameters and states in one object, which training takes apart and puts together.

A module that counts, one of Haiku with and without an example of its inputs, an optimizer written by
hand, fine-tuning, and half precision by a policy. Each part ends with numbers that are known before.

    python examples/ancestors/pax.py
"""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import numpy as np
import optax

import bridge as br
from bridge.adapters import haiku as layers

KEY = jax.random.key(0)


class Counter(br.Module):
    count: br.State
    bias: br.Parameter = 0.0

    def __call__(self, x):
        self.count = self.count + 1
        return self.count * x + self.bias


def a_counter():
    counter, x = Counter(3), jnp.array(10.0)

    def loss_of(params, counter, x):
        y, counter = counter.update(params).apply(x)
        return (y - x) ** 2, counter

    (loss, after), grads = jax.value_and_grad(loss_of, has_aux=True)(counter.parameters(), counter, x)
    assert (float(loss), float(grads.bias), grads.count) == (900, 60, None)
    assert (int(after.count), int(counter.count)) == (4, 3)

    optimizer = br.Optimizer(optax.sgd(0.1)).init(after)
    after, optimizer = optimizer.step(grads, after)
    assert float(after.bias) == -6
    fresh = Counter(0).update(after.states())
    assert (int(fresh.count), float(fresh.bias)) == (4, 0)
    print("loss 900, gradient 60 and None, the counter at 4, the old one at 3, the bias at -6")


def a_haiku_lstm():
    x = jnp.ones((2, 3))
    lstm = br.from_haiku(hk.LSTM)(7)
    lstm = lstm.init(KEY, x, lstm.initial_state(2))
    sized = layers.lstm(3, 7).init(KEY)  # no example: its sizes are given
    jax.tree.map(np.testing.assert_array_equal, sized.parameters(), lstm.parameters())

    # With weights of zero a cell keeps sigmoid(1) of itself at each step: Haiku adds 1 to that gate.
    lstm = lstm.update(jax.tree.map(jnp.zeros_like, lstm.parameters()))
    state = hk.LSTMState(jnp.zeros((2, 7)), jnp.ones((2, 7)))
    call = jax.jit(lambda lstm, x, state: lstm(x, state))
    for step in range(1, 4):
        out, state = call(lstm, x, state)
        cell = (1 / (1 + np.exp(-1))) ** step
        np.testing.assert_allclose(out, np.full((2, 7), 0.5 * np.tanh(cell)), rtol=1e-5)
    print("an LSTM of given sizes starts as the one that saw an example")


class Momentum(br.Module):
    """SGD with momentum, by hand."""

    velocity: br.State
    rate: float
    decay: float

    def __call__(self, grads, module):
        self.velocity = jax.tree.map(lambda v, g: self.decay * v + g, self.velocity, grads)
        params = jax.tree.map(lambda p, v: p - self.rate * v, module.parameters(), self.velocity)
        return module.update(params)


class Network(br.Module):
    trunk: list[br.Module]
    head: br.Module

    def __call__(self, x):
        for layer in self.trunk:
            x = layer(x)
        return self.head(x)


def network(classes):
    trunk = [layers.linear(5, 11), layers.batch_norm(11, "NC"), jax.nn.relu]
    return Network(trunk, layers.linear(11, classes))


def squares(module, x, y):
    out, module = module.apply(x, mode="train")
    return ((out - y) ** 2).mean(), module


def an_optimizer_by_hand():
    gradient = jax.jit(br.grad(lambda net, x: squares(net, x, 0.0)[0]))
    x = jax.random.normal(KEY, (13, 5))
    net = optaxed = jax.jit(network(3).init)(KEY)
    by_hand = Momentum(jax.tree.map(jnp.zeros_like, net.parameters()), 0.1, 0.5)
    from_optax = br.Optimizer(optax.sgd(0.1, momentum=0.5)).init(net)
    for _ in range(3):
        net, by_hand = by_hand.apply(gradient(net, x), net)
        optaxed, from_optax = from_optax.step(gradient(optaxed, x), optaxed)
    for one, other in zip(jax.tree.leaves(net), jax.tree.leaves(optaxed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)

    # A gradient of 1 at each step: velocities 1, 1.5, 1.75, and 0.1 times their sum to go.
    counter = Counter(0)
    by_hand = Momentum(jax.tree.map(jnp.zeros_like, counter.parameters()), 0.1, 0.5)
    for _ in range(3):
        ones = jax.tree.map(jnp.ones_like, counter.parameters())
        counter, by_hand = by_hand.apply(ones, counter)
    np.testing.assert_allclose(counter.bias, -0.425, rtol=1e-6)
    print("SGD with momentum by hand is that of optax")


def fine_tuning():
    @jax.jit
    def step(module, optimizer, x, y):
        (loss, module), grads = br.value_and_grad(squares, has_aux=True)(module, x, y)
        return *optimizer.step(grads, module), loss

    x = jax.random.normal(KEY, (13, 5))
    _, trained = jax.jit(lambda net: net.init(KEY).apply(x, mode="train"))(network(3))
    net = trained.replace(head=layers.linear(11, 2)).init(KEY)
    net = net.freeze("trunk").at["trunk.*"].apply(lambda layer: layer.eval())
    print(net.summary())
    optimizer = br.Optimizer(optax.adam(0.03)).init(net)
    losses = []
    for _ in range(100):
        net, optimizer, loss = step(net, optimizer, x, jnp.sin(x[:, :2]))
        losses.append(float(loss))
    for old, new in zip(jax.tree.leaves(trained.trunk), jax.tree.leaves(net.trunk), strict=True):
        np.testing.assert_array_equal(old, new)
    assert losses[-1] < losses[0] / 2
    thawed = net.map(lambda part: part.unfreeze().with_mode(None))
    assert jax.tree.structure(thawed.trunk) == jax.tree.structure(trained.trunk)
    print(f"loss {losses[0]:.2f} before and {losses[-1]:.2f} after; no bit of the trunk moved")


def half_precision():
    policy = jmp.get_policy("params=float32,compute=bfloat16,output=float32")
    linear = layers.linear(3, 2).init(KEY)
    linear = linear.update(jax.tree.map(lambda leaf: jnp.full_like(leaf, 1.001), linear.parameters()))
    half, x = br.with_policy(linear, policy), jnp.ones((1, 3))
    np.testing.assert_allclose(linear(x), 4.004, rtol=1e-6)
    np.testing.assert_array_equal(half(x), 4.0)  # 1.001 is 1 in bfloat16, and there are four of it
    grads = br.grad(lambda module: module(x).sum())(half).module
    assert {leaf.dtype.name for leaf in jax.tree.leaves((half, grads, half(x)))} == {"float32"}
    print("4.004 is 4 in bfloat16; parameters, gradients and outputs stay float32")


def main():
    a_counter()
    a_haiku_lstm()
    an_optimizer_by_hand()
    fine_tuning()
    half_precision()


if __name__ == "__main__":
    main()
