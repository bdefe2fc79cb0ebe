"""Models of timm, torchvision and transformers as Modules: which are captured, and how far from torch.

    PYTHONPATH=.venv/torch-models python benchmarks/zoo.py [part of a name ...] [--results FILE]
        [--markdown FILE]

Random weights, small inputs, small configurations where a model is big. For each model: the seconds
that the capture of both modes took; the relative L2 distance from torch of the outputs in eval mode, of
the gradients in train mode, of the buffers after that train step, and of the outputs for another batch
size. Dropout is off, because no two libraries draw the same mask. A gradient is compared parameter by
parameter. Where rounding to float32 puts a model too far, the float64 model is compared as well.

With --results, what was found is kept in a JSON file, and a later run replaces the rows of its models.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import bridge as br

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.zoo_models import Entry, entries
from bridge.capture.containers import structure_of
from tests.lowering.databases import as_jax, as_numpy, difference

TOLERANCE = 1e-3
TOLERANCE_FLOAT64 = 1e-7
COLUMNS = ("forward", "gradient", "buffers", "other batch")


@dataclass
class Result:
    """What was found of one model; `reason` says why it did not pass."""

    name: str
    seconds: float = float("nan")
    far: dict[str, float] = field(default_factory=dict)
    far_float64: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def near(self) -> bool:
        """Whether the float32 model is as near as float32 should be."""
        return bool(self.far) and max(self.far.values()) < TOLERANCE

    @property
    def passed(self) -> bool:
        exact = bool(self.far_float64) and max(self.far_float64.values()) < TOLERANCE_FLOAT64
        return not self.reason and (self.near or exact)

    @property
    def told(self) -> str:
        """What the last column says."""
        if self.reason or self.near:
            return self.reason or "passes"
        worst = max(self.far_float64.values())
        return f"{'passes' if self.passed else 'too far'}; in float64 {worst:.0e}"


def checked(entry: Entry) -> Result:
    """What a model gives in JAX, against torch; in float64 too where float32 was not enough."""
    result = Result(entry.name)
    try:
        result.seconds, result.far = _captured(entry)
        if not result.near:
            with jax.enable_x64(True):
                _, result.far_float64 = _captured(entry, torch.float64)
    except Exception as error:  # noqa: BLE001 - a table shows what failed
        result.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return result


def _captured(entry: Entry, dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, float]]:
    torch.manual_seed(0)
    model, args, kwargs = entry.make()
    lively(without_randomness(model)).to(dtype)
    args, kwargs = torch.utils._pytree.tree_map(
        lambda one: one.to(dtype) if isinstance(one, torch.Tensor) and one.is_floating_point() else one,
        (args, kwargs),
    )
    start = time.perf_counter()
    module = br.from_torch(model, *args, **kwargs)
    return time.perf_counter() - start, compared(model, module, args, kwargs)


def without_randomness(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every dropout and every dropped path off."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (name in ("p", "layerdrop") or "drop" in name):
                setattr(module, name, 0.0)
    return model


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """The model with noise on what is zeros or ones at first, which would hide what goes through it."""
    with torch.no_grad():
        for one in model.parameters():
            if one.numel() > 1 and one.is_floating_point() and one.std() == 0:
                one.add_(0.1 * torch.randn_like(one))
        for name, one in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                one.add_(0.1 * torch.rand_like(one))
    return model


def compared(model: torch.nn.Module, module: Any, args: Any, kwargs: Any) -> dict[str, float]:
    """The distances of outputs, gradients, buffers, and of outputs for another batch."""
    static = {name: value for name, value in kwargs.items() if not isinstance(value, torch.Tensor)}
    arrays = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
    forward = jax.jit(lambda module, args, kwargs: module.apply(*args, **kwargs, **static)[0])
    far = {}
    larger = lambda value: torch.cat([value, value[:1]])  # noqa: E731
    batches = {
        "forward": (args, arrays),
        "other batch": (tuple(map(larger, args)), {n: larger(v) for n, v in arrays.items()}),
    }
    model.eval()
    for name, (positional, named) in batches.items():
        with torch.no_grad():
            theirs = tensors(model(*positional, **named, **static))
        ours = jax.tree.leaves(forward(module, as_jax(positional), as_jax(named)))
        far[name] = farthest(ours, theirs)
    far.update(trained(model.train(), module, args, arrays, static))
    return far


def trained(
    model: torch.nn.Module, module: Any, args: Any, arrays: Any, static: Any
) -> dict[str, float]:
    """The distances after one forward and backward in train mode."""
    out = tensors(model(*args, **arrays, **static))
    generator = np.random.default_rng(0)
    weights = [np.asarray(generator.standard_normal(one.shape), as_numpy(one).dtype) for one in out]
    params = {id(one): one for one in model.parameters() if one.requires_grad}
    # The mean, not the sum: a gradient of millions of terms says nothing of the lowering.
    total = sum((one * torch.as_tensor(w)).mean() for one, w in zip(out, weights, strict=True))
    grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    theirs = [
        np.zeros(p.shape) if g is None else as_numpy(g)
        for p, g in zip(params.values(), grads, strict=True)
    ]

    @jax.jit
    def step(module, args, arrays):
        def loss(module):
            out, after = module.apply(*args, **arrays, **static, mode="train", rng=jax.random.key(0))
            numbers = jax.tree.leaves(out)
            return sum(jnp.mean(one * w) for one, w in zip(numbers, weights, strict=True)), after

        return br.value_and_grad(loss, has_aux=True)(module)

    (_, after), ours = step(module, as_jax(args), as_jax(arrays))
    far = {"gradient": farthest_gradient(jax.tree.leaves(ours), theirs)}
    held, buffers = br.state_dict(after), dict(model.named_buffers())
    names = [name for name in buffers if name in held]
    far["buffers"] = farthest([held[n] for n in names], [buffers[n] for n in names])
    return far


def tensors(out: Any) -> list[torch.Tensor]:
    """The tensors of a torch model's output in the order in which JAX has its leaves."""
    structure, found = structure_of(out)
    return [one for one in jax.tree.leaves(structure.build(iter(found))) if torch.is_tensor(one)]


