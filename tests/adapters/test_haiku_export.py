"""A Module inside Haiku: its params, state, keys and mode are Haiku's."""

import functools
import pickle
from typing import Annotated

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.adapters.haiku import from_haiku, to_haiku
from bridge.core.errors import MissingRngError, ModelError, TraceError

KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(2), 3)
X = jax.random.normal(jax.random.key(1), (7, 5))


class Dropout(br.Module):
    rate: float

    def __call__(self, x):
        if not self.training:
            return x
        return x * jax.random.bernoulli(self.rng, 1 - self.rate, x.shape) / (1 - self.rate)


class Net(br.Module):
    """A tree of one's own with parameters, two states of one path, a tie and a shared module."""

    kernel: br.Parameter
    scale: br.Parameter
    twin: br.Parameter
    total: br.State
    cache: Annotated[jax.Array, br.collection("cache")]
    drops: list[br.Module]

    def __init__(self):
        self.kernel = br.ParamInit((5, 5), jax.nn.initializers.lecun_normal())
        self.scale = jnp.linspace(0.5, 1.5, 5)
        self.twin = jnp.linspace(0.5, 1.5, 5)
        self.total = jnp.zeros(())
        self.cache = {"total": jnp.zeros((5,))}
        drop = Dropout(0.5)
        self.drops = [drop, drop]

    def encode(self, x):
        return x @ self.kernel * self.scale

    def __call__(self, x):
        x = self.encode(x)
        self.total = self.total + x.sum()
        self.cache = {"total": self.cache["total"] + x.mean(0)}
        for drop in self.drops:
            x = drop(x)
        return x + self.twin


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(x.shape[-1])(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


class Counter(br.Module):
    calls: br.State

    def __call__(self, x):
        self.calls = self.calls + 1
        return x * self.calls


class Scale(br.Module):
    w: br.Parameter

    def __call__(self, x):
        return x * self.w


@functools.cache
def net():
    return br.tie(Net().init(KEY), "twin", "scale")


@functools.cache
def transformed():
    """Haiku's own init and apply of the exported net, compiled."""
    return compiled(to_haiku(net()), "is_training")


def compiled(function, *flags):
    pair = hk.transform_with_state(function)
    return hk.TransformedWithState(
        jax.jit(pair.init, static_argnames=flags), jax.jit(pair.apply, static_argnames=flags)
    )


def equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def close(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), first, second)


