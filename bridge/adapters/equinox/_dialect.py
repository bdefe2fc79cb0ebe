"""How Equinox names the arrays of a layer and orders their axes: as PyTorch."""

from bridge.core.layers import Row, gated, slot

# In mode "batch" the averages are divided by 1 - momentum^counter. After so many steps that is 1 in
# float32 for any momentum up to 0.9999: the next training step goes on from what was loaded.
SETTLED = 1_000_000

_CONVOLUTION = {
    "kernel": "kernel_size",
    "stride": "stride",
    "padding": "padding",
    "padding mode": "padding_mode",
    "dilation": "dilation",
    "groups": "groups",
}
_BIAS = slot("bias", "params.*.bias", "out *1")

ROWS = (
    Row(
        kind="linear",
        classes=("equinox.Linear",),
        slots=(slot("weight", "params.*.weight", "out in"), slot("bias", "params.*.bias", "out")),
    ),
    Row(
        kind="embedding",
        classes=("equinox.Embedding",),
        slots=(slot("weight", "params.*.weight", "vocab features"),),
    ),
    Row(
        kind="layer norm",
        classes=("equinox.LayerNorm",),
        slots=(
            slot("weight", "params.*.weight", "*features"),
            slot("bias", "params.*.bias", "*features"),
        ),
        settings={"eps": "eps"},
    ),
    Row(
        kind="rms norm",
        classes=("equinox.RMSNorm",),
        slots=(
            slot("weight", "params.*.weight", "*features"),
            slot("bias", "params.*.bias", "*features"),
        ),
        settings={"eps": "eps"},
    ),
    Row(
        kind="group norm",
        classes=("equinox.GroupNorm",),
        slots=(
            slot("weight", "params.*.weight", "features"),
            slot("bias", "params.*.bias", "features"),
        ),
        settings={"eps": "eps", "groups": "groups", "channels": "channels"},
    ),
    Row(
        kind="convolution",
        classes=("equinox.Conv",),
        slots=(slot("weight", "params.*.weight", "out in *spatial"), _BIAS),
        settings=_CONVOLUTION,
    ),
    Row(
        kind="transposed convolution",
        classes=("equinox.ConvTranspose",),
        slots=(
            slot("weight", "params.*.weight", "(groups out) in -*spatial"),
            slot("bias", "params.*.bias", "(groups out) *1"),
        ),
        settings={**_CONVOLUTION, "output padding": "output_padding"},
    ),
    Row(
        kind="batch norm",
        classes=("equinox.BatchNorm",),
        slots=(
            slot("weight", "params.*.weight", "features"),
            slot("bias", "params.*.bias", "features"),
            slot("mean", "state.state.*.batch_state_index.0", "features"),
            slot("variance", "state.state.*.batch_state_index.1", "features"),
            slot("count", "state.state.*.batch_counter", "", value=SETTLED),
            # In mode "ema" the first batch replaces what is there, unless it is told that it is not.
            slot("mean", "state.state.*.ema_state_index.0", "features"),
            slot("variance", "state.state.*.ema_state_index.1", "features"),
            slot("first", "state.state.*.ema_first_time_index", "", value=False),
        ),
        settings={"eps": "eps", "decay": "momentum"},
    ),
    Row(
        kind="lstm",
        classes=("equinox.LSTMCell",),
        slots=(
            *gated("ifgo", "weight_ih.{gate}", "params.*.weight_ih", "({pick} hidden) in"),
            *gated("ifgo", "weight_hh.{gate}", "params.*.weight_hh", "({pick} hidden) state"),
            *gated("ifgo", "bias_ih.{gate}+bias_hh.{gate}", "params.*.bias", "({pick} hidden)"),
        ),
    ),
    Row(
        kind="gru",
        classes=("equinox.GRUCell",),
        slots=(
            *gated("rzn", "weight_ih.{gate}", "params.*.weight_ih", "({pick} hidden) in"),
            *gated("rzn", "weight_hh.{gate}", "params.*.weight_hh", "({pick} hidden) state"),
            slot("bias_ih.r+bias_hh.r", "params.*.bias", "(0of3 hidden)"),
            slot("bias_ih.z+bias_hh.z", "params.*.bias", "(1of3 hidden)"),
            slot("bias_ih.n", "params.*.bias", "(2of3 hidden)"),
            slot("bias_hh.n", "params.*.bias_n", "hidden"),
        ),
    ),
    Row(
        kind="prelu",
        classes=("equinox.PReLU",),
        slots=(slot("weight", "params.*.negative_slope", ""),),
        settings={"slopes": "negative_slope.size"},
        where={"negative_slope.ndim": 0},
    ),
    Row(
        kind="prelu",
        classes=("equinox.PReLU",),
        slots=(slot("weight", "params.*.negative_slope", "slopes *1"),),
        settings={"slopes": "negative_slope.size"},
    ),
)

# What computes the weight of the layer inside of it: the part that the layer's own array then plays.
REPARAMETRISED = (
    Row(
        kind="weight.v",
        classes=("equinox.WeightNorm",),
        slots=(slot("weight.g", "params.*.g", "out *1"),),
        where={"weight_name": "weight"},
    ),
    Row(
        kind="weight.raw",
        classes=("equinox.SpectralNorm",),
        slots=(
            slot("weight.left", "state.state.*.uv_index.0", "out"),
            slot("weight.right", "state.state.*.uv_index.1", "rest"),
        ),
        where={"weight_name": "weight"},
    ),
)

# The heads of an attention show in no array: the parts that say how many there are.
HEADS = {"equinox.MultiheadAttention": ("query_proj", "key_proj", "value_proj")}
