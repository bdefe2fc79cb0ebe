"""A small net of the library that `examples/write_an_adapter.py` adds."""

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import jax

import bridge as br
from tests.adapters.subjects import Subject

EXAMPLES = Path(__file__).parents[2] / "examples"
INPUTS = jax.random.normal(jax.random.key(3), (7, 5))


def example() -> Any:
    """The example as a module, which finds sprig next to it as it does when it is run."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module("write_an_adapter")


def net() -> Any:
    sprig = example().sprig
    stem = sprig.Chain((sprig.Norm(), sprig.Dense(11)))
    return sprig.Chain((stem, sprig.Relu(), sprig.Dropout(0.5), sprig.Dense(3)))


@functools.cache
def compiled() -> Any:
    return jax.jit(net(), static_argnames="train")


def native(module: br.Module, key: Any, mode: str) -> tuple[Any, Any]:
    return compiled()(*module.native(), INPUTS, key=key, train=mode == "train")


def block() -> br.Module:
    sprig = example().sprig
    return br.wrap(sprig.Chain((sprig.Norm(), sprig.Dense(5), sprig.Relu(), sprig.Dropout(0.5))))


def subject() -> Subject:
    return Subject(
        library="sprig", build=lambda: br.wrap(net()), block=block, inputs=INPUTS, native=native
    )
