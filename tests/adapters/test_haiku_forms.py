"""The forms in which a Haiku model comes: several functions, classes, and what calls are given."""

import collections
import copy
import functools
import pickle
import types
from dataclasses import dataclass

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from tests.adapters.test_haiku import CARRY, KEY, X, equal, linear, made, message, normed

Codec = collections.namedtuple("Codec", "encode decode")
Z = jax.random.normal(jax.random.key(2), (7, 3))


def codec(tree):
    """The factory of a multi_transform: a tree of an encoder and a decoder, made by a function."""

    def factory():
        encoder, decoder = hk.Linear(3, name="encoder"), hk.Linear(5, name="decoder")
        norm = hk.BatchNorm(True, True, 0.9)

        def encode(x, is_training):
            return norm(encoder(x), is_training)

        return lambda x: decoder(encode(x, True)), tree(encode, decoder)

    return factory


def plain_codec(tree):
    def factory():
        encoder, decoder = hk.Linear(3, name="encoder"), hk.Linear(5, name="decoder")
        return lambda x: decoder(encoder(x)), tree(encoder, decoder)

    return factory


# Several functions

TREES = {
    "a dict": (lambda e, d: {"encode": e, "decode": d}, ["encode", "decode"]),
    "a namedtuple": (Codec, ["encode", "decode"]),
    "a tuple": (lambda e, d: (e, d), ["apply_0", "apply_1"]),
    "a dict of tuples": (lambda e, d: {"run": (e, d)}, ["run_0", "run_1"]),
    "nested tuples": (lambda e, d: ((e,), [d]), ["apply_0_0", "apply_1_0"]),
}


@pytest.mark.parametrize("without_key", [False, True])
@pytest.mark.parametrize("tree", TREES)
def test_the_functions_of_a_multi_transform_are_methods(tree, without_key):
    tree, (encode, decode) = TREES[tree]
    transformed = hk.multi_transform(plain_codec(tree))
    params = jax.jit(transformed.init)(KEY, X)
    functions = hk.without_apply_rng(transformed).apply
    first, second = jax.tree.leaves(functions) if tree is not Codec else functions
    if encode == "encode" and tree is not Codec:
        first, second = functions["encode"], functions["decode"]
    given = hk.without_apply_rng(transformed) if without_key else transformed
    module = jax.jit(lambda key: br.from_haiku(given).init(key, X))(KEY)
    equal(module.native(), (params, {}))
    np.testing.assert_array_equal(getattr(module, encode)(X), first(params, X))
    out, after = module.apply(Z, method=decode)
    np.testing.assert_array_equal(out, second(params, Z))
    assert after is module


def test_a_multi_transform_of_one_function_is_called_as_it_is():
    for tree, name in [(lambda e, d: d, "__call__"), (lambda e, d: {"decode": d}, "decode")]:
        transformed = hk.multi_transform(plain_codec(tree))
        module = br.from_haiku(transformed).init(KEY, X)
        (decode,) = jax.tree.leaves(transformed.apply)
        expected = decode(module.native()[0], None, Z)
        np.testing.assert_array_equal(module(Z), expected)
        np.testing.assert_array_equal(module.apply(Z, method=name)[0], expected)


def test_a_multi_transform_with_state_threads_it():
    transformed = hk.multi_transform_with_state(codec(Codec))
    params, state = transformed.init(KEY, X)
    module = br.from_haiku(transformed).init(KEY, X)
    equal(module.native(), (params, state))

    @jax.jit
    def ours(module, x):
        return module.apply(x, is_training=True, method="encode", mode="train")

    out, after = ours(module, X)
    equal(
        (out, after.native()[1]),
        jax.jit(functools.partial(transformed.apply.encode, is_training=True))(params, state, None, X),
    )
    assert after.at["state.batch_norm/~/mean_ema.counter"].get() == 1
    assert jax.tree.structure(after) == jax.tree.structure(module)