def message(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# What Haiku holds


def test_init_gives_the_arrays_of_the_module_and_the_state_before_the_call():
    params, state = transformed().init(KEY, X)
    equal(params, {"~/net": {"kernel": net().kernel, "scale": net().scale}})
    equal(state, {"~/net": {"cache.cache.total": jnp.zeros(5), "state.total": jnp.zeros(())}})


def test_init_draws_nothing_so_it_needs_no_key():
    equal(transformed().init(None, X), transformed().init(KEY, X))


def test_what_is_not_made_yet_is_made_in_haikus_init_with_a_key_of_its_own():
    lazy = compiled(to_haiku(Net()))
    first, second = (lazy.init(key, X)[0]["~/net"]["kernel"] for key in KEYS[:2])
    assert first.shape == (5, 5)
    assert (first != second).all()


def test_the_name_is_that_of_the_class_as_haiku_spells_it():
    for cls in (hk.LSTM, hk.Conv2D, hk.GroupNorm, hk.RMSNorm, hk.SeparableDepthwiseConv2D):
        named = type(
            cls.__name__,
            (hk.Module,),
            {"__call__": lambda self: hk.get_parameter("w", [], init=jnp.ones)},
        )
        own = type(cls.__name__, (Scale,), {})
        (wanted,) = hk.transform(lambda named=named: named()()).init(None)
        (name,) = hk.transform(to_haiku(own(jnp.ones(())))).init(None, 1.0)
        assert name == f"~/{wanted}"


def test_a_key_that_the_module_carries_is_a_state_and_advances():
    noise = Dropout(0.5).new_state(jax.random.key(5), mode="train")
    pair = hk.transform_with_state(to_haiku(noise))
    params, state = pair.init(None, X)
    assert params == {}
    assert list(state["~/dropout"]) == ["rngs._rng"]
    first, after = pair.apply(params, state, None, X)
    second, _ = pair.apply(params, after, None, X)
    equal(first, noise.apply(X)[0])
    assert (first != second).any()


# What it computes


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_output_and_state_are_those_of_apply(mode):
    params, state = transformed().init(KEY, X)
    module = net()
    step = jax.jit(lambda module, key: module.apply(X, rng=key, mode=mode))
    for key in KEYS:
        wanted, module = step(module, hk.PRNGSequence(key).next())
        out, state = transformed().apply(params, state, key, X, is_training=mode == "train")
        close(out, wanted)
    np.testing.assert_allclose(state["~/net"]["state.total"], module.total, rtol=1e-6)
    np.testing.assert_allclose(state["~/net"]["cache.cache.total"], module.cache["total"], rtol=1e-6)


def test_gradients_are_those_of_the_module():
    params, state = transformed().init(KEY, X)

    def loss(params):
        return (transformed().apply(params, state, None, X)[0] ** 2).sum()

    grads = jax.grad(loss)(params)["~/net"]
    wanted = br.grad(lambda module: (module.apply(X)[0] ** 2).sum())(net())
    close(grads, {"kernel": wanted.kernel, "scale": wanted.scale})


def test_dropout_differs_per_key_and_is_none_in_eval():
    params, state = transformed().init(KEY, X)
    first, second = (
        transformed().apply(params, state, key, X, is_training=True)[0] for key in KEYS[:2]
    )
    assert (first != second).any()
    equal(*(transformed().apply(params, state, key, X, is_training=False)[0] for key in KEYS[:2]))


def test_dropout_differs_per_call():
    exported = to_haiku(Dropout(0.5).train())
    first, second = hk.transform(lambda x: (exported(x), exported(x))).apply({}, KEY, X)
    assert (first != second).any()


class Sign(br.Module):
    def __call__(self, x):
        return x if self.training else -x


@pytest.mark.parametrize("flag", ["train", "training", "is_training"])
def test_the_train_flag_is_given_in_any_spelling(flag):
    pair = hk.transform(to_haiku(Sign()))
    equal(pair.apply({}, None, X, **{flag: True}), X)
    equal(pair.apply({}, None, X, **{flag: False}), -X)


@pytest.mark.parametrize("flag", ["deterministic", "use_running_average", "inference"])
def test_the_eval_flag_is_given_in_any_spelling(flag):
    pair = hk.transform(to_haiku(Sign()))
    equal(pair.apply({}, None, X, **{flag: True}), -X)


def test_without_a_flag_the_mode_is_the_modules_own():
    for module, out in [(Sign(), -X), (Sign().train(), X)]:
        equal(hk.transform(to_haiku(module)).apply({}, None, X), out)


def test_a_frozen_parameter_stands_among_the_params_and_gets_no_gradient():
    pair = hk.transform_with_state(to_haiku(net().freeze("kernel")))
    params, state = pair.init(KEY, X)
    grads = jax.grad(lambda params: pair.apply(params, state, None, X)[0].sum())(params)["~/net"]
    assert not grads["kernel"].any()
    assert grads["scale"].any()


def test_other_methods_use_the_same_params():
    def forward(x):
        exported = to_haiku(net())
        return exported.encode(x), exported(x)

    pair = compiled(forward)
    params, state = pair.init(None, X)
    assert list(params) == ["net"]
    np.testing.assert_array_equal(pair.apply(params, state, None, X)[0][0], net().encode(X))


def test_several_functions_of_a_multi_transform_share_the_params():
    exported = to_haiku(Net())

    def functions():
        return lambda x: (exported(x), exported.encode(x)), (exported, exported.encode)

    pair = hk.multi_transform_with_state(functions)
    params, state = pair.init(KEY, X)
    out, _ = pair.apply[1](params, state, None, X)
    np.testing.assert_allclose(out, X @ params["~/net"]["kernel"] * params["~/net"]["scale"], rtol=1e-6)


class Pair(br.Module):
    encoder: br.Module
    decoder: br.Module

    def encode(self, x):
        return self.encoder(x)

    def decode(self, x):
        return self.decoder(x)


def test_each_method_makes_what_it_needs_of_a_module_that_is_not_made_yet():
    exported = to_haiku(Pair(br.from_linen(nn.Dense(3)), br.from_haiku(hk.Linear)(2)))
    pair = hk.transform(lambda x: exported.decode(exported.encode(x)))
    params = jax.jit(pair.init)(KEY, X)
    assert jax.tree.map(jnp.shape, params["~/pair"]) == {
        "decoder.linear.b": (2,),
        "decoder.linear.w": (3, 2),
        "encoder.bias": (3,),
        "encoder.kernel": (5, 3),
    }
    wanted = X @ params["~/pair"]["encoder.kernel"] @ params["~/pair"]["decoder.linear.w"]
    np.testing.assert_allclose(jax.jit(pair.apply)(params, None, X), wanted, rtol=1e-5, atol=1e-6)


# Names


def test_called_twice_it_is_one_set_of_params_and_one_state():
    exported = to_haiku(Counter(0))
    pair = hk.transform_with_state(lambda x: exported(x) + exported(x))
    params, state = pair.init(None, X)
    out, state = pair.apply(params, state, None, X)
    equal(out, 3 * X)
    equal(state, {"~/counter": {"state.calls": jnp.array(2)}})


def test_called_in_two_modules_it_is_one_set_of_params():
    class Layer(hk.Module):
        def __init__(self, inner, name):
            super().__init__(name)
            self.inner = inner

        def __call__(self, x):
            return hk.Linear(5)(self.inner(x))

    exported = to_haiku(Scale(jnp.ones(())))
    pair = hk.transform(lambda x: Layer(exported, "b")(Layer(exported, "a")(x)))
    assert sorted(pair.init(KEY, X)) == ["a/linear", "b/linear", "~/scale"]


def test_made_anew_in_each_trace_it_has_the_name_of_its_place():
    class Layer(hk.Module):
        def __init__(self):
            super().__init__()
            self.first = to_haiku(Scale(jnp.ones(())))

        def __call__(self, x):
            return to_haiku(Scale(jnp.ones(())))(self.first(x))

    pair = compiled(lambda x: to_haiku(Scale(jnp.array(3.0)))(Layer()(x)))
    params, state = pair.init(None, X)
    assert sorted(params) == ["layer/scale", "layer/~/scale", "scale"]
    equal(pair.apply(params, state, None, X)[0], 3 * X)


def test_two_of_one_class_made_inside_a_transform_are_numbered_as_haiku_numbers():
    def forward(x):
        first, second = to_haiku(Scale(jnp.array(2.0))), to_haiku(Scale(jnp.array(3.0)))
        return second(first(x))

    equal(hk.transform(forward).init(None, X), {"scale": {"w": 2.0}, "scale_1": {"w": 3.0}})


def test_two_of_one_name_are_refused_in_init_and_in_apply():
    first, second = (to_haiku(Scale(jnp.ones(()))) for _ in range(2))
    pair = hk.transform(lambda x: second(first(x)))
    for _ in range(2):
        for call in (pair.init, functools.partial(pair.apply, {"~/scale": {"w": jnp.ones(())}})):
            assert message(ModelError, call, None, X) == (
                "two exported Modules are both named '~/scale' in one transform, and would share their"
                " params; give one a name of its own: bridge.to_haiku(module, name=...)"
            )


def test_no_haiku_module_can_have_the_name_of_one_that_was_made_outside():
    exported = to_haiku(br.from_haiku(hk.Linear)(5))

    class Layer(hk.Module):
        def __call__(self, x):
            return exported(x)

    def forward(x):
        inside = to_haiku(Scale(jnp.ones(())), name="linear")
        return hk.Linear(5)(inside(Layer()(x)))

    shapes = jax.tree.map(jnp.shape, jax.jit(hk.transform(forward).init)(KEY, X))
    layer = {"b": (5,), "w": (5, 5)}
    assert shapes == {"~/linear": layer, "linear": {"w": ()}, "linear_1": layer}


def test_with_names_of_their_own_two_are_two():
    first, second = (to_haiku(Scale(jnp.ones(())), name=name) for name in ("first", "second"))
    params = hk.transform(lambda x: second(first(x))).init(None, X)
    assert sorted(params) == ["~/first", "~/second"]


def test_a_name_is_an_identifier():
    assert message(ModelError, to_haiku, net(), name="a-b") == (
        "name is 'a-b'; Haiku names a module by a Python identifier: 'encoder'"
    )


# Inside models of Haiku


class Model(hk.Module):
    def __init__(self, core):
        super().__init__()
        self.core = core

    def __call__(self, x, is_training):
        x = self.core(hk.Linear(5)(x), is_training=is_training)
        return hk.Linear(3)(jax.nn.relu(x))


def test_between_layers_of_haiku_it_trains_with_optax_and_state_is_threaded():
    guest = br.from_linen(Block())
    exported = to_haiku(guest)
    pair = hk.transform_with_state(lambda x, is_training: Model(exported)(x, is_training))
    params, state = jax.jit(functools.partial(pair.init, is_training=True))(KEY, X)
    assert sorted(params) == ["model/linear", "model/linear_1", "~/block"]
    assert sorted(params["~/block"]) == [
        "BatchNorm_0.bias",
        "BatchNorm_0.scale",
        "Dense_0.bias",
        "Dense_0.kernel",
    ]
    assert sorted(state["~/block"]) == ["batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var"]
    optimizer = optax.adam(1e-2)

    def loss(params, state, key):
        out, state = pair.apply(params, state, key, X, is_training=True)
        return ((out - 1) ** 2).mean(), state

    @jax.jit
    def train(params, state, key):
        def step(carry, key):
            params, state, opt_state = carry
            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), state, opt_state), value

        return jax.lax.scan(step, (params, state, optimizer.init(params)), jax.random.split(key, 30))

    (trained, after, _), losses = train(params, state, KEY)
    assert losses[-5:].mean() < losses[0] / 2
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (params, trained)), strict=True))
    module = from_haiku(exported, trained, after)
    assert module.model.value == Block()
    np.testing.assert_array_equal(
        module.params["Dense_0"]["kernel"], trained["~/block"]["Dense_0.kernel"]
    )
    mean = module.at["state.batch_stats.BatchNorm_0.mean"].get()
    np.testing.assert_array_equal(mean, after["~/block"]["batch_stats.BatchNorm_0.mean"])


