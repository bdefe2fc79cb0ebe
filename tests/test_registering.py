"""Adapters that a program registers or an installed package brings, and how `wrap` finds them."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import bridge as br
from bridge.core.errors import AdapterError, FieldError, ModelError
from bridge.core.libraries import registered

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("no_adapters")


def model_of(module, *bases):
    """An object of a class that a library is said to define."""
    cls = type("Model", bases, {"__module__": module, "__call__": lambda self, x: 3 * x})
    return cls()


def adapter_named(name, factor=1):
    """An adapter with the function `from_<name>`, which multiplies."""

    def wrapped(model, more=1):
        return br.Function(lambda x: factor * more * x)

    return types.SimpleNamespace(**{f"from_{name}": wrapped})


def install(folder, package, entry):
    """A folder on `sys.path` with the metadata of an installed package that has one adapter."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bridge.adapters]\n{entry}\n")


# Registered


def test_a_registered_adapter_wraps_the_models_of_its_library_and_their_subclasses():
    br.register_adapter("sixth", adapter_named("sixth", 5))
    assert br.wrap(model_of("sixth"))(7) == 35
    assert br.wrap(model_of("sixth.layers.dense"), more=2)(7) == 70
    assert br.wrap(model_of("__main__", type(model_of("sixth"))))(7) == 35
    with pytest.raises(ModelError):
        br.wrap(model_of("sixthly"))


def test_the_function_is_named_by_the_last_part_of_a_dotted_name():
    br.register_adapter("a.b.sixth", adapter_named("sixth", 5))
    assert br.wrap(model_of("a.b.sixth.layers"))(7) == 35
    with pytest.raises(ModelError):
        br.wrap(model_of("a.b"))


def test_the_longest_name_and_the_nearest_class_decide():
    br.register_adapter("sixth", adapter_named("sixth", 5))
    br.register_adapter("sixth.extra", adapter_named("extra", 3))
    br.register_adapter("seventh", adapter_named("seventh", 2))
    assert br.wrap(model_of("sixth.extra"))(7) == 21
    assert br.wrap(model_of("seventh", type(model_of("sixth"))))(7) == 14


def test_a_library_that_is_built_on_equinox_has_its_own_adapter():
    eqx = pytest.importorskip("equinox")
    br.register_adapter("sixth", adapter_named("sixth", 5))
    assert br.wrap(model_of("sixth", eqx.Module))(7) == 35
    assert type(br.wrap(model_of("seventh", eqx.Module))).__name__ == "EquinoxModule"


def test_a_class_may_become_a_function_of_its_constructors_arguments():
    class Sixth:
        @staticmethod
        def from_sixth(cls):
            return lambda factor: br.Function(lambda x: factor * x)

    br.register_adapter("sixth", Sixth)
    assert br.wrap(type(model_of("sixth")))(5)(7) == 35


BAD = {
    "name": (
        ("dm-sixth", adapter_named("sixth")),
        "an adapter is registered by the name that its library is imported by, as in"
        " register_adapter('sixth', adapter); it was given 'dm-sixth'",
    ),
    "no name": (
        (None, adapter_named("sixth")),
        "an adapter is registered by the name that its library is imported by, as in"
        " register_adapter('sixth', adapter); it was given None",
    ),
    "own": (
        ("linen", adapter_named("linen")),
        "bridge has an adapter of its own for 'linen', and wraps its models by that; give a model that"
        " is to be wrapped in another way to a function of yours instead of bridge.wrap",
    ),
    "own package": (
        ("flax.nnx", adapter_named("nnx")),
        "bridge has an adapter of its own for 'flax.nnx', and wraps its models by that; give a model"
        " that is to be wrapped in another way to a function of yours instead of bridge.wrap",
    ),
    "no function": (
        ("sixth", types.SimpleNamespace(from_sixth=3)),
        "the adapter for 'sixth', namespace(from_sixth=3), has no function from_sixth; it has to have"
        " one that takes a model and gives a bridge.Module",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), BAD.values(), ids=BAD)
def test_what_is_no_adapter_is_refused(arguments, text):
    with pytest.raises(AdapterError) as caught:
        br.register_adapter(*arguments)
    assert str(caught.value) == text
    assert isinstance(caught.value, br.BridgeError)
    assert registered == {}


def test_another_adapter_under_the_same_name_has_to_replace_the_first():
    class First:
        from_sixth = adapter_named("sixth", 5).from_sixth

    second = adapter_named("sixth", 3)
    br.register_adapter("sixth", First)
    br.register_adapter("sixth", First)
    with pytest.raises(AdapterError) as caught:
        br.register_adapter("sixth", second)
    assert str(caught.value) == (
        f"an adapter for 'sixth' is registered already, {First!r}; to put this one in its place, type"
        f" bridge.register_adapter('sixth', adapter, replace=True)"
    )
    assert registered == {"sixth": First}
    br.register_adapter("sixth", second, replace=True)
    assert br.wrap(model_of("sixth"))(7) == 21