def test_a_multi_transform_is_made_by_its_template_below_a_parent():
    class Both(br.Module):
        codec: br.Module

        def __call__(self, x):
            return self.codec.decode(self.codec.encode(x), precision=None)

    transformed = hk.multi_transform(plain_codec(Codec))
    module = Both(br.from_haiku(transformed)).init(KEY, X)
    params = module.codec.native()[0]
    z = transformed.apply.encode(params, None, X)
    np.testing.assert_array_equal(module(X), transformed.apply.decode(params, None, z))


def test_a_multi_transform_takes_given_params_and_is_equal_to_itself():
    transformed = hk.multi_transform(plain_codec(Codec))
    params = jax.jit(transformed.init)(KEY, X)
    module = br.from_haiku(transformed, params)
    np.testing.assert_array_equal(module.decode(Z), transformed.apply.decode(params, None, Z))
    made = br.from_haiku(transformed).init(KEY, X)
    assert jax.tree.structure(made) == jax.tree.structure(br.from_haiku(transformed).init(KEY, X))
    assert repr(made) == "HaikuModule(MultiTransformed(encode, decode))"
    assert [layer.path for layer in made.layers()] == [("encoder",), ("decoder",)]
    short = br.from_haiku(transformed, {"encoder": params["encoder"]})
    text = message(br.BridgeError, short.decode, Z)
    assert text.startswith(
        "the arrays of the root module do not fit the model:\n"
        "  Unable to retrieve parameter 'w' for module 'decoder'"
    )
    assert "params.decoder.w: missing" in message(br.BridgeError, short.init, KEY, X)


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        (lambda e, d: {"apply": e, "decode": d}, "'apply'"),
        (lambda e, d: {"params": e, "_decode": d}, "'_decode', 'params'"),
        (lambda e, d: {"run_0": e, "run": (d,)}, "'run_0', 'run_0'"),
    ],
)
def test_a_function_with_a_name_that_is_taken_is_refused(tree, names):
    text = message(br.BridgeError, br.from_haiku, hk.multi_transform(plain_codec(tree)))
    assert text == (
        f"the functions of a multi_transform become methods, and {names} cannot be the name of one;"
        ' give them others, as keys of a dict: {"encode": encode, "decode": decode}'
    )


def test_several_functions_are_called_by_name():
    module = br.from_haiku(hk.multi_transform(plain_codec(Codec)))
    text = message(br.BridgeError, module.init(KEY, X), X)
    assert text == "the functions of a multi_transform are called by name, and none is __call__"
    text = message(br.BridgeError, module.encode, X)
    assert text == "the root module is not initialised; type module = module.init(key, *sample) first"
    with pytest.raises(AttributeError, match="the wrapped MultiTransformed has no method 'compress'"):
        module.compress(X)


def test_the_train_flag_of_one_of_several_functions_is_given_by_the_call():
    module = br.from_haiku(hk.multi_transform_with_state(codec(Codec))).init(KEY, X)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'is_training'"):
        module.apply(X, method="encode", mode="train")
    _, after = module.apply(X, False, method="encode", mode="train")
    assert after is module


# One function in another form


def test_a_transform_without_state_of_what_keeps_some_is_refused_by_haiku():
    module = br.from_haiku(hk.transform(normed))
    with pytest.raises(ValueError, match=r"use `hk\.transform_with_state`"):
        module.init(KEY, X)


def test_a_transform_without_its_key_draws_nothing():
    def dropping(x):
        return hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(3)(x))

    module = br.from_haiku(hk.without_apply_rng(hk.transform(dropping)))
    text = message(br.BridgeError, module.init, KEY, X)
    assert text == (
        "the root module draws random numbers, and hk.without_apply_rng keeps the key from it; give"
        " from_haiku what hk.transform made"
    )


