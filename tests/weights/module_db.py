"""Torch's own database of modules: each case with parameters as the same layer of another library.

The layer of the library is built from the settings of torch's, loaded from it, and called with what the
database calls torch's with; in train mode where there are running statistics, else in eval mode.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import bridge as br
from tests.lowering.databases import ModuleCase, difference, module_cases
from tests.weights.kinds.cases import Case
from tests.weights.kinds.networks import names_of, network_in
from tests.weights.kinds.twins import arguments, output, twin

TOLERANCE = 1e-5


class NotBuilt(Exception):
    """A layer that a library has not, or not with these settings; the reason."""


# What of torch's layers a library has no layer for; None stands for all libraries.
_PARTS = "it has the parts of a Transformer, and leaves it to the user to put them together"
ABSENT: dict[tuple[str | None, type], str] = {
    (None, nn.Bilinear): "it has no bilinear layer",
    (None, nn.Transformer): _PARTS,
    (None, nn.TransformerEncoder): _PARTS,
    (None, nn.TransformerEncoderLayer): _PARTS,
    (None, nn.TransformerDecoderLayer): _PARTS,
    ("haiku", nn.PReLU): "it has no PReLU",
    ("equinox", nn.RNN): "it has no recurrent cell without gates",
    ("equinox", nn.RNNCell): "it has no recurrent cell without gates",
}


def _convolution(layer: Any) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "dilation", "groups")
    found = {name: getattr(layer, name) for name in names}
    return found | {
        "channels": (layer.in_channels, layer.out_channels),
        "rank": len(layer.kernel_size),
        "bias": layer.bias is not None,
    }


def _norm(layer: Any) -> dict[str, Any]:
    return {
        "features": getattr(layer, "num_features", getattr(layer, "num_channels", None)),
        "eps": layer.eps,
        "bias": layer.bias is not None,
    }


def _shaped_norm(layer: Any) -> dict[str, Any]:
    bias = getattr(layer, "bias", None) is not None
    return {"shape": tuple(layer.normalized_shape), "eps": layer.eps, "bias": bias}


def _cell(layer: Any) -> dict[str, Any]:
    found = {"features": layer.hidden_size, "bias": layer.bias}
    return found | {"activation": getattr(layer, "nonlinearity", "tanh")}


# The kind of a class of torch's, and the settings of a layer of it that its twins must have.
KINDS: tuple[tuple[type, str, Callable[[Any], dict[str, Any]]], ...] = (
    (nn.Linear, "linear", lambda m: {"features": m.out_features, "bias": m.bias is not None}),
    (nn.Embedding, "embedding", lambda m: {"vocab": m.num_embeddings, "features": m.embedding_dim}),
    (
        nn.modules.conv._ConvTransposeNd,
        "transposed convolution",
        lambda m: _convolution(m) | {"output_padding": m.output_padding},
    ),
    (nn.modules.conv._ConvNd, "convolution", _convolution),
    (
        nn.modules.batchnorm._BatchNorm,
        "batch norm",
        lambda m: _norm(m) | {"momentum": 0.1 if m.momentum is None else m.momentum, "frozen": None},
    ),
    (nn.modules.instancenorm._InstanceNorm, "instance norm", _norm),
    (nn.GroupNorm, "group norm", lambda m: _norm(m) | {"groups": m.num_groups}),
    (nn.LayerNorm, "layer norm", _shaped_norm),
    (nn.RMSNorm, "rms norm", _shaped_norm),
    (
        nn.PReLU,
        "prelu",
        lambda m: {"slopes": m.num_parameters} if m.num_parameters > 1 else {},
    ),
    (
        nn.MultiheadAttention,
        "attention",
        lambda m: {
            "heads": m.num_heads,
            "width": m.embed_dim,
            "bias": m.in_proj_bias is not None,
        },
    ),
    (nn.LSTMCell, "lstm", _cell),
    (nn.GRUCell, "gru", _cell),
    (nn.RNNCell, "rnn", _cell),
)
_SPATIAL = ("convolution", "batch norm", "instance norm", "group norm", "prelu")


@dataclass(frozen=True)
class LayerCase:
    """A case of torch's database with parameters."""

    module: ModuleCase

    @property
    def name(self) -> str:
        return self.module.name

    @property
    def cls(self) -> str:
        """The name of torch's class."""
        return self.module.info.module_cls.__name__

    def absent(self, library: str) -> str | None:
        """Why a library has no layer for it; None where it has one."""
        cls = self.module.info.module_cls
        return ABSENT.get((None, cls)) or ABSENT.get((library, cls))

    def checked(self, library: str) -> float:
        """How far the loaded layer of a library is from torch's.

        Raises NotBuilt where the library cannot build it, BridgeError where its weights do not fit.
        """
        reason = self.absent(library)
        if reason is not None:
            raise NotBuilt(reason)
        model, given = self.module.made()
        _stir(model)
        tensors = [*given.args, *(v for v in given.kwargs.values() if torch.is_tensor(v))]
        inputs = [tuple(x) if isinstance(x, tuple) else x.detach() for x in tensors]
        if isinstance(model, nn.RNNBase):
            return _network(library, model, inputs)
        if isinstance(model, nn.MultiheadAttention):
            return _attention(library, model, inputs[:3], given.kwargs)
        return _layer(library, model, inputs, self.module.training)


