"""A torch model made fit to be captured while that lasts, and what its graph would lose kept in it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.nn.modules import transformer

from bridge.core.errors import ModelError


@contextlib.contextmanager
def prepared(model: torch.nn.Module, mode: str) -> Iterator[None]:
    """The model as it is captured in a mode, while it lasts."""
    with (
        _in_mode(model, mode),
        _without_own_gradients(),
        _without_mask_detection(),
        _without_inference_tensors(),
        _with_cumulative_averages(model),
    ):
        yield


@contextlib.contextmanager
def _in_mode(model: torch.nn.Module, mode: str) -> Iterator[None]:
    """The model in a mode while it lasts: as it is where it is in that mode, parts of it in another."""
    flags = {module: module.training for module in model.modules()}
    if model.training != (mode == "train"):
        model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextlib.contextmanager
def _without_own_gradients() -> Iterator[None]:
    """Refuses autograd Functions, whose own backward a captured graph does not have."""
    function = torch.autograd.Function
    original = function.__dict__["apply"]

    def refused(cls: type, *args: Any, **kwargs: Any) -> Any:
        # Torch's own (checkpoints, custom ops) have the gradient that their forward implies.
        if cls.__module__.partition(".")[0] == "torch":
            return original.__get__(None, cls)(*args, **kwargs)
        raise ModelError(
            f"the model uses {cls.__module__}.{cls.__qualname__}, an autograd Function with a backward"
            f" of its own, which torch.export drops; write its forward in plain torch ops"
        )

    function.apply = classmethod(refused)  # type: ignore[assignment]
    try:
        yield
    finally:
        function.apply = original


@contextlib.contextmanager
def _without_mask_detection() -> Iterator[None]:
    """Lets torch.nn.Transformer take its masks as they are.

    It looks at the values of a mask for whether it is the causal one, which only chooses a quicker
    kernel; a capture has no values to look at.
    """
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


@contextlib.contextmanager
def _without_inference_tensors() -> Iterator[None]:
    """Lets inference_mode be a no_grad: in a graph its tensors would get gradients."""
    entering, original = torch.inference_mode, torch.inference_mode.__enter__
    leaving = entering.__exit__

    def enter(self: Any) -> None:
        self.cut = torch.set_grad_enabled(torch.is_grad_enabled() and not self.mode)

    def leave(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self.cut.__exit__(exc_type, exc_value, traceback)

    entering.__enter__, entering.__exit__ = enter, leave
    try:
        yield
    finally:
        entering.__enter__, entering.__exit__ = original, leaving


@contextlib.contextmanager
def _with_cumulative_averages(model: torch.nn.Module) -> Iterator[None]:
    """Lets batch norms with momentum=None compute their factor as a tensor.

    Torch's own forward makes a Python number of the count of batches, which a capture does not have.
    """
    changed = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        and module.momentum is None
        and module.track_running_stats
        and "forward" not in vars(module)
    ]
    for module in changed:
        module.forward = functools.partial(_cumulative_batch_norm, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _cumulative_batch_norm(module: Any, input: torch.Tensor) -> torch.Tensor:
    """A batch norm whose running statistics are the means of all batches so far."""
    module._check_input_dim(input)
    if not module.training:
        arrays = module.running_mean, module.running_var, module.weight, module.bias
        return torch.nn.functional.batch_norm(input, *arrays, False, 0.0, module.eps)
    mean, variance = torch.zeros_like(module.running_mean), torch.ones_like(module.running_var)
    # With a momentum of one, what is left in the running statistics are the batch's own.
    out = torch.nn.functional.batch_norm(
        input, mean, variance, module.weight, module.bias, True, 1.0, module.eps
    )
    with torch.no_grad():
        module.num_batches_tracked.add_(1)
        factor = 1.0 / module.num_batches_tracked
        module.running_mean.mul_(1 - factor).add_(factor * mean)
        module.running_var.mul_(1 - factor).add_(factor * variance)
    return out


def cut_gradients(module: GraphModule) -> None:
    """Detaches what goes into the no_grad regions of a graph, in place: decomposing dissolves them.

    Raises ModelError where such a region enables gradients again.
    """
    for node in module.graph.nodes:
        for graph in _subgraphs(module, node):
            if _is_region(node) and not node.args[0]:
                _detach_inputs(graph)
            cut_gradients(graph)


def _subgraphs(module: GraphModule, node: Node) -> list[GraphModule]:
    """The graphs that a node takes: the region itself, a branch, the body of a loop."""
    names = [str(arg.target) for arg in node.args if isinstance(arg, Node) and arg.op == "get_attr"]
    held = [getattr(module, name) for name in names]
    return [one for one in held if isinstance(one, GraphModule)]


def _is_region(node: Node) -> bool:
    return node.target is torch.ops.higher_order.wrap_with_set_grad_enabled


def _detach_inputs(module: GraphModule) -> None:
    graph = module.graph
    if any(_is_region(node) and node.args[0] for node in graph.nodes):
        raise ModelError(
            "the model enables gradients inside of torch.no_grad(), which a capture cannot keep apart;"
            " take that part out of the no_grad region"
        )
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
            users = list(node.users)
            with graph.inserting_after(inputs[-1]):
                detached = graph.call_function(torch.ops.aten.detach.default, (node,))
            detached.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, detached)
    module.recompile()