@pytest.mark.parametrize(
    "change", [hk.with_empty_state, lambda t: hk.without_state(hk.with_empty_state(t))]
)
def test_a_transform_with_its_state_changed_is_the_same_program(change):
    np.testing.assert_array_equal(made(change(hk.transform(linear)))(X), made(linear)(X))


def test_an_argument_called_rng_is_not_the_key():
    def scaled(x, rng):
        return hk.Linear(3)(x) * rng

    for target in (scaled, hk.transform(scaled), hk.without_apply_rng(hk.transform(scaled))):
        module = br.from_haiku(target).init(KEY, X, 2.0)
        np.testing.assert_array_equal(module.apply(X, 2.0, rng=KEY)[0], 2 * module(X, 1.0))


def test_a_function_that_returns_a_module_is_refused():
    text = message(br.BridgeError, br.from_haiku(functools.partial(hk.Linear, 3)).init, KEY, X)
    assert text.startswith("the root module returned a module and not an output: Linear(")
    assert text.endswith("; call it in the function, or wrap its class: from_haiku(Linear)(...)")


def test_mappings_of_other_types_are_params_and_state():
    params, state = made().native()
    frozen = types.MappingProxyType(
        {module: types.MappingProxyType(values) for module, values in params.items()}
    )
    module = br.from_haiku(normed, frozen, hk.data_structures.to_immutable_dict(state))
    assert jax.tree.structure(module.native()) == jax.tree.structure((params, state))
    np.testing.assert_array_equal(module(X), made()(X))


def test_arrays_of_numpy_are_copied():
    params = jax.tree.map(np.array, made(linear).native()[0])
    module = br.from_haiku(linear, params)
    params["linear"]["w"][:] = 0
    np.testing.assert_array_equal(module(X), made(linear)(X))


# Classes


@dataclass
class Widths(hk.Module):
    sizes: tuple[int, ...]
    activation: object = jax.nn.relu

    def __call__(self, x):
        for size in self.sizes:
            x = self.activation(hk.Linear(size)(x))
        return x


class Embedded(hk.Module):
    """Takes an array, a class of modules, a factory and a dict that has no hash."""

    def __init__(self, table, cls, factory, options, name=None):
        super().__init__(name)
        self.table, self.cls, self.factory, self.options = table, cls, factory, options

    def __call__(self, ids):
        x = hk.Embed(embedding_matrix=self.table)(ids)
        return self.factory()(self.cls(**self.options)(x))


def test_a_constructor_takes_arrays_classes_functions_and_what_has_no_hash():
    table, ids = np.arange(55.0, dtype=np.float32).reshape(11, 5), jnp.arange(7)
    arguments = (table, hk.Linear, lambda: hk.LayerNorm(-1, True, True), {"output_size": 3})
    module = br.from_haiku(Embedded)(*arguments).init(KEY, ids)
    own = hk.transform(lambda ids: Embedded(*arguments)(ids))
    params = jax.jit(own.init)(KEY, ids)
    equal(module.native(), (params, {}))
    equal(jax.jit(lambda module: module(ids))(module), jax.jit(own.apply)(params, None, ids))
    equal(module.at["params.embedded/embed.embeddings"].get(), table)
    assert jax.tree.structure(module) == jax.tree.structure(module.update(module.parameters()))


def test_a_dataclass_of_haiku_and_a_function_made_a_module():
    module = br.from_haiku(Widths)((3, 2)).init(KEY, X)
    own = hk.transform(lambda x: Widths((3, 2))(x))
    equal(module.native()[0], own.init(KEY, X))
    np.testing.assert_array_equal(module(X), own.apply(module.native()[0], None, X))
    module = br.from_haiku(hk.to_module(linear))("wrapper").init(KEY, X)
    assert sorted(module.native()[0]) == ["wrapper/linear"]


class Flagged(hk.Module):
    """Takes its train flag from the constructor."""

    def __init__(self, decay, is_training=False, name=None):
        super().__init__(name)
        self.decay, self.is_training = decay, is_training

    def __call__(self, x):
        return hk.BatchNorm(True, True, self.decay)(x, self.is_training)


