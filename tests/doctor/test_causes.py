"""One thing is not the same in two models: the doctor finds which, and where."""

import pytest

import bridge as br

pytest.importorskip("torch")

from tests.doctor.planted import PLANTS


@pytest.mark.parametrize("plant", PLANTS, ids=[f"{one.cause} {n}" for n, one in enumerate(PLANTS)])
def test_the_cause_is_named_and_nothing_else_is(plant):
    module, model, x = plant.models()
    report = br.verify(module, model, x)
    assert report.passed == plant.passes, str(report)
    found = [(one.cause, one.where, one.told) for one in report.findings]
    assert (plant.cause, plant.where, plant.told) in found, str(report)
    assert {one.cause for one in report.findings} <= {plant.cause, "settings"}, str(report)
