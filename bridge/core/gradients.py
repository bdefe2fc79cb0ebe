"""Gradients with respect to what is trained, for functions whose first argument is a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from bridge.core.errors import FieldError
from bridge.core.node import Node
from bridge.core.parameters import trainable, updated


def value_and_grad(function: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """The function `(module, ...) -> (value, gradient)`; the gradient is like `parameters()`.

    With `has_aux` the function returns `(loss, aux)`, and so does the value.

    >>> import bridge as br, jax.numpy as jnp
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    ...
    ...     def __call__(self, x):
    ...         return self.slope * x
    >>> value, grads = br.value_and_grad(lambda line, x: line(x) ** 2)(Line(3.0), 2.0)
    >>> float(value), float(grads.slope)
    (36.0, 24.0)
    """

    def differentiated(module: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(module, Node):
            raise FieldError(
                f"the first argument of a function under bridge.grad is the module; it was a"
                f" {type(module).__name__}"
            )

        def of_params(params: Any) -> Any:
            return function(updated(module, params), *args, **kwargs)

        return jax.value_and_grad(of_params, has_aux=has_aux)(trainable(module))

    return differentiated


def grad(function: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """The function `(module, ...) -> gradient`, or `(gradient, aux)` with `has_aux`.

    >>> import bridge as br
    >>> class Line(br.Module):
    ...     slope: br.Parameter
    >>> float(br.grad(lambda line, x: line.slope**2 * x)(Line(3.0), 2.0).slope)
    12.0
    """
    differentiated = value_and_grad(function, has_aux)

    def gradient(module: Any, *args: Any, **kwargs: Any) -> Any:
        value, grads = differentiated(module, *args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient
