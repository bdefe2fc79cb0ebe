"""A made-up checkpoint in files of each form, and each way to load it: those of bridge and its rivals.

"kept" is a stack of square Linear layers for Equinox, which has torch's layout, "turned" the same for
Linen, which has every matrix transposed. "bert" is a BERT of transformers.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STACK, SHARDS = 2048, 4
BERT, HEADS, WORDS = 1024, 16, 30522
BYTES = {"float32": 4, "bfloat16": 2}
FORMS = (".safetensors", "sharded", ".pt")
Load = Callable[[], Any]


@dataclass(frozen=True)
class Checkpoint:
    """The files of one model; `layers` is how many it has."""

    folder: Path
    dtype: str
    layers: int
    form: str
    layout: str

    @classmethod
    def of(cls, folder: Path, dtype: str, megabytes: int, form: str, layout: str) -> Checkpoint:
        """The checkpoint of about this size, in a folder where `write` puts it."""
        numbers = megabytes * 2**20 // BYTES[dtype]
        if layout == "bert":
            layers = max(1, (numbers - WORDS * BERT) // (12 * BERT * BERT))
        else:
            layers = max(SHARDS, numbers // (STACK * STACK))
        return cls(folder, dtype, layers, form, layout)

    @property
    def files(self) -> list[Path]:
        """The files with the arrays."""
        if self.form == "sharded":
            return sorted(self.folder.glob("model-*.safetensors"))
        return [self.folder / ("model.pt" if self.form == ".pt" else "model.safetensors")]

    @property
    def source(self) -> Path:
        """What bridge is given: the file, or the index of several."""
        index = self.folder / "model.safetensors.index.json"
        return index if self.form == "sharded" else self.files[0]


def write(checkpoint: Checkpoint) -> None:
    """Writes the files of every form."""
    if checkpoint.layout == "bert":
        write_bert(checkpoint)
    else:
        write_stack(checkpoint)


def write_stack(checkpoint: Checkpoint) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state, dtype, folder = {}, getattr(torch, checkpoint.dtype), checkpoint.folder
    for number in range(checkpoint.layers):
        state[f"layers.{number}.weight"] = torch.randn(STACK, STACK).to(dtype)
        state[f"layers.{number}.bias"] = torch.randn(STACK).to(dtype)
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "model.pt")
    index, keys = {}, list(state)
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = keys[shard * len(keys) // SHARDS : (shard + 1) * len(keys) // SHARDS]
        index |= dict.fromkeys(part, name)
        save_file({key: state[key] for key in part}, folder / name)
    content = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def bert_config(layers: int) -> Any:
    from transformers import BertConfig

    sizes = {"hidden_size": BERT, "num_attention_heads": HEADS, "intermediate_size": 4 * BERT}
    return BertConfig(num_hidden_layers=layers, vocab_size=WORDS, **sizes)


def write_bert(checkpoint: Checkpoint) -> None:
    import torch
    from transformers import BertModel

    model = BertModel(bert_config(checkpoint.layers)).to(getattr(torch, checkpoint.dtype))
    model.save_pretrained(checkpoint.folder)


# The abstract models that are loaded for.


def equinox_model(checkpoint: Checkpoint) -> Any:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    class Stack(eqx.Module):
        layers: list

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    key, dtype = jax.random.key(0), jnp.dtype(checkpoint.dtype)
    layers = range(checkpoint.layers)
    return Stack([eqx.nn.Linear(STACK, STACK, dtype=dtype, key=key) for _ in layers])


def linen_model(checkpoint: Checkpoint) -> tuple[Any, Any]:
    import flax.linen as nn
    import jax.numpy as jnp

    dtype = jnp.dtype(checkpoint.dtype)

    class Stack(nn.Module):
        def setup(self):
            self.layers = [nn.Dense(STACK, param_dtype=dtype) for _ in range(checkpoint.layers)]

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    return Stack(), jnp.ones((1, STACK), dtype)


def flax_bert(checkpoint: Checkpoint) -> tuple[Any, Any]:
    import jax.numpy as jnp
    from transformers import FlaxBertModel

    model: Any = FlaxBertModel(bert_config(checkpoint.layers), _do_init=False)
    ids = jnp.ones((1, 7), jnp.int32)
    return model.module, (ids, ids, ids, ids)


def native_model(checkpoint: Checkpoint) -> Any:
    """The abstract model of the library itself, which a user of any loader needs as well."""
    import jax

    if checkpoint.layout == "kept":
        return jax.eval_shape(lambda: equinox_model(checkpoint))
    model, sample = linen_model(checkpoint)
    return jax.eval_shape(model.init, jax.random.key(0), sample)


# The ways to load: each gives a function that does it once.


def by_bridge(checkpoint: Checkpoint) -> Load:
    import jax
    import jax.numpy as jnp

    import bridge as br

    key = jax.random.key(0)
    if checkpoint.layout == "kept":
        module = jax.eval_shape(lambda: br.from_equinox(equinox_model(checkpoint)))
    elif checkpoint.layout == "turned":
        model, sample = linen_model(checkpoint)
        module = jax.eval_shape(br.from_linen(model).init, key, sample)
    else:
        model, samples = flax_bert(checkpoint)
        module = jax.eval_shape(br.from_linen(model).init, key, *samples)
    dtype = jnp.dtype(checkpoint.dtype)
    return lambda: br.load_state_dict(module, checkpoint.source, dtype=dtype)


def by_safetensors(checkpoint: Checkpoint) -> Load:
    import jax.numpy as jnp
    from safetensors.flax import load_file

    native_model(checkpoint)

    def load():
        loaded = {}
        for file in checkpoint.files:
            loaded |= load_file(file)
        if checkpoint.layout == "kept":
            return loaded
        return {key: jnp.transpose(loaded.pop(key)) for key in [*loaded]}

    return load


def by_numpy(checkpoint: Checkpoint) -> Load:
    import jax.numpy as jnp
    import ml_dtypes
    import torch

    native_model(checkpoint)

    def array(tensor):
        if checkpoint.dtype == "bfloat16":
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def load():
        state = torch.load(checkpoint.files[0], weights_only=True)
        arrays = ((key, array(tensor)) for key, tensor in state.items())
        turned = checkpoint.layout == "turned"
        return {key: jnp.asarray(one.T if turned else one) for key, one in arrays}

    return load


def by_dlpack(checkpoint: Checkpoint) -> Load:
    import jax
    import torch

    native_model(checkpoint)

    def load():
        state = torch.load(checkpoint.files[0], weights_only=True, mmap=True)
        if checkpoint.layout == "turned":
            state = {key: tensor.t().contiguous() for key, tensor in state.items()}
        return {key: jax.dlpack.from_dlpack(tensor) for key, tensor in state.items()}

    return load


def by_statedict2pytree(checkpoint: Checkpoint) -> Load:
    import torch
    from statedict2pytree import autoconvert

    model, file = equinox_model(checkpoint), checkpoint.files[0]
    return lambda: autoconvert(model, torch.load(file, weights_only=True))


def by_transformers(checkpoint: Checkpoint) -> Load:
    import jax.numpy as jnp
    from transformers import FlaxBertModel

    dtype, folder = jnp.dtype(checkpoint.dtype), checkpoint.folder
    return lambda: FlaxBertModel.from_pretrained(folder, from_pt=True, dtype=dtype).params


@dataclass(frozen=True)
class Method:
    """A way to load, and the checkpoints that it can load."""

    build: Callable[[Checkpoint], Load]
    forms: tuple[str, ...]
    layouts: tuple[str, ...]
    dtypes: tuple[str, ...] = tuple(BYTES)
    package: str = "jax"

    def loads(self, checkpoint: Checkpoint) -> bool:
        """Whether it is installed and takes this form, layout and dtype."""
        return (
            checkpoint.form in self.forms
            and checkpoint.layout in self.layouts
            and checkpoint.dtype in self.dtypes
            and importlib.util.find_spec(self.package) is not None
        )


STACKS = ("kept", "turned")
METHODS = {
    "bridge": Method(by_bridge, FORMS, (*STACKS, "bert")),
    "safetensors.flax": Method(by_safetensors, (".safetensors",), STACKS),
    "torch.load, numpy": Method(by_numpy, (".pt",), STACKS),
    "torch.load, dlpack": Method(by_dlpack, (".pt",), STACKS),
    "statedict2pytree": Method(
        by_statedict2pytree, (".pt",), ("kept",), ("float32",), "statedict2pytree"
    ),
    "transformers": Method(by_transformers, (".safetensors",), ("bert",)),
}
