"""How Haiku names the arrays of a layer and orders their axes."""

from bridge.core.layers import Row, Slot, slot

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

ROWS = (
    Row(
        kind="linear",
        classes=("haiku.Linear",),
        slots=(slot("weight", "params.*.w", "in out"), slot("bias", "params.*.b", "out")),
        settings={},
    ),
    Row(
        kind="embedding",
        classes=("haiku.Embed",),
        slots=(slot("weight", "params.*.embeddings", "vocab features"),),
        settings={},
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
        kind="convolution",
        classes=("haiku.ConvND",),
        # The bias has axes of size 1 after it where data_format puts the channels first.
        slots=(slot("weight", "params.*.w", "*spatial in out"), slot("bias", "params.*.b", "out *1")),
        settings={
            "groups": "feature_group_count",
            "stride": "stride",
            "dilation": "kernel_dilation",
            "padding": "padding",
        },
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
        settings={"eps": "eps"},
    ),
)
