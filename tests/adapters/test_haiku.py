"""What is particular to Haiku."""

import functools
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

import bridge as br

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (7, 5))
CARRY = hk.LSTMState(jnp.zeros((7, 11)), jnp.zeros((7, 11)))


def normed(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(3)(x), is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def dropping(x):
    return hk.dropout(hk.next_rng_key(), 0.5, x)


def linear(x):
    return hk.Linear(3)(x)


@functools.cache
def made(target=normed):
    return jax.jit(lambda key: br.from_haiku(target).init(key, X))(KEY)


def equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def program(function, *arguments):
    """The StableHLO of a function, without its name and those of its results."""
    text = jax.jit(function, keep_unused=True).lower(*arguments).as_text()
    return re.sub(r' \{jax.result_info = "[^"]*"\}|@jit_\w+', "", text)


def live(function, *arguments):
    """The jaxpr of a function without what does not reach its results, and the shapes of those."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals), instantiate=True)
    return str(jaxpr).partition(" let")[2], shapes


def squares(tree):
    return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(tree))


def initialised(forward, x, **flags):
    """The module of a function, with shapes in place of arrays, whose init is Haiku's own program."""
    own = hk.transform_with_state(forward)
    ours, module = live(lambda key, x: br.from_haiku(forward).init(key, x), KEY, x)
    native, shapes = live(lambda key, x: own.init(key, x, **flags), KEY, x)
    assert ours == native
    assert module.native() == shapes
    return module


def trains_as_haiku_does(module, x, differentiate=jax.value_and_grad, **flags):
    """Asserts that a step is Haiku's own program: gradients, output and state after it."""
    own = hk.transform_with_state(module.model.value)

    def native(params, state, x, key):
        def loss(params):
            out, after = own.apply(params, state, key, x, **flags)
            return squares(out), (out, after)

        return differentiate(loss, has_aux=True)(params)

    def ours(module, x, key):
        def loss(params):
            out, after = module.update(params).apply(x, rng=key, mode="train")
            return squares(out), (out, after.native()[1])

        return differentiate(loss, has_aux=True)(module.parameters())

    assert program(ours, module, x, KEY) == program(native, *module.native(), x, KEY)


def message(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_init_makes_what_haiku_makes_from_the_key():
    transformed = hk.transform_with_state(normed)
    own = jax.jit(lambda key: transformed.init(key, X, is_training=True))(KEY)
    equal(made().native(), own)


def test_paths_are_the_names_of_haiku():
    assert made().at["params.linear.w"].get().shape == (5, 3)
    assert made().at["state.batch_norm/~/mean_ema.average"].get().shape == (1, 3)


@pytest.mark.parametrize("arguments", [(), (False,), (True,)])
def test_haiku_batch_norm_initialises_in_train_mode(arguments):
    module = br.from_haiku(hk.BatchNorm)(True, True, 0.9)
    params, state = module.init(KEY, X, *arguments).native()
    assert sorted(params["batch_norm"]) == ["offset", "scale"]
    assert state["batch_norm/~/mean_ema"]["counter"] == 0


def test_the_train_flag_is_not_given_twice():
    module = made()
    for arguments, named in [((False,), {}), ((), {"is_training": False})]:
        out, after = module.apply(X, *arguments, mode="train", **named)
        np.testing.assert_array_equal(out, module(X))
        assert after is module


def test_init_keeps_the_initial_state_below_a_parent_that_calls_twice():
    class Twice(br.Module):
        norm: br.Module

        def __call__(self, x):
            return self.norm(self.norm(x))

    module = Twice(br.from_haiku(hk.BatchNorm)(True, True, 0.9)).init(KEY, X, mode="train")
    assert module.at["norm.state.batch_norm/~/mean_ema.counter"].get() == 0
    _, module = jax.jit(lambda module: module.apply(X, mode="train"))(module)
    assert module.at["norm.state.batch_norm/~/mean_ema.counter"].get() == 2


def test_haiku_lstm_by_class():
    module = br.from_haiku(hk.LSTM)(11)
    equal(module.initial_state(7), CARRY)
    module = module.init(KEY, X, CARRY)
    own = hk.transform(lambda x, carry: hk.LSTM(11)(x, carry))
    equal(module.native(), (own.init(KEY, X, CARRY), {}))
    equal(module(X, CARRY), own.apply(module.native()[0], None, X, CARRY))
    assert module.at["params.lstm/linear.w"].get().shape == (16, 44)


def test_methods_share_the_params_that_a_parent_calls_them_for():
    class Pair(hk.Module):
        def encode(self, x):
            return hk.Linear(5, name="encoder")(x)

        def decode(self, x):
            return hk.Linear(5, name="decoder")(x)

    class Both(br.Module):
        pair: br.Module

        def __call__(self, x):
            return self.pair.decode(self.pair.encode(x))

    module = Both(br.from_haiku(Pair)()).init(KEY, X)
    params, _ = module.pair.native()
    assert sorted(params) == ["pair/~decode/decoder", "pair/~encode/encoder"]
    assert module(X).shape == (7, 5)
    weights = [values["w"] for values in params.values()]
    assert not np.array_equal(*weights), "the methods drew the same numbers"


def test_equal_constructions_have_equal_treedefs():
    def structure(*arguments):
        return jax.tree.structure(br.from_haiku(hk.BatchNorm)(*arguments))

    assert structure(True, True, 0.9) == structure(True, True, 0.9)
    assert structure(True, True, 0.9) != structure(True, 1, 0.9)
    sizes = [3, 5]
    module = br.from_haiku(hk.nets.MLP)(sizes)
    sizes.append(7)
    assert module.init(KEY, X)(X).shape == (7, 5)


@pytest.mark.parametrize(
    "target",
    [
        linear,
        hk.transform(linear),
        hk.transform_with_state(linear),
        hk.without_apply_rng(hk.transform(linear)),
        hk.without_apply_rng(hk.transform_with_state(linear)),
        functools.partial(linear),
    ],
)
def test_every_form_of_a_function_is_one_program(target):
    np.testing.assert_array_equal(made(target)(X), made(linear)(X))


def test_dropout_of_a_model_alone_is_that_of_haiku():
    own = hk.transform(dropping).apply({}, KEY, X)
    out, _ = made(dropping).apply(X, rng=KEY, mode="train")
    np.testing.assert_array_equal(out, own)


def test_the_compiled_program_is_that_of_haiku():
    trains_as_haiku_does(initialised(normed, X, is_training=True), X, is_training=True)


def test_a_model_that_draws_nothing_needs_no_key_under_a_raw_vmap():
    class Each(br.Module):
        child: br.Module

        def __call__(self, x):
            return jax.vmap(self.child)(x)

    each = Each(made(linear))
    np.testing.assert_allclose(each.apply(X, rng=KEY)[0], made(linear)(X), rtol=1e-6)
    text = message(br.BridgeError, Each(made(dropping)).apply, X, rng=KEY)
    assert text.startswith("child draws from the rng stream 'default' inside a JAX transform")


def test_a_draw_without_a_key_names_the_path():
    class Outer(br.Module):
        inner: br.Module

        def __call__(self, x):
            return self.inner(x)

    text = message(br.BridgeError, Outer(made(dropping)), X)
    assert text.startswith(
        "inner draws from the stream 'default', and no rng was given. Type"
        " module.apply(..., rng=key), or attach one: module.new_state(key)"
    )


def test_capture_names_the_modules_of_haiku():
    module = made()
    captured = module.capture(X, paths=["linear", ""])
    params, _ = module.native()
    expected = jnp.dot(X, params["linear"]["w"]) + params["linear"]["b"]
    np.testing.assert_allclose(captured["linear"], expected, rtol=1e-6)
    np.testing.assert_array_equal(captured[""], module(X))


def test_given_params_and_state_are_initialised():
    params, state = made().native()
    module = br.from_haiku(normed, params, state)
    np.testing.assert_array_equal(module(X), made()(X))
    equal(module.init(jax.random.key(9), X).native(), (params, state))


MISFIT = """\
the arrays of the root module do not fit the model:
  {}
Give from_haiku the params and the state that the model's own init makes, or none and call \
module.init(key, *sample); what only another method uses is made by \
module.init(key, *sample, method=...)"""


def misfit(*problems):
    return MISFIT.format("\n  ".join(problems))


def test_arrays_that_do_not_fit_are_told_together():
    params, state = made().native()
    linear = {"w": jnp.ones((5, 2)), "c": jnp.ones(3)}
    module = br.from_haiku(normed, {**params, "linear": linear, "extra": {"w": jnp.ones(2)}}, state)
    told = misfit(
        "params.linear.b: missing; the model makes float32[3]",
        "params.extra.w: left over",
        "params.linear.c: left over",
        "params.linear.w: is float32[5, 2]; the model makes float32[5, 3]",
    )
    assert message(br.BridgeError, module, X) == told
    assert message(br.BridgeError, module.init, KEY, X) == told


def replaced(tree, module, name, array):
    return {**tree, module: {**tree[module], name: array}}


EMA = "batch_norm/~/mean_ema"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda params, state: (replaced(params, "linear", "w", jnp.ones((5, 3), int)), state),
            "params.linear.w: is int32[5, 3]; the model makes float32[5, 3]",
        ),
        (
            lambda params, state: ({**params, "extra": {"w": jnp.ones(2)}}, state),
            "params.extra.w: left over",
        ),
        (
            lambda params, state: (params, replaced(state, EMA, "average", jnp.ones((1, 1)))),
            f"state.{EMA}.average: is float32[1, 1]; the model makes float32[1, 3]",
        ),
        (
            lambda params, state: (params, {**state, "extra": {"w": jnp.ones(2)}}),
            "state.extra.w: left over",
        ),
    ],
)
def test_init_refuses_what_a_call_does_not_notice(change, problem):
    params, state = made().native()
    module = br.from_haiku(normed, *change(params, state))
    assert message(br.BridgeError, module.init, KEY, X) == misfit(problem)


