from importlib import metadata

import jax

# Meshes need several devices; a CPU passes for as many as it is told to.
jax.config.update("jax_num_cpu_devices", 8)

LIBRARIES = ("jax", "flax", "dm-haiku", "equinox", "optax", "torch")


def pytest_report_header() -> str:
    return "libraries: " + ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"