def layer_cases() -> Iterator[LayerCase]:
    """Every case with parameters: in eval mode, and in train mode where there are statistics."""
    for case in module_cases():
        model, _ = case.made()
        if not list(model.parameters()):
            continue
        keeps = isinstance(model, nn.modules.batchnorm._NormBase) and model.running_mean is not None
        if keeps or not case.training:
            yield LayerCase(case)


def _stir(model: Any) -> None:
    """Moves every array away from its first value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 3)
        for name, buffer in model.named_buffers():
            if name in ("running_mean", "running_var"):
                buffer.add_(torch.rand(buffer.shape, generator=generator))


def described(layer: Any, inputs: Any) -> Case:
    """A torch layer, and what it is called with, as a case of the kinds."""
    kind, options = next(
        (kind, options(layer)) for cls, kind, options in KINDS if isinstance(layer, cls)
    )
    shapes = tuple(tuple(x.shape) for x in inputs)
    spatial = max(len(shapes[0]) - 2, 0) if kind.endswith(_SPATIAL) else 0
    return Case(kind, kind, lambda: layer, shapes, options, spatial)


def _layer(library: str, model: Any, inputs: list[Any], training: bool) -> float:
    flat = [x for one in inputs for x in (one if isinstance(one, tuple) else (one,))]
    batches = [x.reshape(-1, *x.shape[x.ndim - _sample(model, x) :]) for x in flat]
    case = described(model, batches)
    if library == "nnx" and len(case.options.get("shape", ())) > 1:
        raise NotBuilt("its norms have weights for one axis alone")
    module = br.load_state_dict(twin(library, case), model)
    given = arguments(library, case, tuple(map(_array, batches)))
    out = _run(module, given, mode="train" if training else "eval")
    wanted = model(*inputs)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    return difference(np.reshape(output(library, case, out), wanted.shape), wanted.detach())


def _sample(layer: Any, x: torch.Tensor) -> int:
    """How many axes of an input are one sample; those before them count the samples."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return 1 + len(layer.kernel_size)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return len(layer.normalized_shape)
    if isinstance(layer, nn.Linear | nn.RNNCellBase):
        return 1
    return 0 if isinstance(layer, nn.Embedding) else max(x.ndim - 1, 0)


def _attention(library: str, model: Any, inputs: list[Any], masks: Any) -> float:
    """The distance of an attention of one sample; a mask of torch's is true where nothing is seen."""
    given = [_array(x)[None] for x in inputs]
    module = br.load_state_dict(twin(library, described(model, given)), model)
    hidden = np.zeros((model.num_heads, len(inputs[0]), len(inputs[1])), bool)
    for mask in filter(torch.is_tensor, masks.values()):
        hidden = hidden | mask.numpy()
    out = _run(module, given, mask=~hidden[None])
    return difference(out[0], model(*inputs, **masks)[0].detach())


def _network(library: str, model: Any, inputs: list[Any]) -> float:
    """The distance of a recurrent network for one sample, from its first states."""
    names = [name for layer in names_of(model) for name in layer]
    zeros = jnp.zeros((len(names), 1, model.hidden_size))
    form = (lambda h, c: (h, c)) if isinstance(model, nn.LSTM) else (lambda h, c: h)
    states = {name: form(h, h) for name, h in zip(names, zeros, strict=True)}
    module, x = network_in(library, model), _array(inputs[0])[None]
    abstract = jax.eval_shape(module.init, jax.random.key(0), x, states)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    module = br.load_state_dict(empty, model)
    if len(inputs) > 1:
        first = inputs[1] if isinstance(inputs[1], tuple) else (inputs[1],) * 2
        pairs = zip(names, *(_array(one)[:, None] for one in first), strict=True)
        states = {name: form(h, c) for name, h, c in pairs}
    out = _run(module, (x, states))
    return difference(out[0], model(*inputs)[0].detach())


def _run(module: Any, given: Any, mode: str = "eval", **named: Any) -> Any:
    return jax.jit(lambda module, given, named: module.apply(*given, mode=mode, **named)[0])(
        module, given, named
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()
