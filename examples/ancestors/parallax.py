"""What Parallax could do: immutable layers whose parameters, keys and mode go through the tree.

Layers are declared and made later; a new key each step comes in by `new_state`; the gradient of a layer
is a tree like its parameters, and so is the update. Each part ends with numbers that are known before.

    python examples/ancestors/parallax.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import bridge as br

KEY = jax.random.key(0)
glorot, zeros = jax.nn.initializers.glorot_normal(), jax.nn.initializers.zeros


class Dense(br.Module):
    weight: br.Parameter
    bias: br.Parameter
    sizes: tuple

    def __init__(self, inputs: int, outputs: int):
        self.weight = br.ParamInit((inputs, outputs), glorot)
        self.bias = br.ParamInit((outputs,), zeros)
        self.sizes = (inputs, outputs)

    def forward(self, x):
        return x @ self.weight + self.bias

    def extra_repr(self):
        return f"{self.sizes[0]}, {self.sizes[1]}"


class Dropout(br.Module):
    rate: float  # the probability to drop

    def forward(self, x):
        if self.mode == "eval":
            return x
        kept = jax.random.bernoulli(self.rng, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


class Network(br.Module):
    first: br.Module
    dropout: br.Module
    again: br.Module
    last: br.Module

    def __init__(self, inputs: int, width: int):
        self.first, self.again, self.last = Dense(inputs, width), Dense(width, width), Dense(width, 1)
        self.dropout = Dropout(0.1)

    def forward(self, x):
        x = self.dropout(jnp.tanh(self.first(x)))
        x = jnp.tanh(self.again(jnp.tanh(self.again(x))))  # one layer, called twice
        return self.last(x)[..., 0]


class Loss(br.Module):
    network: br.Module

    def forward(self, x, y):
        return jnp.mean((self.network(x) - y) ** 2)


class LSTMCell(br.Module):
    gates: br.Module

    def __init__(self, inputs: int, size: int):
        self.gates = Dense(inputs + size, 4 * size)

    def forward(self, x, state):
        hidden, cell = state
        into, forget, new, out = jnp.split(self.gates(jnp.concatenate([x, hidden])), 4)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
        hidden = jax.nn.sigmoid(out) * jnp.tanh(cell)
        return hidden, (hidden, cell)


class LSTM(br.Module):
    """Several layers, each with a learned initial state."""

    cells: tuple[br.Module, ...]
    starts: br.Parameter

    def __init__(self, inputs: int, size: int, layers: int):
        self.cells = tuple(LSTMCell(size if number else inputs, size) for number in range(layers))
        start = br.ParamInit((size,), zeros)
        self.starts = tuple((start, start) for _ in range(layers))

    def step(self, states, x):
        after = []
        for cell, state in zip(self.cells, states, strict=True):
            x, state = cell(x, state)
            after.append(state)
        return tuple(after), x

    def forward(self, sequence):
        return jax.lax.scan(self.step, self.starts, sequence)[1]


def declared_and_made_later():
    dense = Dense(5, 10)
    print(dense)
    dense = dense.initialized(KEY)
    print(dense)
    x = jnp.arange(5.0)
    grads = Loss(dense.at["bias"].set(jnp.ones(10))).grad(x, jnp.zeros(10)).network
    out = x @ dense.weight + 1
    np.testing.assert_allclose(grads.bias, out / 5, rtol=1e-5)
    np.testing.assert_allclose(grads.weight, jnp.outer(x, out / 5), rtol=1e-5)
    print("the gradient of a mean of squares is 2/10 of the outputs, times the inputs for the weight")


def keys_for_copies():
    dropout = Dropout(0.5).new_state(KEY, mode="train")
    copies = dropout.split(3)
    masks = np.stack([copy.apply(jnp.ones(1000))[0] for copy in copies])
    assert not (masks[0] == masks[1]).all()
    assert not (masks[1] == masks[2]).all()
    assert {*masks.ravel()} == {0, 2}
    print(f"of three copies with keys of their own, {(masks > 0).mean():.0%} of the numbers are kept")


def the_loop():
    x = jax.random.normal(jax.random.key(1), (256, 3))
    y = jnp.sin(x).sum(1)
    loss = Loss(Network(3, 16)).initialized(KEY)
    compilations = 0

    @jax.jit
    def step(loss, key):
        nonlocal compilations
        compilations += 1
        loss = loss.new_state(key, mode="train")
        grads = loss.grad(x, y)
        params = jax.tree.map(lambda old, slope: old - 0.1 * slope, loss.parameters(), grads)
        return loss.update(params)

    before = float(loss(x, y))
    for number in range(300):
        loss = step(loss, jax.random.fold_in(KEY, number))
    after = float(loss.eval()(x, y))
    print(f"loss {before:.3f} before and {after:.3f} after 300 steps, {compilations} compilations")
    assert after < before / 2
    assert compilations <= 2


def states_that_are_learned():
    lstm = LSTM(3, 7, layers=2).initialized(KEY)
    sequences = jax.random.normal(KEY, (5, 11, 3))
    out = jax.vmap(lstm)(sequences)
    assert out.shape == (5, 11, 7)
    alone = jnp.stack([lstm(sequence) for sequence in sequences])
    np.testing.assert_allclose(out, alone, rtol=1e-5, atol=1e-6)
    # With weights of zero each gate is half open and nothing new comes in: a cell halves at each step.
    still = lstm.update(jax.tree.map(jnp.zeros_like, lstm.parameters()))
    still = still.at["starts.1.1"].set(jnp.ones(7))
    expected = 0.5 * np.tanh(0.5 ** np.arange(1, 12))
    np.testing.assert_allclose(still(sequences[0]), np.tile(expected[:, None], 7), rtol=1e-5)
    print("an LSTM whose weights are zero halves the cell that it starts with at each step")


def main():
    declared_and_made_later()
    keys_for_copies()
    the_loop()
    states_that_are_learned()


if __name__ == "__main__":
    main()
