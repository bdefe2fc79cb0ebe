import importlib.util
import os
import re
from importlib import metadata

import jax
import pytest

# Most of the time goes into compiling programs that run once: a third of it without optimisations. The
# flags are read when the first computation runs, and hold for both sides of every comparison.
FLAGS = ["--xla_backend_optimization_level=0"]
if (0, 10) <= jax.__version_info__ < (0, 11):  # other versions do not know it, and end the process
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

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
