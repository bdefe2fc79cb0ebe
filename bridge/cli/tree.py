"""The arrays of a checkpoint as a tree: nested by dots, alike numbered parts folded into one."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import bridge.core.paths as paths
from bridge.cli.rendering import nbytes
from bridge.weights.tensors import Tensor

_DEEPEST = 64  # what a key has beyond it is one name: a file may hold a key of a million dots
_NUMBERED = re.compile(r"(\D*|.*\D)(0|[1-9]\d{0,8})(\D*)")
# What has one axis in a layer by itself, and two where layers are stacked.
_VECTORS = {"bias", "scale", "b", "offset"}


@dataclass
class Node:
    """A name in a tree: an array, names below it, or both."""

    tensor: Tensor | None = None
    children: dict[str, Node] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each array below a node, with the last name of its key."""
        for name, child in self.children.items():
            if child.tensor is not None:
                yield name, child.tensor
            yield from child.tensors()

    @cached_property
    def form(self) -> Hashable:
        """What two nodes that hold the same have in common, whatever their own names."""
        own = self.tensor and (self.tensor.shape, str(self.tensor.dtype))
        return own, frozenset((name, child.form) for name, child in self.children.items())


class Line(NamedTuple):
    """A line of the printed tree; `alike` counts what is folded, `stacked` the layers in each array."""

    depth: int
    name: str
    node: Node
    alike: int
    stacked: int | None


def tree_of(tensors: Mapping[str, Tensor]) -> Node:
    """The tree of arrays by their keys."""
    root = Node()
    for key, tensor in tensors.items():
        names = paths.split(key) or ("",)
        node = root
        for name in (*names[:_DEEPEST], *filter(None, [".".join(names[_DEEPEST:])])):
            node = node.children.setdefault(name, Node())
        node.tensor = tensor
    return root


def lines(node: Node, depth: int = 0, in_stack: bool = False) -> Iterator[Line]:
    """What is below a node, line by line; a name that leads to one other shares its line."""
    for name, members in _folded(node):
        child, alike = members[0], len(members)
        while child.tensor is None and len(below := _folded(child)) == 1:
            ((inner, members),) = below
            name, child, alike = f"{name}.{inner}", members[0], alike * len(members)
        count = None if in_stack else stacked(child)
        yield Line(depth, name, child, alike, count)
        yield from lines(child, depth + 1, in_stack or count is not None)


def total(node: Node) -> int:
    """The bytes of the arrays below a node."""
    return sum(nbytes(tensor) for _, tensor in node.tensors())


def stacked(node: Node) -> int | None:
    """How many layers the arrays below a node hold each, one behind the other, as far as shapes tell.

    A stack has as many along the first axis of all, and a bias or scale there has two axes.
    """
    found = list(node.tensors())
    counts = {tensor.shape[:1] for _, tensor in found}
    is_stack = (
        len(counts) == 1
        and len(found) > 1
        and all(len(tensor.shape) > 1 for _, tensor in found)
        and any(name in _VECTORS and len(tensor.shape) == 2 for name, tensor in found)
    )
    ((count,),) = counts if is_stack else ((None,),)
    return count


def stacks(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """The outermost nodes whose arrays hold several layers each, and how many."""
    for name, child in node.children.items():
        place = (*path, name)
        leads_on = child.tensor is None and len(child.children) == 1
        if not leads_on and (count := stacked(child)) is not None:
            yield paths.join(place), count
        else:
            yield from stacks(child, place)


def _folded(node: Node) -> list[tuple[str, Sequence[Node]]]:
    """The names below a node, those that differ in a number alone and hold the same as one."""
    groups: dict[Hashable, list[tuple[int, str]]] = {}
    for name in _ordered(node.children):
        template, number = _template(name)
        form = (template, node.children[name].form) if number is not None else name
        groups.setdefault(form, []).append((number or 0, name))
    return [
        (_label(sorted(members)), [node.children[name] for _, name in members])
        for members in groups.values()
    ]


def _ordered(names: Mapping[str, Node]) -> list[str]:
    """Names in their order, but plain numbers in theirs."""
    numbers = iter(sorted((name for name in names if _is_number(name)), key=int))
    return [next(numbers) if _is_number(name) else name for name in names]


def _is_number(name: str) -> bool:
    return _template(name)[0] == ("", "")


def _template(name: str) -> tuple[tuple[str, str], int | None]:
    """A name without its last number, and that number; None without one."""
    parts = _NUMBERED.fullmatch(name)
    return ((parts[1], parts[3]), int(parts[2])) if parts else ((name, ""), None)


def _label(members: Sequence[tuple[int, str]]) -> str:
    """One name for all: `layers.(0..11)`, `(0, 2..4)`."""
    if len(members) == 1:
        return members[0][1]
    runs: list[list[int]] = []
    for number, _ in members:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spelled = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    (before, after), _ = _template(members[0][1])
    return f"{before}({spelled}){after}"
