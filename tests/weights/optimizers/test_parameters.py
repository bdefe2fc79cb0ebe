"""Which parameters have a state on both sides, and how it is turned, parted and tied."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import bridge as br

pytest.importorskip("torch")

import torch

from tests.weights.optimizers.lines import (
    ADAM,
    LINE,
    moments,
    stepped,
)


@pytest.mark.parametrize(("here", "there"), [(True, True), (True, False), (False, True)])
def test_frozen_parameters_agree(here, there):
    model, theirs = stepped(ADAM, frozen=["bias"] if there else [])
    module = LINE.freeze("bias") if here else LINE
    optimizer, plan = br.Optimizer(optax.adam(0.01)).init(module), br.match(module, model)
    if here and there:
        state = br.optimizer_state_dict(br.load_optimizer_state(optimizer, theirs, plan), plan, theirs)
        assert state["state"].keys() == {0}
        return
    for carry in (br.load_optimizer_state, lambda o, t, p: br.optimizer_state_dict(o, p, t)):
        with pytest.raises(br.BridgeError) as caught:
            carry(optimizer, theirs, plan)
        assert str(caught.value).splitlines()[1] in (
            "  bias: torch trains it, and bias is not trained: type module.unfreeze('bias') before"
            " optimizer.init(module), or strict=False to leave it out",
            "  bias: torch has no state for it, as it made no step with it: type"
            " module.freeze('bias') before"
            " optimizer.init(module)",
            "  bias: is frozen in torch, and bias is trained: type module.freeze('bias') before"
            " optimizer.init(module)",
        )


def attention():
    eqx = pytest.importorskip("equinox")
    biases = dict.fromkeys((f"use_{one}_bias" for one in ("query", "key", "value", "output")), True)
    layer = eqx.nn.MultiheadAttention(2, 6, **biases, key=jax.random.key(0))
    return br.from_equinox(layer), torch.nn.MultiheadAttention(6, 2)


def transposed():
    eqx = pytest.importorskip("equinox")
    layer = eqx.nn.ConvTranspose1d(2, 5, 3, key=jax.random.key(0))
    return br.from_equinox(layer), torch.nn.ConvTranspose1d(2, 5, 3)


@pytest.mark.parametrize("make", [attention, transposed])
def test_moments_are_turned_as_weights_are(make):
    module, model = make()
    theirs = ADAM(model.named_parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    theirs.step()
    plan = br.match(module, model)
    optimizer = br.Optimizer(optax.adam(0.01)).init(module)
    loaded = br.load_optimizer_state(optimizer, theirs, plan)
    as_weights = dict(zip(dict(model.named_parameters()), moments(theirs, "exp_avg"), strict=True))
    wanted = br.load_state_dict(module, as_weights).parameters()
    for ours, leaf in zip(*map(jax.tree.leaves, (loaded.state[0].mu, wanted)), strict=True):
        np.testing.assert_array_equal(ours, leaf)
    back = br.optimizer_state_dict(loaded, plan, theirs)
    for number, entry in theirs.state_dict()["state"].items():
        assert back["state"][number].keys() == entry.keys()
        assert all(torch.equal(back["state"][number][role], entry[role]) for role in entry)


def test_one_array_of_two_groups_cannot_be_carried():
    hk = pytest.importorskip("haiku")
    module = br.from_haiku(hk.LSTM)(5)
    state = hk.LSTMState(np.zeros((1, 5), np.float32), np.zeros((1, 5), np.float32))
    module = module.init(jax.random.key(0), np.ones((1, 3), np.float32), state)
    model = torch.nn.LSTMCell(3, 5)
    of_input, *rest = model.parameters()
    theirs = torch.optim.Adam([{"params": [of_input], "lr": 0.1}, {"params": rest}], 0.01)
    optimizer = br.Optimizer(optax.adam(0.01)).init(module)
    with pytest.raises(br.BridgeError) as caught:
        br.load_optimizer_state(optimizer, theirs, br.match(module, model), names=model)
    assert any(
        "w: is made of weight_ih and weight_hh, which are in several param_groups of torch" in line
        for line in str(caught.value).splitlines()
    )


def test_the_sum_of_two_biases_cannot_be_carried():
    eqx = pytest.importorskip("equinox")
    module = br.from_equinox(eqx.nn.LSTMCell(3, 5, key=jax.random.key(0)))
    model = torch.nn.LSTMCell(3, 5)
    theirs = ADAM(model.named_parameters())
    optimizer, plan = br.Optimizer(optax.adam(0.01)).init(module), br.match(module, model)
    for carry in (br.load_optimizer_state, lambda o, t, p: br.optimizer_state_dict(o, p, t)):
        with pytest.raises(br.BridgeError) as caught:
            carry(optimizer, theirs, plan)
        assert str(caught.value).splitlines()[1] == (
            "  params.bias: is the sum of bias_ih and bias_hh, which torch trains apart: one array"
            " cannot"
            " make their steps"
        )


EMBEDDING = "params.embed.weight"


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(11, 3), torch.nn.Linear(3, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def language_model(tied):
    eqx = pytest.importorskip("equinox")

    class Twin(eqx.Module):
        embed: eqx.nn.Embedding
        head: Any

        def __call__(self, x):
            h = jax.vmap(self.embed)(x)
            return h @ self.embed.weight.T if self.head is None else jax.vmap(self.head)(h)

    key = jax.random.key(0)
    head = None if tied else eqx.nn.Linear(3, 11, use_bias=False, key=key)
    return br.from_equinox(Twin(eqx.nn.Embedding(11, 3, key=key), head))


def test_tied_parameters_have_one_state():
    model, tokens = Tied(), torch.arange(7)
    theirs = ADAM(model.named_parameters())
    model(tokens).square().sum().backward()
    theirs.step()
    module = language_model(tied=True)
    optimizer = br.Optimizer(optax.adam(0.01)).init(module)
    for named, plan in (
        (None, br.match(module, model, inputs=(tokens,))),
        (
            model,
            br.match(module, {"head.weight": model.head.weight}, rename={"head.weight": EMBEDDING}),
        ),
    ):
        loaded = br.load_optimizer_state(optimizer, theirs, plan, names=named)
        np.testing.assert_array_equal(
            jax.tree.leaves(loaded.state[0].mu)[0], moments(theirs, "exp_avg")[0]
        )
    apart = language_model(tied=False)
    with pytest.raises(br.BridgeError) as caught:
        br.load_optimizer_state(
            br.Optimizer(optax.adam(0.01)).init(apart), theirs, br.match(apart, model), model
        )
    assert str(caught.value).splitlines()[1] == (
        "  embed.weight: is one parameter in torch, and 'params.embed.weight' and"
        " 'params.head.weight' are"
        " apart: tie them: bridge.tie"
    )


def test_a_part_of_a_parameter_cannot_go_back():
    module, model = attention()
    theirs = ADAM(model.named_parameters())
    plan = br.match(module, model)
    module = module.freeze("params.query_proj")
    optimizer = br.Optimizer(optax.adam(0.01)).init(module)
    with pytest.raises(br.BridgeError) as caught:
        br.optimizer_state_dict(optimizer, plan, theirs)
    assert str(caught.value) == (
        "this optimizer state does not fit the torch optimizer:\n"
        "  in_proj_weight: is one parameter in torch, and params.query_proj.weight is not trained"
        " here\n"
        "  in_proj_bias: is one parameter in torch, and params.query_proj.bias is not trained here"
    )
