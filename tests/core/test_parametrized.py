import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
normal, ones, zeros = (
    jax.nn.initializers.normal(1.0),
    jax.nn.initializers.ones,
    jax.nn.initializers.zeros,
)


class Dense(br.Module):
    kernel: br.Parameter
    bias: br.Parameter
    size: int

    def __init__(self, inputs, size):
        self.kernel, self.bias = br.ParamInit((inputs, size), normal), br.ParamInit((size,), normal)
        self.size = size

    def __call__(self, x):
        return x @ self.kernel + self.bias

    def transposed(self, x):
        return x @ self.kernel.T


class Plain(br.Module):
    weight: br.Parameter

    def __init__(self, size):
        self.weight = br.ParamInit((size,), ones)

    def __call__(self):
        return self.weight.sum()


class Counter(br.Module):
    calls: br.State

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return x


class Dropout(br.Module):
    rate: float

    def __call__(self, x):
        if not self.training:
            return x
        kept = jax.random.bernoulli(self.rng, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


def dense(layer, x):
    return x @ layer.kernel + layer.bias


def sentence(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_layers_made_inside_taken_from_outside_and_as_defaults_are_parts():
    outside = Dense(5, 7)

    @br.parametrized
    def net(x, given=Dense(7, 2)):  # noqa: B008
        return given(jnp.tanh(outside(Dense(3, 5)(x))))

    assert repr(net) == "net uninit ()"
    net = net.init(KEY, X)
    assert list(net.parts) == ["dense", "outside", "given"]
    assert net.dense.bias.shape == net.parameters().dense.bias.shape == (5,)
    expected = dense(net.given, jnp.tanh(dense(net.outside, dense(net.dense, X))))
    np.testing.assert_array_equal(net(X), expected)
    out, after = net.apply(X)
    assert after is net
    np.testing.assert_allclose(jax.jit(net.apply)(X)[0], out, rtol=1e-6)


def test_one_object_is_one_set_of_parameters():
    layer = Dense(3, 3)

    @br.parametrized
    def net(x):
        return layer(layer(x)).sum()

    net = net.init(KEY, X)
    assert len(jax.tree.leaves(net)) == 2
    twice = jax.grad(lambda kernel: ((X @ kernel + net.layer.bias) @ kernel + net.layer.bias).sum())
    np.testing.assert_allclose(net.grad(X).layer.kernel, twice(net.layer.kernel), rtol=1e-5)


@pytest.mark.parametrize("together", [False, True], ids=["alone first", "in a chain first"])
def test_an_object_is_shared_between_different_parents(together):
    layer = Dense(3, 3)

    @br.parametrized
    def one(x):
        return layer(x)

    @br.parametrized
    def other(x):
        return layer(2 * x)

    chain = br.Sequential(layer, jnp.tanh)

    @br.parametrized
    def net(x):
        return chain(x) + one(x) + other(x) if together else one(x) + other(x) + chain(x)

    net = net.init(KEY, X)
    assert len(jax.tree.leaves(net)) == 2
    owner = net.at["chain.0" if together else "one.layer"].get()
    assert net.at["other.layer"].get() is owner
    expected = dense(owner, X) + dense(owner, 2 * X) + jnp.tanh(dense(owner, X))
    np.testing.assert_allclose(net(X), expected, rtol=1e-6)
    halved = net.update(jax.tree.map(lambda array: array / 2, net.parameters()))
    owner = halved.at["other.layer"].get()
    expected = dense(owner, X) + dense(owner, 2 * X) + jnp.tanh(dense(owner, X))
    np.testing.assert_allclose(halved(X), expected, rtol=1e-6)


def test_a_field_of_a_class_and_a_function_share_an_object():
    layer = Dense(3, 3)

    @br.parametrized
    def inner(x):
        return layer(x)

    class Both(br.Module):
        layer: br.Module
        inner: br.Module

        def __call__(self, x):
            return self.layer(x) + self.inner(x)

    both = Both(layer, inner).init(KEY, X)
    assert len(jax.tree.leaves(both)) == 2
    np.testing.assert_allclose(both(X), 2 * dense(both.layer, X), rtol=1e-6)


def test_two_models_of_one_object_are_initialised_apart():
    layer = Dense(3, 3)
    one, other = br.parametrized(lambda x: layer(x)), br.parametrized(lambda x: layer(x))
    one, other = one.init(KEY, X), other.init(jax.random.key(1), X)
    assert not (one.layer.kernel == other.layer.kernel).any()


def test_names_stay_when_a_sibling_comes():
    def first(x):
        return Dense(3, 5)(x)

    def second(x):
        return jnp.concatenate([Dense(3, 5)(x), Counter()(Dense(3, 2)(x))], 1)

    one, other = (br.parametrized(function).init(KEY, X) for function in (first, second))
    assert list(one.parts) == ["dense"]
    assert list(other.parts) == ["dense", "dense_1", "counter"]
    np.testing.assert_array_equal(one.dense.kernel, other.dense.kernel)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("LayerNorm", "layer_norm"),
        ("MLP", "mlp"),
        ("HTTPHead2D", "http_head2_d"),
        ("conv", "conv"),
    ],
)
def test_a_part_without_a_name_has_that_of_its_class(name, part):
    kind = type(name, (Dense,), {"__module__": __name__})
    net = br.parametrized(lambda x: kind(3, 5)(x)).init(KEY, X)
    assert list(net.parts) == [part]


