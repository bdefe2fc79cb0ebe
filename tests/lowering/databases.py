"""Torch's own databases of modules and ops: each case against torch itself, forward and gradients."""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.utils._pytree as pytree
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import bridge as br
from bridge.capture.tensors import as_numpy, dtype_name
from bridge.lowering.promotion import narrowed

TOLERANCE = 5e-4
# What these give is whatever the memory held: only its shape and dtype are theirs.
UNDEFINED = (
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "resize_as_",
)


@dataclass(frozen=True)
class ModuleCase:
    """One entry of torch's database of modules: how it is made, and what it is called with."""

    name: str
    info: Any
    training: bool
    number: int

    def made(self):
        """The module and its arguments."""
        torch.manual_seed(self.number)
        given = self.inputs(self.info, self.training)[self.number]
        built = given.constructor_input
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = self.info.module_cls(*built.args, **built.kwargs)
        made.float()  # the samples of FractionalMaxPool come as float64, which torch itself refuses
        if any(isinstance(one, torch.nn.modules.lazy.LazyModuleMixin) for one in made.modules()):
            made(*given.forward_input.args, **given.forward_input.kwargs)
        return made.train(self.training), given.forward_input

    def checked(self) -> dict[str, float]:
        """How far the case is from torch, by what was compared."""
        model, given = self.made()
        return check_module(model, given.args, given.kwargs, self.training)

    @staticmethod
    @functools.lru_cache(maxsize=2)
    def inputs(info, training):
        """The samples of an entry."""
        torch.manual_seed(0)
        return info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
        )


def module_cases() -> Iterator[ModuleCase]:
    """Every case that is no loss, in each mode in which torch's database has it."""
    for info in module_db:
        if info.module_cls.__name__.endswith("Loss"):
            continue
        for training in (False, True):
            count = len(ModuleCase.inputs(info, training))
            for number in range(count):
                mode = "train" if training else "eval"
                yield ModuleCase(f"{info.name}-{mode}-{number}", info, training, number)


def chosen_cases() -> Iterator[ModuleCase]:
    """One case of each class: its first one in eval mode, or its last one in train mode, in turns."""
    found: dict[str, list[ModuleCase]] = {}
    for case in module_cases():
        found.setdefault(case.info.name, []).append(case)
    for index, cases in enumerate(found.values()):
        yield cases[0] if index % 2 else cases[-1]


class Called(torch.nn.Module):
    """A call of a function as a model: its inputs are the tensors among the arguments, in order."""

    def __init__(self, function, args, kwargs, process):
        super().__init__()
        self.function, self.process = function, process
        self.leaves, self.structure = pytree.tree_flatten((args, kwargs))
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]

    def forward(self, *tensors):
        full = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            full[place] = tensor.clone()  # some of the functions write into their arguments
        args, kwargs = pytree.tree_unflatten(full, self.structure)
        return self.process(self.function(*args, **kwargs))


class NoCase(Exception):
    """A sample that cannot be compared: torch itself does not run it here, or gives no plain tensor."""


@dataclass(frozen=True)
class OpCase:
    """One sample of an entry of torch's database of ops."""

    name: str
    info: Any
    sample: Any

    def checked(self) -> dict[str, float]:
        """How far the case is from torch, by what was compared; raises NoCase where torch has none."""
        given = self.sample
        # Its process leaves of a factorisation what is determined: no signs, no phases.
        model = Called(
            self.info.op, (given.input, *given.args), given.kwargs, given.output_process_fn_grad
        ).eval()
        tensors = [model.leaves[place] for place in model.places]
        values = self.info.name not in UNDEFINED and self._is_determined(model, tensors)
        moving = [i for i, tensor in enumerate(tensors) if values and tensor.requires_grad]
        return check_module(model, tensors, {}, False, moving, values)

    def _is_determined(self, model, tensors) -> bool:
        """Whether the sample has the same result for every seed."""
        try:
            found = []
            # Many entries seed their op themselves.
            with mock.patch.object(torch, "manual_seed", return_value=None):
                for seed in (0, 1):
                    torch.default_generator.manual_seed(seed)
                    found.append(leaves(model(*tensors)))
        except Exception as error:
            raise NoCase(f"{type(error).__name__}: {error}") from error
        if not found[0]:
            raise NoCase("it gives no tensor")
        try:
            as_jax([*tensors, *found[0]])
        except TypeError as error:
            raise NoCase(f"no array can hold its tensors: {error}") from error
        return _farthest([as_numpy(one) for one in found[0]], found[1]) == 0


def op_entries() -> list[Any]:
    """The entries of torch's database of ops."""
    return list(op_db)


def op_name(info) -> str:
    """The name of an entry, with that of its variant."""
    return ".".join(filter(None, (info.name, info.variant_test_name)))


def op_cases(info, most: int) -> Iterator[OpCase]:
    """Up to so many samples of an entry, from all over its list; of float32, where the op takes it."""
    wanted = (torch.float32, torch.int64, torch.complex64, *info.dtypes)
    dtype = next((one for one in wanted if one in info.dtypes), torch.float32)
    torch.manual_seed(0)
    moving = info.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
    samples = list(info.sample_inputs("cpu", dtype, requires_grad=moving))
    places = np.unique(np.linspace(0, len(samples) - 1, most).round().astype(int)) if samples else []
    for place in places:
        yield OpCase(f"{op_name(info)}-{place}", info, samples[place])


