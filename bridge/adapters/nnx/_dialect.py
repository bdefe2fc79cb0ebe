"""How NNX names the arrays of a layer and orders their axes."""

from dataclasses import replace

from bridge.core.flax_rows import GATED, LSTM_BY_GATE, rows
from bridge.core.layers import Fixed, Row, gated, slot

ROWS = (
    *rows(linear="flax.Linear"),
    Row(
        kind="lstm",
        classes=("flax.LSTMCell",),
        # An attribute cannot be called `if`.
        slots=tuple(
            replace(one, path=tuple("if_" if name == "if" else name for name in one.path))
            for one in LSTM_BY_GATE
        ),
        settings=GATED,
    ),
    Row(
        kind="lstm",
        classes=("flax.OptimizedLSTMCell",),
        slots=(
            *gated("ifgo", "weight_ih.{gate}", "params.*.dense_i.kernel", "in ({pick} hidden)"),
            *gated("ifgo", "weight_hh.{gate}", "params.*.dense_h.kernel", "state ({pick} hidden)"),
            *gated("ifgo", "bias_ih.{gate}+bias_hh.{gate}", "params.*.dense_h.bias", "({pick} hidden)"),
        ),
        settings=GATED,
    ),
    Row(
        kind="gru",
        classes=("flax.GRUCell",),
        slots=(
            *gated("rzn", "weight_ih.{gate}", "params.*.dense_i.kernel", "in ({pick} hidden)"),
            *gated("rzn", "weight_hh.{gate}", "params.*.dense_h.kernel", "state ({pick} hidden)"),
            slot("bias_ih.r+bias_hh.r", "params.*.dense_i.bias", "(0of3 hidden)"),
            slot("bias_ih.z+bias_hh.z", "params.*.dense_i.bias", "(1of3 hidden)"),
            slot("bias_ih.n", "params.*.dense_i.bias", "(2of3 hidden)"),
        ),
        settings={
            **GATED,
            "bias_hh.n": Fixed(0, "and gives the same only where that is 0; flax.linen.GRUCell has it"),
        },
    ),
    Row(
        kind="rnn",
        classes=("flax.SimpleCell",),
        slots=(
            slot("weight_ih", "params.*.dense_i.kernel", "in hidden"),
            slot("weight_hh", "params.*.dense_h.kernel", "state hidden"),
            slot("bias_ih+bias_hh", "params.*.dense_i.bias", "hidden"),
        ),
        settings={"activation": "activation_fn"},
    ),
)
