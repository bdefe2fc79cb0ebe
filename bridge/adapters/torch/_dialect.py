"""How torch.nn names the arrays of a layer and orders their axes."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from bridge.core.layers import Fixed, Refusal, Row, Slot, gated, slot
from bridge.core.settings import EACH

_CONVOLUTION = {
    "kernel": "kernel_size",
    "stride": "stride",
    "padding": "padding",
    "padding mode": "padding_mode",
    "dilation": "dilation",
    "groups": "groups",
}
_BIAS = slot("bias", "*.bias", "out")
_CHANNELS = (slot("weight", "*.weight", "features"), slot("bias", "*.bias", "features"))
_FEATURES = slot("weight", "*.weight", "*features")

_BATCH_NORM = Row(
    kind="batch norm",
    classes=("torch._BatchNorm",),
    slots=(
        *_CHANNELS,
        slot("mean", "*.running_mean", "features"),
        slot("variance", "*.running_var", "features"),
    ),
    settings={"eps": "eps", "momentum": "momentum"},
    refused=(
        Refusal(
            attribute="momentum",
            plain=lambda momentum: momentum is not None,
            why="with momentum=None it keeps the mean of all batches that ever were, and the other"
            " libraries an average that forgets; give it a number: layer.momentum = 0.1",
        ),
    ),
)

# torch.nn.LSTM, GRU, RNN, "Variables": the gates in the order in which torch stacks them.
GATES = {"lstm": "ifgo", "gru": "rzn", "rnn": ""}
_RECURRENT = {"lstm": ("LSTMCell", "LSTM"), "gru": ("GRUCell", "GRU"), "rnn": ("RNNCell", "RNN")}
_PROJECTION = Refusal(
    attribute="proj_size",
    plain=lambda size: size == 0,
    why="with proj_size it projects its state down, and no other library's does; write that recurrence"
    " by yourself",
)
_GATED = {
    "activation": Fixed("tanh", "torch has no other"),
    "gate activation": Fixed("sigmoid", "torch has no other"),
}
_AXES = {
    "weight_ih": "({pick} hidden) in",
    "weight_hh": "({pick} hidden) state",
    "bias_ih": "({pick} hidden)",
    "bias_hh": "({pick} hidden)",
}


def _recurrent(kind: str) -> Row:
    gates, slots = GATES[kind], list[Slot]()
    for name, axes in _AXES.items():
        alone = slot(name, f"*.{name}", axes.replace("({pick} hidden)", "hidden"))
        slots += gated(gates, f"{name}.{{gate}}", f"*.{name}", axes) if gates else (alone,)
    settings = {
        "lstm": _GATED,
        "gru": {**_GATED, "reset": Fixed("after the matrix", "torch has no other")},
        "rnn": {"activation": "nonlinearity"},
    }
    classes = tuple(f"torch.{name}" for name in _RECURRENT[kind])
    return Row(kind, classes, tuple(slots), settings[kind], refused=(_PROJECTION,))


def with_suffix(row: Row, suffix: str) -> Row:
    """The row of a recurrent cell as one layer and direction of a recurrent network: `_l0_reverse`."""
    slots = (replace(one, path=(*one.path[:-1], one.path[-1] + suffix)) for one in row.slots)
    return replace(row, slots=tuple(slots))


ROWS = (
    Row(
        kind="linear",
        classes=("torch.Linear",),
        slots=(slot("weight", "*.weight", "out in"), _BIAS),
    ),
    # GPT-2's projection, transformers.pytorch_utils.Conv1D, keeps its matrix the other way round.
    Row(
        kind="linear",
        classes=("transformers.Conv1D",),
        slots=(slot("weight", "*.weight", "in out"), _BIAS),
    ),
    Row(
        kind="embedding",
        classes=("torch.Embedding", "torch.EmbeddingBag"),
        slots=(slot("weight", "*.weight", "vocab features"),),
        refused=(
            Refusal(
                attribute="max_norm",
                plain=lambda value: value is None,
                why="with max_norm it shortens its rows in every call, and no other library does;"
                " shorten them once, and set layer.max_norm = None",
            ),
        ),
    ),
    Row(
        kind="layer norm",
        classes=("torch.LayerNorm",),
        slots=(_FEATURES, slot("bias", "*.bias", "*features")),
        settings={"eps": "eps"},
    ),
    Row(kind="rms norm", classes=("torch.RMSNorm",), slots=(_FEATURES,), settings={"eps": "eps"}),
    # They multiply by 1 + weight: output * (1.0 + self.weight.float()) in their forwards.
    Row(
        kind="rms norm",
        classes=(
            *("transformers.GemmaRMSNorm", "transformers.Gemma2RMSNorm", "transformers.Gemma3RMSNorm"),
            *("transformers.RecurrentGemmaRMSNorm", "transformers.T5GemmaRMSNorm"),
            *("transformers.VaultGemmaRMSNorm", "transformers.Qwen3NextRMSNorm"),
        ),
        slots=(slot("weight", "*.weight", "*features", offset=-1.0),),
        settings={"eps": "eps"},
    ),
    Row(
        kind="rms norm",
        classes=(
            *(
                "transformers.LlamaRMSNorm",
                "transformers.MistralRMSNorm",
                "transformers.MixtralRMSNorm",
            ),
            *("transformers.Qwen2RMSNorm", "transformers.Qwen3RMSNorm", "transformers.Phi3RMSNorm"),
            *("transformers.T5LayerNorm", "transformers.DeepseekV3RMSNorm"),
        ),
        slots=(_FEATURES,),
        settings={"eps": "variance_epsilon"},
    ),
    Row(
        kind="group norm",
        classes=("torch.GroupNorm",),
        slots=_CHANNELS,
        settings={"eps": "eps", "groups": "num_groups", "channels": "num_channels"},
    ),
    Row(
        kind="group norm",
        classes=("torch._InstanceNorm",),
        slots=_CHANNELS,
        settings={
            "eps": "eps",
            "groups": Fixed(EACH, "with other groups it is a GroupNorm"),
            "channels": "num_features",
        },
        where={"track_running_stats": False},
    ),
    _BATCH_NORM,
    # One that keeps running statistics evaluates as a BatchNorm does.
    replace(_BATCH_NORM, classes=("torch._InstanceNorm",)),
    Row(
        kind="convolution",
        classes=("torch.Conv1d", "torch.Conv2d", "torch.Conv3d"),
        # in counts one group's channels: torch.nn.Conv2d's docs, "Variables".
        slots=(slot("weight", "*.weight", "out in *spatial"), _BIAS),
        settings=_CONVOLUTION,
    ),
    Row(
        kind="transposed convolution",
        classes=("torch.ConvTranspose1d", "torch.ConvTranspose2d", "torch.ConvTranspose3d"),
        # out counts one group's channels: torch.nn.ConvTranspose2d's docs, "Variables".
        slots=(
            slot("weight", "*.weight", "(groups in) out *spatial"),
            slot("bias", "*.bias", "(groups out)"),
        ),
        settings={**_CONVOLUTION, "output padding": "output_padding"},
    ),
    Row(
        kind="prelu",
        classes=("torch.PReLU",),
        slots=(slot("weight", "*.weight", "slopes"),),
        settings={"slopes": "num_parameters"},
    ),
    *map(_recurrent, GATES),
)

# torch.nn.MultiheadAttention stacks query, key and value in this order: its forward, in_proj_weight.
# They are separate where key and value have sizes of their own. Its out_proj is a Linear.
PROJECTIONS = {
    part: Row(
        kind="linear",
        classes=("torch.MultiheadAttention",),
        slots=(
            slot("weight", "*.in_proj_weight", f"({index}of3 out) in"),
            slot("weight", f"*.{part[0]}_proj_weight", "out in"),
            slot("bias", "*.in_proj_bias", f"({index}of3 out)"),
        ),
        settings={"heads": "num_heads"},
        refused=(
            Refusal(
                attribute="bias_k",
                plain=lambda value: value is None,
                why="with add_bias_kv it has a key and a value of its own, and no other library's"
                " attention has; leave that out, or write the attention by yourself",
            ),
            Refusal(
                attribute="add_zero_attn",
                plain=lambda added: not added,
                why="with add_zero_attn it attends to a zero as well, and no other library's attention"
                " does; leave that out, or write the attention by yourself",
            ),
        ),
    )
    for index, part in enumerate(("query", "key", "value"))
}

# What takes the place of a weight that torch.nn.utils has reparametrised: weight_norm and
# spectral_norm, of torch.nn.utils.parametrizations and the older ones.
REPARAMETRISED: tuple[Mapping[str, str], ...] = (
    {
        "weight.g": "parametrizations.weight.original0",
        "weight.v": "parametrizations.weight.original1",
    },
    {"weight.g": "weight_g", "weight.v": "weight_v"},
    {
        "weight.raw": "parametrizations.weight.original",
        "weight.left": "parametrizations.weight.0._u",
        "weight.right": "parametrizations.weight.0._v",
    },
    {"weight.raw": "weight_orig", "weight.left": "weight_u", "weight.right": "weight_v"},
)
_BESIDE_WEIGHT = {"weight.g": "out *1", "weight.left": "out", "weight.right": "rest"}
FOLD = (
    "is reparametrised and this layer's is not; fold it before:"
    " torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), or of the older kind"
    " torch.nn.utils.remove_weight_norm(layer), remove_spectral_norm(layer)"
)


def reparametrised(row: Row, names: Collection[str]) -> Row:
    """The row of a layer whose arrays have these names: the weight may be several, and another's."""
    whole = next((one for one in row.slots if one.part == "weight"), None)
    parts = next((parts for parts in REPARAMETRISED if {*parts.values()} <= {*names}), None)
    if parts is None or whole is None or row.kind not in ("linear", "convolution"):
        return row
    made = (
        Slot(part, ("*", *place.split(".")), _BESIDE_WEIGHT.get(part, whole.axes))
        for part, place in parts.items()
    )
    return replace(row, slots=(*made, *(one for one in row.slots if one.part != "weight")))


# Other names of the same parts: TensorFlow's, in the first BERT checkpoints.
OLD_NAMES = {"gamma": "weight", "beta": "bias"}

# Last parts of keys that hold nothing trained and nothing that a forward reads.
BUFFERS = {
    "num_batches_tracked": "counts the training batches; evaluation does not read it",
    "position_ids": "the numbers 0, 1, 2, ...; not trained",
}