def scanned(layer):
    return lambda x: hk.scan(lambda x, _: (layer(x), None), x, jnp.arange(3))[0]


class Affine(br.Module):
    kernel: br.Parameter
    drop: br.Module

    def __init__(self):
        self.kernel, self.drop = br.ParamInit((5, 5), jax.nn.initializers.lecun_normal()), Dropout(0.5)

    def __call__(self, x):
        return self.drop(x @ self.kernel)


@pytest.mark.parametrize(
    ("lifted", "times", "stacked"),
    [
        (hk.remat, 1, False),
        (scanned, 3, False),
        (lambda layer: hk.vmap(layer, split_rng=False), 1, False),
        (hk.layer_stack(3), 3, True),
    ],
    ids=["remat", "scan", "vmap", "layer_stack"],
)
def test_it_goes_through_haikus_own_transforms(lifted, times, stacked):
    exported = to_haiku(Affine())
    pair = hk.transform(lambda x: lifted(exported)(x))
    ((name, bundle),) = jax.jit(pair.init)(KEY, X).items()
    assert name == ("__layer_stack_no_per_layer/~/affine" if stacked else "~/affine")
    kernels = bundle["kernel"] if stacked else [bundle["kernel"]] * times
    assert kernels[0].shape == (5, 5)
    wanted = functools.reduce(jnp.matmul, kernels, X)
    np.testing.assert_allclose(
        jax.jit(pair.apply)({name: bundle}, None, X), wanted, rtol=1e-5, atol=1e-6
    )


