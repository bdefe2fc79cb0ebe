"""A small torch net for the behaviours that every adapter has."""

from collections.abc import Callable

import jax
import torch

import bridge as br
from tests.adapters.subjects import Subject

INPUTS = jax.random.normal(jax.random.key(3), (7, 3, 13))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 5, 3, padding=1)
        self.norm = torch.nn.BatchNorm1d(5)
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(5, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(torch.relu(self.norm(self.conv(x))))
        return self.head(x.mean(2))


def made(build: Callable[[], torch.nn.Module], *sizes: int) -> br.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return br.from_torch(build(), torch.zeros(sizes))


def block() -> br.Module:
    def build() -> torch.nn.Module:
        norm, drop = torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5)
        return torch.nn.Sequential(torch.nn.Linear(5, 5), norm, torch.nn.ReLU(), drop)

    return made(build, 7, 5)


def subject() -> Subject:
    """No `native`: torch does not compute bit for bit as XLA; test_torch.py compares the two."""
    return Subject(library="torch", build=lambda: made(Net, 7, 3, 13), block=block, inputs=INPUTS)