def difference(ours, theirs) -> float:
    """The relative L2 distance of two arrays, infinite where their shapes or infinities differ."""
    ours, theirs = np.asarray(ours), as_numpy(theirs) if isinstance(theirs, torch.Tensor) else theirs
    if ours.shape != np.shape(theirs):
        return float("inf")
    ours, theirs = ours.astype(np.complex128), np.asarray(theirs).astype(np.complex128)
    apart = np.where((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)), 0, ours - theirs)
    if not np.isfinite(apart).all():
        return float("inf")
    size = np.linalg.norm(np.where(np.isfinite(theirs), theirs, 0).ravel())
    return float(np.linalg.norm(apart.ravel()) / max(size, 1e-3))


def leaves(value) -> list[torch.Tensor]:
    """The tensors of a nested value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def as_jax(value):
    """A nested value with JAX arrays for tensors."""
    return pytree.tree_map(
        lambda leaf: jnp.array(as_numpy(leaf)) if isinstance(leaf, torch.Tensor) else leaf, value
    )


def cotangent(array):
    """A fixed array of weights for a sum of outputs, the same in both libraries."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal(np.shape(array)).astype(np.float32)
    return values


def check_module(
    model: torch.nn.Module, args, kwargs, training: bool, moving=None, values: bool = True
) -> dict[str, float]:
    """How far a captured model is from torch: outputs, gradients of parameters and inputs, buffers.

    The gradients are those of one weighted sum of all outputs to which torch lets them flow, with
    respect to all inputs of floats, or to those among the leaves of the arguments whose places are
    `moving`. Without `values`, only the shapes and dtypes of the outputs are compared.
    """
    mode = "train" if training else "eval"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = br.from_torch(model, *args, mode=mode, **kwargs)
    before = {name: as_numpy(one).copy() for name, one in model.state_dict().items()}
    held = br.state_dict(module)
    assert list(held) == list(before)
    assert all(held[n].dtype == v.dtype and (held[n] == v).all() for n, v in before.items() if v.size)
    given, structure = pytree.tree_flatten((args, kwargs))
    if moving is None:
        moving = [i for i, leaf in enumerate(given) if _is_inexact(leaf)]
    theirs, flowing, their_grads = _theirs(model, given, structure, moving)
    ours, after, grads = _ours(module, as_jax(given), structure, mode, moving, flowing)
    if not values or not _same_forms(ours, theirs):
        return {"form": 0.0 if _same_forms(ours, theirs) else float("inf")}
    far = {"forward": _farthest(ours, theirs)}
    if flowing:
        far["gradient"] = max(map(_farthest, grads, their_grads))
    buffers = [name for name, _ in model.named_buffers() if name in model.state_dict()]
    if buffers:
        held, theirs = br.state_dict(after), dict(model.named_buffers())
        far["buffers"] = _farthest([held[n] for n in buffers], [theirs[n] for n in buffers])
    return far


def _theirs(model, given, structure, moving):
    """Torch's outputs, the numbers of those with gradients, and gradients of parameters and inputs."""
    given = [leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in given]
    fresh = {i: given[i].clone().requires_grad_() for i in moving}
    args, kwargs = pytree.tree_unflatten([fresh.get(i, x) for i, x in enumerate(given)], structure)
    out = leaves(model(*args, **kwargs))
    flowing = [i for i, one in enumerate(out) if one.requires_grad]
    if not flowing:
        return out, flowing, ([], [])
    total = sum((out[i] * torch.from_numpy(cotangent(out[i].detach()))).sum().real for i in flowing)
    params = [one for one in model.parameters() if one.requires_grad]
    wanted = [*params, *fresh.values()]
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    grads = [
        torch.zeros_like(one) + (0 if grad is None else grad)  # a ZeroTensor has no memory
        for one, grad in zip(wanted, grads, strict=True)
    ]
    return out, flowing, (grads[: len(params)], grads[len(params) :])


def _ours(module, given, structure, mode, moving, flowing):
    """The same of a Module, and the Module after the call."""
    arrays = {i: leaf for i, leaf in enumerate(given) if isinstance(leaf, jax.Array)}

    def run(params, moved, arrays):
        full = [{**arrays, **moved}.get(i, leaf) for i, leaf in enumerate(given)]
        args, kwargs = pytree.tree_unflatten(full, structure)
        out, after = module.update(params).apply(*args, rng=jax.random.key(0), mode=mode, **kwargs)
        numbers = jax.tree.leaves(out)
        total = sum(jnp.sum(numbers[i] * cotangent(numbers[i])).real for i in flowing)
        return jnp.asarray(total, jnp.float32), (out, after)

    inputs = module.parameters(), {i: arrays[i] for i in moving}, arrays
    if not flowing:
        _, (out, after) = jax.jit(run)(*inputs)
        return jax.tree.leaves(out), after, ([], [])
    grads, (out, after) = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(*inputs)
    # Torch's gradient of a complex number is the conjugate of JAX's.
    params, moved = (list(map(np.conj, jax.tree.leaves(one))) for one in grads)
    return jax.tree.leaves(out), after, (params, moved)


def _is_inexact(leaf) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _same_forms(ours, theirs) -> bool:
    return [(one.shape, one.dtype) for one in ours] == [
        (tuple(one.shape), narrowed(dtype_name(one.dtype))) for one in theirs
    ]


def _farthest(ours, theirs) -> float:
    if len(ours) != len(theirs):
        return float("inf")
    return max((difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
