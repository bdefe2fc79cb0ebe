"""How Equinox names the arrays of a layer and orders their axes: as PyTorch."""

from bridge.core.layers import Row, slot

# In mode "batch" the averages are divided by 1 - momentum^counter. After so many steps that is 1 in
# float32 for any momentum up to 0.9999: the next training step goes on from what was loaded.
SETTLED = 1_000_000

ROWS = (
    Row(
        kind="linear",
        classes=("equinox.Linear",),
        slots=(slot("weight", "params.*.weight", "out in"), slot("bias", "params.*.bias", "out")),
        settings={},
    ),
    Row(
        kind="embedding",
        classes=("equinox.Embedding",),
        slots=(slot("weight", "params.*.weight", "vocab features"),),
        settings={},
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
        kind="convolution",
        classes=("equinox.Conv",),
        slots=(
            slot("weight", "params.*.weight", "out in *spatial"),
            slot("bias", "params.*.bias", "out *1"),
        ),
        settings={
            "groups": "groups",
            "stride": "stride",
            "dilation": "dilation",
            "padding": "padding",
        },
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
)
