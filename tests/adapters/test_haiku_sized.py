"""Haiku's own layers with their sizes given: params without a sample, and Haiku's own numbers."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.adapters import haiku as layers
from bridge.core.errors import ModelError, UninitialisedError

KEY = jax.random.key(0)


def floats(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def flat_state(hidden):
    return hk.LSTMState(floats(2, hidden), floats(2, hidden))


# The layer, what Haiku calls it, and inputs for a call.
LAYERS = {
    "linear": (layers.linear(3, 5), lambda: hk.Linear(5), (floats(2, 3),)),
    "linear, no bias": (
        layers.linear(3, 5, with_bias=False),
        lambda: hk.Linear(5, with_bias=False),
        (floats(3),),
    ),
    "layer_norm": (layers.layer_norm(5), lambda: hk.LayerNorm(-1, True, True), (floats(2, 5),)),
    "layer_norm over two axes": (
        layers.layer_norm(5, (1, 2), create_offset=False, eps=0.1),
        lambda: hk.LayerNorm((1, 2), True, False, eps=0.1),
        (floats(2, 3, 5),),
    ),
    "batch_norm NC": (
        layers.batch_norm(5, "NC", decay_rate=0.9),
        lambda: hk.BatchNorm(True, True, 0.9),
        (floats(7, 5),),
    ),
    "batch_norm NCW": (
        layers.batch_norm(5, "NCW", create_scale=False, eps=0.1),
        lambda: hk.BatchNorm(False, True, 0.99, eps=0.1, data_format="NCW"),
        (floats(7, 5, 3),),
    ),
    "batch_norm NHWC": (
        layers.batch_norm(5),
        lambda: hk.BatchNorm(True, True, 0.99),
        (floats(7, 3, 2, 5),),
    ),
    "lstm": (layers.lstm(3, 5), lambda: hk.LSTM(5), (floats(2, 3), flat_state(5))),
    "gru": (layers.gru(3, 5), lambda: hk.GRU(5), (floats(2, 3), floats(2, 5))),
    "embed": (layers.embed(11, 5), lambda: hk.Embed(11, 5), (jnp.array([[0, 10], [3, 3]]),)),
    "conv_1d": (layers.conv_1d(3, 5, 2), lambda: hk.Conv1D(5, 2), (floats(2, 13, 3),)),
    "conv_1d NCW": (
        layers.conv_1d(3, 5, 7, stride=2, rate=2, padding="VALID", data_format="NCW"),
        lambda: hk.Conv1D(5, 7, 2, 2, "VALID", data_format="NCW"),
        (floats(2, 3, 17),),
    ),
    "conv_2d": (layers.conv_2d(3, 5, (2, 7)), lambda: hk.Conv2D(5, (2, 7)), (floats(2, 11, 13, 3),)),
    "conv_2d NCHW in groups": (
        layers.conv_2d(6, 4, (5, 3), padding="VALID", data_format="NCHW", feature_group_count=2),
        lambda: hk.Conv2D(4, (5, 3), padding="VALID", data_format="NCHW", feature_group_count=2),
        (floats(2, 6, 11, 13),),
    ),
    "conv_1d_transpose": (
        layers.conv_1d_transpose(3, 5, 2, stride=2),
        lambda: hk.Conv1DTranspose(5, 2, 2),
        (floats(2, 7, 3),),
    ),
    "conv_1d_transpose NCW": (
        layers.conv_1d_transpose(3, 5, 7, data_format="NCW", padding="VALID"),
        lambda: hk.Conv1DTranspose(5, 7, data_format="NCW", padding="VALID"),
        (floats(2, 3, 11),),
    ),
    "conv_2d_transpose": (
        layers.conv_2d_transpose(3, 5, (2, 3), stride=2, with_bias=False),
        lambda: hk.Conv2DTranspose(5, (2, 3), 2, with_bias=False),
        (floats(2, 7, 11, 3),),
    ),
    "conv_2d_transpose NCHW": (
        layers.conv_2d_transpose(3, 5, 2, data_format="NCHW"),
        lambda: hk.Conv2DTranspose(5, 2, data_format="NCHW"),
        (floats(2, 3, 7, 11),),
    ),
    "avg_pool": (
        layers.avg_pool((2, 1), (2, 1), "VALID"),
        lambda: hk.AvgPool((2, 1), (2, 1), "VALID"),
        (floats(2, 13, 3),),
    ),
    "max_pool of channels first": (
        layers.max_pool((1, 2, 3), (1, 2, 1), "SAME", channel_axis=-3),
        lambda: hk.MaxPool((1, 2, 3), (1, 2, 1), "SAME", channel_axis=-3),
        (floats(2, 3, 11, 7),),
    ),
}


def equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def message(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_given_sizes_has_haikus_own_numbers_without_a_sample(name):
    layer, native, inputs = LAYERS[name]
    flags = {"is_training": True} if "batch_norm" in name else {}
    own = hk.transform_with_state(lambda *args, **kwargs: native()(*args, **kwargs))
    # The averages of a BatchNorm begin with those of the sample, here as everywhere zeros.
    sample = jax.tree.map(jnp.zeros_like, inputs)

    @jax.jit  # one program, because compiling takes the time
    def run(inputs):
        module, made = layer.init(KEY), own.init(KEY, *sample, **flags)
        out, after = module.apply(*inputs, mode="train")
        expected = own.apply(*made, None, *inputs, **flags)
        return (module.native(), out, after.native()[1]), (made, *expected)

    equal(*run(inputs))


def test_after_init_it_is_the_module_that_a_sample_makes():
    sized = layers.conv_2d(3, 5, 2).init(KEY)
    sampled = br.from_haiku(hk.Conv2D)(5, 2).init(KEY, floats(1, 7, 11, 3))
    equal(sized, sampled)
    assert sized.layers() == sampled.layers()
    assert sized.init(KEY, floats(1, 7, 11, 3)) is sized
    late = layers.linear(3, 5)
    assert repr(late) == "HaikuModule uninit (Linear(5))"
    kept = late.train().freeze().init(KEY)
    assert kept.mode == "train"
    made = jax.eval_shape(late.init, KEY)
    assert made.at["params.linear.w"].get().shape == (3, 5)


def test_layers_of_one_size_in_a_tree_start_with_arrays_of_their_own():
    class Net(br.Module):
        layers: list[br.Module]
        late: br.Module

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.late(x)

    def net():
        return Net([layers.linear(3, 3), layers.linear(3, 3)], br.from_haiku(hk.Linear)(5))

    made = net().init(KEY, floats(2, 3))
    first, second = (layer.at["params.linear.w"].get() for layer in made.layers)
    assert not (first == second).any()
    sampled = Net([br.from_haiku(hk.Linear)(3) for _ in range(2)], br.from_haiku(hk.Linear)(5))
    equal(made, sampled.init(KEY, floats(2, 3)))
    assert message(UninitialisedError, net().init, KEY).startswith("late: shapes come from the input")


def test_two_sizes_of_one_class_are_two_modules():
    assert jax.tree.structure(layers.linear(3, 5)) == jax.tree.structure(layers.linear(3, 5))
    assert jax.tree.structure(layers.linear(3, 5)) != jax.tree.structure(layers.linear(7, 5))
    shapes = [layers.linear(n, 5).init(KEY).at["params.linear.w"].get().shape for n in (3, 7)]
    assert shapes == [(3, 5), (7, 5)]


@pytest.mark.parametrize("cls", ["LSTM", "GRU"])
def test_the_first_state_of_a_core_is_haikus_own(cls):
    core = getattr(layers, cls.lower())(3, 5)
    own = hk.transform(lambda batch: getattr(hk, cls)(5).initial_state(batch)).apply
    for batch in (None, 2):
        equal(core.initial_state(batch), own({}, None, batch))
        equal(core.init(KEY).initial_state(batch), own({}, None, batch))


def test_inputs_of_another_size_are_refused():
    text = message(ModelError, layers.linear(3, 5).init(KEY), floats(2, 7))
    assert "params.linear.w: is float32[3, 5]; the model makes float32[7, 5]" in text
    assert "the model makes float32[1, 1, 5]" in message(
        ModelError, layers.batch_norm(5, "NHWC").init(KEY), floats(2, 3, 5), True
    )


def test_sizes_that_stay_open_are_refused():
    assert message(ModelError, layers.batch_norm, 5, "channels_last") == (
        "batch_norm: data_format is 'channels_last', which leaves open how many axes there are; name"
        " each by a letter, the features by C: 'NC', 'NWC', 'NCW', 'NHWC' or 'NCHW'"
    )
    assert message(ModelError, layers.conv_1d_transpose, 3, 5, 2, output_shape=7) == (
        "an output_shape fits inputs of one size alone, which this was not given; type"
        " from_haiku(hk.Conv1DTranspose)(...).init(key, sample)"
    )