@pytest.mark.parametrize("arguments", [(), (True,), (False,)])
def test_the_train_flag_of_a_constructor_is_that_of_the_mode(arguments):
    module = br.from_haiku(Flagged)(0.9, *arguments).init(KEY, X)
    own = hk.transform_with_state(lambda x, flag: Flagged(0.9, flag)(x))
    for mode in ("train", "eval"):
        out, after = module.apply(X, mode=mode)
        equal((out, after.native()[1]), own.apply(*module.native(), None, X, mode == "train"))


class Both(Flagged):
    """Takes the train flag from the constructor or from the call, and from one of them only."""

    def __init__(self, decay, is_training=None, name=None):
        super().__init__(decay, is_training, name)

    def __call__(self, x, is_training=None):
        if (is_training is None) == (self.is_training is None):
            raise TypeError("say it once")
        return hk.BatchNorm(True, True, self.decay)(x, is_training)


def test_a_flag_that_the_call_takes_is_not_told_to_the_constructor():
    module = br.from_haiku(Both)(0.9).init(KEY, X)
    out, after = module.apply(X, mode="train")
    assert after.at["state.both/batch_norm/~/mean_ema.counter"].get() == 1
    assert not np.array_equal(out, module(X))


# Arguments


def general(x, how, activation=jax.nn.relu, *, is_training, scale=1.0):
    x = normed(x, is_training)
    out = {"mean": x.mean, "sum": x.sum}[how](axis=0)
    return {"out": activation(out) * scale, "both": (x, None)}


@pytest.mark.parametrize("static", [True, False])
def test_static_arguments_keywords_and_a_tree_of_outputs(static):
    own = hk.transform_with_state(general)
    module = br.from_haiku(general)
    made = jax.eval_shape(lambda key, x: module.init(key, x, "mean", jnp.tanh, scale=2.0), KEY, X)
    module = jax.jit(lambda key: module.init(key, X, "mean", activation=jnp.tanh))(KEY)
    assert jax.tree.structure(made) == jax.tree.structure(module)
    params, state = module.native()

    def native(params, state, x):
        return own.apply(params, state, KEY, x, "sum", jnp.tanh, is_training=True, scale=2.0)

    def ours(module, x):
        return module.apply(x, "sum", jnp.tanh, scale=2.0, rng=KEY, mode="train")

    out, after = jax.jit(ours)(module, X)
    equal((out, after.native()[1]), jax.jit(native)(params, state, X))


def positional(is_training, x):
    return normed(x, is_training)


def test_the_train_flag_in_any_position():
    module = jax.jit(lambda key: br.from_haiku(positional).init(key, x=X))(KEY)
    assert module.at["state.batch_norm/~/mean_ema.counter"].get() == 0
    np.testing.assert_array_equal(module(x=X), made()(X))
    np.testing.assert_array_equal(module.apply(False, X, mode="train")[0], made()(X))
    out, after = module.apply(x=X, rng=KEY, mode="train")
    np.testing.assert_array_equal(out, made().apply(X, rng=KEY, mode="train")[0])
    assert after is not module


def test_a_train_flag_given_twice_is_refused():
    told = (
        "the root module: 'is_training' is given twice, by position and by name; give it once, or leave"
        " it to the mode: apply(..., mode='train')"
    )
    module = made()
    assert message(br.BridgeError, module, X, False, is_training=False) == told
    assert message(br.BridgeError, br.from_haiku(normed).init, KEY, X, True, is_training=True) == told
    module = br.from_haiku(Flagged)(0.9, True, is_training=True)
    assert message(br.BridgeError, module.init, KEY, X) == told


def test_arguments_that_do_not_fit_are_refused_by_the_function_itself():
    with pytest.raises(TypeError, match="unexpected keyword argument 'training_steps'"):
        made()(X, training_steps=3)


# Methods


