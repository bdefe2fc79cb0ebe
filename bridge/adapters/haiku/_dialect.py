"""How Haiku names the arrays of a layer and orders their axes."""

from bridge.core.layers import Fixed, Row, Slot, gated, slot
from bridge.core.settings import EACH

# Haiku's averages start at zero and are divided by 1 - decay^counter. After so many steps that is 1
# in float32 for any decay up to 0.9999: the next training step goes on from what was loaded.
SETTLED = 1_000_000


def _average(part: str, name: str) -> tuple[Slot, ...]:
    """The slots of a running statistic: evaluation reads `average`, training continues `hidden`."""
    place = f"state.*/~/{name}"
    return (
        slot(part, f"{place}.average", "*1 features"),
        slot(part, f"{place}.hidden", "*1 features"),
        slot("count", f"{place}.counter", "", value=SETTLED),
    )


# hk.MultiHeadAttention projects its output with an unnamed Linear: its __call__.
ROLES = {"haiku.MultiHeadAttention": {"linear": "out"}}
# Its heads show in no array: the parts that say how many there are.
HEADS = {"haiku.MultiHeadAttention": ("query", "key", "value")}

_CONVOLUTION = {
    "kernel": "kernel_shape",
    "stride": "stride",
    "padding": "padding",
    "padding mode": Fixed("zeros", "Haiku pads with zeros alone; pad the input by jnp.pad before"),
}
# The bias has axes of size 1 after it where data_format puts the channels first.
_BIAS = slot("bias", "params.*.b", "out *1")

ROWS = (
    Row(
        kind="linear",
        classes=("haiku.Linear",),
        slots=(slot("weight", "params.*.w", "in out"), slot("bias", "params.*.b", "out")),
    ),
    Row(
        kind="embedding",
        classes=("haiku.Embed",),
        slots=(slot("weight", "params.*.embeddings", "vocab features"),),
    ),
    Row(
        kind="group norm",
        classes=("haiku.InstanceNorm",),  # a subclass of LayerNorm
        slots=(
            slot("weight", "params.*.scale", "features"),
            slot("bias", "params.*.offset", "features"),
        ),
        settings={"eps": "eps", "groups": Fixed(EACH, "with other groups it is a GroupNorm")},
    ),
    Row(
        kind="layer norm",
        classes=("haiku.LayerNorm",),
        slots=(
            slot("weight", "params.*.scale", "*features"),
            slot("bias", "params.*.offset", "*features"),
        ),
        settings={"eps": "eps"},
    ),
    Row(
        kind="rms norm",
        classes=("haiku.RMSNorm",),
        slots=(slot("weight", "params.*.scale", "*features"),),
        settings={"eps": "eps"},
    ),
    Row(
        kind="group norm",
        classes=("haiku.GroupNorm",),
        slots=(
            slot("weight", "params.*.scale", "features"),
            slot("bias", "params.*.offset", "features"),
        ),
        settings={"eps": "eps", "groups": "groups"},
    ),
    Row(
        kind="batch norm",
        classes=("haiku.BatchNorm",),
        slots=(
            slot("weight", "params.*.scale", "*1 features"),
            slot("bias", "params.*.offset", "*1 features"),
            *_average("mean", "mean_ema"),
            *_average("variance", "var_ema"),
        ),
        settings={"eps": "eps", "decay": "mean_ema.decay"},
    ),
    Row(
        kind="convolution",
        classes=("haiku.ConvND",),
        slots=(slot("weight", "params.*.w", "*spatial in out"), _BIAS),
        settings={**_CONVOLUTION, "dilation": "kernel_dilation", "groups": "feature_group_count"},
    ),
    Row(
        kind="convolution",
        classes=("haiku.DepthwiseConv1D", "haiku.DepthwiseConv2D", "haiku.DepthwiseConv3D"),
        slots=(slot("weight", "params.*.w", "*spatial in out"), _BIAS),
        settings=_CONVOLUTION,
    ),
    Row(
        kind="transposed convolution",
        classes=("haiku.ConvNDTranspose",),
        slots=(slot("weight", "params.*.w", "-*spatial out in"), _BIAS),
        settings={
            **_CONVOLUTION,
            "dilation": Fixed(1, "Haiku's has none; write that layer in Flax or Equinox"),
            "groups": Fixed(1, "Haiku's has none; write that layer in Equinox"),
        },
    ),
    Row(
        kind="lstm",
        classes=("haiku.LSTM",),
        # haiku/_src/recurrent.py, LSTM: input and state as one, the gates as input, cell, forget,
        # output; 1 is added to what is in the forget gate.
        slots=(
            *gated("igfo", "weight_ih.{gate}", "params.*/linear.w", "in| ({pick} hidden)"),
            *gated("igfo", "weight_hh.{gate}", "params.*/linear.w", "|state ({pick} hidden)"),
            *gated(
                "igfo",
                "bias_ih.{gate}+bias_hh.{gate}",
                "params.*/linear.b",
                "({pick} hidden)",
                offsets={"f": -1.0},
            ),
        ),
        settings={"hidden": "hidden_size"},
    ),
    Row(
        kind="gru",
        classes=("haiku.GRU",),
        slots=(
            *gated("zrn", "weight_ih.{gate}", "params.*.w_i", "in ({pick} hidden)"),
            *gated("zrn", "weight_hh.{gate}", "params.*.w_h", "state ({pick} hidden)"),
            *gated("zrn", "bias_ih.{gate}", "params.*.b", "({pick} hidden)"),
        ),
        settings={
            "reset": Fixed(
                "before the matrix",
                "Haiku's is another recurrence, for which no weights are those of PyTorch's; take"
                " eqx.nn.GRUCell or flax.linen.GRUCell",
            )
        },
    ),
    Row(
        kind="rnn",
        classes=("haiku.VanillaRNN",),
        slots=(
            slot("weight_ih", "params.*/linear.w", "in hidden"),
            slot("bias_ih", "params.*/linear.b", "hidden"),
            slot("weight_hh", "params.*/linear_1.w", "state hidden"),
            slot("bias_hh", "params.*/linear_1.b", "hidden"),
        ),
        settings={
            "activation": Fixed("relu", "Haiku's has no other; take flax.linen.SimpleCell"),
        },
    ),
)
