"""Torch models into twins that somebody else wrote, by what they compute alone: no name, no class.

    PYTHONPATH=.venv/torch-models python benchmarks/matching.py [part of a name ...] [--markdown FILE]

Every array of the torch model is kept under a random name in one flat module, so that neither its keys
nor its layers tell anything; the twins are of other authors or written in their library's own way. For
each model and library: how many arrays of the twin are proved from the two programs, probed with random
numbers, equal whichever way, named, and without a pair; the seconds that `bridge.match` takes; and how
far the loaded twin is from torch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
sys.path.insert(0, str(Path(__file__).parent.parent))
import bridge as br
from benchmarks.zoo import lively
from benchmarks.zoo_models import declare_detection_ops
from bridge.core.tree import entries
from tests.lowering.databases import difference
from tests.weights.twins import convolutional, language, transformers

CLASSES = 11
EVIDENCE = {"proved": "proved", "probe": "probed", "any order": "equal either way"}
COLUMNS = ("arrays", *EVIDENCE.values(), "named", "no pair")


class Nameless(torch.nn.Module):
    """A model with every array under a random name, in a random order, and no module inside."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._hidden = [model]  # a list hides it from PyTorch
        generator = random.Random(0)
        arrays = [*model.named_parameters(), *_buffers(model)]
        generator.shuffle(arrays)
        self._names = {}
        for name, array in arrays:
            self._names[name] = f"a{generator.getrandbits(64):016x}"
            if isinstance(array, torch.nn.Parameter):
                self.register_parameter(self._names[name], array)
            else:
                self.register_buffer(self._names[name], array)

    def forward(self, *inputs: Any) -> Any:
        held = {name: getattr(self, own) for name, own in self._names.items()}
        return torch.func.functional_call(self._hidden[0], held, inputs)


