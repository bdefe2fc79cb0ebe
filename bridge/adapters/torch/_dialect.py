"""How torch.nn names the arrays of a layer and orders their axes."""

from bridge.core.layers import Row, slot

ROWS = (
    Row(
        kind="linear",
        classes=("torch.Linear",),
        slots=(slot("weight", "*.weight", "out in"), slot("bias", "*.bias", "out")),
        settings={},
    ),
    # GPT-2's projection, transformers.pytorch_utils.Conv1D, keeps its matrix the other way round.
    Row(
        kind="linear",
        classes=("transformers.Conv1D",),
        slots=(slot("weight", "*.weight", "in out"), slot("bias", "*.bias", "out")),
        settings={},
    ),
    Row(
        kind="embedding",
        classes=("torch.Embedding",),
        slots=(slot("weight", "*.weight", "vocab features"),),
        settings={},
    ),
    Row(
        kind="layer norm",
        classes=("torch.LayerNorm",),
        slots=(slot("weight", "*.weight", "*features"), slot("bias", "*.bias", "*features")),
        settings={"eps": "eps"},
    ),
    Row(
        kind="convolution",
        classes=("torch.Conv1d", "torch.Conv2d", "torch.Conv3d"),
        # in counts one group's channels: torch.nn.Conv2d's docs, "Variables".
        slots=(slot("weight", "*.weight", "out in *spatial"), slot("bias", "*.bias", "out")),
        settings={
            "groups": "groups",
            "stride": "stride",
            "dilation": "dilation",
            "padding": "padding",
        },
    ),
    Row(
        kind="batch norm",
        classes=("torch._BatchNorm",),
        slots=(
            slot("weight", "*.weight", "features"),
            slot("bias", "*.bias", "features"),
            slot("mean", "*.running_mean", "features"),
            slot("variance", "*.running_var", "features"),
        ),
        settings={"eps": "eps"},
    ),
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
        settings={},
    )
    for index, part in enumerate(("query", "key", "value"))
}

# Other names of the same parts: TensorFlow's, in the first BERT checkpoints.
OLD_NAMES = {"gamma": "weight", "beta": "bias"}

# Last parts of keys that hold nothing trained and nothing that a forward reads.
BUFFERS = {
    "num_batches_tracked": "counts the training batches; evaluation does not read it",
    "position_ids": "the numbers 0, 1, 2, ...; not trained",
}