class Many(hk.Module):
    def __init__(self, size, name=None):
        super().__init__(name)
        self.shared = hk.Linear(size, name="shared")

    def __call__(self, x):
        return self.shared(self.shared(x))

    def split(self, x, at):
        first, second = jnp.split(self.shared(x), [at], axis=-1)
        return {"first": first, "second": (second, hk.Linear(3, name="head")(first))}

    def zeros(self, count):
        return jnp.zeros((count, 5))


def test_methods_with_and_without_params_and_a_module_called_twice():
    module = br.from_haiku(Many)(5)
    np.testing.assert_array_equal(module.zeros(3), jnp.zeros((3, 5)))
    module = module.init(KEY, X)
    own = hk.transform(lambda x: Many(5)(x))
    params = own.init(KEY, X)
    equal(module.native(), (params, {}))
    np.testing.assert_array_equal(module(X), own.apply(params, None, X))
    np.testing.assert_array_equal(module.zeros(3), jnp.zeros((3, 5)))


def test_an_init_over_a_method_adds_what_that_method_needs():
    module = br.from_haiku(Many)(5).init(KEY, X)
    shared = module.native()[0]["many/~/shared"]
    text = message(br.BridgeError, module.apply, X, 2, method="split")
    assert "params.many/~split/head.w: missing; the model makes float32[2, 3]" in text
    assert text.endswith("made by module.init(key, *sample, method=...)")
    module = module.init(KEY, X, 2, method="split")
    params = module.native()[0]
    equal(params["many/~/shared"], shared)
    own = hk.transform(lambda x: Many(5).split(x, 2))
    equal(module.apply(X, 2, method="split")[0], own.apply(params, None, X))
    assert [layer.path for layer in module.layers()] == [("many/~/shared",), ("many/~split/head",)]
    assert module.init(KEY, X).init(KEY, X, 2, method="split") is module


def test_given_arrays_of_all_methods_fit_each_of_them():
    module = br.from_haiku(Many)(5).init(KEY, X).init(KEY, X, 2, method="split")
    params, _ = module.native()
    given = br.from_haiku(Many, params)(5)
    for checked in (given.init(KEY, X), given.init(KEY, X, 2, method="split")):
        equal(checked.native(), (params, {}))
    short = {"many/~split/head": {"w": params["many/~split/head"]["w"]}}
    text = message(br.BridgeError, br.from_haiku(Many, short)(5).init, KEY, X, 2, method="split")
    assert "params.many/~/shared.w: missing" in text
    assert "params.many/~split/head.b: missing" in text


def test_inits_one_after_another_with_one_key_draw_other_numbers():
    class Pair(hk.Module):
        def encode(self, x):
            return hk.Linear(5, name="encoder")(x)

        def decode(self, x):
            return hk.Linear(5, name="decoder")(x)

    module = br.from_haiku(Pair)().init(KEY, X, method="encode").init(KEY, X, method="decode")
    weights = [values["w"] for values in module.native()[0].values()]
    assert len(weights) == 2
    assert not np.array_equal(*weights)


# Copies


@pytest.mark.parametrize(
    "target",
    [lambda x: linear(x), hk.transform(linear), hk.multi_transform(plain_codec(Codec))],
)
def test_what_has_no_name_to_pickle_it_by_is_refused(target):
    text = message(br.BridgeError, pickle.dumps, br.from_haiku(target).init(KEY, X))
    assert "cannot be pickled: Can't " in text
    assert "define those that the model is made of at the top level of a file" in text


@pytest.mark.parametrize("module", [br.from_haiku(hk.LSTM)(11), br.from_haiku(Widths)((11, 3))])
def test_a_class_pickled_is_the_same_module(module):
    sample = (X, CARRY) if module.model_class() is hk.LSTM else (X,)
    module = module.init(KEY, *sample)
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert jax.tree.structure(twin) == jax.tree.structure(module)
        equal(twin(*sample), module(*sample))
