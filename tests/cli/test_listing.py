"""`bridge adapters`: what is installed, and what to install."""

import importlib.metadata
import json

import pytest


@pytest.fixture
def without_equinox(monkeypatch):
    version = importlib.metadata.version

    def missing(name):
        if name == "equinox":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)


def added(folder, package, value, library="sixth"):
    """An installed package with an adapter for another library."""
    about = folder / f"{package}-2.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.3\n")
    (about / "entry_points.txt").write_text(f"[bridge.adapters]\n{library} = {value}\n")


def rows(out):
    return {line.split()[1]: line.split() for line in out.splitlines()}


def test_versions_and_what_to_install_are_listed(bridge, without_equinox):
    code, out, err = bridge("adapters")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["library", "adapter", "installed", "to", "do"]
    found = rows(out)
    assert found["bridge.adapters.haiku"][2:4] == ["dm-haiku", importlib.metadata.version("dm-haiku")]
    equinox = " ".join(found["bridge.adapters.equinox"])
    assert equinox == 'equinox bridge.adapters.equinox no pip install "bridge-jax[equinox]"'


def test_an_adapter_of_another_package_is_listed(bridge, folder, monkeypatch):
    added(folder, "bridge-sixth", "bridge_sixth")
    monkeypatch.syspath_prepend(folder)
    code, out, _ = bridge("adapters")
    assert code == 0
    assert rows(out)["bridge_sixth"] == ["sixth", "bridge_sixth", "bridge-sixth", "2.3"]


def test_two_adapters_for_one_library_end_with_1(bridge, folder, monkeypatch):
    added(folder, "bridge-sixth", "bridge_sixth")
    added(folder, "other-sixth", "other")
    monkeypatch.syspath_prepend(folder)
    code, out, _ = bridge("adapters", "--json")
    assert code == 1
    found = [one for one in json.loads(out) if one["library"] == "sixth"]
    assert [one["distribution"] for one in found] == ["bridge-sixth", "other-sixth"]
    assert {one["problem"] for one in found} == {
        "keep one: bridge.register_adapter, or uninstall the others"
    }
