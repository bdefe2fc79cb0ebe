"""Kinds of layers that have something of their own."""

import importlib

import jax
import numpy as np
import pytest
import torch

import bridge as br
from tests.weights.kinds.cases import LIBRARIES, NAMED
from tests.weights.kinds.twins import PACKAGES, arguments, twin

NORM = NAMED["batch norm"]


def output(layer, x):
    return layer(torch.from_numpy(x)).detach().numpy()


def fresh_norm(library):
    """A batch norm that counts its steps from the start, as its library makes it."""
    pytest.importorskip(PACKAGES[library])
    if library == "linen":
        nn = importlib.import_module("flax.linen")
        module = br.from_linen(nn.BatchNorm(epsilon=1e-5, momentum=0.9))
    elif library == "nnx":
        nnx = importlib.import_module("flax.nnx")
        module = br.from_nnx(nnx.BatchNorm(7, epsilon=1e-5, momentum=0.9, rngs=nnx.Rngs(0)))
    else:
        return twin(library, NORM)
    return module.init(jax.random.key(0), NORM.inputs()[0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_array_of_a_batch_norm_is_away_from_its_first_value(library):
    pytest.importorskip(PACKAGES[library])
    module = fresh_norm(library)
    loaded = br.load_state_dict(module, NORM.layer())
    for old, new in zip(jax.tree.leaves(module), jax.tree.leaves(loaded), strict=True):
        assert not np.array_equal(old, new)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_batch_norm_goes_on_training_from_what_was_loaded(library):
    layer = NORM.layer()
    module = br.load_state_dict(fresh_norm(library), layer)
    (x,) = NORM.inputs(seed=2)
    out, module = module.apply(*arguments(library, NORM, (x,)), mode="train")
    np.testing.assert_allclose(out, output(layer.train(), x), atol=1e-5, rtol=1e-5)
    mean = evaluated_mean(module, layer.bias.detach().numpy())
    np.testing.assert_allclose(mean, layer.running_mean.numpy(), atol=1e-5)


def evaluated_mean(module, bias):
    """The mean that a batch norm subtracts when it evaluates, from what it makes of 0 and of 1."""
    zero, one = (module(np.full((2, 7), value, np.float32))[0] for value in (0, 1))
    return (bias - zero) / (one - zero)


def test_equinox_ema_batch_norm_keeps_what_was_loaded_in_its_first_training_step():
    eqx = pytest.importorskip("equinox")
    module = br.from_equinox(eqx.nn.BatchNorm(7, "batch", mode="ema", momentum=0.9), vmap=True)
    layer, (x,) = NORM.layer(), NORM.inputs()
    module = br.load_state_dict(module, layer)
    np.testing.assert_allclose(module(x), output(layer, x), atol=1e-5)
    _, module = module.apply(x, mode="train")
    mean = module.at["state.state.ema_state_index.0"].get()
    layer.train()(torch.from_numpy(x))
    np.testing.assert_allclose(mean, layer.running_mean.numpy(), atol=1e-6)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_general_linear_layer_keeps_several_axes_for_one(library):
    torch.manual_seed(0)
    first, second = torch.nn.Linear(5, 6), torch.nn.Linear(6, 7)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    if library == "linen":
        nn = pytest.importorskip("flax.linen")
        model = nn.Sequential([nn.DenseGeneral((2, 3)), nn.DenseGeneral(7, axis=(-2, -1))])
        module = br.from_linen(model).init(jax.random.key(0), x)
    else:
        nnx = pytest.importorskip("flax.nnx")
        parts = (
            nnx.LinearGeneral(5, (2, 3), rngs=nnx.Rngs(0)),
            nnx.LinearGeneral((2, 3), 7, axis=(-2, -1), rngs=nnx.Rngs(0)),
        )
        module = br.from_nnx(nnx.Sequential(*parts))
    model = torch.nn.Sequential(first, second)
    module = br.load_state_dict(module, model)
    np.testing.assert_allclose(module(x), output(model, x), atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_in_double_precision_to_twelve_places(library):
    with jax.enable_x64(True):
        case = NAMED["linear"]
        module, layer = twin(library, case), case.layer().double()
        x = np.random.default_rng(0).normal(size=(3, 5))
        module = br.load_state_dict(module, layer, dtype="source")
        if library in ("linen", "nnx"):  # their layers compute in the dtype of input and weights
            assert module(x).dtype == np.float64
        np.testing.assert_allclose(module(x), output(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_gpt2_projection_keeps_its_matrix_the_other_way_round(library):
    utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    case, layer = NAMED["square linear"], utils.Conv1D(7, 7)
    module = br.load_state_dict(twin(library, case), torch.nn.Sequential(layer))
    (x,) = case.inputs()
    np.testing.assert_allclose(module(x), output(layer, x), atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["gemma.GemmaRMSNorm", "llama.LlamaRMSNorm", "t5.T5LayerNorm"])
def test_some_norms_of_transformers_multiply_by_one_more_than_their_weight(library, name):
    pytest.importorskip("transformers")
    folder, _, cls = name.partition(".")
    models = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    layer = getattr(models, cls)(7, eps=1e-3)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    case = NAMED["rms norm"]
    module = br.load_state_dict(twin(library, case), torch.nn.Sequential(layer))
    (x,) = case.inputs()
    np.testing.assert_allclose(module(x), output(layer, x), atol=1e-5)


def test_weight_norm_in_a_linen_model_scales_the_layer_beside_it():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.WeightNorm(nn.Dense(7))(x)
            return nn.WeightNorm(nn.Dense(3))(nn.relu(x))

    torch.manual_seed(0)
    norm, x = torch.nn.utils.parametrizations.weight_norm, NAMED["linear"].inputs()[0]
    sizes = ((5, 7), (7, 3))
    first, second = (norm(torch.nn.Linear(*size)) for size in sizes)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    module = br.load_state_dict(br.from_linen(Net()).init(jax.random.key(0), x), model)
    np.testing.assert_allclose(module(x), output(model, x), atol=1e-5)


def test_a_depthwise_convolution_of_haiku_is_one_with_a_group_for_each_channel():
    hk = pytest.importorskip("haiku")
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(5, 10, 3, padding=1, groups=5)
    x = np.random.default_rng(0).normal(size=(3, 5, 7, 11)).astype(np.float32)
    channels_last = np.moveaxis(x, 1, -1)
    module = br.from_haiku(hk.DepthwiseConv2D)(2, 3, padding="SAME").init(
        jax.random.key(0), channels_last
    )
    out = br.load_state_dict(module, layer)(channels_last)
    np.testing.assert_allclose(np.moveaxis(out, -1, 1), output(layer, x), atol=1e-5)
