"""Recurrent networks in each library, of as many layers and directions as a torch.nn one, as Modules.

Each keeps a cell under torch's suffix for it, `l1_reverse`, and is called with a sequence, as (batch
time features), and with the first state of each cell, as (batch features).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

import bridge as br


def names_of(network: torch.nn.RNNBase) -> list[list[str]]:
    """The names of the cells of each layer, its direction back in time last."""
    directions = ("", "_reverse") if network.bidirectional else ("",)
    return [[f"l{layer}{way}" for way in directions] for layer in range(network.num_layers)]


def network_in(library: str, network: torch.nn.RNNBase) -> Any:
    """The Module of a library that is a stack of its own cells, as a torch.nn network is one."""
    return BUILDERS[library](type(network).__name__, network, names_of(network))


def _unrolled(
    names: Sequence[Sequence[str]], run: Callable[..., Any], x: jax.Array, states: Any
) -> jax.Array:
    """The outputs of the last layer; `run` gives those of one cell, from a sequence and a state."""
    for layer in names:
        x = jnp.concatenate([run(name, x, states[name]) for name in layer], -1)
    return x


def _back(name: str) -> bool:
    return name.endswith("_reverse")


def _linen(kind: str, network: torch.nn.RNNBase, names: list[list[str]]) -> Any:
    import flax.linen as nn

    cell = {
        "LSTM": lambda name: nn.OptimizedLSTMCell(network.hidden_size, name=name),
        "GRU": lambda name: nn.GRUCell(network.hidden_size, name=name),
        "RNN": lambda name: nn.SimpleCell(
            network.hidden_size, activation_fn=getattr(jax.nn, network.nonlinearity), name=name
        ),
    }[kind]

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, states: Any) -> jax.Array:
            def run(name: str, x: jax.Array, state: Any) -> jax.Array:
                layer = nn.RNN(cell(name), reverse=_back(name), keep_order=True)
                return layer(x, initial_carry=state[::-1] if kind == "LSTM" else state)

            return _unrolled(names, run, x, states)

    return br.from_linen(Stack())


def _nnx(kind: str, network: torch.nn.RNNBase, names: list[list[str]]) -> Any:
    from flax import nnx

    rngs, size = nnx.Rngs(0), network.hidden_size
    cell = {
        "LSTM": lambda inputs: nnx.OptimizedLSTMCell(inputs, size, rngs=rngs),
        "GRU": lambda inputs: nnx.GRUCell(inputs, size, rngs=rngs),
        "RNN": lambda inputs: nnx.SimpleCell(
            inputs, size, activation_fn=getattr(jax.nn, network.nonlinearity), rngs=rngs
        ),
    }[kind]

    class Stack(nnx.Module):
        def __init__(self) -> None:
            for number, layer in enumerate(names):
                for name in layer:
                    inputs = size * len(layer) if number else network.input_size
                    back = {"reverse": _back(name), "keep_order": True}
                    setattr(self, name, nnx.RNN(cell(inputs), rngs=rngs, **back))

        def __call__(self, x: jax.Array, states: Any) -> jax.Array:
            def run(name: str, x: jax.Array, state: Any) -> jax.Array:
                carry = state[::-1] if kind == "LSTM" else state
                return getattr(self, name)(x, initial_carry=carry)

            return _unrolled(names, run, x, states)

    return br.from_nnx(Stack())


def _haiku(kind: str, network: torch.nn.RNNBase, names: list[list[str]]) -> Any:
    import haiku as hk

    def stack(x: jax.Array, states: Any) -> jax.Array:
        def run(name: str, x: jax.Array, state: Any) -> jax.Array:
            core = getattr(hk, {"RNN": "VanillaRNN"}.get(kind, kind))(network.hidden_size, name=name)
            first = hk.LSTMState(*state) if kind == "LSTM" else state
            return hk.dynamic_unroll(core, x, first, time_major=False, reverse=_back(name))[0]

        return _unrolled(names, run, x, states)

    return br.from_haiku(stack)


def _equinox(kind: str, network: torch.nn.RNNBase, names: list[list[str]]) -> Any:
    import equinox as eqx

    size, key = network.hidden_size, jax.random.key(0)
    make = {"LSTM": eqx.nn.LSTMCell, "GRU": eqx.nn.GRUCell}[kind]

    class Stack(eqx.Module):
        cells: dict[str, Any]

        def __call__(self, x: jax.Array, states: Any) -> jax.Array:
            def run(name: str, x: jax.Array, state: Any) -> jax.Array:
                def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
                    state = self.cells[name](x, state)
                    return state, state[0] if kind == "LSTM" else state

                return jax.lax.scan(step, state, x, reverse=_back(name))[1]

            return _unrolled(names, run, x, states)

    cells = {
        name: make(
            size * len(layer) if number else network.input_size, size, use_bias=network.bias, key=key
        )
        for number, layer in enumerate(names)
        for name in layer
    }
    return br.from_equinox(Stack(cells), vmap=True)


BUILDERS: dict[str, Callable[..., Any]] = {
    "linen": _linen,
    "nnx": _nnx,
    "haiku": _haiku,
    "equinox": _equinox,
}