def test_parameters_of_the_function_itself():
    @br.parametrized
    def affine(x):
        slope = br.parameter((3,), ones, "slope")
        assert br.parameter((3,), ones, "slope") is slope
        return x * slope + br.parameter((), zeros, "shift", jnp.float32)

    affine = affine.init(KEY, X)
    np.testing.assert_array_equal(affine(X), X)
    grads = br.grad(lambda module: module(X).sum())(affine)
    np.testing.assert_allclose(grads.slope, X.sum(0), rtol=1e-6)
    assert float(grads.shift) == 6


def test_the_architecture_follows_the_shape_of_the_input():
    @br.parametrized
    def square(x):
        return Dense(x.shape[1], x.shape[0])(x)

    assert square.init(KEY, X)(X).shape == (2, 2)
    shapes = jax.eval_shape(square.init, KEY, jnp.ones((5, 7)))
    assert shapes.dense.kernel.shape == (7, 5)
    abstract = square.init(KEY, jax.ShapeDtypeStruct((5, 7), jnp.float32))
    made = jax.jit(square.init)(KEY, jnp.ones((5, 7)))
    np.testing.assert_array_equal(abstract.dense.kernel, made.dense.kernel)


def test_states_masks_and_modes_are_those_of_any_module():
    @br.parametrized
    def net(x):
        return Dropout(0.5)(Dropout(0.5)(Counter()(x)))

    net = net.init(KEY, X)
    assert int(net.counter.calls) == 0
    wide = jnp.ones((11, 13))
    first, after = net.apply(wide, rng=KEY, mode="train")
    second, after = after.apply(wide, rng=jax.random.key(1), mode="train")
    assert int(after.counter.calls) == 2
    assert not (first == second).all()
    assert set(np.unique(first)) == {0, 4}
    np.testing.assert_array_equal(net.apply(wide)[0], wide)
    assert "the update would be lost" in sentence(br.BridgeError, net, wide)
    still = net.at["dropout"].apply(lambda part: part.eval())
    assert set(np.unique(still.apply(wide, rng=KEY, mode="train")[0])) == {0, 2}


def test_functions_made_in_the_call_see_the_values_of_that_call():
    @br.parametrized
    def net(x, factor):
        scaled = functools.partial(jnp.multiply, factor)
        return br.Sequential(Dense(3, 5), lambda h: h * factor, scaled)(x)

    net = net.init(KEY, X, 2.0)
    hidden = dense(net.at["sequential.0"].get(), X)
    np.testing.assert_allclose(net(X, 3.0), 9 * hidden, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda f: net(X, f))(5.0), 25 * hidden, rtol=1e-6)
    assert jax.tree.structure(net) == jax.tree.structure(net.apply(X, 7.0)[1])


