"""Recurrent layers: each layer and direction is one scan over an input that is projected beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

State = tuple[jax.Array, ...]
Draw = Callable[[str], jax.Array]


class Weights(NamedTuple):
    """The weights of one layer in one direction; the first axis of each but the last is ``gates``."""

    input: jax.Array
    hidden: jax.Array
    biases: State = ()
    """Of the input and of the hidden state, or none."""
    projection: jax.Array | None = None
    """``(projected, hidden)`` where an LSTM has a proj_size."""


class Kind(NamedTuple):
    """What tells one recurrent layer from another."""

    project: Callable[[jax.Array, Weights], jax.Array]
    """``(..., in)`` to what a step takes of the input, ``(..., gates)``."""
    step: Callable[[State, jax.Array, Weights], State]
    """The next state, its output first, from the state and the projected input."""


def _linear(x: jax.Array, weight: jax.Array, biases: State = ()) -> jax.Array:
    y = jnp.matmul(x, weight.T)
    return y + sum(biases[1:], biases[0]) if biases else y


def _project_all(x: jax.Array, weights: Weights) -> jax.Array:
    """The input's part of every gate, with both biases."""
    return _linear(x, weights.input, weights.biases)


def _project_input(x: jax.Array, weights: Weights) -> jax.Array:
    """The input's part of every gate, with its own bias: the GRU multiplies the other by a gate."""
    return _linear(x, weights.input, weights.biases[:1])


def _lstm_step(state: State, gates: jax.Array, weights: Weights) -> State:
    h, c = state
    # The gates are stacked as input, forget, cell, output: torch.nn.LSTM's docs, "Variables"
    i, f, g, o = jnp.split(gates + _linear(h, weights.hidden), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h if weights.projection is None else _linear(h, weights.projection)), c


def _gru_step(state: State, gates: jax.Array, weights: Weights) -> State:
    (h,) = state
    # The gates are stacked as reset, update, new: torch.nn.GRU's docs, "Variables"
    r_x, z_x, n_x = jnp.split(gates, 3, axis=-1)
    r_h, z_h, n_h = jnp.split(_linear(h, weights.hidden, weights.biases[1:]), 3, axis=-1)
    r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
    n = jnp.tanh(n_x + r * n_h)
    return ((h - n) * z + n,)


def _rnn_step(activation: Callable[[jax.Array], jax.Array]) -> Callable[..., State]:
    def step(state: State, gates: jax.Array, weights: Weights) -> State:
        return (activation(gates + _linear(state[0], weights.hidden)),)

    return step


LSTM = Kind(_project_all, _lstm_step)
GRU = Kind(_project_input, _gru_step)
TANH = Kind(_project_all, _rnn_step(jnp.tanh))
RELU = Kind(_project_all, _rnn_step(jax.nn.relu))


def _direction(
    kind: Kind, x: jax.Array, state: State, weights: Weights, reverse: bool
) -> tuple[Any, State]:
    """The outputs ``(time, batch, hidden)`` of one layer in one direction, and its last state."""

    def step(carry: State, gates: jax.Array) -> tuple[State, jax.Array]:
        carry = kind.step(carry, gates, weights)
        return carry, carry[0]

    last, outputs = lax.scan(step, state, kind.project(x, weights), reverse=reverse)
    return outputs, last


def _dropped(draw: Draw, x: jax.Array, rate: float) -> jax.Array:
    if rate == 1:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(draw("dropout"), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def _split(params: list[jax.Array], count: int, has_biases: bool) -> list[Weights]:
    """The weights of each layer and direction, of which there are ``count``."""
    each, biases = len(params) // count, 2 if has_biases else 0
    groups = [params[place : place + each] for place in range(0, len(params), each)]
    return [
        Weights(group[0], group[1], tuple(group[2 : 2 + biases]), *group[2 + biases :])
        for group in groups
    ]


def _layers(
    kind: Kind, draw: Draw, x: jax.Array, states: State, params: list[jax.Array], has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> State:  # fmt: skip
    """The outputs, then each part of the last states: ``(layers directions) batch hidden``."""
    directions = 2 if bidirectional else 1
    weights = _split(params, num_layers * directions, has_biases)
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    lasts: list[State] = []
    for layer in range(num_layers):
        if layer and train and dropout:
            x = _dropped(draw, x, dropout)
        outputs = []
        for place in range(layer * directions, (layer + 1) * directions):
            state = tuple(part[place] for part in states)
            output, last = _direction(kind, x, state, weights[place], reverse=place % directions == 1)
            outputs.append(output)
            lasts.append(last)
        x = jnp.concatenate(outputs, axis=-1) if bidirectional else outputs[0]
    y = jnp.swapaxes(x, 0, 1) if batch_first else x
    return (y, *(jnp.stack(parts) for parts in zip(*lasts, strict=True)))


def lstm(draw: Draw, x: jax.Array, states: list[jax.Array], *rest: Any) -> State:
    """Outputs, last hidden states and last cell states of an LSTM of several layers."""
    return _layers(LSTM, draw, x, tuple(states), *rest)


def _one_state(kind: Kind) -> Callable[..., State]:
    def layers(draw: Draw, x: jax.Array, state: jax.Array, *rest: Any) -> State:
        return _layers(kind, draw, x, (state,), *rest)

    return layers


def _cell_weights(
    w_ih: jax.Array, w_hh: jax.Array, b_ih: jax.Array | None = None, b_hh: jax.Array | None = None
) -> Weights:
    return Weights(w_ih, w_hh, tuple(bias for bias in (b_ih, b_hh) if bias is not None))


def lstm_cell(x: jax.Array, states: list[jax.Array], *rest: Any) -> State:
    """The next hidden state and cell state."""
    weights = _cell_weights(*rest)
    return LSTM.step(tuple(states), LSTM.project(x, weights), weights)


def _cell(kind: Kind) -> Callable[..., jax.Array]:
    def cell(x: jax.Array, state: jax.Array, *rest: Any) -> jax.Array:
        weights = _cell_weights(*rest)
        return kind.step((state,), kind.project(x, weights), weights)[0]

    return cell


ROWS: Mapping[str, Callable[..., Any]] = {
    "aten.lstm_cell.default": lstm_cell,
    "aten.gru_cell.default": _cell(GRU),
    "aten.rnn_tanh_cell.default": _cell(TANH),
    "aten.rnn_relu_cell.default": _cell(RELU),
}

DRAWING: Mapping[str, Callable[..., Any]] = {
    "aten.lstm.input": lstm,
    "aten.gru.input": _one_state(GRU),
    "aten.rnn_tanh.input": _one_state(TANH),
    "aten.rnn_relu.input": _one_state(RELU),
}
