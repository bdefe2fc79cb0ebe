"""What was captured from a torch model: its ops in order, and the calls of its parts around them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bridge.core.errors import LoweringError
from bridge.core.paths import Path, split
from bridge.lowering.structure import Signature, Structure


@dataclass(frozen=True)
class Ref:
    """A value of the program, by its number."""

    number: int


@dataclass(frozen=True)
class Dtype:
    """A dtype among the arguments of an op, by NumPy's name."""

    name: str


@dataclass(frozen=True)
class Form:
    """The dtype and the sizes of an array; None for a size that may differ from call to call."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Op:
    """One op: the name of its row, its arguments, the number of its result, and the result's forms.

    A result of several outputs has several forms; a form is None for what is no array.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: int
    forms: tuple[Form | None, ...]


@dataclass(frozen=True)
class Graph:
    """A subgraph that an op takes: a branch, or the body of a loop."""

    inputs: tuple[int, ...]
    body: tuple[Op, ...]
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """One call of a part: what went in and came out, and what ran in between.

    `path` is the part's place in the torch model, `signature` its forward's. `inputs` and `outputs`
    are values, in the structure of the Python call. `writes` are the part's own buffers after it.
    """

    path: Path
    signature: Signature
    input_structure: Structure
    inputs: tuple[Any, ...]
    output_structure: Structure
    outputs: tuple[Any, ...]
    writes: Mapping[str, Any]
    body: tuple[Op | Call, ...]

    def leaves(self, bound: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
        """Each array among the arguments, with what it is called; LoweringError where they misfit."""
        parts = dict(zip(self.input_structure.names, self.input_structure.parts, strict=True))
        unknown = ", ".join(repr(name) for name in bound if name not in parts)
        if unknown:
            raise LoweringError(
                f"{where} got {unknown}, and the model was captured without; capture it with an example"
            )
        for name, part in parts.items():
            if name not in bound:
                raise LoweringError(f"{where} got no {name!r}, and the model was captured with it")
            yield from part.flatten(bound[name], f"{where}: input {name}")


@dataclass(frozen=True)
class Input:
    """An input of the model: its number, and its form."""

    number: int
    form: Form


@dataclass(frozen=True)
class Program:
    """The forward of a torch model in one mode.

    `arrays` are the numbers under which the parameters and buffers go in, by their place in the model;
    `inputs` the model's inputs; `guards` what must hold of their free sizes, `x0_1` being axis 1 of
    input 0; `writes` the buffers after the call; `fixed` says why sizes are not free, where they could
    not be.
    """

    main: Call
    arrays: Mapping[str, int]
    forms: Mapping[str, Form]
    inputs: tuple[Input, ...]
    guards: tuple[str, ...]
    writes: Mapping[str, Any]
    fixed: str | None = None

    def calls(self) -> Iterator[Call]:
        """Each call of a part, in the order in which they begin."""
        return _calls(self.main)

    def ops(self) -> Iterator[tuple[Path, Op]]:
        """Each op outside of subgraphs, with the place of the part in which it runs."""
        for call in self.calls():
            yield from ((call.path, item) for item in call.body if isinstance(item, Op))

    @cached_property
    def places(self) -> Mapping[int, Path]:
        """The place of each array that goes in, by number."""
        return {number: split(place) for place, number in self.arrays.items()}


def _calls(call: Call) -> Iterator[Call]:
    yield call
    for item in call.body:
        if isinstance(item, Call):
            yield from _calls(item)


@dataclass(frozen=True)
class Part:
    """A part of a torch model without its arrays: what it is called, and what it holds.

    `params` and `buffers` are the forms by name; `frozen` the parameters that are not trained;
    `persistent` the buffers of its state_dict; `ties` where a parameter is kept that has a second
    place here; `parts` its children, a string for one that is kept elsewhere.
    """

    title: str
    described: str
    params: Mapping[str, Form]
    buffers: Mapping[str, Form]
    frozen: tuple[str, ...]
    persistent: tuple[str, ...]
    ties: Mapping[str, str]
    parts: Mapping[str, Part | str]


@dataclass(frozen=True)
class Exported:
    """A torch model without its arrays: the tree of its parts, and its program in each mode."""

    skeleton: Part
    programs: Mapping[str, Program]
    text: str = field(compare=False, repr=False)

    @classmethod
    def of(cls, skeleton: Part, programs: Mapping[str, Program]) -> Exported:
        """The exported model, with its JSON."""
        written = {"skeleton": encoded(skeleton), "programs": encoded(dict(programs))}
        return cls(skeleton, programs, json.dumps(written, separators=(",", ":"), sort_keys=True))

    @classmethod
    def parse(cls, text: str) -> Exported:
        """The exported model that a JSON text describes."""
        written = json.loads(text)
        return cls(decoded(written["skeleton"]), decoded(written["programs"]), text)

    @cached_property
    def digest(self) -> str:
        """A hash of all of it: two are equal whose digests are."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exported) and self.digest == other.digest

    def __reduce__(self) -> Any:
        return Exported.parse, (self.text,)


_CLASSES = (Ref, Dtype, Form, Op, Graph, Call, Input, Program, Part, Signature, Structure)
_BY_NAME = {cls.__name__: cls for cls in _CLASSES}


def encoded(value: Any) -> Any:
    """A value of a program in what JSON has: a dataclass as its name and fields, a number as itself."""
    if isinstance(value, _CLASSES):
        fields = [encoded(getattr(value, name)) for name in value.__dataclass_fields__]
        return {"": type(value).__name__, "fields": fields}
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, Mapping):
        return {"": "dict", "items": [[encoded(key), encoded(item)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {"": "complex", "parts": [value.real, value.imag]}
    return value


def decoded(value: Any) -> Any:
    """The inverse of `encoded`; sequences come back as tuples."""
    if isinstance(value, list):
        return tuple(decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    match value[""]:
        case "dict":
            return {decoded(key): decoded(item) for key, item in value["items"]}
        case "complex":
            return complex(*value["parts"])
        case name:
            return _BY_NAME[name](*(decoded(item) for item in value["fields"]))
