"""Names for the parameters that torch numbers, and where the state of an optimizer is found."""

import numpy as np
import optax
import pytest

import bridge as br

pytest.importorskip("torch")

import torch

from tests.weights.optimizers.lines import (
    ADAM,
    LINE,
    carried,
    moments,
    refused,
    stepped,
)


@pytest.mark.parametrize("names", ["model", "list", "none"])
def test_names_for_the_numbers_of_torch(names):
    model, theirs = stepped(ADAM, names=names == "none")
    plan, optimizer = br.match(LINE, model), br.Optimizer(optax.adam(0.01)).init(LINE)
    given = {"model": model, "list": ["weight", "bias"], "none": None}[names]
    for source in (theirs, theirs.state_dict()):
        state = br.load_optimizer_state(optimizer, source, plan, names=given).state
        np.testing.assert_array_equal(state[0].mu.bias, moments(theirs, "exp_avg")[1])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            None,
            "torch numbers the parameters of an optimizer and here keeps no names: type"
            " names=model, the"
            " torch model, or a list of names in the order of the param_groups",
        ),
        (
            ["weight", "weight"],
            "the optimizer has 2 parameters, and names has 2, 1 different ones: give each its own,"
            " in the"
            " order of the param_groups",
        ),
        (
            ["bias", "weight"],
            "weight: its exp_avg has shape (5,), and the plan's array (5, 3): the names are not in"
            " the order"
            " of the optimizer, or the plan is for another model",
        ),
        (
            torch.nn.Linear(3, 5),
            "parameters 0, 1 of the optimizer are none of the model's: give the model that it was"
            " made for",
        ),
        (
            torch.nn.LSTM(3, 5),
            "the optimizer has 2 parameters and the model 4: type names=[...] with those that it"
            " was given,"
            " such as [name for name, p in model.named_parameters() if p.requires_grad]",
        ),
    ],
)
def test_names_that_cannot_be_right(names, told):
    model, theirs = stepped(ADAM, names=False)
    optimizer = br.Optimizer(optax.adam(0.01)).init(LINE)
    source = theirs.state_dict() if isinstance(names, torch.nn.LSTM) else theirs
    with pytest.raises(br.BridgeError) as caught:
        br.load_optimizer_state(optimizer, source, br.match(LINE, model), names=names)
    assert str(caught.value) == told


@pytest.mark.parametrize("nested", [False, True])
def test_a_training_checkpoint(tmp_path, nested):
    model, theirs = stepped(ADAM)
    saved = {"epoch": 3, "model": model.state_dict(), "optimizer": theirs.state_dict()}
    torch.save(saved if nested else theirs.state_dict(), tmp_path / "last.pt")
    state = carried(optax.adam(0.01), ADAM, source=tmp_path / "last.pt")
    np.testing.assert_array_equal(state[0].nu.weight, moments(theirs, "exp_avg_sq")[0])


def test_a_checkpoint_without_an_optimizer_or_with_two(tmp_path):
    state = stepped(ADAM)[1].state_dict()
    torch.save({"model": {}}, tmp_path / "none.pt")
    assert refused(optax.adam(0.01), ADAM, source=tmp_path / "none.pt") == (
        "optimizer state comes from a torch optimizer, its state_dict(), or a .pt file with one in"
        " it; a"
        " dict was given, and no mapping with 'state' and 'param_groups' is in it"
    )
    assert refused(optax.adam(0.01), ADAM, source={"optimizers": [state, state]}) == (
        "there are 2 optimizers, at ['optimizers'][0], ['optimizers'][1]; give the one that is meant"
    )


def test_what_is_no_optimizer_with_a_state():
    model, theirs = stepped(ADAM)
    plan = br.match(LINE, model)
    with pytest.raises(
        br.BridgeError, match=r"^the optimizer has no state yet; type optimizer = optimizer"
    ):
        br.load_optimizer_state(br.Optimizer(optax.adam(0.01)), theirs, plan)
    with pytest.raises(
        br.BridgeError, match=r"^the state of a bridge.Optimizer is carried; a GradientTransf"
    ):
        br.optimizer_state_dict(optax.adam(0.01), plan, theirs)
