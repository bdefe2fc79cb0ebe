"""Recurrent networks of several layers and both directions: a cell for each, loaded from one module."""

import jax
import numpy as np
import pytest
import torch

import bridge as br

BOTH = ("l0", "l0_reverse", "l1", "l1_reverse")


def network(kind, **options):
    torch.manual_seed(0)
    return getattr(torch.nn, kind)(5, 7, 2, batch_first=True, **options)


def sequence():
    return np.random.default_rng(0).normal(size=(3, 11, 5)).astype(np.float32)


def loaded_output(module, source, rename=None):
    module = module.init(jax.random.key(0), sequence())
    for weights in (source, source.state_dict()):
        loaded = br.load_state_dict(module, weights, rename=rename)
        out = jax.jit(lambda module, x: module.apply(x)[0])(loaded, sequence())
        expected = source(torch.from_numpy(sequence()))[0].detach().numpy()
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_of_linen(kind):
    nn = pytest.importorskip("flax.linen")
    cell = {"LSTM": nn.OptimizedLSTMCell, "GRU": nn.GRUCell, "RNN": nn.SimpleCell}[kind]
    module = br.from_linen(nn.Sequential([nn.RNN(cell(7)), nn.RNN(cell(7))]))
    loaded_output(module, network(kind))


def test_layers_of_nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    cells = [nnx.OptimizedLSTMCell(size, 7, rngs=rngs) for size in (5, 7)]
    module = br.from_nnx(nnx.Sequential(*(nnx.RNN(cell, rngs=rngs) for cell in cells)))
    loaded_output(module, network("LSTM"))


def test_layers_of_haiku():
    hk = pytest.importorskip("haiku")

    def run(x):
        core = hk.DeepRNN([hk.LSTM(7), hk.LSTM(7)])
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)[0]

    loaded_output(br.from_haiku(run), network("LSTM"), {"l0": "lstm", "l1": "lstm_1"})


def test_layers_of_equinox():
    eqx = pytest.importorskip("equinox")

    class Network(eqx.Module):
        cells: list

        def __call__(self, x):
            for cell in self.cells:
                x = jax.lax.scan(lambda h, x, cell=cell: (cell(x, h),) * 2, np.zeros(7, np.float32), x)[
                    1
                ]
            return x

    keys = jax.random.split(jax.random.key(0))
    cells = [eqx.nn.GRUCell(n, 7, key=key) for n, key in zip((5, 7), keys, strict=True)]
    loaded_output(br.from_equinox(Network(cells), vmap=True), network("GRU"))


def test_both_directions_are_told_apart_by_their_names():
    nn = pytest.importorskip("flax.linen")
    both = [nn.Bidirectional(*(nn.RNN(nn.LSTMCell(7)) for _ in range(2))) for _ in range(2)]
    module = br.from_linen(nn.Sequential(both))
    initialised = module.init(jax.random.key(0), sequence())
    cells = [layer.path for layer in initialised.layers()]
    names = dict.fromkeys(".".join(path[:-1]) for path in cells if path[-1] == "hi")
    rename = dict(zip(BOTH, names, strict=True))
    loaded_output(module, network("LSTM", bidirectional=True), rename)


def test_gates_that_are_stacked_as_torch_has_them_are_one_line_of_the_plan():
    eqx = pytest.importorskip("equinox")
    nn = pytest.importorskip("flax.linen")
    source = torch.nn.LSTMCell(5, 7)
    cell = br.from_equinox(eqx.nn.LSTMCell(5, 7, key=jax.random.key(0)))
    pairs = br.match(cell, source).pairs
    assert [(pair.key, str(pair.translation)) for pair in pairs] == [
        ("weight_ih", "(parts hidden) in"),
        ("weight_hh", "(parts hidden) state"),
        ("bias_ih", "(parts hidden)"),
        ("bias_hh", "(parts hidden)"),
    ]
    x, h = np.zeros((3, 5), np.float32), np.zeros((3, 7), np.float32)
    apart = br.from_linen(nn.LSTMCell(7)).init(jax.random.key(0), (h, h), x)
    assert len(br.match(apart, source).pairs) == 16
