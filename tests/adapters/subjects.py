"""What the conformance suite asks of a library: one small net, and how the library itself runs it."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import pytest

import bridge as br

HOSTS = {"linen": "flax", "nnx": "flax", "haiku": "haiku", "equinox": "equinox"}
PACKAGES = {**HOSTS, "torch": "torch"}
# sprig is added as any user adds a library, by examples/write_an_adapter.py, and needs no other one.
SUBJECTS = (*PACKAGES, "sprig")
NATIVE = (*HOSTS, "sprig")


@dataclass(frozen=True)
class Subject:
    """A net with parameters, statistics and dropout, and a block of such layers from (7 5) to (7 5).

    `native` runs what `module.native()` gives by the library's own functional API, compiled:
    (module, key or None, mode) -> (output, state after), the state's leaves in the order of
    `module.state`.
    """

    library: str
    build: Callable[[], Any]
    block: Callable[[], Any]
    inputs: jax.Array
    native: Callable[[Any, Any, str], tuple[Any, Any]] | None = None


@functools.cache
def subject_of(library: str) -> Subject:
    """The subject of a library; skips the test where the library is not installed."""
    if library in PACKAGES:
        pytest.importorskip(PACKAGES[library])
    return importlib.import_module(f"tests.adapters.subject_{library}").subject()


@functools.cache
def initialised(library: str) -> br.Module:
    """The subject's module with parameters; compiled, because eager Haiku is slow."""
    subject = subject_of(library)
    return jax.jit(lambda key: subject.build().init(key, subject.inputs))(jax.random.key(5))
