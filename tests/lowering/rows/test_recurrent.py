import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.rows.recurrent import DRAWING, ROWS

TIME, BATCH, IN, HIDDEN = 3, 5, 7, 11
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def refuse(stream):
    raise RuntimeError(f"drew from {stream}")


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for shape in shapes]


def parameters(kind, layers=1, directions=1, biases=True, projected=0):
    out, gates = projected or HIDDEN, GATES[kind] * HIDDEN
    shapes = []
    for layer in range(layers):
        width = IN if layer == 0 else out * directions
        each = [(gates, width), (gates, out), *([(gates,), (gates,)] if biases else [])]
        shapes += (each + ([(HIDDEN, projected)[::-1]] if projected else [])) * directions
    return arrays(*shapes)


def call(
    kind,
    params,
    x,
    layers=1,
    directions=1,
    biases=True,
    projected=0,
    dropout=0.0,
    train=False,
    draw=refuse,
):
    (h, c) = arrays(
        (layers * directions, BATCH, projected or HIDDEN), (layers * directions, BATCH, HIDDEN)
    )
    state = [h, c] if kind == "lstm" else h
    rest = (params, biases, layers, dropout, train, directions == 2, False)
    return DRAWING[f"aten.{kind}.input"](draw, x, state, *rest), state


CASES = [
    {},
    {"layers": 2, "directions": 2},
    {"biases": False, "directions": 2},
    {"biases": False, "layers": 2},
]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_and_their_gradients_are_those_of_torch(kind, case):
    check_against_torch(kind, case)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("biases", [True, False])
def test_projected_lstm_is_that_of_torch(biases):
    check_against_torch("lstm", {"projected": 2, "layers": 2, "directions": 2, "biases": biases})


def check_against_torch(kind, case):
    torch = pytest.importorskip("torch")
    (x,) = arrays((TIME, BATCH, IN))
    params = parameters(kind, **case)

    def loss(x, params):
        outputs, _ = call(kind, params, x, **case)
        return jnp.square(outputs[0]).sum(), outputs

    (dx, dparams), outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, params)
    _, state = call(kind, params, x, **case)
    leaves, t_state = jax.tree.map(
        lambda array: torch.tensor(np.asarray(array), requires_grad=True), ([x, *params], state)
    )
    flags = (
        case.get("biases", True),
        case.get("layers", 1),
        0.0,
        False,
        case.get("directions", 1) == 2,
    )
    wanted = getattr(torch, kind)(leaves[0], t_state, leaves[1:], *flags, False)
    wanted[0].square().sum().backward()
    for output, want in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(output, want.detach().numpy(), rtol=1e-4, atol=1e-5)
    for grad, leaf in zip([dx, *dparams], leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "train", "dropout"), [(1, True, 0.5), (2, False, 0.5), (2, True, 0.0)]
)
def test_dropout_draws_only_between_layers_in_training(layers, train, dropout):
    (x,) = arrays((TIME, BATCH, IN))
    call("gru", parameters("gru", layers), x, layers, dropout=dropout, train=train)


def test_dropout_between_layers_draws_once_from_the_dropout_stream():
    drawn = []

    def draw(stream):
        drawn.append(stream)
        return jax.random.key(0)

    (x,) = arrays((TIME, BATCH, IN))
    params = parameters("gru", 2)
    dropped, _ = call("gru", params, x, 2, dropout=0.5, train=True, draw=draw)
    kept, _ = call("gru", params, x, 2)
    assert drawn == ["dropout"]
    assert not np.allclose(dropped[0], kept[0])


def test_dropout_of_one_leaves_the_next_layer_no_input():
    (x,) = arrays((TIME, BATCH, IN))
    first = call("rnn_tanh", parameters("rnn_tanh", 2), x, 2, dropout=1.0, train=True)[0]
    second = call("rnn_tanh", parameters("rnn_tanh", 2), 2 * x, 2, dropout=1.0, train=True)[0]
    np.testing.assert_array_equal(first[0], second[0])


@pytest.mark.parametrize("kind", GATES)
def test_each_layer_and_direction_is_one_scan_with_one_product_of_the_state(kind):
    (x,) = arrays((TIME, BATCH, IN))
    params = parameters(kind, 2, 2)
    jaxpr = jax.make_jaxpr(lambda x: call(kind, params, x, 2, 2)[0])(x).jaxpr
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert [eqn.params["reverse"] for eqn in scans] == [False, True, False, True]
    inside = [str(eqn.params["jaxpr"]).count("dot_general") for eqn in scans]
    assert inside == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", GATES)
def test_a_cell_is_one_step_of_the_layer(kind):
    (x,) = arrays((1, BATCH, IN))
    params = parameters(kind)
    outputs, state = call(kind, params, x)
    first = jax.tree.map(lambda part: part[0], state)
    result = ROWS[f"aten.{kind}_cell.default"](x[0], first, *params)
    output = result[0] if kind == "lstm" else result
    np.testing.assert_allclose(output, outputs[0][0], rtol=1e-6, atol=1e-6)
