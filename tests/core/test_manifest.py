import dataclasses
import json
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import bridge as br
from bridge.core.manifest import described
from bridge.core.opaque import Opaque


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Recipe:
    rate: float
    parent: Any = dataclasses.field(default=None, repr=False)


class Dense(br.Module):
    kernel: br.Parameter


STATICS = {
    "None": (None, None),
    "float": (0.1, 0.1),
    "nan": (float("nan"), "<float nan>"),
    "infinity": (-float("inf"), "<float -inf>"),
    "tuple": ((1, True, "a"), [1, True, "a"]),
    "dict": ({"a": (1,)}, {"a": [1]}),
    "dict with other keys": ({1: "a"}, [[1, "a"]]),
    "set": (frozenset({"b", "a"}), ["a", "b"]),
    "function": (jax.nn.gelu, "<function gelu>"),
    "class": (Dense, "<class Dense>"),
    "dtype": (np.dtype("float32"), "<Float32DType float32>"),
    "number of NumPy": (np.float32(0.5), "<float32 0.5>"),
    "bytes": (b"a\x00", "<bytes b'a\\x00'>"),
    "enum": (jax.lax.Precision.HIGHEST, "<enum Precision.HIGHEST>"),
    "named tuple": (Point(1, "b"), {"__class__": "Point", "x": 1, "y": "b"}),
    "dataclass": (Recipe(0.5), {"__class__": "Recipe", "rate": 0.5}),
    "model of another library": (Opaque(Recipe(0.5)), {"__class__": "Recipe", "rate": 0.5}),
    "other": (iter(()), "<object tuple_iterator>"),
    "partial": (
        jax.tree_util.Partial(jax.nn.gelu, approximate=False),
        {"function": "<function gelu>", "args": [], "keywords": {"approximate": False}},
    ),
}


@pytest.mark.parametrize("name", STATICS)
def test_a_static_value_is_described_in_plain_json(name):
    value, wanted = STATICS[name]
    assert described(value) == wanted
    assert json.loads(json.dumps(described(value), allow_nan=False)) == wanted