def test_made_inside_the_layer_of_a_stack_each_layer_has_its_own():
    pair = hk.transform(lambda x: hk.layer_stack(3)(lambda x: to_haiku(Affine())(x))(x))
    kernels = jax.jit(pair.init)(KEY, X)["__layer_stack_no_per_layer/affine"]["kernel"]
    assert kernels.shape == (3, 5, 5)
    assert (kernels[0] != kernels[1]).any()


def test_state_and_masks_go_through_a_scan_of_haiku():
    counter, drop = to_haiku(Counter(0)), to_haiku(Dropout(0.5).train())

    def step(x, _):
        return x, drop(counter(x))

    pair = compiled(lambda x: hk.scan(step, x, jnp.arange(3))[1])
    params, state = pair.init(KEY, X)
    outs, after = pair.apply(params, state, KEY, X)
    assert after["~/counter"]["state.calls"] == 3
    masks = outs != 0
    assert (masks[0] != masks[1]).any()
    assert (masks[1] != masks[2]).any()


def test_a_getter_of_haiku_changes_each_parameter_once():
    guest = br.from_haiku(lambda x: hk.Linear(3)(x)).init(KEY, X)
    exported = to_haiku(guest, name="guest")

    def doubled(x):
        with hk.custom_getter(lambda getter, value, context: getter(2 * value)):
            return exported(x)

    pair = compiled(doubled)
    np.testing.assert_allclose(pair.apply(*pair.init(None, X), None, X)[0], 2 * guest(X), rtol=1e-6)