def _buffers(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    kept = model.state_dict()
    return [(n, b) for n, b in model.named_buffers() if n in kept and b.is_floating_point()]


@dataclass(frozen=True)
class Subject:
    """A torch model with inputs for it, and twins by their library."""

    name: str
    torch: Callable[[], Any]
    inputs: Callable[[], tuple[np.ndarray, ...]]
    twins: dict[str, Callable[[], Any]]


@dataclass
class Result:
    """What was found of a model and a twin of it."""

    name: str
    library: str
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = float("nan")
    far: float = float("nan")
    told: str = ""


def checked(subject: Subject, library: str) -> Result:
    """How the arrays of a twin find theirs, and how far it is from torch then."""
    result = Result(subject.name, library)
    torch.manual_seed(0)
    model, inputs = lively(subject.torch()).eval(), subject.inputs()
    try:
        module, given = _twin(subject.twins[library](), library, inputs)
        start = time.perf_counter()
        match = br.match(module, Nameless(model), inputs=inputs)
        result.seconds = time.perf_counter() - start
        _count(result, module, match)
        complaints = match.complaints()
        result.told = f"{len(complaints)}: {complaints[0]}" if complaints else ""
        if not match.problems:
            loaded = br.load_state_dict(module, Nameless(model), plan=match, strict=False)
            result.far = _distance(loaded, given, model, inputs)
    except Exception as error:  # noqa: BLE001 - a table shows what failed
        result.told = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return result


def _twin(module: Any, library: str, inputs: tuple[np.ndarray, ...]) -> tuple[Any, Any]:
    """The twin with zeros for its arrays, and the inputs as it takes them."""
    last = library.removesuffix(" (another's)") != "equinox"
    given = [np.moveaxis(x, 1, -1) if x.ndim == 4 and last else x for x in inputs]
    abstract = jax.eval_shape(lambda key: module.init(key, *given), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract), given


def _count(result: Result, module: Any, match: Any) -> None:
    paired = {pair.path: pair.evidence for pair in match.pairs}
    for entry in entries(module):
        is_array = hasattr(entry.value, "dtype") and jnp.issubdtype(entry.value.dtype, jnp.floating)
        if not is_array or entry.path in match.constants:
            continue
        result.counts["arrays"] += 1
        told = paired.get(entry.path)
        if told is None:
            result.counts["no pair"] += 1
        else:
            found = (name for start, name in EVIDENCE.items() if told.startswith(start))
            result.counts[next(found, "named")] += 1


def _distance(module: Any, given: Any, model: Any, inputs: tuple[np.ndarray, ...]) -> float:
    out = jax.jit(lambda module, given: module.apply(*given)[0])(module, given)
    with torch.no_grad():
        wanted = model(*map(torch.from_numpy, inputs))
    theirs = wanted if torch.is_tensor(wanted) else next(iter(wanted.values()))
    return difference(jax.tree.leaves(out)[0], theirs)


def _torchvision(name: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        models = importlib.import_module("torchvision").models
        return models.get_model(name, weights=None, num_classes=CLASSES, **options)

    return make


def _hugging(name: str, config: str, sizes: dict[str, Any], text: bool = True) -> Callable[[], Any]:
    def make() -> Any:
        library = importlib.import_module("transformers")
        model = getattr(library, name)(getattr(library, config)(**sizes))
        return language.TorchText(model) if text else model

    return make


def _hugging_flax(name: str, config: str, sizes: dict[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        library = importlib.import_module("transformers")
        made = getattr(library, name)(getattr(library, config)(**sizes), _do_init=False).module
        return br.from_linen(language.FlaxText(made))

    return make


def _image(size: int) -> Callable[[], tuple[np.ndarray, ...]]:
    shape = (2, 3, size, size)
    return lambda: (np.random.default_rng(0).normal(size=shape).astype(np.float32),)


def _ids() -> tuple[np.ndarray, ...]:
    return (np.random.default_rng(0).integers(0, 97, (2, 11)),)


def _bert(library: str) -> Callable[[], Any]:
    """A BERT of the example of sentence encoders."""
    config = SimpleNamespace(
        vocabulary=97,
        positions=41,
        segments=3,
        features=30,
        mlp_features=53,
        heads=2,
        layers=2,
        epsilon=1e-12,
        dropout=0.0,
        attention_dropout=0.0,
    )

    def make() -> Any:
        model = importlib.import_module(f"sentence_encoders.{library}").build(config)
        return getattr(br, f"from_{library}")(model, **({"vmap": True} if library == "equinox" else {}))

    return make


def _linears(library: str) -> Callable[[], Any]:
    """Eight equal linear layers, by what each library has for them."""

    def make() -> Any:
        if library == "equinox":
            eqx = importlib.import_module("equinox")
            mlp = eqx.nn.MLP(7, 7, 7, 7, jnp.tanh, key=jax.random.key(0))
            return br.from_equinox(mlp, vmap=True)
        if library == "haiku":
            hk = importlib.import_module("haiku")
            return br.from_haiku(lambda x: hk.nets.MLP([7] * 8, activation=jnp.tanh)(x))
        if library == "nnx":
            nnx = importlib.import_module("flax.nnx")
            layers = [nnx.Linear(7, 7, rngs=nnx.Rngs(0)) for _ in range(8)]
            parts = [one for layer in layers for one in (layer, jnp.tanh)][:-1]
            return br.from_nnx(nnx.Sequential(*parts))
        nn = importlib.import_module("flax.linen")
        parts = [one for _ in range(8) for one in (nn.Dense(7), jnp.tanh)][:-1]
        return br.from_linen(nn.Sequential(parts))

    return make


def _haiku_net(name: str) -> Callable[[], Any]:
    hk = importlib.import_module("haiku")
    return lambda: convolutional.haiku_resnet(getattr(hk.nets, name), CLASSES)


_SMALL = {"hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 53}
_BERT = {**_SMALL, "vocab_size": 97, "max_position_embeddings": 41, "type_vocab_size": 3}
_GPT2 = {"vocab_size": 97, "n_embd": 34, "n_layer": 2, "n_head": 2, "n_inner": 53, "n_positions": 41}
_LLAMA = {**_SMALL, "vocab_size": 97, "hidden_size": 40, "num_attention_heads": 4}
_LLAMA |= {"num_key_value_heads": 2}
_LINEARS = [part for _ in range(8) for part in (lambda: torch.nn.Linear(7, 7), torch.nn.Tanh)][:-1]

SUBJECTS = (
    Subject(
        "eight equal Linears",
        lambda: torch.nn.Sequential(*(make() for make in _LINEARS)),
        lambda: (np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32),),
        {library: _linears(library) for library in ("linen", "nnx", "haiku", "equinox")},
    ),
    Subject(
        "nn.TransformerEncoder",
        lambda: torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(10, 2, 13, batch_first=True), 2, enable_nested_tensor=False
        ),
        lambda: (np.random.default_rng(0).normal(size=(2, 7, 10)).astype(np.float32),),
        {
            "linen": lambda: transformers.linen_encoder(10, 13, 2, 2),
            "haiku": lambda: transformers.haiku_encoder(10, 13, 2, 2),
        },
    ),
    Subject(
        "BERT",
        _hugging("BertModel", "BertConfig", _BERT, text=False),
        lambda: (*_ids(), np.ones((2, 11), bool)),
        {library: _bert(library) for library in ("linen", "nnx", "haiku", "equinox")},
    ),
    Subject(
        "GPT-2",
        _hugging("GPT2LMHeadModel", "GPT2Config", _GPT2),
        _ids,
        {
            "linen (another's)": _hugging_flax("FlaxGPT2LMHeadModel", "GPT2Config", _GPT2),
            "haiku": lambda: transformers.haiku_gpt2(97, 41, 34, 53, 2, 2),
        },
    ),
    Subject(
        "Llama",
        _hugging("LlamaForCausalLM", "LlamaConfig", _LLAMA),
        _ids,
        {
            "linen (another's)": _hugging_flax("FlaxLlamaForCausalLM", "LlamaConfig", _LLAMA),
            "nnx": lambda: transformers.nnx_llama(97, 40, 53, 4, 2, 2),
        },
    ),
    Subject(
        "ViT",
        lambda: importlib.import_module("torchvision").models.VisionTransformer(
            32, 16, 2, 2, 34, 53, num_classes=CLASSES
        ),
        _image(32),
        {
            "linen": lambda: transformers.linen_vit(16, 34, 53, 2, 2, CLASSES),
            "equinox": lambda: transformers.equinox_vit(32, 16, 34, 53, 2, 2, CLASSES),
        },
    ),
    Subject(
        "ResNet-18",
        _torchvision("resnet18"),
        _image(64),
        {
            "linen": lambda: convolutional.linen_resnet((2, 2, 2, 2), False, CLASSES),
            "haiku (another's)": _haiku_net("ResNet18"),
        },
    ),
    Subject(
        "ResNet-50",
        _torchvision("resnet50"),
        _image(64),
        {
            "linen": lambda: convolutional.linen_resnet((3, 4, 6, 3), True, CLASSES),
            "haiku (another's)": _haiku_net("ResNet50"),
        },
    ),
    Subject(
        "MobileNetV2",
        _torchvision("mobilenet_v2"),
        _image(64),
        {
            "linen": lambda: convolutional.linen_mobilenet(CLASSES),
            "nnx": lambda: convolutional.nnx_mobilenet(CLASSES),
        },
    ),
    Subject(
        "DenseNet-121",
        _torchvision("densenet121"),
        _image(64),
        {
            "linen": lambda: convolutional.linen_densenet((6, 12, 24, 16), CLASSES),
            "haiku": lambda: convolutional.haiku_densenet((6, 12, 24, 16), CLASSES),
        },
    ),
)


def markdown(results: list[Result]) -> str:
    """The results as a page, with the versions."""
    distributions = ("torch", "torchvision", "transformers", "jax", "flax", "dm-haiku", "equinox")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributions)
    lines = [
        "# Matching without names",
        "",
        f"By `benchmarks/matching.py`, {date.today()}: {versions}, Python {platform.python_version()}.",
        "",
        f"| model | twin | {' | '.join(COLUMNS)} | seconds | distance | |",
        "|---|---|" + "---|" * (len(COLUMNS) + 3),
    ]
    for one in results:
        counts = " | ".join(str(one.counts[name]) for name in COLUMNS)
        told = one.told[:300].replace("|", "\\|")
        lines.append(
            f"| {one.name} | {one.library} | {counts} | {one.seconds:.0f} | {one.far:.0e} | {told} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    declare_detection_ops()
    results = []
    for subject in SUBJECTS:
        for library in subject.twins:
            name = f"{subject.name} {library}"
            if options.names and not any(part in name for part in options.names):
                continue
            one = checked(subject, library)
            results.append(one)
            counts = "  ".join(f"{count} {kind}" for kind, count in one.counts.items())
            print(f"{name}  {counts}  {one.seconds:.0f} s  {one.far:.0e}  {one.told[:600]}", flush=True)
            jax.clear_caches()
    if options.markdown:
        options.markdown.write_text(markdown(results))


if __name__ == "__main__":
    main()
