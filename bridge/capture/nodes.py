"""What a node of torch's graph is, and where it comes from."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from bridge.core.errors import ModelError

# Checks at run time: sizes are checked when a call is traced; of values, JAX gives NaN where torch
# raises, as for the inverse of a singular matrix.
_SILENT = (
    "aten._assert_tensor_metadata.default",
    "aten._assert_async.msg",
    "aten._assert_async.default",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
    "aten._linalg_check_errors.default",
)


def original(node: Any) -> Any:
    """What a copy among the outputs is a copy of."""
    return node.args[0] if is_copy(node) else node


def is_copy(node: Any) -> bool:
    """Whether a node is a clone, as the marks take of their values."""
    return isinstance(node, Node) and node.target is torch.ops.aten.clone.default


def is_op(node: Node) -> bool:
    """Whether a node computes something, beside checks of torch's and the order of effects."""
    return node.op == "call_function" and op_name(node.target) not in _SILENT and not is_token(node)


def symbol(size: Any) -> Any:
    """The expression of a size that is a symbol; None for a number."""
    return size.node.expr if isinstance(size, torch.SymInt) else None


def is_token(node: Node) -> bool:
    """Whether a node only orders effects: a check of torch's, or the token that comes out of one.

    Raises ModelError for another effect.
    """
    taken = node.args[0] if node.target is operator.getitem else node
    if not isinstance(taken, Node) or taken.target is not torch.ops.higher_order.with_effects:
        return False
    effect = op_name(taken.args[1])
    if effect not in _SILENT:
        raise ModelError(
            f"the model calls {effect} for its effect, in {origin(taken)}, and a JAX program has none;"
            f" call it outside of the model's forward"
        )
    return True


def op_name(target: Any) -> str:
    """The name under which an op has its row."""
    if isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return str(target)
    return f"{target.__module__.removeprefix('_')}.{target.__name__}"


def origin(node: Node) -> str:
    """The part and the line of source that an op comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(name) for name, _ in stack.values() if str(name).startswith("model.")]
    place = names[-1].removeprefix("model.") if names else ""
    lines = [
        line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if "File " in line
    ]
    source = f" ({lines[-1]})" if lines else ""
    return f"{place or 'the root module'}{source}"