# Round trips


def test_a_haiku_function_comes_back_itself():
    def forward(x):
        return hk.Linear(3)(x)

    assert to_haiku(br.from_haiku(forward)) is forward
    assert to_haiku(br.from_haiku(forward).init(KEY, X)) is forward
    named = jax.jit(hk.transform(to_haiku(br.from_haiku(forward), name="head")).init)(KEY, X)
    assert jax.tree.map(jnp.shape, named) == {"~/head": {"linear.b": (3,), "linear.w": (5, 3)}}


def test_a_haiku_function_is_exported_with_its_arrays_under_a_name():
    module = br.from_haiku(lambda x: hk.Linear(3)(x)).init(KEY, X)
    params = hk.transform(to_haiku(module, name="torso")).init(None, X)
    equal(
        params,
        {"~/torso": {f"linear.{name}": array for name, array in module.params["linear"].items()}},
    )


@pytest.mark.parametrize("change", [lambda m: m.train(), lambda m: m.new_state(KEY)])
def test_a_haiku_function_with_a_mode_or_a_key_is_exported_with_it(change):
    def forward(x, is_training):
        return x if is_training else -x

    module = change(br.from_haiku(forward))
    exported = to_haiku(module)
    assert exported is not forward
    pair = hk.transform_with_state(exported)
    equal(pair.apply(*pair.init(KEY, X), None, X)[0], module.init(KEY, X).apply(X)[0])


@pytest.mark.parametrize("name", [None, "core"])
def test_a_class_of_haiku_modules_keeps_its_own_params_and_is_one_module(name):
    core = br.from_haiku(hk.LSTM)(11)
    exported = to_haiku(core, name)

    def forward(x):
        out, carry = exported(x, exported.initial_state(7))
        return exported(x, carry)[0] + out

    pair = compiled(forward)
    params, state = pair.init(KEY, X)
    assert list(params) == [f"~/{name or 'lstm'}/linear"]
    module = from_haiku(exported, params, state)
    equal(module.native(), ({f"{name or 'lstm'}/linear": params[f"~/{name or 'lstm'}/linear"]}, {}))
    outs = jax.jit(lambda m: m(X, m.initial_state(7))[0])(module)
    assert outs.shape == (7, 11)
    inside = hk.transform(lambda x: to_haiku(core, name)(x, to_haiku(core).initial_state(7))[0])
    assert list(inside.init(KEY, X)) == [f"{name or 'lstm'}/linear"]


