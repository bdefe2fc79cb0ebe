"""What a library's layer cannot be, or was not built to be: a sentence each, and nothing is loaded."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from torch import nn

import bridge as br
from tests.weights.kinds.cases import NAMED
from tests.weights.kinds.twins import twin

GRU = replace(NAMED["gru cell"], libraries=())

# What is loaded into which twin, and the sentences.
REFUSED = {
    "a GRU that resets before its matrix": (
        nn.GRUCell(5, 7),
        ("haiku", GRU),
        "params.gru: the source cannot be loaded: reset is after the matrix there and before the matrix"
        " here; Haiku's is another recurrence, for which no weights are those of PyTorch's; take"
        " eqx.nn.GRUCell or flax.linen.GRUCell",
    ),
    "a GRU from a bare state_dict": (
        nn.GRUCell(5, 7).state_dict(),
        ("haiku", GRU),
        "params.gru: the source cannot be loaded: reset is after the matrix there and before the matrix"
        " here; Haiku's is another recurrence, for which no weights are those of PyTorch's; take"
        " eqx.nn.GRUCell or flax.linen.GRUCell",
    ),
    "a GRU without a bias in its state": (
        nn.GRUCell(5, 7),
        ("nnx", GRU),
        "bias_hh: left over: params has no bias_hh.n, and gives the same only where that is 0;"
        " flax.linen.GRUCell has it; type strict=False to leave it out",
    ),
    "a recurrence of another activation": (
        nn.RNNCell(5, 7),
        ("haiku", NAMED["rectified rnn cell"]),
        "params.vanilla_rnn/linear: the source cannot be loaded: activation is tanh there and relu"
        " here; Haiku's has no other; take flax.linen.SimpleCell",
    ),
    "a projected state": (
        nn.Sequential(nn.LSTM(5, 7, proj_size=3)),
        ("equinox", NAMED["lstm cell"]),
        "params: 0.l0 cannot be loaded: with proj_size it projects its state down, and no other"
        " library's does; write that recurrence by yourself",
        "0.weight_hr_l0: left over: nothing in the Module takes it; type strict=False to leave it out",
    ),
    "a slope for each channel": (
        nn.PReLU(5),
        ("linen", NAMED["prelu"]),
        "params: the source cannot be loaded: slopes is 5 there and 1 here; Flax has one for all"
        " channels; write that layer by yourself",
    ),
    "groups of a transposed convolution": (
        nn.Sequential(nn.ConvTranspose2d(7, 7, 7, 2, 3, groups=7)),
        ("nnx", NAMED["square transposed convolution"]),
        "params: 0 cannot be loaded: groups is 7 there and 1 here; Flax has no groups in a"
        " ConvTranspose; write that layer in Equinox",
    ),
    "the dilation of a transposed convolution": (
        nn.ConvTranspose2d(7, 7, 7, 2, 6, dilation=2),
        ("haiku", NAMED["square transposed convolution"]),
        "params.conv2_d_transpose: the source cannot be loaded: dilation is 2 there and 1 here; Haiku's"
        " has none; write that layer in Flax or Equinox",
    ),
    "padding that is no zeros": (
        nn.Conv2d(7, 7, 7, 2, 3, padding_mode="circular"),
        ("haiku", NAMED["square convolution"]),
        "params.conv2_d: the source cannot be loaded: padding mode is circular there and zeros here;"
        " Haiku pads with zeros alone; pad the input by jnp.pad before",
    ),
    "groups of an instance norm": (
        nn.GroupNorm(3, 6),
        ("haiku", NAMED["instance norm"]),
        "params.instance_norm: the source cannot be loaded: groups is 3 there and one for each channel"
        " here; with other groups it is a GroupNorm",
    ),
    "the mean of all batches": (
        nn.BatchNorm1d(7, momentum=None),
        ("equinox", NAMED["batch norm"]),
        "params: the source cannot be loaded: with momentum=None it keeps the mean of all batches that"
        " ever were, and the other libraries an average that forgets; give it a number:"
        " layer.momentum = 0.1",
    ),
    "no running statistics": (
        nn.BatchNorm1d(7, track_running_stats=False),
        ("linen", NAMED["batch norm"]),
        "running_mean: missing; state.batch_stats.mean wants features=7",
        "running_var: missing; state.batch_stats.var wants features=7",
    ),
    "rows that a call shortens": (
        nn.Embedding(13, 5, max_norm=1.0),
        ("nnx", NAMED["embedding"]),
        "params: the source cannot be loaded: with max_norm it shortens its rows in every call, and no"
        " other library does; shorten them once, and set layer.max_norm = None",
    ),
    "attention to a zero": (
        nn.MultiheadAttention(10, 2, add_zero_attn=True),
        ("linen", NAMED["attention"]),
        *(
            f"params.{part}: {part} cannot be loaded: with add_zero_attn it attends to a zero as well,"
            f" and no other library's attention does; leave that out, or write the attention by"
            f" yourself"
            for part in ("query", "key", "value")
        ),
    ),
    "a key and a value of its own": (
        nn.MultiheadAttention(10, 2, add_bias_kv=True),
        ("equinox", NAMED["attention"]),
        *(
            f"params.{part}_proj: {part} cannot be loaded: with add_bias_kv it has a key and a value of"
            f" its own, and no other library's attention has; leave that out, or write the attention by"
            f" yourself"
            for part in ("query", "key", "value")
        ),
        *(
            f"{key}: left over: nothing in the Module takes it; type strict=False to leave it out"
            for key in ("bias_k", "bias_v")
        ),
    ),
    "a weight that is reparametrised": (
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 7)),
        ("haiku", NAMED["linear"]),
        "params.linear.w: the weight of the source is reparametrised and this layer's is not; fold it"
        " before: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), or of the older"
        " kind torch.nn.utils.remove_weight_norm(layer), remove_spectral_norm(layer)",
    ),
}

# Settings that the twin was built with and the source was not.
DIFFERENT = {
    "decay and eps": (
        nn.BatchNorm1d(7, eps=1e-3, momentum=0.3),
        ("haiku", NAMED["batch norm"]),
        "params.batch_norm: decay is 0.9, and 0.7 in the source: build the model with 0.7, or type"
        " strict=False to keep 0.9",
        "params.batch_norm: eps is 1e-05, and 0.001 in the source: build the model with 0.001, or type"
        " strict=False to keep 1e-05",
    ),
    "the eps of the dtype": (
        nn.Sequential(nn.RMSNorm(7)),
        ("equinox", NAMED["rms norm"]),
        "params: eps is 0.001, and 1.192093e-07 in 0: build the model with 1.192093e-07, or type"
        " strict=False to keep 0.001",
    ),
    "strides, padding and dilation": (
        nn.Conv2d(7, 7, 7, stride=(2, 1), dilation=2, padding=3),
        ("linen", NAMED["square convolution"]),
        "params: dilation is 1, and 2 in the source: build the model with 2, or type strict=False to"
        " keep 1",
        "params: stride is 2, and (2, 1) in the source: build the model with (2, 1), or type"
        " strict=False to keep 2",
    ),
    "output padding": (
        nn.ConvTranspose2d(5, 7, 5, 2, 1, output_padding=1),
        ("equinox", NAMED["strided transposed convolution"]),
        "params: padding is (3, 3), and (3, 4) in the source: build the model with (3, 4), or type"
        " strict=False to keep (3, 3)",
    ),
    "groups of channels": (
        nn.GroupNorm(2, 6),
        ("nnx", NAMED["group norm"]),
        "params: groups is 3, and 2 in the source: build the model with 2, or type strict=False to"
        " keep 3",
    ),
    "an activation": (
        nn.RNNCell(5, 7, nonlinearity="relu"),
        ("nnx", NAMED["rnn cell"]),
        "params: activation is tanh, and relu in the source: build the model with relu, or type"
        " strict=False to keep tanh",
    ),
    "padding by the size of the input": (
        nn.Conv2d(7, 7, 7, stride=2, padding=3),
        (
            "haiku",
            replace(
                NAMED["square convolution"],
                options={**NAMED["square convolution"].options, "padding": "same"},
            ),
        ),
        "params.conv2_d: padding is SAME, and (3, 3) in the source (which is equal for some sizes of"
        " the input alone): build the model with (3, 3), or type strict=False to keep SAME",
    ),
    **{
        f"heads in {library}": (
            nn.MultiheadAttention(10, 5),
            (library, NAMED["attention"]),
            *(
                f"params.{part}: heads is 2, and 5 in {part.rpartition('/')[2].removesuffix('_proj')}:"
                f" build the model with 5, or type strict=False to keep 2"
                for part in parts
            ),
        )
        for library, parts in {
            "nnx": ("query", "key", "value"),
            "haiku": tuple(f"multi_head_attention/{part}" for part in ("query", "key", "value")),
            "equinox": ("query_proj", "key_proj", "value_proj"),
        }.items()
    },
}


def test_other_activations_of_a_gated_cell_are_said():
    linen = pytest.importorskip("flax.linen")
    x, h = np.zeros((3, 5), np.float32), np.zeros((3, 7), np.float32)
    cell = linen.GRUCell(7, gate_fn=linen.hard_sigmoid, activation_fn=linen.relu)
    module = br.from_linen(cell).init(jax.random.key(0), h, x)
    for source in (nn.GRUCell(5, 7), nn.GRUCell(5, 7).state_dict()):
        assert br.match(module, source).differences == (
            "params: activation is relu, and tanh in the source: build the model with tanh, or type"
            " strict=False to keep relu",
            "params: gate activation is hard_sigmoid, and sigmoid in the source: build the model with"
            " sigmoid, or type strict=False to keep hard_sigmoid",
        )


def sentences(match):
    return [*match.problems, *match.left_over.values(), *match.differences]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_layer_cannot_be_is_refused(name):
    source, (library, case), *expected = REFUSED[name]
    match = br.match(twin(library, case), source)
    assert sentences(match) == expected
    assert not match.complete


@pytest.mark.parametrize("name", DIFFERENT)
def test_settings_that_differ_are_said(name):
    source, (library, case), *expected = DIFFERENT[name]
    module = twin(library, case)
    match = br.match(module, source)
    assert sorted(sentences(match)) == sorted(expected)
    assert list(match.differences) == sentences(match)
    br.load_state_dict(module, source, strict=False)


EQUAL = {
    "SAME for stride 1": (nn.Conv2d(7, 7, 7, padding=3), "same"),
    "numbers and tuples": (nn.Conv2d(7, 7, (7, 7), (1, 1), (3, 3), (1, 1)), "same"),
    "torch's own same": (nn.Conv2d(7, 7, 7, padding="same"), 3),
}


@pytest.mark.parametrize("library", ["linen", "nnx", "haiku", "equinox"])
@pytest.mark.parametrize("name", EQUAL)
def test_settings_of_one_meaning_are_no_difference(library, name):
    source, padding = EQUAL[name]
    case = NAMED["square convolution"]
    case = replace(case, options={**case.options, "padding": padding, "stride": 1})
    assert br.match(twin(library, case), source).complete
