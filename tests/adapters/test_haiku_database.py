"""Haiku's own database of its modules, and every other class of modules in its package."""

import functools
import importlib
import inspect
import pkgutil

import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from haiku._src import depthwise_conv, recurrent
from haiku._src.integration.descriptors import ALL_MODULES, module_type
from haiku._src.nets import mobilenetv1, resnet

from tests.adapters.test_haiku import initialised, linear, trains_as_haiku_does

# The database has an attention of that form.
pytestmark = pytest.mark.filterwarnings("ignore:w_init_scale is deprecated:DeprecationWarning")

IMAGES = (2, 7, 7, 3)
ROWS = (2, 5)
NORM = {"create_scale": True, "create_offset": True, "decay_rate": 0.9}


def test_the_database_has_45_modules():
    assert len(ALL_MODULES) == 45


@pytest.mark.parametrize("entry", ALL_MODULES, ids=lambda entry: entry.name)
def test_a_module_of_the_database_is_made_and_trained_as_haiku_does(entry):
    x = jax.ShapeDtypeStruct(entry.shape, entry.dtype)
    trains_as_haiku_does(initialised(lambda x: entry.create()(x), x), x)


def normalised(make, *flags):
    return lambda x: make(bn_config=NORM, use_projection=True, bottleneck=True)(x, True, *flags)


def unrolled(make):
    def forward(x):
        core = make()
        return hk.dynamic_unroll(core, jnp.stack([x, x]), core.initial_state(len(x)))

    return forward


def of_a_tree(make):
    return lambda x: make()({"first": {"w": x}, "second/~/third": {"w": x.T, "b": x}})


def in_a_scope(x):
    with hk.name_scope("scope"):
        return hk.get_parameter("w", (5,), init=hk.initializers.RandomNormal()) * x


def lifted(x):
    inner = hk.transform(linear)
    params = hk.lift(inner.init)(hk.next_rng_key() if hk.running_init() else None, x)
    return inner.apply(params, None, x)


# By the name of its class: a function that calls it, and the shape of its input.
FURTHER = {
    "AvgPool": (lambda x: hk.AvgPool((2, 2, 1), (2, 2, 1), "VALID")(x), IMAGES),
    "BlockGroup": (
        normalised(functools.partial(resnet.BlockGroup, 8, 2, 2, resnet_v2=True), False),
        IMAGES,
    ),
    "BlockV1": (normalised(functools.partial(resnet.BlockV1, 8, 1), False), IMAGES),
    "BlockV2": (normalised(functools.partial(resnet.BlockV2, 8, 1), False), IMAGES),
    "CallableModule": (lambda x: hk.to_module(linear)()(x), ROWS),
    "ConvNDLSTM": (unrolled(lambda: recurrent.ConvNDLSTM(2, (7, 7), 5, 3)), IMAGES),
    "DeepRNN": (unrolled(lambda: hk.DeepRNN([hk.LSTM(3), jax.nn.relu, hk.GRU(7)])), ROWS),
    "DepthwiseConvND": (lambda x: depthwise_conv.DepthwiseConvND(2, 5, 2, "NHWC")(x), IMAGES),
    "EMAParamsTree": (of_a_tree(lambda: hk.EMAParamsTree(0.9)), ROWS),
    "ExponentialMovingAverage": (lambda x: hk.ExponentialMovingAverage(0.9)(x), ROWS),
    "LiftingModule": (lifted, ROWS),
    "MaxPool": (lambda x: hk.MaxPool((2, 2, 1), (2, 2, 1), "SAME")(x), IMAGES),
    "MobileNetV1Block": (lambda x: mobilenetv1.MobileNetV1Block(8, 2)(x, True), IMAGES),
    "NameScopeModule": (in_a_scope, ROWS),
    "ResNet18": (lambda x: hk.nets.ResNet18(11)(x, True), IMAGES),
    "Reshape": (lambda x: hk.Reshape((3, -1))(x), IMAGES),
    "SNParamsTree": (of_a_tree(lambda: hk.SNParamsTree(n_steps=2)), ROWS),
    "_DeepRNN": (
        unrolled(lambda: hk.deep_rnn_with_skip_connections([hk.LSTM(3), hk.VanillaRNN(7)])),
        ROWS,
    ),
}
# hk.nets.ResNet, which the database has, with other numbers of blocks.
DEPTHS = {f"ResNet{depth}" for depth in (34, 50, 101, 152, 200)}
ABSTRACT = {"Module", "RNNCore"}


@pytest.mark.parametrize("name", FURTHER)
def test_a_further_module_of_haiku_is_made_and_trained_as_haiku_does(name):
    forward, shape = FURTHER[name]
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    trains_as_haiku_does(initialised(forward, x), x)


def modules_of_the_package():
    """The names of the classes of modules in Haiku, without those of its own tests."""
    found = set()
    for info in pkgutil.walk_packages(hk.__path__, "haiku."):
        if info.name.endswith(("_test", "test_utils")) or "integration" in info.name:
            continue
        for value in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(value) and issubclass(value, hk.Module):
                found.add(value)
    return {cls.__name__ for cls in found if cls.__module__.startswith("haiku.")}


def test_every_class_of_haiku_has_a_row():
    names = modules_of_the_package()
    assert len(names) == 62
    database = {module_type(entry.create).__name__ for entry in ALL_MODULES}
    assert names - database == {*FURTHER, *DEPTHS, *ABSTRACT}
