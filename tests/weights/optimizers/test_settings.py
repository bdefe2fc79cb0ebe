"""What optax and torch must have in common: their states, their settings, their counts of steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br

pytest.importorskip("torch")

import torch

from tests.weights.optimizers.lines import (
    ADAM,
    ADAM_TWIN,
    LINE,
    RMSPROP,
    SGD,
    carried,
    moments,
    refused,
    stepped,
)


@pytest.mark.parametrize(
    ("make", "transform"),
    [
        (ADAM, optax.adam(0.01, eps=1e-7)),
        (ADAM, optax.adam(0.01, eps_root=1e-12)),
        (ADAM, optax.adam(0.01, b1=0.91)),
        (ADAM, optax.adam(0.01, b2=0.99)),
        (ADAM, optax.nadam(0.01)),
        (ADAM, optax.adamw(0.01)),
        (functools.partial(ADAM, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1)),
        (functools.partial(ADAM, maximize=True), optax.adam(0.01)),
        (functools.partial(ADAM, amsgrad=True), optax.amsgrad(0.01)),
        (functools.partial(SGD, momentum=0.9, nesterov=True), optax.sgd(0.1, 0.9)),
        (functools.partial(SGD, momentum=0.9, dampening=0.5), optax.sgd(0.1, 0.9)),
        (SGD, optax.sgd(0.2)),
        (RMSPROP, optax.rmsprop(0.1, 0.99)),
        (
            functools.partial(RMSPROP, momentum=0.9),
            optax.rmsprop(0.1, 0.99, 1e-8, 0.0, False, False, 0.9),
        ),
    ],
)
def test_a_closure_that_makes_another_step_is_refused(make, transform):
    assert "% off torch's, which is that of optax.chain(" in refused(transform, make)
    carried(transform, make, strict=False)


def test_the_optax_twin_of_the_torch_optimizer_is_shown():
    assert refused(optax.adam(0.1), ADAM) == (
        "  weight: with the same gradient, the optimizer's next step is 900% off torch's, which is"
        " that of"
        f" {ADAM_TWIN}: build the optimizer so, or type strict=False to keep its own way"
    )


@pytest.mark.parametrize(
    "transform",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
        optax.adam(lambda count: jnp.where(count == 3, 0.01, 0.5)),
        optax.inject_hyperparams(optax.adam)(0.01),
        optax.inject_hyperparams(optax.adam)(lambda count: jnp.where(count == 3, 0.01, 0.5)),
        optax.masked(optax.adam(0.01), lambda params: jax.tree.map(lambda _: True, params)),
        {"bias": optax.adam(0.01), "*": optax.adam(0.01)},
    ],
)
def test_states_inside_of_others_are_found_and_every_count_is_torchs(transform):
    state = carried(transform, ADAM)
    _, theirs = stepped(ADAM)
    counts = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32]
    assert counts
    assert all(int(count) == 3 for count in counts)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    for wanted in (*moments(theirs, "exp_avg"), *moments(theirs, "exp_avg_sq")):
        assert sum(np.array_equal(leaf, wanted) for leaf in leaves) == 1


def test_groups_with_settings_of_their_own():
    def make(_):
        return torch.optim.AdamW(
            [{"params": [model.bias], "lr": 0.1}, {"params": [model.weight], "weight_decay": 0.0}], 0.01
        )

    model, theirs = stepped(lambda _: None, steps=0)
    theirs = make(None)
    model(torch.ones(2, 3)).sum().backward()
    theirs.step()
    groups = {"weight": optax.adam(0.01), "bias": optax.adamw(0.1, weight_decay=0.01)}
    plan = br.match(LINE, model)
    optimizer = br.Optimizer(groups).init(LINE)
    carried = br.load_optimizer_state(optimizer, theirs, plan, names=model)
    np.testing.assert_array_equal(
        carried.state.inner_states["bias"].inner_state[0].mu.bias, moments(theirs, "exp_avg")[0]
    )
    swapped = br.Optimizer({"weight": groups["bias"], "bias": groups["weight"]}).init(LINE)
    with pytest.raises(br.BridgeError) as caught:
        br.load_optimizer_state(swapped, theirs, plan, names=model)
    told = sorted(str(caught.value).splitlines())
    assert [line.split(":")[0] for line in told] == [
        "  bias",
        "  weight",
        "this optimizer state does not fit",
    ]
    with pytest.raises(
        br.BridgeError, match=r"^the optimizer has 2 param_groups, and which parameter is in"
    ):
        br.load_optimizer_state(optimizer, theirs.state_dict(), plan, names=model)


def test_settings_that_are_shown_are_compared():
    assert refused(optax.inject_hyperparams(optax.adamw)(0.1, b2=0.99, weight_decay=0.3), ADAM) == (
        "  optimizer.state.hyperparams['b2']: is 0.99, and 0.999 in torch; type strict=False to"
        " keep 0.99\n"
        "  optimizer.state.hyperparams['learning_rate']: is 0.1, and 0.01 in torch; type"
        " strict=False to"
        " keep 0.1\n"
        "  optimizer.state.hyperparams['weight_decay']: is 0.3, and 0 in torch; type strict=False"
        " to keep"
        " 0.3"
    )


@pytest.mark.parametrize(
    ("transform", "make", "told"),
    [
        (
            optax.sgd(0.01),
            ADAM,
            "  weight and 1 more: torch's Adam keeps exp_avg, exp_avg_sq, and the optimizer does not:"
            f" build it as {ADAM_TWIN}",
        ),
        (
            optax.sgd(0.1, 0.9),
            SGD,
            "  optimizer.state[0].trace: holds what torch calls momentum_buffer, and this SGD keeps"
            " none:"
            " build the optimizer as optax.chain(optax.scale_by_learning_rate(learning_rate=0.1))",
        ),
        (
            optax.chain(optax.scale_by_adam(), optax.adam(0.01)),
            ADAM,
            "  optimizer.state[1][0].mu: would be torch's exp_avg, as optimizer.state[0].mu would;"
            " torch"
            " keeps it once\n"
            "  optimizer.state[1][0].nu: would be torch's exp_avg_sq, as optimizer.state[0].nu"
            " would; torch"
            " keeps it once",
        ),
    ],
)
def test_what_one_of_the_two_keeps_alone_is_refused(transform, make, told):
    assert refused(transform, make) == told
    assert refused(transform, make, strict=False) == told


def test_what_torch_has_nothing_for_stays_as_it_is():
    transform = optax.chain(optax.adam(0.01), optax.ema(0.9))
    advice = "leave that transformation out, or type strict=False to pass it over"
    assert refused(transform, ADAM) == (
        f"  optimizer.state[1].count: nothing in torch's Adam is like it; {advice}\n"
        f"  optimizer.state[1].ema: nothing in torch's Adam is like it; {advice}"
    )
    assert int(carried(transform, ADAM, strict=False)[1].count) == 0


def test_a_moment_of_another_dtype_is_cast_where_that_is_asked_for():
    transform = optax.adam(0.01, mu_dtype=jnp.bfloat16)
    assert refused(transform, ADAM) == (
        "  weight and 1 more: torch keeps exp_avg in float32, and the optimizer in bfloat16; type"
        " strict=False to cast"
    )
    assert carried(transform, ADAM, strict=False)[0].mu.weight.dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["Adagrad", "RAdam", "NAdam", "Adamax"])
def test_a_torch_optimizer_that_keeps_other_numbers_is_refused(kind):
    told = refused(optax.adam(0.01), getattr(torch.optim, kind))
    assert told.startswith(
        "the state of torch's Adam, AdamW, SGD and RMSprop can be carried; this one, with "
    )


def test_sgd_keeps_no_count_of_steps():
    make, transform = (
        functools.partial(SGD, momentum=0.9),
        optax.sgd(optax.linear_schedule(0.4, 0.0, 4), 0.9),
    )
    assert refused(transform, make) == (
        "  optimizer.state[1].count: torch's SGD keeps no count: type step=<how many steps it has made>"
    )
    assert int(carried(transform, make, step=3)[1].count) == 3
    assert refused(optax.adam(0.01), ADAM, step=4) == "  step=4: torch's optimizer has made 3 steps"


def test_steps_that_differ_are_refused():
    _, theirs = stepped(ADAM)
    state = theirs.state_dict()
    state["state"][1]["step"] = torch.tensor(5.0)
    assert refused(optax.adam(0.01), ADAM, source=state) == (
        "torch has made 3 steps with weight and 5 with bias; optax has one count for all parameters"
    )


def test_before_any_step_the_state_is_zero():
    model, theirs = stepped(ADAM, steps=0)
    optimizer = br.Optimizer(optax.adam(0.01)).init(LINE)
    _, used = optimizer.step(br.grad(lambda line: line.weight.sum())(LINE), LINE)
    fresh = br.load_optimizer_state(used, theirs, br.match(LINE, model))
    assert int(fresh.state[0].count) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fresh))


def test_the_moments_of_complex_parameters_are_others():
    _, theirs = stepped(ADAM)
    state = theirs.state_dict()
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].to(torch.complex64)
    assert refused(optax.adam(0.01), ADAM, source=state) == (
        "weight: is complex; optax keeps other moments of it than torch"
    )


def test_an_older_torch_does_not_tell_adam_from_adamw():
    _, theirs = stepped(functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1))
    state = theirs.state_dict()
    del state["param_groups"][0]["decoupled_weight_decay"]
    carried(optax.adamw(0.01, weight_decay=0.1), ADAM, source=state)
    carried(optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.01)), ADAM, source=state)
    assert "with the same gradient" in refused(optax.adam(0.01), ADAM, source=state)
