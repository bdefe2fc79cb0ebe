"""How NNX names the arrays of a layer and orders their axes."""

from bridge.core.layers import Row, slot


def _axes(word: str, count: int) -> str:
    """One axis, or the parts of one: two are called as attention means them, heads and features."""
    if count == 1:
        return word
    names = ("heads", "features") if count == 2 else (f"{word}{n}" for n in range(1, count + 1))
    return " ".join(f"{word}:{name}" for name in names)


def general_linear(inputs: int, outputs: int) -> Row:
    """The row of a LinearGeneral that contracts so many axes into so many."""
    ins, outs = _axes("in", inputs), _axes("out", outputs)
    return Row(
        kind="linear",
        classes=("flax.LinearGeneral",),
        slots=(slot("weight", "params.*.kernel", f"{ins} {outs}"), slot("bias", "params.*.bias", outs)),
        settings={},
    )


ROWS = (
    Row(
        kind="linear",
        classes=("flax.Linear",),
        slots=(slot("weight", "params.*.kernel", "in out"), slot("bias", "params.*.bias", "out")),
        settings={},
    ),
    Row(
        kind="embedding",
        classes=("flax.Embed",),
        slots=(slot("weight", "params.*.embedding", "vocab features"),),
        settings={},
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
        kind="convolution",
        classes=("flax.Conv",),
        slots=(
            slot("weight", "params.*.kernel", "*spatial in out"),
            slot("bias", "params.*.bias", "out"),
        ),
        settings={
            "groups": "feature_group_count",
            "stride": "strides",
            "dilation": "kernel_dilation",
            "padding": "padding",
        },
    ),
    Row(
        kind="batch norm",
        classes=("flax.BatchNorm",),
        slots=(
            slot("weight", "params.*.scale", "features"),
            slot("bias", "params.*.bias", "features"),
            slot("mean", "state.batch_stats.*.mean", "features"),
            slot("variance", "state.batch_stats.*.var", "features"),
        ),
        settings={"eps": "epsilon", "decay": "momentum"},
    ),
)
