"""Haiku's own transforms inside a model, JAX's raw ones, and other transforms inside a call."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import PathError, TraceError
from tests.adapters.test_haiku import (
    KEY,
    X,
    equal,
    initialised,
    message,
    program,
    trains_as_haiku_does,
)

DRAW = jax.random.key(11)


def block(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(5)(x), is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def dropped(x):
    return hk.dropout(hk.next_rng_key(), 0.5, x)


def abstract(forward):
    """The initialised module of a function, with shapes in place of arrays."""
    return jax.eval_shape(lambda key: br.from_haiku(forward).init(key, X), KEY)


# Haiku's transforms


def layer_stack(x, is_training):
    return hk.layer_stack(3)(lambda x: block(x, is_training))(x)


def layer_stack_of_inputs(x, is_training):
    def layer(x, scale):
        x = scale * block(x, is_training)
        return x, x.sum()

    return hk.layer_stack(3, with_per_layer_inputs=True)(layer)(x, jnp.arange(3.0))


def transparent_layer_stack(x, is_training):
    class Names:
        def stacked_to_flat(self, stacked_module_name, scan_idx):
            return stacked_module_name.replace("linear", f"linear_{scan_idx}")

        def flat_to_stacked(self, unstacked_module_name):
            name, _, number = unstacked_module_name.partition("_")
            return (name, int(number)) if name == "linear" else None

    stack = hk.layer_stack(3, transparent=True, transparency_map=Names())
    return stack(lambda x: jnp.tanh(hk.Linear(5)(x)))(x)


def scan(x, is_training):
    linear, norm = hk.Linear(5), hk.BatchNorm(True, True, 0.9)

    def body(carry, x):
        carry = norm(linear(carry + x), is_training)
        return (dropped(carry) if is_training else carry), x.sum()

    return hk.scan(body, jnp.zeros_like(x), jnp.stack([x, 2 * x, 3 * x]))


def loops(x, is_training):
    linear = hk.Linear(5)
    x = hk.fori_loop(0, 3, lambda _, x: linear(x), x)
    x = hk.map(linear, x)
    if hk.running_init():
        return x
    _, x = hk.while_loop(lambda at: at[0] < 3, lambda at: (at[0] + 1, dropped(linear(at[1]))), (0, x))
    return x


def branches(x, is_training):
    first, second = hk.Linear(5), hk.BatchNorm(True, True, 0.9)
    if hk.running_init():
        return first(x) + second(x, is_training)
    x = hk.cond(x.sum() > 0, lambda x: dropped(first(x)), lambda x: second(x, is_training), x)
    return hk.switch(1, [first, lambda x: second(x, is_training)], x)


def remat(x, is_training):
    return hk.remat(lambda x: block(x, is_training))(hk.remat(lambda x: block(x, is_training))(x))


def vmap(x, is_training):
    def example(x):
        return dropped(hk.Linear(3)(x))

    return hk.vmap(example, split_rng=not hk.running_init())(x)


def grad(x, is_training):
    linear = hk.Linear(1)

    def energy(x):
        hk.set_state("last", x.sum())
        return linear(x).sum()

    value, slope = hk.value_and_grad(energy)(x)
    return value, slope + hk.grad(energy)(x)


def ensemble(x, is_training):
    member = hk.transform_with_state(lambda x: block(x, is_training))
    keys = hk.next_rng_keys(3) if hk.running_init() else None
    params_and_state, updater = hk.lift_with_state(
        jax.vmap(member.init, in_axes=(0, None)), name="ensemble"
    )
    params, state = params_and_state(keys, x)
    keys = hk.next_rng_keys(3) if is_training else None
    out, state = jax.vmap(member.apply, in_axes=(0, 0, 0 if is_training else None, None))(
        params, state, keys, x
    )
    updater.update(state)
    return out


def lifted(x, is_training):
    inner = hk.transform(lambda x: hk.Linear(5)(x))
    key = hk.next_rng_key() if hk.running_init() else None
    x = inner.apply(hk.lift(inner.init, name="lifted")(key, x), None, x)
    return inner.apply(hk.transparent_lift(inner.init)(key, x), None, x)


# Names, state, and how arrays are made and read


def scopes(x, is_training):
    with hk.name_scope("outer"), hk.name_scope("inner"):
        x = hk.get_parameter("w", (5,), init=hk.initializers.RandomNormal()) * hk.Linear(5)(x)
    shared = hk.Linear(5, name=hk.force_name("outer/inner/linear"))
    return shared(x) + hk.Deferred(lambda: hk.Linear(5))(x)


def state_at_the_root(x):
    count = hk.get_state("count", (), jnp.int32, init=jnp.zeros)
    hk.set_state("count", count + 1)
    hk.set_state("seen", {"last": x[0], "scale": jnp.where(count > 1, 1.0, 2.0)})
    return hk.get_parameter("linear", (5,), init=jnp.ones) * x + count


class Named(hk.Module):
    """Has a parameter with the name of a submodule."""

    def __call__(self, x):
        return hk.get_parameter("linear", (3,), init=jnp.ones) * hk.Linear(3)(x)


def like_a_submodule(x, is_training):
    return hk.get_parameter("named", (3,), init=jnp.ones) * Named()(x)


def customised(x, is_training):
    def creator(create, shape, dtype, init, context):
        return create(shape, jnp.bfloat16, lambda *args: 2 * init(*args))

    def getter(get, value, context):
        return get(value.astype(jnp.float32) / 3)

    def setter(set_to, value, context):
        return set_to(value * 7)

    with hk.custom_creator(creator), hk.custom_getter(getter), hk.custom_setter(setter):
        return block(x, is_training)


class Half(hk.Module):
    def __call__(self, x):
        return hk.Linear(3)(x)


class Policy:
    """What a policy of the package jmp has."""

    param_dtype = jnp.float16

    def cast_to_compute(self, tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)

    def cast_to_param(self, tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), tree)

    def cast_to_output(self, tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def mixed_precision(x, is_training):
    with hk.mixed_precision.push_policy(Half, Policy()):
        return Half()(x)


def keys(x, is_training):
    hk.reserve_rng_keys(2)
    with hk.with_rng(jax.random.key(3)):
        x = dropped(x)
    if hk.maybe_next_rng_key() is None:
        return x
    return dropped(x) + sum(jax.random.normal(key) for key in hk.next_rng_keys(3))


def optimized_draws(x, is_training):
    return hk.experimental.optimize_rng_use(lambda x: dropped(dropped(x)))(hk.Linear(5)(x))


PROGRAMS = [
    layer_stack,
    layer_stack_of_inputs,
    transparent_layer_stack,
    scan,
    loops,
    branches,
    remat,
    vmap,
    grad,
    ensemble,
    lifted,
    scopes,
    like_a_submodule,
    customised,
    mixed_precision,
    keys,
    optimized_draws,
]


@pytest.mark.parametrize("forward", PROGRAMS)
def test_a_program_is_made_trained_and_evaluated_as_haiku_does(forward):
    # hk.while_loop has no gradient.
    differentiate = (lambda loss, has_aux: loss) if forward is loops else jax.value_and_grad
    module = initialised(forward, X, is_training=True)
    trains_as_haiku_does(module, X, differentiate, is_training=True)
    own = functools.partial(hk.transform_with_state(forward).apply, is_training=False)

    def ours(module, x, key):
        out, after = module.apply(x, rng=key)
        return out, after.native()[1]

    native = program(
        lambda params, state, x, key: own(params, state, key, x), *module.native(), X, DRAW
    )
    assert program(ours, module, X, DRAW) == native


def test_state_at_the_root_and_a_state_of_no_definite_dtype():
    own = hk.transform_with_state(state_at_the_root)
    module = br.from_haiku(state_at_the_root).init(KEY, X)
    params, state = own.init(KEY, X)
    assert module.at["state.~.count"].get() == 0
    step = jax.jit(lambda module: module.apply(X))
    for _ in range(3):
        equal(module.native(), (params, state))
        out, state = own.apply(params, state, None, X)
        mine, module = step(module)
        np.testing.assert_allclose(mine, out, rtol=1e-6)
    assert state["~"]["seen"]["scale"].weak_type
    assert step._cache_size() == 1


def test_the_layers_of_a_stack_have_arrays_and_masks_of_their_own():
    module = abstract(layer_stack)
    assert module.at["params.__layer_stack_no_per_layer/linear.w"].get().shape == (3, 5, 5)
    assert module.layers() == ()
    module = br.from_haiku(lambda x: hk.layer_stack(3, True)(lambda x: (x, dropped(x)))(x)[1])
    masks = module.init(KEY, X).apply(X, rng=DRAW)[0] == 0
    assert not (masks[0] == masks[1]).all()
    assert not (masks[1] == masks[2]).all()


def test_a_state_that_is_not_stored_changes_no_structure():
    def f(x):
        with (
            hk.custom_creator(lambda *_: hk.DO_NOT_STORE, params=False, state=True),
            hk.custom_getter(lambda get, *_: get(jnp.ones(())), params=False, state=True),
        ):
            scale = 1.0 if hk.running_init() else hk.get_state("scale", (), init=jnp.zeros)
        return scale * hk.Linear(3)(x)

    module = br.from_haiku(f).init(KEY, X)
    own = hk.transform_with_state(f).apply(*module.native(), None, X)
    assert own[1] == {"~": {}}
    out, after = module.apply(X)
    np.testing.assert_array_equal(out, own[0])
    assert after is module


# JAX's raw transforms


class Noisy(hk.Module):
    def __call__(self, x):
        return dropped(x)


class Counting(hk.Module):
    def __call__(self, x):
        count = hk.get_state("count", (), init=jnp.zeros)
        hk.set_state("count", count + 1)
        return x


RAW = {
    "scan": lambda f, x: jax.lax.scan(lambda carry, _: (carry, f(x)), 0, None, 3)[1],
    "vmap": lambda f, x: jax.vmap(f)(x),
    "checkpoint": lambda f, x: jax.checkpoint(lambda x: f(x))(x),
    "jit": lambda f, x: jax.jit(lambda x: f(x))(x),
    "grad": lambda f, x: jax.grad(lambda x: f(x).sum())(x),
    "cond": lambda f, x: jax.lax.cond(x.sum() > 0, f, lambda x: x, x),
    "while_loop": lambda f, x: jax.lax.while_loop(lambda x: x.sum() < 0, f, x),
    "map": lambda f, x: jax.lax.map(f, x),
    "eval_shape": lambda f, x: jax.eval_shape(f, x),
}
INSIDE = {
    "hk.next_rng_key": lambda: dropped,
    "hk.get_parameter": lambda: hk.Linear(5),
    "hk.get_state": Counting,
    "hk.set_state": lambda: lambda x: (hk.set_state("last", x.sum()), x)[1],
}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("raw", RAW)
def test_a_raw_transform_inside_a_function_is_refused(raw, inside):
    class Holder(br.Module):
        child: br.Module

        def __call__(self, x):
            return self.child(x)

    holder = Holder(br.from_haiku(lambda x: RAW[raw](INSIDE[inside](), x)))
    assert message(TraceError, lambda: jax.eval_shape(lambda key: holder.init(key, X), KEY)) == (
        f"child calls {inside} inside a JAX transform that was started during the call: it would be"
        " repeated or lost. Use Haiku's own in its place: hk.scan, hk.map, hk.fori_loop,"
        " hk.while_loop, hk.cond, hk.switch, hk.grad, hk.remat, or hk.vmap(...,"
        " split_rng=not hk.running_init()); leave out an inner jax.jit, and jit the whole"
    )


def test_a_raw_transform_is_refused_after_an_init_without_it():
    def f(x):
        return Noisy()(x) if hk.running_init() else jax.vmap(Noisy())(x)

    module = br.from_haiku(f).init
    text = message(TraceError, module, KEY, X)
    assert text.startswith("the root module calls hk.next_rng_key inside a JAX transform")


def test_a_call_leaves_haiku_as_it_was():
    abstract(layer_stack)
    own = hk.transform(lambda x: jax.vmap(hk.Linear(3))(x))
    assert jax.eval_shape(own.init, KEY, X)["linear"]["w"].shape == (5, 3)


def test_a_raw_transform_of_a_pure_function_is_welcome():
    inner = hk.transform(lambda x: dropped(hk.Linear(3)(x)))

    def f(x):
        params = hk.lift(inner.init, name="inner")(hk.next_rng_key() if hk.running_init() else None, x)
        return jax.vmap(inner.apply, (None, 0, 0))(params, hk.next_rng_keys(len(x)), x)

    module = br.from_haiku(f).init(KEY, X)
    assert module.apply(X, rng=DRAW)[0].shape == (7, 3)


# Other transforms inside a call

FROZEN = hk.transform_with_state(
    lambda x: hk.BatchNorm(True, True, 0.7, 0.25, name="norm")(hk.Conv1D(5, 3, name="linear")(x), True)
)


def nested(first):
    """A model in which a transform with modules of the same names runs before its own, or after."""

    def forward(x, is_training):
        def inner(x):
            params, state = FROZEN.init(jax.random.key(2), x[None])
            return FROZEN.apply(params, state, None, x[None])[0][0]

        x = inner(x) if first else x
        x = hk.BatchNorm(True, True, 0.9, 0.5, name="norm")(hk.Linear(5, name="linear")(x), is_training)
        return x if first else inner(x)

    return forward


@pytest.mark.parametrize("first", [True, False])
def test_the_layers_are_those_of_the_model_and_not_of_another_transform_inside(first):
    norm, linear = sorted(abstract(nested(first)).layers(), key=lambda layer: layer.kind)
    settings = (("decay", 0.9), ("eps", 0.5))
    assert (norm.kind, norm.path, norm.settings) == ("batch norm", ("norm",), settings)
    assert (linear.kind, linear.path) == ("linear", ("linear",))


def test_the_layers_inside_haikus_own_transforms_are_found():
    def f(x):
        x = hk.remat(hk.Linear(5, name="first"))(x)
        second = hk.Linear(5, name="second")
        x, _ = hk.scan(lambda x, _: (second(x), None), x, None, 3)
        return hk.vmap(hk.Linear(3, name="third"), split_rng=False)(x)

    assert [layer.path for layer in abstract(f).layers()] == [("first",), ("second",), ("third",)]


def test_a_layer_that_two_models_may_have_is_left_out():
    def f(x):
        params = FROZEN.init(jax.random.key(2), x[None])
        x = FROZEN.apply(*params, None, x[None])[0][0]
        return hk.remat(lambda x: hk.Linear(5, name="linear")(x))(x)

    assert abstract(f).layers() == ()


def test_a_module_of_another_library_inside_shows_no_layers_of_the_model():
    guest = br.from_haiku(hk.Linear)(5, name="linear").init(KEY, X)
    weights = guest.native()[0]["linear"]["w"]
    module = br.from_haiku(lambda x: hk.Linear(3, name="outer")(guest(x))).init(KEY, X)
    assert [layer.path for layer in module.layers()] == [("outer",)]
    captured = module.capture(X, paths=["*"])
    assert sorted(captured) == ["", "outer"]
    assert weights.shape == (5, 5)


# Capture


def captured(forward, *wanted, **options):
    """The shapes of what a model's capture gives, by path."""
    module = abstract(forward)
    outputs = jax.eval_shape(lambda module: module.capture(X, paths=wanted, **options), module)
    return {path: out.shape for path, out in outputs.items()}