@pytest.mark.parametrize("build", [net, Net], ids=["made", "lazy"])
def test_from_haiku_gives_the_module_back_with_the_arrays_of_haiku(build):
    exported = to_haiku(build(), name="torso")
    pair = hk.transform_with_state(exported)
    params, state = pair.init(KEY, X)
    _, state = pair.apply(params, state, None, X)
    module = from_haiku(exported, {**params, "other": {}}, state)
    assert isinstance(module, Net)
    equal([module.kernel, module.total], [params["~/torso"]["kernel"], state["~/torso"]["state.total"]])
    assert from_haiku(exported) is exported.held.module


def test_from_haiku_refuses_params_of_something_else():
    exported = to_haiku(br.from_linen(nn.Dense(3)))
    assert message(ModelError, from_haiku, exported, {"linear": {}}) == (
        "params and state have nothing of '~/dense', under which to_haiku keeps the LinenModule; they"
        " have 'linear'"
    )
    assert message(ModelError, from_haiku, exported, None, {}) == (
        "from_haiku was given state without params; give both, or neither"
    )


# What is refused


def test_it_takes_a_module():
    assert message(ModelError, to_haiku, nn.Dense(3)) == (
        "to_haiku takes a bridge.Module; it was given a Dense. A model of a library becomes one by"
        " bridge.wrap(model)"
    )


def test_it_is_called_inside_a_transform():
    assert message(ModelError, to_haiku(net()), X) == (
        "the exported Net is called inside a Haiku transform; type"
        " f = hk.transform_with_state(exported), then f.init(key, ...) and f.apply(...)"
    )


def test_a_method_that_it_does_not_have():
    wanted = "the exported Net has no method 'decode'"
    assert message(AttributeError, getattr, to_haiku(net()), "decode") == wanted
    inside = hk.transform(lambda: to_haiku(net()).decode)
    assert message(AttributeError, inside.init, None) == wanted


def test_the_train_flag_is_not_given_twice():
    exported = hk.transform_with_state(to_haiku(net()))
    call = functools.partial(exported.init, KEY, X, is_training=True, deterministic=True)
    assert message(ModelError, call) == (
        "the train flag of an exported module was given twice: is_training=True, deterministic=True"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda bundle: bundle.pop("kernel"), "missing; the Module has float32[5, 5]"),
        (
            lambda bundle: bundle.update(kernel=jnp.ones((5, 3))),
            "is float32[5, 3]; the Module has float32[5, 5]",
        ),
        (
            lambda bundle: bundle.update(kernel=jnp.ones((5, 5), int)),
            "is int32[5, 5]; the Module has float32[5, 5]",
        ),
    ],
    ids=["missing", "shape", "dtype"],
)
@pytest.mark.parametrize("build", [net, Net], ids=["made", "lazy"])
def test_params_that_do_not_fit_are_listed(build, change, line):
    params, state = transformed().init(None, X)
    bundle = {"twin": net().scale, **params["~/net"]}
    change(bundle)
    pair = hk.transform_with_state(to_haiku(build()))
    text = message(ModelError, pair.apply, {"~/net": bundle}, state, None, X)
    assert text.startswith(f"these arrays do not fit the Net:\n  params: kernel: {line}\n")
    assert text.endswith("Give it what its own init makes")


def test_state_that_is_missing_is_not_made_anew():
    pair = hk.transform_with_state(to_haiku(Counter(0)))
    assert message(ModelError, pair.apply, {}, {}, None, X) == (
        "these arrays do not fit the Counter:\n  state: calls: missing; the Module has int32[]\n"
        "Give it what its own init makes"
    )