def test_two_inits_of_one_function_are_one_structure():
    @br.parametrized
    def net(x):
        return br.Sequential(Dense(3, 5), lambda h: jnp.tanh(h))(x)

    class Other(br.Module):
        net: br.Module

        def __call__(self, x):
            return self.net(x)

    plain = br.parametrized(lambda x: Dense(3, 5)(x))
    one, other = plain.init(KEY, X), plain.init(jax.random.key(1), X)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, one, other)
    np.testing.assert_allclose(mean(X), (one(X) + other(X)) / 2, rtol=1e-5, atol=1e-6)
    deep = Other(net).init(KEY, X)
    assert deep.init(KEY, X) is deep
    assert deep(X).shape == (2, 5)


def test_parts_can_be_frozen_replaced_captured_and_called_by_other_methods():
    layer = Dense(3, 3)

    @br.parametrized
    def net(x):
        return layer.transposed(layer(x))

    net = net.init(KEY, X)
    np.testing.assert_array_equal(net(X), dense(net.layer, X) @ net.layer.kernel.T)
    assert net.freeze("layer.kernel").parameters().layer.kernel is None
    outputs = net.capture(X, paths=["layer*"])
    np.testing.assert_array_equal(outputs["layer"], dense(net.layer, X))
    assert list(outputs) == ["layer", "layer#2"]

    class Twin(br.Module):
        def __call__(self, x):
            return 2 * x

        def transposed(self, x):
            return x + 1

    np.testing.assert_array_equal(net.at["layer"].set(Twin())(X), 2 * X + 1)


def test_a_method_of_a_wrapped_model_is_called_on_the_part():
    linen = pytest.importorskip("flax.linen")

    class Coder(linen.Module):
        @linen.compact
        def encode(self, x):
            return linen.Dense(5)(x)

    coder = br.from_linen(Coder())
    net = br.parametrized(lambda x: coder.encode(x)).init(KEY, X)
    kernel = net.at["coder.params.Dense_0.kernel"].get()
    np.testing.assert_allclose(net(X), X @ kernel, rtol=1e-6)


def test_a_module_of_traced_arrays_is_called_as_it_is():
    layer = Dense(3, 3).init(KEY)

    @br.parametrized
    def net(x):
        def loss(layer):
            return layer(x).sum()

        return jax.grad(loss)(layer).kernel + Dense(3, 3)(x).sum()

    net = net.init(KEY, X)
    assert list(net.parts) == ["dense"]
    expected = jnp.tile(X.sum(0)[:, None], 3) + dense(net.dense, X).sum()
    np.testing.assert_allclose(net(X), expected, rtol=1e-5)


def test_trained_arrays_of_a_part_are_kept_and_inits_add_what_is_missing():
    layer = Dense(3, 3).init(KEY)

    @br.parametrized
    def net(x):
        x = layer(x)
        return Dense(3, 2)(x) if br.current_module().training else x

    net = net.init(jax.random.key(1), X)
    assert net.layer.kernel is layer.kernel
    text = sentence(br.BridgeError, net.apply, X, mode="train")
    assert text == (
        "dense (Dense uninit ()) is used by this call and was not when init ran; type module ="
        " module.init(key, *sample) with the sample and the mode of this call: what is there stays"
    )
    more = net.init(KEY, X, mode="train")
    assert more.layer.kernel is layer.kernel
    assert more.apply(X, mode="train")[0].shape == (2, 2)


def test_it_is_saved_loaded_pickled_and_optimized(tmp_path):
    import optax

    net = _top_level.init(KEY, X)
    br.save(tmp_path / "net.safetensors", net)
    fresh = _top_level.init(jax.random.key(1), X)
    loaded = br.load(tmp_path / "net.safetensors", fresh)
    np.testing.assert_array_equal(loaded(X), net(X))
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again(X), net(X))
    assert jax.tree.structure(again) == jax.tree.structure(net)
    optimizer = br.Optimizer(optax.sgd(0.5)).init(net)
    grads = br.grad(lambda module: module(X).sum())(net)
    after, _ = optimizer.step(grads, net)
    np.testing.assert_allclose(after.dense.bias, net.dense.bias - 1.0, rtol=1e-6)


