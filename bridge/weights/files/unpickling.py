"""A pickle read as data: containers, numbers, strings and a table of names, and no code run."""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from bridge.core.errors import WeightsError

# The pickle of a checkpoint of 100 000 tensors has 15 MB; an object takes up to 60 times its opcode.
LONGEST = 1 << 26

_ADVICE = (
    "Where you trust the file, load it with torch.load(..., weights_only=False) and give the state_dict"
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
    "MARK": object,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_TEXTS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_VALUES = _NUMBERS | _TEXTS
_NOTHING = frozenset(["PROTO", "FRAME"])
_HASHABLE = (str, bytes, int, float, complex, type(None))


@dataclass(frozen=True)
class Rebuild:
    """A name that a pickle may call, and what stands in for it."""

    function: Callable[..., Any]


def load(file: io.BytesIO, known: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    """The one object of the pickle that begins where the file stands; it is left behind its end.

    `known` has the names that the pickle may use, "module name", with what they mean; those that it may
    call are `Rebuild`s. `persistent` makes what a persistent id stands for.

    Raises WeightsError for a name that is not known and for an operation that such objects never need,
    ValueError for what is no pickle.
    """
    machine = _Machine(known, persistent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a strange escape in a string
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.result()
            machine.step(opcode.name, argument)
    raise ValueError("its pickle has no end")


class _Machine:
    """The stack and the memo of a pickle that is being read."""

    def __init__(self, known: Mapping[str, Any], persistent: Callable[[Any], Any]) -> None:
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.given = 0  # how much was given to functions: one object may be given many times

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise ValueError("its pickle ends before its object does")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self.popped(_TUPLES[name])))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _NOTHING:
            raise WeightsError(
                f"its pickle uses {name}, which tensors, containers and numbers never need. {_ADVICE}"
            )

    def popped(self, count: int) -> list[Any]:
        """The last `count` objects, taken off the stack."""
        first = len(self.stack) - count
        if first < (self.marks[-1] if self.marks else 0):
            raise ValueError("its pickle takes more from its stack than there is")
        found = self.stack[first:]
        del self.stack[first:]
        return found

    def marked(self) -> list[Any]:
        """What stands above the last mark, taken off the stack together with the mark."""
        if not self.marks:
            raise ValueError("its pickle lacks a mark")
        found = self.popped(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return found

    def top(self, sort: type) -> Any:
        """The object on top, which stays there."""
        (found,) = self.popped(1)
        self.stack.append(found)
        if not isinstance(found, sort):
            raise ValueError(f"its pickle takes a {type(found).__name__} for a {sort.__name__}")
        return found

    def put(self, index: int) -> None:
        self.memo[index] = self.top(object)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError("its pickle remembers what it never had")
        self.stack.append(self.memo[index])

    def find(self, name: str) -> None:
        if name not in self.known:
            raise WeightsError(
                f"it holds {name.replace(' ', '.')}, which is no tensor, container or number; bridge"
                f" runs no code of a file. {_ADVICE}"
            )
        self.stack.append(self.known[name])

    def stack_global(self, _: Any) -> None:
        module, name = self.popped(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("its pickle has a name that is no text")
        self.find(f"{module} {name}")

    def reduce(self, _: Any) -> None:
        function, arguments = self.popped(2)
        if not isinstance(function, Rebuild) or not isinstance(arguments, tuple):
            raise WeightsError(f"its pickle calls a {type(function).__name__}. {_ADVICE}")
        self.given += sum(len(one) for one in arguments if isinstance(one, Sized))
        if self.given > LONGEST:
            raise ValueError("its pickle makes more objects than it can hold")
        try:
            self.stack.append(function.function(*arguments))
        except (TypeError, OverflowError) as error:
            raise ValueError(f"its pickle calls a function wrongly: {error}") from None

    def build(self, _: Any) -> None:
        # Attributes of a mapping, such as the _metadata of a state_dict, which weights do not need.
        self.popped(1)
        self.top(dict)

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[Any]) -> None:
        self.top(set).update(hashable(item) for item in items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("its pickle has a key without a value")
        self.top(dict).update(zip(map(hashable, items[::2]), items[1::2], strict=True))


_STEPS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "POP": lambda machine, _: machine.popped(1),
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.top(object)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "DICT": lambda machine, _: _made(machine, dict, _Machine.set_items),
    "FROZENSET": lambda machine, _: _made(machine, set, _Machine.add),
    "APPEND": lambda machine, _: machine.append(machine.popped(1)),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.add(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.popped(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": lambda machine, _: machine.stack.append(machine.persistent(*machine.popped(1))),
    "PERSID": lambda machine, identity: machine.stack.append(machine.persistent(identity)),
}


def _made(machine: _Machine, sort: type, fill: Callable[[_Machine, list[Any]], None]) -> None:
    items = machine.marked()
    machine.stack.append(sort())
    fill(machine, items)


def hashable(key: Any) -> Any:
    """A key or member that is a number, a string or a flat tuple of them; raises ValueError for others.

    Python hashes a tuple by recursion, and one of a million levels would end the process.
    """
    if isinstance(key, _HASHABLE) or (
        isinstance(key, tuple) and all(isinstance(part, _HASHABLE) for part in key)
    ):
        return key
    raise ValueError(f"its pickle has a {type(key).__name__} for a key")
