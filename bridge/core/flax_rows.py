"""How Flax names the arrays of a layer and orders their axes, where Linen and NNX agree."""

from bridge.core.layers import Fixed, Row, Slot, gated, reparametrised, slot
from bridge.core.paths import Path
from bridge.core.settings import EACH


def _axes(word: str, count: int) -> str:
    """One axis, or the parts of one: two are called as attention means them, heads and features."""
    if count == 1:
        return word
    names = ("heads", "features") if count == 2 else (f"{word}{n}" for n in range(1, count + 1))
    return " ".join(f"{word}:{name}" for name in names)


def general_linear(name: str, features: str, inputs: int, outputs: int) -> Row:
    """The row of a linear layer that contracts so many axes into so many, as attention's do."""
    ins, outs = _axes("in", inputs), _axes("out", outputs)
    return Row(
        kind="linear",
        classes=(name,),
        slots=(slot("weight", "params.*.kernel", f"{ins} {outs}"), slot("bias", "params.*.bias", outs)),
        settings={"heads": f"{features}.0"} if outputs == 2 else {},
    )


_SCALE = slot("weight", "params.*.scale", "features")
_SHIFT = slot("bias", "params.*.bias", "features")
_CONVOLUTION = {
    "kernel": "kernel_size",
    "stride": "strides",
    "dilation": "kernel_dilation",
    "padding": "padding",
}
_TRANSPOSED = {
    **_CONVOLUTION,
    "groups": Fixed(1, "Flax has no groups in a ConvTranspose; write that layer in Equinox"),
    "padding mode": Fixed("zeros", "Flax has none but zeros in a ConvTranspose"),
}
_BIAS = slot("bias", "params.*.bias", "out")


def rows(linear: str) -> tuple[Row, ...]:
    """The rows of the layers that Linen and NNX keep alike; they call the linear layer differently."""
    return (
        Row(
            kind="linear",
            classes=(linear,),
            slots=(slot("weight", "params.*.kernel", "in out"), _BIAS),
        ),
        Row(
            kind="embedding",
            classes=("flax.Embed",),
            slots=(slot("weight", "params.*.embedding", "vocab features"),),
        ),
        Row(
            kind="layer norm",
            classes=("flax.LayerNorm",),
            slots=(
                slot("weight", "params.*.scale", "*features"),
                slot("bias", "params.*.bias", "*features"),
            ),
            settings={"eps": "epsilon"},
        ),
        Row(
            kind="rms norm",
            classes=("flax.RMSNorm",),
            slots=(slot("weight", "params.*.scale", "*features"),),
            settings={"eps": "epsilon"},
        ),
        Row(
            kind="group norm",
            classes=("flax.GroupNorm",),
            slots=(_SCALE, _SHIFT),
            settings={"eps": "epsilon", "groups": "num_groups", "group size": "group_size"},
        ),
        Row(
            kind="group norm",
            classes=("flax.InstanceNorm",),
            slots=(_SCALE, _SHIFT),
            settings={"eps": "epsilon", "groups": Fixed(EACH, "with other groups it is a GroupNorm")},
        ),
        Row(
            kind="batch norm",
            classes=("flax.BatchNorm",),
            slots=(
                _SCALE,
                _SHIFT,
                slot("mean", "state.batch_stats.*.mean", "features"),
                slot("variance", "state.batch_stats.*.var", "features"),
            ),
            settings={"eps": "epsilon", "decay": "momentum"},
        ),
        Row(
            kind="convolution",
            classes=("flax.Conv",),
            slots=(slot("weight", "params.*.kernel", "*spatial in out"), _BIAS),
            settings={**_CONVOLUTION, "groups": "feature_group_count"},
        ),
        Row(
            kind="transposed convolution",
            classes=("flax.ConvTranspose",),
            slots=(slot("weight", "params.*.kernel", "-*spatial in out"), _BIAS),
            settings=_TRANSPOSED,
            where={"transpose_kernel": False},
        ),
        Row(
            kind="transposed convolution",
            classes=("flax.ConvTranspose",),
            slots=(slot("weight", "params.*.kernel", "*spatial out in"), _BIAS),
            settings=_TRANSPOSED,
            where={"transpose_kernel": True},
        ),
        Row(
            kind="prelu",
            classes=("flax.PReLU",),
            slots=(slot("weight", "params.*.negative_slope", ""),),
            settings={
                "slopes": Fixed(1, "Flax has one for all channels; write that layer by yourself"),
            },
        ),
    )


def weight_normed(row: Row, layer: Path, *scales: Path) -> Row | None:
    """The row of a WeightNorm around a layer of a row; None where torch's is of another form.

    `scales` are the places that its scale may have.
    """
    if row.kind not in ("linear", "convolution"):
        return None
    beside = tuple(Slot("weight.g", scale, "out") for scale in scales)
    return reparametrised(row, "layer_instance", layer, "weight.v", beside)


GATED = {"activation": "activation_fn", "gate activation": "gate_fn"}

# A cell for each gate: LSTMCell.
LSTM_BY_GATE = (
    *gated("ifgo", "weight_ih.{gate}", "params.*.i{gate}.kernel", "in hidden"),
    *gated("ifgo", "weight_hh.{gate}", "params.*.h{gate}.kernel", "state hidden"),
    *gated("ifgo", "bias_ih.{gate}+bias_hh.{gate}", "params.*.h{gate}.bias", "hidden"),
)