@br.parametrized
def _top_level(x):
    return Dense(3, 5)(x)


NOT_INSIDE = (
    " stands in a function under @bridge.parametrized, and works only while that module is called; in"
    " a class of modules declare a field, and use self"
)


def reshaped(x, state=[3]):  # noqa: B006
    state[0] += 1
    return Plain(state[0])()


def changing(x, state=[0]):  # noqa: B006
    state[0] += 1
    return Dense(3, state[0])(x)


REFUSED = {
    "before init": (
        lambda: br.parametrized(lambda x: Dense(3, 5)(x))(X),
        "the root module is not initialised; type module = module.init(key, *sample) first",
    ),
    "no function": (
        lambda: br.parametrized(3),
        "parametrized takes a function that calls modules; it was given a int",
    ),
    "a module": (
        lambda: br.parametrized(Dense(3, 5)),
        "parametrized takes a function that calls modules; it was given a Dense",
    ),
    "parameter outside": (
        lambda: br.parameter((), ones, "x"),
        "bridge.parameter" + NOT_INSIDE,
    ),
    "current_module outside": (
        lambda: br.current_module(),
        "bridge.current_module" + NOT_INSIDE,
    ),
    "another layer": (
        lambda: br.parametrized(changing).init(KEY, X)(X),
        "dense is not the module that it was when init ran: size was 1, and is 2. The function must"
        " make the same modules in the same order; what depends on a value of the call belongs"
        " outside, or in a bridge.parametrized function of its own",
    ),
    "a layer of another shape": (
        lambda: br.parametrized(reshaped).init(KEY, X)(X),
        "plain is not the module that it was when init ran: weight was of shape (4,), and is of (5,)."
        " The function must make the same modules in the same order; what depends on a value of the"
        " call belongs outside, or in a bridge.parametrized function of its own",
    ),
    "a layer of another class": (
        lambda: (
            br.parametrized(
                lambda x: br.Sequential(jnp.tanh if br.current_module().training else Plain(3))()
            )
            .init(KEY, X)
            .apply(X, mode="train")
        ),
        "sequential is not the module that it was when init ran: it was a Plain at 0, and is a"
        " Function at 0. The function must make the same modules in the same order; what depends on a"
        " value of the call belongs outside, or in a bridge.parametrized function of its own",
    ),
    "another parameter": (
        lambda: br.parametrized(
            lambda x: [br.parameter((3,), ones, "w"), br.parameter((5,), ones, "w")]
        ).init(KEY, X),
        "w is float32[3], and this call asks for float32[5]; type module.init(key, *sample) for"
        " another one",
    ),
    "an unknown parameter": (
        lambda: (
            br.parametrized(lambda x: br.current_module().training and br.parameter((3,), ones, "w"))
            .init(KEY, X)
            .apply(X, mode="train")
        ),
        "w (a parameter [3]) is used by this call and was not when init ran; type module ="
        " module.init(key, *sample) with the sample and the mode of this call: what is there stays",
    ),
    "a parameter with the name of a part": (
        lambda: br.parametrized(lambda x: Dense(3, 3)(x) * br.parameter((), ones, "dense")).init(
            KEY, X
        ),
        "dense is a part already; give the parameter another name",
    ),
    "no such part": (
        lambda: br.parametrized(lambda x: Dense(3, 3)(x)).init(KEY, X).nothing,
        "function has no part or parameter 'nothing'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_a_sentence(case):
    call, text = REFUSED[case]
    assert sentence((br.BridgeError, AttributeError), call) == text


def test_functions_of_functions_see_the_values_of_their_call():
    def shifted(by):
        @br.parametrized
        def shift(x):
            return Dense(3, 3)(x) + by

        return shift

    @br.parametrized
    def net(x, by):
        return shifted(2 * by)(shifted(by)(x))

    net = net.init(KEY, X, 1.0)
    assert list(net.parts) == ["shift", "shift_1"]
    expected = dense(net.shift_1.dense, dense(net.shift.dense, X) + 5) + 10
    np.testing.assert_allclose(net(X, 5.0), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(net)(X, 5.0), expected, rtol=1e-5)
