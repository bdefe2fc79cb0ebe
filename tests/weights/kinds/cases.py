"""Layers of torch.nn, one of each form that matters, with an input; sizes are distinct primes."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

LIBRARIES = ("linen", "nnx", "haiku", "equinox")


@dataclass(frozen=True)
class Case:
    """A layer of torch, the shapes of what it is called with, and what the twins must know of it."""

    name: str
    kind: str
    torch: Callable[[], Any]
    shapes: tuple[tuple[int, ...], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    spatial: int = 0
    libraries: tuple[str, ...] = LIBRARIES

    def layer(self) -> Any:
        """The torch layer, every array away from its first value, in eval mode."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        layer = self.torch()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) / 3)
        if any(key.endswith("running_mean") for key in layer.state_dict()):
            layer(3 * torch.from_numpy(self.inputs(seed=1)[0]) + 2)
        return layer.eval()

    def inputs(self, seed: int = 0) -> tuple[np.ndarray, ...]:
        """What the torch layer is called with."""
        random = np.random.default_rng(seed)
        if self.kind == "embedding":
            return (random.integers(0, 13, self.shapes[0]).astype(np.int32),)
        return tuple(random.normal(size=shape).astype(np.float32) for shape in self.shapes)


def _convolutions() -> list[Case]:
    forms = {
        "plain": (1, {"padding": 0}),
        "padded": (2, {"stride": 2, "padding": 1}),
        "deep": (3, {"stride": 2, "padding": 1}),
        "uneven": (2, {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
        "grouped": (2, {"channels": (6, 10), "groups": 2, "padding": 1, "bias": False}),
        "depthwise": (1, {"channels": (5, 5), "groups": 5}),
        "square": (2, {"channels": (7, 7), "kernel_size": 7, "padding": 3, "stride": 2}),
        "same": (2, {"kernel_size": (3, 5), "padding": "same"}),
        "valid": (1, {"padding": "valid", "dilation": 2}),
        "circular": (1, {"padding": 1, "padding_mode": "circular"}),
    }
    cases = [
        _convolution("convolution", f"{form} convolution", rank, options)
        for form, (rank, options) in forms.items()
    ]
    able = ("linen", "nnx", "equinox")
    return [replace(c, libraries=able) if c.name.startswith("circular") else c for c in cases]


def _transposed() -> list[Case]:
    forms = {
        "plain": (1, {}),
        "strided": (2, {"stride": 2, "padding": 1, "kernel_size": 5}),
        "deep": (3, {"stride": 2, "output_padding": 1, "padding": 1}),
        "square": (2, {"channels": (7, 7), "kernel_size": 7, "padding": 3, "stride": 2}),
        "sparse": (2, {"kernel_size": 2, "stride": 3, "bias": False}),
        "dilated": (2, {"stride": 3, "dilation": 2, "output_padding": 2, "padding": 1}),
        "grouped": (2, {"channels": (6, 10), "groups": 2, "padding": 1}),
    }
    able = {
        "dilated": ("linen", "nnx", "equinox"),
        "grouped": ("equinox",),
    }
    cases = [
        _convolution("transposed convolution", f"{form} transposed convolution", rank, options)
        for form, (rank, options) in forms.items()
    ]
    turned = [
        replace(
            case,
            name=f"{case.name}, kernel turned",
            options={**case.options, "turned": True},
            libraries=("linen", "nnx"),
        )
        for case in cases
        if case.name.startswith(("strided", "square"))
    ]
    limited = [replace(case, libraries=able.get(case.name.split()[0], LIBRARIES)) for case in cases]
    return limited + turned


def _convolution(kind: str, name: str, rank: int, given: Mapping[str, Any]) -> Case:
    options = {"channels": (5, 7), "kernel_size": 3, **given}
    named = {key: value for key, value in options.items() if key != "channels"}
    cls = getattr(nn, f"Conv{'Transpose' if kind.startswith('trans') else ''}{rank}d")
    shape = (2, options["channels"][0], 7, 11, 13)[: 2 + rank]
    return Case(
        name,
        kind,
        lambda: cls(*options["channels"], **named),
        (shape,),
        {**options, "rank": rank},
        rank,
    )


def _norms() -> list[Case]:
    image = (3, 6, 7, 11)
    no_rms_bias = {"bias": False}
    return [
        Case("layer norm", "layer norm", lambda: nn.LayerNorm(7, eps=1e-3), ((3, 7),), {"eps": 1e-3}),
        Case(
            "layer norm without bias",
            "layer norm",
            lambda: nn.LayerNorm(7, bias=False),
            ((3, 7),),
            no_rms_bias,
        ),
        Case("rms norm", "rms norm", lambda: nn.RMSNorm(7, eps=1e-3), ((3, 7),), {"eps": 1e-3}),
        Case("group norm", "group norm", lambda: nn.GroupNorm(3, 6), (image,), {"groups": 3}, 2),
        Case(
            "instance norm", "instance norm", lambda: nn.InstanceNorm2d(6, affine=True), (image,), {}, 2
        ),
        Case("batch norm", "batch norm", lambda: nn.BatchNorm1d(7), ((11, 7),)),
        Case(
            "batch norm of images",
            "batch norm",
            lambda: nn.BatchNorm2d(6, eps=1e-3),
            (image,),
            {"eps": 1e-3, "features": 6},
            2,
        ),
        Case(
            "instance norm with statistics",
            "batch norm",
            lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
            (image,),
            {"features": 6},
            2,
        ),
    ]


def _cells() -> list[Case]:
    shapes = ((3, 5), (3, 7), (3, 7))
    return [
        Case("lstm cell", "lstm", lambda: nn.LSTMCell(5, 7), shapes),
        Case("square lstm cell", "lstm", lambda: nn.LSTMCell(7, 7), ((3, 7), *shapes[1:])),
        Case(
            "lstm cell in parts",
            "lstm in parts",
            lambda: nn.LSTMCell(5, 7),
            shapes,
            {},
            0,
            ("linen", "nnx"),
        ),
        Case("gru cell", "gru", lambda: nn.GRUCell(5, 7), shapes[:2], {}, 0, ("linen", "equinox")),
        Case("rnn cell", "rnn", lambda: nn.RNNCell(5, 7), shapes[:2], {}, 0, ("linen", "nnx")),
        Case(
            "rectified rnn cell",
            "rnn",
            lambda: nn.RNNCell(5, 7, nonlinearity="relu"),
            shapes[:2],
            {"activation": "relu"},
            0,
            ("linen", "nnx", "haiku"),
        ),
        Case(
            "lstm cell without biases",
            "lstm",
            lambda: nn.LSTMCell(5, 7, bias=False),
            shapes,
            {"bias": False},
            0,
            ("equinox",),
        ),
        Case(
            "gru cell without biases",
            "gru",
            lambda: nn.GRUCell(5, 7, bias=False),
            shapes[:2],
            {"bias": False},
            0,
            ("equinox",),
        ),
    ]


def _reparametrised() -> list[Case]:
    new, old = nn.utils.parametrizations, nn.utils
    flat, image = ((3, 5),), ((2, 5, 7, 11),)
    cases = []
    for name, norm in {
        "weight norm": new.weight_norm,
        "old weight norm": old.weight_norm,
        "spectral norm": new.spectral_norm,
        "old spectral norm": old.spectral_norm,
    }.items():
        kind = name.removeprefix("old ")
        able = ("linen", "nnx", "equinox") if kind == "weight norm" else ("equinox",)
        cases += [
            Case(name, kind, _normed(norm, lambda: nn.Linear(5, 7)), flat, {}, 0, able),
            Case(
                f"{name} of a convolution",
                kind,
                _normed(norm, lambda: nn.Conv2d(5, 7, 3)),
                image,
                {"channels": (5, 7), "kernel_size": 3, "rank": 2},
                2,
                able,
            ),
        ]
    return cases


def _normed(norm: Any, layer: Any) -> Any:
    return lambda: norm(layer())


def _attention() -> list[Case]:
    sizes = {"batch_first": True}
    same = ((3, 11, 10),) * 3
    return [
        Case("attention", "attention", lambda: nn.MultiheadAttention(10, 2, **sizes), same),
        Case(
            "attention without biases",
            "attention",
            lambda: nn.MultiheadAttention(10, 2, bias=False, **sizes),
            same,
            {"bias": False},
        ),
        Case(
            "attention with keys and values of their own sizes",
            "attention",
            lambda: nn.MultiheadAttention(10, 2, kdim=3, vdim=7, **sizes),
            ((3, 11, 10), (3, 5, 3), (3, 5, 7)),
            {"sizes": (10, 3, 7)},
            0,
            ("linen", "haiku", "equinox"),  # in NNX keys and values have one size
        ),
    ]


CASES = (
    Case("linear", "linear", lambda: nn.Linear(5, 7), ((3, 5),)),
    Case(
        "linear without bias", "linear", lambda: nn.Linear(5, 7, bias=False), ((3, 5),), {"bias": False}
    ),
    Case("square linear", "linear", lambda: nn.Linear(7, 7), ((3, 7),)),
    Case("embedding", "embedding", lambda: nn.Embedding(13, 5), ((3,),)),
    *_convolutions(),
    *_transposed(),
    *_norms(),
    *_attention(),
    *_cells(),
    Case("prelu", "prelu", lambda: nn.PReLU(), ((3, 7),), {}, 0, ("linen", "nnx", "equinox")),
    Case(
        "prelu per channel", "prelu", lambda: nn.PReLU(5), ((3, 5, 7),), {"slopes": 5}, 0, ("equinox",)
    ),
    *_reparametrised(),
)
NAMED = {case.name: case for case in CASES}