def test_state_that_was_not_given_is_asked_for():
    params, state = made().native()
    module = br.from_haiku(normed, params)
    told = misfit(
        *(
            f"state.{place}.{name}: missing; the model makes {leaf.dtype}{list(leaf.shape)}"
            for place, values in state.items()
            for name, leaf in values.items()
        )
    )
    assert message(br.BridgeError, module, X) == told
    assert message(br.BridgeError, module.apply, X, rng=KEY, mode="train") == told
    assert message(br.BridgeError, module.init, KEY, X) == told


class Point(hk.Module):
    def __call__(self, x):
        return x


def module_inside_a_transform():
    hk.transform(lambda: br.from_haiku(Point())).init(KEY)


REFUSED = {
    "a jitted function": (
        lambda: br.from_haiku(jax.jit(linear)),
        "from_haiku was given a function under jax.jit, inside which Haiku's params would leak;"
        " give it the plain function, and jit what calls the Module",
    ),
    "a module": (
        module_inside_a_transform,
        "from_haiku was given a Point that is made already, and Haiku makes modules inside a"
        " transform only; give it the class: from_haiku(Point)(...)",
    ),
    "a Module": (
        lambda: br.from_haiku(br.Function(abs)),
        "from_haiku was given what is a bridge.Module already: Function",
    ),
    "no function": (
        lambda: br.from_haiku(3),
        "from_haiku takes a class of Haiku modules, a function that uses them, or what"
        " hk.transform made of one; it was given 3",
    ),
    "params of another form": (
        lambda: br.from_haiku(linear, {"w": 1.0}),
        "params is not what Haiku's init makes, {module name: {name: array}}, but PyTreeDef({'w': *})",
    ),
    "state alone": (
        lambda: br.from_haiku(linear, state={}),
        "from_haiku was given state without params; give both, or neither",
    ),
    "an uninitialised call": (
        lambda: br.from_haiku(linear)(X),
        "the root module is not initialised; type module = module.init(key, *sample) first",
    ),
    "params before init": (
        lambda: br.from_haiku(linear).native(),
        "a Haiku model has params after init; type module = module.init(key, *sample) first",
    ),
    "a method of a function": (
        lambda: made(linear).apply(X, method=lambda module, x: module.invoke("encode", (x,), {})),
        "a Haiku function has no method 'encode'; wrap a class of Haiku modules to call its methods"
        " by name",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_wrapped_or_called_is_a_sentence(case):
    call, text = REFUSED[case]
    assert message(br.BridgeError, call) == text


def test_a_model_of_another_library_is_sent_to_its_adapter():
    nnx = pytest.importorskip("flax.nnx")
    text = message(br.BridgeError, br.from_haiku, nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    assert text == "from_haiku was given a flax Linear; wrap it with bridge.wrap(model)"