def test_capture_gives_the_parts_of_the_model_in_training():
    def f(x, is_training):
        return block(hk.Linear(5, name="first")(x), is_training)

    module = br.from_haiku(f).init(KEY, X)
    outputs = module.capture(X, paths=["first", "batch_norm*", ""], rng=DRAW, mode="train")
    averages = ["batch_norm/~/mean_ema", "batch_norm/~/var_ema"]
    assert sorted(outputs) == ["", "batch_norm", *averages, "first"]
    out, _ = module.apply(X, rng=DRAW, mode="train")
    np.testing.assert_array_equal(outputs[""], out)
    np.testing.assert_array_equal(out, jnp.where(out == 0, 0, outputs["batch_norm"] / 0.5))


def test_capture_numbers_the_calls_of_a_module():
    def f(x):
        linear = hk.Linear(5)
        return linear(linear(x))

    module = br.from_haiku(f).init(KEY, X)
    outputs = module.capture(X, paths=["linear*"])
    assert sorted(outputs) == ["linear", "linear#2"]
    np.testing.assert_array_equal(outputs["linear#2"], module(X))


@pytest.mark.parametrize("path", ["__layer_stack_no_per_layer/linear", "linear"])
def test_capture_inside_a_layer_stack_is_refused(path):
    assert message(TraceError, captured, layer_stack, path) == (
        f"{path} runs in another Haiku transform inside the call (hk.layer_stack, hk.lift), where its"
        " output cannot be captured; return it instead"
    )
    assert captured(layer_stack, "") == {"": (7, 5)}


@pytest.mark.parametrize("forward", [scan, remat, vmap])
def test_capture_inside_haikus_own_transforms_is_refused(forward):
    assert message(TraceError, captured, forward, "linear", rng=DRAW) == (
        "linear runs inside a JAX transform (scan, vmap, checkpoint) that was started during the call,"
        " where its output cannot be captured; return it instead"
    )


def test_capture_takes_the_part_of_the_model_and_not_its_namesake():
    assert captured(nested(first=True), "*") == {"": (7, 5), "linear": (7, 5), "norm": (7, 5)}
    with pytest.raises(PathError, match="no module at 'conv' was called"):
        captured(nested(first=True), "conv")
