"""The program of a captured torch model: as lean as that of the same model written in Flax Linen."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("flax")

SOURCE = Path(__file__).parents[2] / "benchmarks" / "torch_speed.py"


@pytest.fixture(scope="module")
def speed():
    spec = importlib.util.spec_from_file_location("benchmarks.torch_speed", SOURCE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def counts(speed, built):
    """The StableHLO ops of forward and step, captured and in Linen."""
    module, x, twin, twin_x = built
    sides = speed.of_captured(module, x), speed.of_twin(twin, twin_x)
    return [[speed.ops(*side[what]).total() for side in sides] for what in ("forward", "step")]


def test_a_resnet_has_no_more_ops_than_that_of_linen(speed):
    for captured, twin in counts(speed, speed.resnet(((5, 20, 1), (7, 28, 1)), 32)):
        assert 0 < captured <= twin


def test_a_layer_of_gpt2_has_no_more_ops_than_that_of_linen(speed):
    shallow, deep = counts(speed, speed.gpt2(1)), counts(speed, speed.gpt2(2))
    for (captured, twin), (captured_deep, twin_deep) in zip(shallow, deep, strict=True):
        assert 0 < captured_deep - captured <= 1.05 * (twin_deep - twin)