def test_params_of_a_lazy_linen_child_that_do_not_fit_are_listed():
    pair = hk.transform(to_haiku(br.from_linen(nn.Dense(3))))
    params = {"~/dense": {"kernel": jnp.ones((3, 3))}}
    assert message(ModelError, pair.apply, params, None, X) == (
        "these arrays do not fit the LinenModule:\n"
        "  params: bias: missing; the Module has float32[3]\n"
        "  params: kernel: is float32[3, 3]; the Module has float32[5, 3]\n"
        "Give it what its own init makes"
    )


def test_a_draw_without_a_key_says_where_haiku_takes_one():
    params, state = transformed().init(None, X)
    assert message(MissingRngError, transformed().apply, params, state, None, X, is_training=True) == (
        "drops.0 draws from the stream 'default', and no rng was given. Type"
        " f.apply(params, state, key, ...), where f is what hk.transform_with_state made"
    )


def test_making_params_without_a_key_says_where_haiku_takes_one():
    assert message(MissingRngError, hk.transform(to_haiku(Affine())).init, None, X) == (
        "~/affine makes its params with a key of Haiku's, which was given none; type f.init(key, ...),"
        " where f is what hk.transform_with_state made"
    )


def test_what_a_getter_raises_is_not_taken_for_a_missing_parameter():
    exported = to_haiku(Scale(jnp.ones(())))

    def getter(following, value, context):
        raise ValueError("not today")

    def forward(x):
        with hk.custom_getter(getter):
            return exported(x)

    for call in (
        hk.transform(forward).init,
        functools.partial(hk.transform(forward).apply, {"~/scale": {"w": jnp.ones(())}}),
    ):
        assert message(ValueError, call, None, X) == "not today"


def test_a_state_is_not_kept_among_the_params():
    class Odd(br.Module):
        mean: Annotated[jax.Array, br.collection("params")]

        def __call__(self, x):
            return x

    assert message(ModelError, hk.transform(to_haiku(Odd(0.0))).init, None, X) == (
        "mean is a state in the collection 'params', where a library keeps what it trains; declare it"
        " with another name: bridge.collection(...)"
    )


def leaking(exported):
    return lambda x: jax.jit(exported)(x)


def repeating(exported):
    return lambda x: jax.vmap(exported)(x)


@pytest.mark.parametrize(
    ("build", "raw", "what"),
    [
        (lambda: Scale(jnp.ones(())), leaking, "~/scale makes its params"),
        (lambda: Counter(0), leaking, "~/counter makes its params"),
        (lambda: Dropout(0.5).train(), repeating, "~/dropout draws from the stream 'default'"),
    ],
)
def test_a_raw_jax_transform_in_which_haiku_would_leak_is_refused(build, raw, what):
    pair = hk.transform_with_state(raw(to_haiku(build())))
    assert message(TraceError, pair.init, KEY, X) == (
        f"{what} inside a JAX transform that was started inside hk.transform: it would be repeated or"
        " lost. Use hk.scan, hk.vmap, hk.remat or hk.grad in its place"
    )


def test_a_state_written_in_a_raw_jax_transform_is_refused():
    exported = to_haiku(Counter(0))
    pair = hk.transform_with_state(lambda x: jax.jit(exported)(x))
    state = {"~/counter": {"state.calls": jnp.array(0)}}
    text = message(TraceError, pair.apply, {}, state, None, X)
    assert text.startswith("~/counter writes its state inside a JAX transform")


def test_reading_in_a_raw_jax_transform_is_not_refused():
    exported = to_haiku(Scale(jnp.array(3.0)))

    def slope(x):
        return exported(x), jax.grad(lambda x: exported(x).sum())(x)

    pair = compiled(slope)
    equal(pair.apply(*pair.init(None, X), None, X)[0], (3 * X, jnp.full_like(X, 3)))


def test_it_is_pickled_with_its_module():
    exported = pickle.loads(pickle.dumps(to_haiku(net())))
    equal(hk.transform_with_state(exported).init(None, X), transformed().init(None, X))
