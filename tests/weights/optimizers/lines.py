"""A linear layer, its torch twin and torch optimizers that have made some steps with it."""

import functools

import jax.numpy as jnp
import pytest
import torch

import bridge as br


class Line(br.Module):
    weight: br.Parameter
    bias: br.Parameter

    def __init__(self):
        self.weight, self.bias = jnp.zeros((5, 3)), jnp.zeros(5)


LINE = Line()
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
ADAM_TWIN = (
    "optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-08),"
    " optax.scale_by_learning_rate(learning_rate=0.01))"
)


def stepped(make, names=True, frozen=(), steps=3):
    """A torch linear layer and its optimizer after some steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 5)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    optimizer = make(model.named_parameters() if names else model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(7, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def carried(transform, make, module=LINE, source=None, **options):
    """The optax state after loading."""
    model, theirs = stepped(make)
    optimizer = br.Optimizer(transform).init(module)
    source = theirs if source is None else source
    return br.load_optimizer_state(optimizer, source, br.match(module, model), **options).state


def refused(transform, make, module=LINE, source=None, **options):
    with pytest.raises(br.BridgeError) as caught:
        carried(transform, make, module, source, **options)
    return str(caught.value).removeprefix("this optimizer state does not fit:\n")


def moments(optimizer, role):
    state = optimizer.state_dict()["state"]
    return [entry[role].numpy() for entry in state.values()]


SGD, RMSPROP = (functools.partial(one, lr=0.1) for one in (torch.optim.SGD, torch.optim.RMSprop))
