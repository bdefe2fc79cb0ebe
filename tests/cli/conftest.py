"""A folder with models and files of weights, and the command line in it."""

import sys

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tests.weights.files.torch_files import mapping, tensor, whole, zipped

ZOO = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
import bridge as br


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(epsilon=1e-5)(nn.Dense(7)(x))
        return nn.Dense(3)(x)


lazy = Net()
number = 3


def net():
    print("building the net")
    return br.from_linen(lazy).init(jax.random.key(0), jnp.ones((2, 5)))


def loaded():
    return br.load_state_dict(net(), "net.safetensors")


def rows():
    return (np.ones((2, 5), np.float32),)


def broken():
    raise ValueError("seven is no size")


def torch_net():
    import torch

    layers = torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3)
    model = torch.nn.Sequential(*layers)
    state = br.weights.sources.open_source("net.safetensors").tensors
    model.load_state_dict({key: torch.from_numpy(one.read()) for key, one in state.items()})
    return model
"""
SHAPES = {
    "0.weight": (7, 5),
    "0.bias": (7,),
    "1.weight": (7,),
    "1.bias": (7,),
    "2.weight": (3, 7),
    "2.bias": (3,),
}


def state():
    """The weights of the zoo's net."""
    random = np.random.default_rng(0)
    return {key: random.standard_normal(shape, np.float32) for key, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that commands run in: it has zoo.py and net.safetensors."""
    (tmp_path / "zoo.py").write_text(ZOO)
    save_file(state(), tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("zoo", None)


@pytest.fixture
def bridge(folder):
    """Runs a command; gives its exit code, and what it wrote to stdout and to stderr."""
    from bridge.cli.app import app

    def run(*arguments):
        done = CliRunner().invoke(app, [str(one) for one in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture
def tied(folder):
    """A file of torch.save with `head` and `table` as one array, beside an optimizer's state."""
    matrix = np.arange(15, dtype=np.float32)
    inner = mapping(head=tensor(), table=tensor(), last=tensor(shape=(5,), strides=(1,), offset=5))
    path = folder / "tied.pt"
    return zipped(path, whole(mapping(model=inner, optimizer=mapping())), {"0": matrix.tobytes()})
