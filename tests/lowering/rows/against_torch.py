"""A row held against PyTorch's own kernel: values, dtypes and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.lowering.table import find_row

torch = pytest.importorskip("torch")
pytree = torch.utils._pytree


def assert_as_torch(name: str, *args, tolerance: float = 1e-5, gradients: bool = True, **named) -> None:
    """Fails where the row of `name` differs from the op; `args` hold tensors, where it takes arrays."""
    leaves, structure = pytree.tree_flatten((args, named))
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    moving = [place for place in tensors if gradients and leaves[place].is_floating_point()]

    def called(function, values, *first):
        placed = [values.get(place, leaf) for place, leaf in enumerate(leaves)]
        positional, keywords = pytree.tree_unflatten(placed, structure)
        result = function(*first, *positional, **keywords)
        return list(result) if isinstance(result, tuple | list) else [result]

    watched = {place: leaves[place].detach().clone().requires_grad_() for place in moving}
    wanted = called(_op(name), watched)
    flowing = [place for place, out in enumerate(wanted) if out.requires_grad]
    generator = torch.Generator().manual_seed(7)
    pushed = [torch.randn(wanted[place].shape, generator=generator) for place in flowing]
    pushed = [push.to(wanted[place].dtype) for push, place in zip(pushed, flowing, strict=True)]
    row = find_row(name)

    def outputs_and_gradients(values, pushed):
        def run(moved):
            return called(row.run, values | moved, *([_no_key] if row.draws else []))

        def flowing_ones(moved):
            outputs = run(moved)
            return [outputs[place] for place in flowing], outputs

        _, pull, outputs = jax.vjp(flowing_ones, {at: values[at] for at in moving}, has_aux=True)
        return outputs, pull(pushed)[0]

    values = {place: _array(leaves[place]) for place in tensors}
    outputs, ours = jax.jit(outputs_and_gradients)(values, [_array(push) for push in pushed])
    for got, theirs in zip(outputs, wanted, strict=True):
        assert got.dtype == jax.dtypes.canonicalize_dtype(_array(theirs).dtype)
        _assert_close(got, _array(theirs), tolerance)
    if moving:
        theirs = torch.autograd.grad(
            [wanted[place] for place in flowing], list(watched.values()), pushed
        )
        for place, gradient in zip(moving, theirs, strict=True):
            _assert_close(ours[place], _array(gradient), 10 * tolerance)


def _no_key(stream: str) -> jax.Array:
    raise AssertionError(f"nothing is to be drawn, and a key of {stream} was asked for")


def _op(name: str):
    namespace, op, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), op), overload)


def _array(tensor) -> jax.Array:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return jnp.asarray(tensor.float().numpy(), jnp.bfloat16)
    return jnp.asarray(tensor.numpy())


def _assert_close(ours, theirs, tolerance: float) -> None:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=1.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest)
