"""What `verify` compares, what its report says, and what it refuses."""

import json

import equinox as eqx
import flax.linen as nn
import flax.nnx as nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import WeightsError

torch = pytest.importorskip("torch")

X = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)


class Twin(nn.Module):
    """Two layers; `width` is that of the output."""

    width: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width, name="down")(nn.tanh(nn.Dense(7, name="up")(x)))


class Torch(torch.nn.Module):
    """The same in torch, with something between."""

    def __init__(self, between=torch.tanh):
        super().__init__()
        self.up, self.down, self.between = torch.nn.Linear(5, 7), torch.nn.Linear(7, 3), between

    def forward(self, x):
        return self.down(self.between(self.up(x)))


class NnxTwin(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


class EquinoxTwin(eqx.Module):
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        self.up, self.down = eqx.nn.Linear(5, 7, key=key), eqx.nn.Linear(7, 3, key=key)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


def haiku_twin(x):
    return hk.Linear(3, name="down")(jnp.tanh(hk.Linear(7, name="up")(x)))


TWINS = {
    "linen": lambda: br.from_linen(Twin()).init(jax.random.key(0), X),
    "nnx": lambda: br.from_nnx(NnxTwin(nnx.Rngs(0))),
    "haiku": lambda: br.from_haiku(haiku_twin).init(jax.random.key(0), X),
    "equinox": lambda: br.from_equinox(EquinoxTwin(jax.random.key(0)), vmap=True),
}


class Several(Torch):
    """A second output, which a twin need not have."""

    def forward(self, x):
        out = super().forward(x)
        return {"out": out, "mean": out.mean(-1)}


class Unlowered(Torch):
    """What torch.export cannot capture."""

    def forward(self, x):
        return super().forward(x) if x.sum() < 1000 else x


def models(model):
    torch.manual_seed(0)
    module = br.from_linen(Twin()).init(jax.random.key(0), X)
    return br.load_state_dict(module, model), model


def test_equal_models_pass_and_nothing_is_found():
    module, model = models(Torch().eval())
    report = br.verify(module, model, X)
    assert report.passed
    assert report.parted is None
    assert not report.findings
    assert [place.key for place in report.places] == ["up.weight", "down.weight", ""]
    assert (
        str(report).splitlines()[0]
        == report.verdict
        == (f"The outputs are the same: relative distance {report.distance:.1e}.")
    )


@pytest.mark.parametrize("library", TWINS)
def test_models_of_every_library_part_at_the_same_place(library):
    model = Torch(torch.relu).eval()
    module = br.load_state_dict(TWINS[library](), model)
    report = br.verify(module, model, X)
    assert [place.key for place in report.places] == ["up.weight", "down.weight", ""]
    assert report.parted == 1
    assert [one.told for one in report.findings] == [
        "the activation is tanh in the Module and relu in torch"
    ]


def test_a_plan_that_was_kept_pairs_the_layers(tmp_path):
    module, model = models(Torch().eval())
    br.match(module, model).save(tmp_path / "plan.json")
    report = br.verify(module, model, X, plan=tmp_path / "plan.json")
    assert [place.key for place in report.places] == ["up.weight", "down.weight", ""]


def test_numbers_that_are_none_are_no_equal_outputs():
    module, model = models(Torch().eval())
    with torch.no_grad():
        model.down.bias[0] = float("nan")
    report = br.verify(module, model, X)
    assert not report.passed
    assert report.distance == float("inf")


def test_a_report_is_text_markdown_json_and_a_picture(tmp_path):
    module, model = models(Torch(torch.relu).eval())
    report = br.verify(module, model, X)
    assert not report.passed
    assert report.parted == 1
    far = [place.distance for place in report.places]
    told = "the activation is tanh in the Module and relu in torch"
    where = "the input of params.down.kernel (down.weight)"
    assert str(report).splitlines() == [
        f"The outputs differ: relative distance {report.distance:.1e}, largest {report.largest:.1e}.",
        "",
        "   place               torch        distance",
        "-  ------------------  -----------  --------  -------------------------",
        "0  params.up.kernel    up.weight    0.0e+00",
        f"1  params.down.kernel  down.weight  {far[1]:.1e}   <- the first that differs",
        f"2  output                           {far[2]:.1e}",
        "",
        f"activation, {where}: {told}",
    ]
    assert "| 0 | params.up.kernel | up.weight | 0.0e+00 |  |" in report.to_markdown()
    assert f"- **activation**, {where}: {told}" in report.to_markdown()
    held = json.loads(json.dumps(report.to_json()))
    assert held["findings"] == [
        {"cause": "activation", "where": where, "told": told, "source": "program"}
    ]
    assert (held["passed"], held["parted"]) == (False, 1)
    for name in ("report.png", "report.svg"):
        report.plot(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_the_torch_model_is_left_in_its_mode_and_the_report_says_so():
    module, model = models(Torch(torch.nn.Dropout(0.5)))
    model.up.eval()
    report = br.verify(module, model, X)
    assert model.training
    assert model.between.training
    assert not model.up.training
    assert report.findings[0].told == (
        "it is in train mode, where Dropout give other values; here it ran in eval mode: type"
        " model.eval() before you compare by hand"
    )


def test_outputs_that_the_module_has_not_are_noted():
    module, model = models(Several().eval())
    report = br.verify(module, model, X)
    assert report.passed
    assert report.notes == ("not compared: an output of torch's, of shape (2,)",)


def test_where_the_torch_model_cannot_be_captured_the_outputs_are_compared():
    module, model = models(Unlowered().eval())
    report = br.verify(module, model, X)
    assert report.passed
    assert not report.places
    assert report.notes[0].startswith(
        "where they part is not known, since the torch model cannot be captured: "
    )


def test_where_nothing_known_shows_the_ops_are_listed():
    module, model = models(Torch(lambda x: torch.cumsum(torch.tanh(x), -1)).eval())
    (finding,) = br.verify(module, model, X).findings
    assert (finding.cause, finding.where) == (
        "unknown",
        "the input of params.down.kernel (down.weight)",
    )
    assert finding.told == (
        "nothing shows of what usually does it; ops on the way there that the Module alone has: none;"
        " that torch alone has: cumsum"
    )


def test_gates_in_another_order_are_told():
    cell = torch.nn.LSTMCell(5, 7).eval()
    module = br.from_equinox(eqx.nn.LSTMCell(5, 7, key=jax.random.key(0)))
    module = br.load_state_dict(module, cell)
    parts = jnp.split(module.at["params.weight_hh"].get(), 4)
    spoiled = module.at["params.weight_hh"].set(jnp.concatenate([parts[n] for n in (0, 2, 1, 3)]))
    x, state = X[0], (np.ones(7, np.float32), np.ones(7, np.float32))
    assert br.verify(module, cell, x, state).passed
    found = br.verify(spoiled, cell, x, state).findings
    assert [(one.cause, one.told) for one in found] == [
        (
            "gates",
            "params.weight_hh has its 4 gates in another order than torch: (0, 2, 1, 3) of torch's",
        )
    ]


def test_what_cannot_be_compared_is_refused():
    model = Torch().eval()
    module = br.from_linen(Twin(11)).init(jax.random.key(0), X)
    with pytest.raises(WeightsError) as caught:
        br.verify(module, model, X, plan=br.match(*models(model)))
    assert str(caught.value) == (
        "the Module gives an output of shape (2, 11); torch's are (2, 3): verify compares outputs of"
        " the same shape"
    )
    with pytest.raises(WeightsError, match="inputs are for the forward of a torch"):
        br.verify(module, model.state_dict(), X)
    with pytest.raises(WeightsError) as caught:
        br.verify(module, model, X[:, :3])
    assert str(caught.value) == (
        "the torch model cannot be called with these inputs: mat1 and mat2 shapes cannot be multiplied"
        " (2x3 and 5x7)"
    )
    other = br.from_linen(Twin()).init(jax.random.key(0), X[:, :3])
    with pytest.raises(WeightsError, match="the Module cannot be called with these inputs"):
        br.verify(other, model, X, plan=br.match(*models(model)))