def test_an_adapter_that_makes_no_module_is_refused():
    br.register_adapter("sixth", types.SimpleNamespace(from_sixth=lambda model: [7]))
    with pytest.raises(AdapterError) as caught:
        br.wrap(model_of("sixth"))
    assert str(caught.value) == (
        "from_sixth of the adapter for 'sixth' made [7] of a Model; it has to make a bridge.Module"
    )


def test_what_no_adapter_knows_is_refused_with_the_added_libraries_too():
    br.register_adapter("sixth", adapter_named("sixth"))
    with pytest.raises(
        ModelError, match=r"models of Linen, NNX, Haiku, Equinox, PyTorch, sixth\. A function"
    ):
        br.wrap(3)


def test_a_callable_model_of_an_added_library_does_not_become_a_function_by_itself():
    class Holder(br.Module):
        child: br.Module

    model = model_of("sixth")
    assert isinstance(Holder(model).child, br.Function)
    br.register_adapter("sixth", adapter_named("sixth"))
    with pytest.raises(FieldError) as caught:
        Holder(model)
    assert str(caught.value) == (
        "Holder.child is declared as a module and holds a sixth Model; wrap it: bridge.wrap(model)"
    )
    assert Holder(br.wrap(model)).child(7) == 7


# Installed


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that is searched for installed packages, and modules of it that end with the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("bridge_sixth"):
            del sys.modules[name]


ADAPTER = "import bridge as br\ndef from_sixth(model): return br.Function(lambda x: {} * x)\n"


def test_the_adapter_of_an_installed_package_is_imported_when_its_model_comes(site):
    (site / "bridge_sixth.py").write_text(ADAPTER.format(5))
    install(site, "bridge-sixth", "sixth = bridge_sixth")
    with pytest.raises(ModelError):
        br.wrap(model_of("seventh"))
    assert "bridge_sixth" not in sys.modules
    assert br.wrap(model_of("sixth.layers"))(7) == 35
    br.register_adapter("sixth", adapter_named("sixth", 3))
    assert br.wrap(model_of("sixth.layers"))(7) == 21


def test_an_entry_point_does_not_take_the_place_of_an_adapter_of_bridge(site):
    nn = pytest.importorskip("flax.linen")
    (site / "bridge_sixth.py").write_text("def from_flax(model): return model.no\n")
    install(site, "bridge-sixth", "flax = bridge_sixth")
    assert type(br.wrap(nn.Dense(5))).__name__ == "LinenModule"


INSTALLED = {
    "missing": (
        "sixth = bridge_sixth_no",
        "the adapter for 'sixth', 'bridge_sixth_no' of bridge-sixth 1.0, cannot be imported: No module"
        " named 'bridge_sixth_no'",
    ),
    "no such object": (
        "sixth = bridge_sixth:Adapter",
        "the adapter for 'sixth', 'bridge_sixth:Adapter' of bridge-sixth 1.0, cannot be imported:"
        " module 'bridge_sixth' has no attribute 'Adapter'",
    ),
    "no function": (
        "sixth = bridge_sixth:from_sixth",
        "has no function from_sixth; it has to have one that takes a model and gives a bridge.Module",
    ),
}


@pytest.mark.parametrize(("entry", "text"), INSTALLED.values(), ids=INSTALLED)
def test_an_installed_adapter_that_cannot_be_used_is_named(site, entry, text):
    (site / "bridge_sixth.py").write_text(ADAPTER.format(5))
    install(site, "bridge-sixth", entry)
    with pytest.raises(AdapterError) as caught:
        br.wrap(model_of("sixth"))
    assert str(caught.value).endswith(text)


def test_two_packages_for_one_library_are_refused_until_one_is_chosen(site):
    for package in ("bridge-sixth", "other-sixth"):
        install(site, package, f"sixth = {package.replace('-', '_')}")
    with pytest.raises(AdapterError) as caught:
        br.wrap(model_of("sixth"))
    first, second = "'bridge_sixth' of bridge-sixth 1.0", "'other_sixth' of other-sixth 1.0"
    texts = [
        f"several installed packages have an adapter for 'sixth': {one}, {other}. Choose one of these:"
        f" bridge.register_adapter('sixth', adapter)"
        for one, other in ((first, second), (second, first))
    ]
    assert str(caught.value) in texts
    br.register_adapter("sixth", adapter_named("sixth", 3))
    assert br.wrap(model_of("sixth"))(7) == 21


def test_the_adapter_of_the_example_serves_as_an_installed_one(tmp_path):
    install(tmp_path, "bridge-sprig", "sprig = write_an_adapter:SprigModule")
    program = """
import sys, jax, jax.numpy as jnp, sprig, bridge as br
assert "write_an_adapter" not in sys.modules
module = br.wrap(sprig.Dense(5)).init(jax.random.key(0), jnp.ones((2, 3)))
print(type(module).__name__, module(jnp.ones((2, 3))).shape)
"""
    folders = [str(tmp_path), str(ROOT / "examples"), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "SprigModule (2, 5)\n", done.stderr
