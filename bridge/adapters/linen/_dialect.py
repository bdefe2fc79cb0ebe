"""How Linen names the arrays of a layer and orders their axes."""

from bridge.core.flax_rows import GATED, LSTM_BY_GATE, rows
from bridge.core.layers import Row, gated, slot

ROWS = (
    *rows(linear="flax.Dense"),
    # The projection of transformers' Flax GPT-2 turns its kernel round when it is called:
    # modeling_flax_gpt2.py, FlaxConv1D.
    Row(
        kind="linear",
        classes=("transformers.FlaxConv1D",),
        slots=(slot("weight", "params.*.kernel", "out in"), slot("bias", "params.*.bias", "out")),
    ),
    Row(
        kind="lstm",
        # Both name their arrays alike; OptimizedLSTMCell puts them together when it is called.
        classes=("flax.LSTMCell", "flax.OptimizedLSTMCell"),
        slots=LSTM_BY_GATE,
        settings=GATED,
    ),
    Row(
        kind="gru",
        classes=("flax.GRUCell",),
        slots=(
            *gated("rzn", "weight_ih.{gate}", "params.*.i{gate}.kernel", "in hidden"),
            *gated("rzn", "weight_hh.{gate}", "params.*.h{gate}.kernel", "state hidden"),
            *gated("rz", "bias_ih.{gate}+bias_hh.{gate}", "params.*.i{gate}.bias", "hidden"),
            # The reset gate multiplies what comes of the state, its bias with it.
            slot("bias_ih.n", "params.*.in.bias", "hidden"),
            slot("bias_hh.n", "params.*.hn.bias", "hidden"),
        ),
        settings=GATED,
    ),
    Row(
        kind="rnn",
        classes=("flax.SimpleCell",),
        slots=(
            slot("weight_ih", "params.*.i.kernel", "in hidden"),
            slot("weight_hh", "params.*.h.kernel", "state hidden"),
            slot("bias_ih+bias_hh", "params.*.i.bias", "hidden"),
        ),
        settings={"activation": "activation_fn"},
    ),
)