def farthest(ours: list[Any], theirs: list[torch.Tensor]) -> float:
    """The largest distance of arrays that belong together."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} arrays came, {len(theirs)} were wanted")
    return max((difference(a, b.detach()) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def farthest_gradient(ours: list[Any], theirs: list[np.ndarray]) -> float:
    """The largest distance of a parameter's gradient, relative to its size.

    What is below a thousandth of the whole gradient counts as that large: in front of a norm the
    gradient of a bias is zero, and what is left of it is rounding.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} gradients came, {len(theirs)} were wanted")
    whole = float(np.sqrt(sum(np.sum(np.square(one, dtype=np.float64)) for one in theirs)))
    return max(
        float(np.linalg.norm(np.ravel(a - b)) / max(np.linalg.norm(np.ravel(b)), 1e-3 * whole, 1e-30))
        for a, b in zip(map(np.asarray, ours), theirs, strict=True)
    )


def table(results: list[Result], count: int) -> str:
    """The results as a page in Markdown, with the versions."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "timm", "torchvision", "transformers", "jax")
    )
    passed = sum(result.passed for result in results)
    doubled = sum(result.passed and not result.near for result in results)
    lines = [
        "# Torch models as Modules",
        "",
        f"{passed} of {len(results)} models pass, and {count - len(results)} of the zoo were not run:"
        f" `bridge.from_torch` captures them in both modes, and"
        f" outputs, gradients, buffers and another batch are within {TOLERANCE:.0e} of torch"
        f" ({doubled} of them only in float64, within {TOLERANCE_FLOAT64:.0e}: their float32 rounds"
        f" farther than that). Made by `python benchmarks/zoo.py`, which says what is compared;"
        f" {date.today()}, Python {platform.python_version()}, {versions}.",
        "",
        f"| model | capture (s) | {' | '.join(COLUMNS)} | |",
        "|---|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for one in results:
        cells = [f"{one.far[name]:.0e}" if name in one.far else "" for name in COLUMNS]
        seconds = f"{one.seconds:.1f}" if one.far else ""
        lines.append(f"| {one.name} | {seconds} | {' | '.join(cells)} | {one.told} |")
    return "\n".join(lines) + "\n"


def kept(path: Path | None) -> dict[str, Result]:
    """The results of earlier runs, by the name of the model."""
    if path is None or not path.exists():
        return {}
    return {name: Result(**held) for name, held in json.loads(path.read_text()).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--results", type=Path, help="a JSON file in which results are kept")
    parser.add_argument("--table", action="store_true", help="run nothing; only write the table")
    parser.add_argument("--missing", action="store_true", help="only models without a kept result")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    known = list(entries())
    results = kept(options.results)
    for entry in known:
        chosen = not options.names or any(part in entry.name for part in options.names)
        if not chosen or options.table or (options.missing and entry.name in results):
            continue
        one = results[entry.name] = checked(entry)
        far = "  ".join(f"{name} {value:.0e}" for name, value in one.far.items())
        print(
            f"{'pass' if one.passed else 'FAIL'}  {one.name}  {one.seconds:.1f} s  {far}  {one.told}",
            flush=True,
        )
        if options.results:
            options.results.write_text(json.dumps({n: asdict(r) for n, r in results.items()}, indent=1))
        jax.clear_caches()
    text = table([results[entry.name] for entry in known if entry.name in results], len(known))
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
