import importlib.util
import os
import re
from importlib import metadata

import jax
import pytest

# Most of the time goes into compiling programs that run once: twice as fast without optimisations. The
# flag is read when the first computation runs, and holds for both sides of every comparison.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

# Meshes need several devices; a CPU passes for as many as it is told to.
jax.config.update("jax_num_cpu_devices", 8)

LIBRARIES = ("jax", "flax", "dm-haiku", "equinox", "optax", "torch")


@pytest.fixture
def no_adapters():
    """None is registered by what ran before, nor by this test afterwards."""
    from bridge.core.libraries import registered

    kept = dict(registered)
    registered.clear()
    yield
    registered.clear()
    registered.update(kept)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the examples of docstrings that show torch, where torch is not installed."""
    if importlib.util.find_spec("torch") is not None:
        return
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            example = "".join(one.source for one in item.dtest.examples)
            if re.search(r"\bimport .*\btorch\b", example):
                item.add_marker(pytest.mark.skip(reason="the example shows torch"))


def pytest_report_header() -> str:
    return "libraries: " + ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"
