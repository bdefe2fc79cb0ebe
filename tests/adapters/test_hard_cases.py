"""Cases in which models of several libraries together go wrong without a word, or with a riddle."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import bridge as br
from bridge.adapters.equinox import with_init_state
from tests.adapters.subjects import HOSTS as LIBRARIES

X = jax.random.normal(jax.random.key(3), (7, 5))
KEYS = jax.random.split(jax.random.key(17), 3)

# Each program runs a few times: to compile it is all that it costs.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Net(br.Module):
    """A child, used as `how(child, x)` says, and an array of one's own."""

    child: br.Module
    gain: br.Parameter
    how: Any

    def __init__(self, child, how=lambda child, x: child(x)):
        self.child, self.how, self.gain = child, how, jnp.ones(5)

    def __call__(self, x):
        return self.how(self.child, x) * self.gain


class Two(br.Module):
    first: br.Module
    second: br.Module

    def __call__(self, x):
        return jnp.stack([self.first(x), self.second(x)])


def by_rows(child, rows):
    return jnp.stack([child(x) for x in rows])


def scanned(child, x):
    return br.scan(lambda carry, _: (carry, br.remat(child)(x)), 0, None, length=3)[1]


def raw(child, x):
    return jax.lax.scan(lambda carry, _: (carry, child(x)), 0, None, length=3)[1]


@dataclass(frozen=True)
class Hosted:
    """A Module as a model of a library: what that trains, its other arrays, how it is run, and back.

    `call(params, rest, x, keys by stream, train, method)` gives the output and the rest after it.
    """

    params: Any
    rest: Any
    call: Callable[..., Any]
    back: Callable[..., Any]

    @functools.cached_property
    def run(self) -> Any:
        return compiled(self.call, static_argnums=(4, 5))

    def __call__(self, x=X, keys=None, train=True, method="__call__") -> Any:
        return self.run(self.params, self.rest, x, keys, train, method)[0]

    def after(self, *inputs, keys=None) -> Any:
        """The Module after calls in train mode with these inputs."""
        rest = self.rest
        for x in inputs:
            rest = self.run(self.params, rest, x, keys, True, "__call__")[1]
        return self.back(self.params, rest)

    def trained(self, keys=None) -> Any:
        """The Module after a step of gradient descent with all that the library trains."""

        def loss(params, rest):
            out, rest = self.call(params, rest, X, keys, True, "__call__")
            return ((out - 2) ** 2).sum(), rest

        grads, rest = compiled(jax.grad(loss, has_aux=True))(self.params, self.rest)
        return self.back(jax.tree.map(lambda p, g: p - 0.1 * g, self.params, grads), rest)


def in_bridge(module, x=X):
    def call(params, rest, x, keys, train, method):
        mode = "train" if train else "eval"
        return rest.update(params).apply(x, rng=keys, mode=mode, method=method)

    return Hosted(module.parameters(), module, call, lambda params, rest: rest.update(params))


def in_linen(module, x=X):
    model = br.to_linen(module)
    rest = model.init(KEYS[0], x)

    def call(params, rest, x, keys, train, method):
        given = {"train": train, "rngs": keys, "mutable": list(rest), "method": method}
        return model.apply({"params": params, **rest}, x, **given)

    def back(params, rest):
        return br.from_linen(model, {"params": params, **rest})

    return Hosted(rest.pop("params", {}), rest, call, back)


def in_nnx(module, x=X):
    graph, params, rest = nnx.split(br.to_nnx(module), nnx.Param, ...)

    def call(params, rest, x, keys, train, method):
        model = nnx.merge(graph, params, rest, copy=True)
        out = getattr(model, method)(x, train=train, rngs=keys and nnx.Rngs(**keys))
        return out, nnx.state(model, nnx.Not(nnx.Param))

    return Hosted(params, rest, call, lambda *both: br.from_nnx(nnx.merge(graph, *both)))


def in_haiku(module, x=X):
    model = br.to_haiku(module)
    pure = hk.transform_with_state(
        lambda x, train, method: getattr(model, method)(x, is_training=train)
    )

    def call(params, rest, x, keys, train, method):
        return pure.apply(params, rest, keys and keys["dropout"], x, train, method)

    first = pure.init(KEYS[0], x, False, "__call__")
    return Hosted(*first, call, lambda *both: br.from_haiku(model, *both))


def in_equinox(module, x=X):
    model, state = br.to_equinox(module)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def call(params, rest, x, keys, train, method):
        run = getattr(eqx.combine(params, static), method)
        return run(x, rest, key=keys, inference=not train)

    def back(params, rest):
        return br.from_equinox(eqx.combine(params, static), rest)

    return Hosted(params, state, call, back)


HOSTS = {
    "bridge": in_bridge,
    "linen": in_linen,
    "nnx": in_nnx,
    "haiku": in_haiku,
    "equinox": in_equinox,
}
# Each library in another one.
PAIRS = [("linen", "nnx"), ("nnx", "equinox"), ("equinox", "haiku"), ("haiku", "linen")]

in_each = pytest.mark.parametrize("host", HOSTS)
of_each = pytest.mark.parametrize("guest", LIBRARIES)
of_each_in_another = pytest.mark.parametrize(("guest", "host"), PAIRS)
of_each_anywhere = pytest.mark.parametrize(
    ("guest", "host"), [*PAIRS, *((guest, "bridge") for guest in LIBRARIES)]
)


def haiku_dropout(x, is_training):
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


def equinox_norm():
    return eqx.nn.make_with_state(eqx.nn.BatchNorm)(5, axis_name="batch", mode="batch")


NORMS = {
    "linen": lambda: br.from_linen(nn.BatchNorm(momentum=0.9)),
    "nnx": lambda: br.from_nnx(nnx.BatchNorm(5, momentum=0.9, rngs=nnx.Rngs(0))),
    "haiku": lambda: br.from_haiku(hk.BatchNorm)(True, True, 0.9),
    "equinox": lambda: br.from_equinox(equinox_norm(), vmap=True),
}
DROPOUTS = {
    "linen": lambda: br.from_linen(nn.Dropout(0.5)),
    "nnx": lambda: br.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0))),
    "haiku": lambda: br.from_haiku(haiku_dropout),
    "equinox": lambda: br.from_equinox(eqx.nn.Dropout(0.5)),
}


def made(module) -> Any:
    return compiled(lambda key: module.init({"params": key, "noise": key}, X))(jax.random.key(5))


@functools.cache
def norm(library) -> Any:
    return made(NORMS[library]())


@functools.cache
def dropout(library) -> Any:
    return made(DROPOUTS[library]())


@functools.cache
def plain_norm(library) -> Hosted:
    return in_bridge(Net(norm(library)))


def keys(number, noise=0) -> Any:
    return {"default": KEYS[number], "dropout": KEYS[number], "noise": KEYS[noise]}


def near(first, second, rtol=1e-5) -> bool:
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(first) == len(second) and all(
        np.allclose(a, b, rtol, atol=rtol / 10) for a, b in zip(first, second, strict=True)
    )


def refusal(call, *args) -> str:
    with pytest.raises(br.BridgeError) as caught:
        call(*args)
    return str(caught.value)


# What a call writes


@pytest.mark.parametrize("host", ["bridge", "nnx"])
def test_a_linen_batch_norm_and_dropout_as_child_keep_state_under_jit_and_grad(host):
    net = Two(norm("linen"), dropout("linen"))
    after = HOSTS[host](net).trained(keys(0)).first.native()
    native = nn.BatchNorm(momentum=0.9, use_running_average=False)
    assert near(after["batch_stats"], native.apply(net.first.native(), X, mutable="batch_stats")[1])
    assert not near(after["params"], net.first.native()["params"])


def test_haiku_with_state_inside_linen_is_made_from_one_key_and_keeps_one_structure():
    hosted = in_linen(Two(NORMS["haiku"](), DROPOUTS["haiku"]()))
    before, after = hosted.after(), hosted.trained(keys(0))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert not near(after.first.state, before.first.state)
    assert not near(after.first.params, before.first.params)


@of_each
def test_batch_norm_statistics_written_under_jit_come_back(guest):
    first, *_, last = (plain_norm(guest).after(*(count * [X])) for count in range(4))
    assert jax.tree.structure(last) == jax.tree.structure(first)
    assert not near(last.child.state, first.child.state)
    assert plain_norm(guest).run._cache_size() == 1


@of_each
def test_eval_after_a_compiled_training_call_is_not_stale_and_two_modes_are_two_programs(guest):
    call = compiled(lambda net: net.apply(X))
    net = Net(norm(guest))
    for mode in ("train", "eval", "train", "eval"):
        out, after = call(net.with_mode(mode))
        assert near(out, plain_norm(guest)(train=mode == "train"))
        assert near(after, net) == (mode == "eval")
    assert call._cache_size() == 2


def test_an_exported_model_is_not_stale_after_train_and_eval():
    training, evaluating = (plain_norm("linen")(train=train) for train in (True, False))
    model, call = br.to_nnx(Net(norm("linen"))), nnx.jit(lambda model: model(X))
    model.train()
    assert near(call(model), training)
    model.eval()
    assert near(call(model), br.from_nnx(model)(X))
    model, state = br.to_equinox(Net(norm("linen")))
    call = eqx.filter_jit(lambda model, state: model(X, state)[0])
    assert near(call(model, state), training)
    assert near(call(eqx.nn.inference_mode(model), state), evaluating)


@pytest.mark.parametrize("host", ["bridge", "linen", "haiku"])
def test_a_haiku_batch_norm_is_made_in_eval_mode_as_in_train_mode(host):
    lazy = Net(NORMS["haiku"]())
    first = lazy.init(KEYS[0], X, mode="eval") if host == "bridge" else HOSTS[host](lazy).after()
    assert near(first, Net(norm("haiku")))


class Odd(nn.Module):
    """A boxed kernel, a value that is sown, and one name in two collections."""

    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.ones, ("rows", "columns"))
        self.sow("intermediates", "half", x / 2)
        seen = self.variable("state", "w", jnp.zeros, (5,))
        seen.value += 0 if self.is_initializing() else 1
        w = self.param("w", nn.initializers.ones, (5,))
        return nn.Dense(5, kernel_init=boxed)(x) * w + seen.value


@functools.cache
def odd(host) -> Hosted:
    return HOSTS[host](made(Net(br.from_linen(Odd()))))


@in_each
def test_a_value_sown_in_three_calls_under_jit_never_grows_and_is_captured(host):
    before, after = odd(host).after(), odd(host).after(X, X, X)
    assert odd(host).run._cache_size() == 1
    assert jax.tree.structure(after) == jax.tree.structure(before)
    sown = after.capture(X, paths=["child.intermediates.half"])
    assert near(sown, {"child.intermediates.half": (X / 2,)})


def test_an_exported_module_sows_where_its_linen_host_asks_for_it():
    model = br.to_linen(odd("bridge").rest)
    sown = model.apply(model.init(KEYS[0], X), X, mutable=["intermediates", "state"])[1]
    assert near(sown.get("intermediates"), {"child": {"half": (X / 2,)}})


# Names and sharing


@in_each
def test_a_param_and_a_variable_of_one_name_are_two_arrays(host):
    variables = odd(host).trained().child.native()
    assert near(variables["state"]["w"], jnp.ones(5))
    assert not near(variables["params"]["w"], jnp.ones(5))


@in_each
def test_partitioned_linen_params_without_a_mesh_train_and_keep_their_boxes(host):
    kernel = odd(host).trained().child.native()["params"]["Dense_0"]["kernel"]
    assert nn.get_partition_spec(kernel) == PartitionSpec("rows", "columns")
    assert not near(kernel, jnp.ones((5, 5)))


class Named(hk.Module):
    def __call__(self, x):
        scale = hk.get_parameter("linear", (5,), init=jnp.ones)
        return hk.Linear(5, w_init=jnp.ones, name="linear")(x) * scale


@in_each
def test_a_haiku_param_named_like_a_submodule_is_a_param_of_its_own(host):
    hosted = HOSTS[host](made(Net(br.from_haiku(Named)())))
    assert near(hosted(), jnp.broadcast_to(X.sum(1, keepdims=True), (7, 5)))
    after = hosted.trained().child.native()[0]
    assert not near(after["named"]["linear"], jnp.ones(5))
    assert not near(after["named/linear"]["w"], jnp.ones((5, 5)))


class Tied(nnx.Module):
    def __init__(self):
        self.first = self.second = nnx.Param(jnp.linspace(0.5, 1.5, 5))

    def __call__(self, x):
        return jnp.tanh(x * self.first) * self.second


@in_each
def test_a_tied_variable_of_nnx_is_one_leaf_and_still_tied_after_a_step(host):
    hosted = HOSTS[host](Net(br.from_nnx(Tied())))
    assert len(jax.tree.leaves(hosted.params)) == 2
    after = hosted.trained().child.native()
    assert after.second is after.first
    w = Tied().first[...]
    grad = jax.grad(lambda w: ((jnp.tanh(X * w) * w - 2) ** 2).sum())(w)
    assert near(after.first[...], w - 0.1 * grad)


@of_each_anywhere
def test_the_same_wrapped_module_twice_in_one_tree_is_one_set_of_arrays(guest, host):
    after = HOSTS[host](Two(norm(guest), norm(guest))).trained()
    assert near(after, after.first)
    assert near(after.first.state, plain_norm(guest).after(X, X).child.state)


def test_linen_through_nnx_and_back_keeps_every_variable_bit_for_bit():
    variables = norm("linen").native()
    module = br.from_nnx(br.to_nnx(br.from_linen(nn.BatchNorm(momentum=0.9), variables)))
    assert br.to_linen(module) == nn.BatchNorm(momentum=0.9)
    assert near(module.native(), variables, rtol=0)
    back = br.to_linen(br.from_nnx(br.to_nnx(Net(module)))).init(KEYS[1], X)
    assert near({name: tree["child"] for name, tree in back.items()}, variables, rtol=0)


@of_each
def test_labels_of_optax_and_groups_by_path_train_the_child_alone(guest):
    net = Net(norm(guest))
    params = net.parameters()
    groups = {"gain": optax.set_to_zero(), "*": optax.sgd(0.1)}
    labels = jax.tree.map(lambda leaf: "gain" if leaf is net.gain else "*", params)
    labelled = optax.multi_transform(groups, labels)
    updates, _ = labelled.update(params, labelled.init(params), params)
    after, _ = br.Optimizer(groups).init(net).step(params, net)
    assert near(after, net.update(optax.apply_updates(params, updates)))
    assert near(after.gain, net.gain)
    assert not near(after.child, net.child)


def test_a_module_as_the_labels_of_optax_is_refused():
    labels = jax.tree.map(lambda _: "all", Net(norm("linen")))
    transform = optax.multi_transform({"all": optax.sgd(0.1)}, labels)
    assert refusal(transform.init, Net(norm("linen")).parameters()).startswith(
        "gain is 'all' and no array, so this Net is not one to call. Make labels and masks for Optax of"
        " what nobody can call: jax.tree.map(label, module.parameters())"
    )


# One library inside another


@pytest.mark.parametrize("host", ["bridge", "nnx", "equinox"])
def test_nnx_and_equinox_side_by_side_in_one_tree_keep_their_statistics(host):
    after = HOSTS[host](Two(norm("nnx"), norm("equinox"))).after(X, 2 * X)
    assert near(after.first, plain_norm("nnx").after(X, 2 * X).child)
    assert near(after.second, plain_norm("equinox").after(X, 2 * X).child)


class InEquinox(eqx.Module):
    n: Any
    scale: jax.Array

    def __init__(self, module):
        self.n, self.scale = with_init_state(*br.to_equinox(module)), jnp.ones(5)

    def __call__(self, x, state, key):
        x, state = self.n(x, state, key=key)
        return x * self.scale, state


def test_an_nnx_batch_norm_and_dropout_in_an_equinox_module_keep_state_under_filter_jit():
    model, state = eqx.nn.make_with_state(InEquinox)(Two(norm("nnx"), dropout("nnx")))

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def step(model, state, key):
        out, state = model(X, state, key)
        return out.sum(), (out, state)

    (grads, (first, after)), (_, (second, _)) = (step(model, state, key) for key in KEYS[:2])
    assert near(first[0], second[0])
    assert not near(first[1], second[1])
    native = norm("nnx").native()
    native(X, use_running_average=False)
    assert near(after.get(model.n.state["batch_stats"])["first"]["mean"], native.mean[...])
    assert jax.tree.map(jnp.shape, grads.n.params) == {"first": {"bias": (5,), "scale": (5,)}}


class InNnx(nnx.Module):
    def __init__(self, module):
        self.core, self.scale = br.to_nnx(module), nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return self.core(x) * self.scale


def test_an_equinox_model_in_nnx_is_trained_by_its_optimizer():
    mlp = eqx.nn.MLP(5, 3, 11, depth=1, key=KEYS[0])
    model = InNnx(br.from_equinox(mlp, vmap=True))
    optimizer = nnx.Optimizer(model, optax.sgd(0.01), wrt=nnx.Param)
    before = jax.tree.leaves(nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda model: ((model(X) - 1) ** 2).mean())(model)
        optimizer.update(model, grads)
        return value

    assert step(model, optimizer) > step(model, optimizer)
    after = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert [near(*pair) for pair in zip(before, after, strict=True)] == 5 * [False]


@in_each
def test_an_equinox_batch_norm_with_an_axis_name_works_as_child(host):
    model, state = equinox_norm()
    batched = jax.vmap(model, (0, None), (0, None), axis_name="batch")
    hosted = HOSTS[host](Net(norm("equinox")))
    assert near((hosted(), hosted.after(X).child.native()[1]), compiled(batched)(X, state))


class RawEquinox(eqx.Module):
    n: Any


class RawNnx(nnx.Module):
    def __init__(self, e):
        self.e = nnx.data(e)


def test_a_raw_nnx_module_in_an_equinox_module_is_refused():
    model = RawEquinox(nnx.BatchNorm(5, rngs=nnx.Rngs(0)))
    assert refusal(br.from_equinox, model).startswith(
        "this RawEquinox cannot be wrapped:\n  n is a BatchNorm, whose arrays Equinox takes for its"
    )


def test_a_raw_module_in_an_equinox_module_is_refused():
    assert refusal(br.from_equinox, RawEquinox(norm("linen"))).startswith(
        "this RawEquinox cannot be wrapped:\n  n is a LinenModule, whose arrays Equinox takes for its"
    )


def test_a_raw_equinox_module_in_an_nnx_module_is_refused():
    model = RawNnx(eqx.nn.Linear(5, 3, key=KEYS[0]))
    assert refusal(br.from_nnx, model).startswith(
        "this RawNnx cannot be wrapped:\n  e: is a Linear, whose arrays are no nnx.Param, so that"
    )


# Random numbers


@of_each_anywhere
def test_dropout_under_jit_has_a_mask_for_each_key_and_place_and_harms_no_later_draw(guest, host):
    hosted = HOSTS[host](Two(dropout(guest), dropout(guest)))
    first, second, again = (hosted(keys=keys(number)) for number in (0, 1, 0))
    assert near(first, again)
    assert not near(first, second)
    assert not near(*first)
    assert jnp.isfinite(jax.random.normal(KEYS[2], (5,))).all()


@pytest.mark.parametrize(
    ("guest", "host", "stream", "fix"),
    [
        ("linen", "bridge", "dropout", "module.apply(..., rng=key), or attach one: "),
        ("haiku", "bridge", "default", "module.apply(..., rng=key), or attach one: "),
        ("equinox", "bridge", "default", "module.apply(..., rng=key), or attach one: "),
        ("equinox", "linen", "default", "apply(variables, ..., rngs={'default': key})"),
        ("equinox", "nnx", "default", "model(x, rngs=nnx.Rngs(default=key))"),
        ("equinox", "haiku", "default", "f.apply(params, state, key, ...), where f is"),
        ("linen", "equinox", "dropout", "model(x, state, key=key), or key={'dropout': key}"),
    ],
)
def test_dropout_without_a_key_is_refused_in_train_mode(guest, host, stream, fix):
    hosted = HOSTS[host](Net(dropout(guest)))
    said = refusal(hosted.call, hosted.params, hosted.rest, X, None, True, "__call__")
    assert said.startswith(f"child draws from the stream {stream!r}, and no rng was given. Type {fix}")


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        noise = jax.random.normal(self.make_rng("noise"), (5,))
        return jnp.stack([noise, nn.Dropout(0.5, deterministic=not train)(jnp.ones(5))])


@pytest.mark.parametrize("host", ["bridge", "nnx", "equinox"])
def test_two_streams_of_ones_own_are_two_streams(host):
    hosted = HOSTS[host](made(Net(br.from_linen(Noisy()))))
    first, other_noise, other_mask = (hosted(keys=keys(*both)) for both in ((0, 0), (0, 1), (1, 0)))
    assert near((first[0], first[1]), (other_mask[0], other_noise[1]))
    assert not near(first[0], other_noise[0])
    assert not near(first[1], other_mask[1])


# Transforms, shapes, methods


@of_each_in_another
def test_scan_and_remat_over_a_wrapped_layer_thread_its_state_and_gradient(guest, host):
    after = HOSTS[host](Net(norm(guest), scanned)).trained().child
    assert near(after.state, plain_norm(guest).after(X, X, X).child.state)
    assert not near(after.params, norm(guest).params)


@of_each_in_another
def test_scan_and_remat_over_a_wrapped_dropout_draw_another_mask_at_each_step(guest, host):
    first, second, third = HOSTS[host](Net(dropout(guest), scanned))(keys=keys(0))
    assert not near(first, second)
    assert not near(second, third)


@of_each
def test_a_raw_scan_over_a_child_with_dropout_is_refused(guest):
    call = functools.partial(Net(dropout(guest), raw).apply, rng=KEYS[0], mode="train")
    stream = "dropout" if guest in ("linen", "nnx") else "default"
    assert refusal(call, X).startswith(
        f"child draws from the rng stream {stream!r} inside a JAX transform that was started during the"
        f" call: it would be repeated or lost. Use bridge.scan, bridge.vmap or bridge.remat in place of"
    )


class RawLinen(nn.Module):
    core: nn.Module

    def __call__(self, x):
        return raw(self.core, x)


def test_a_raw_scan_inside_a_linen_or_haiku_model_is_refused():
    linen = Net(br.from_linen(RawLinen(nn.Dropout(0.5, deterministic=False)), {}))
    assert refusal(functools.partial(linen.apply, rng=KEYS[0]), X).startswith(
        "child.core draws from the rng stream 'dropout' inside a JAX transform that the model's own"
        " code starts: it would be repeated or lost. Use flax.linen.scan"
    )
    haiku = Net(br.from_haiku(lambda x: raw(functools.partial(haiku_dropout, is_training=True), x), {}))
    assert refusal(functools.partial(haiku.apply, rng=KEYS[0]), X).startswith(
        "child calls hk.next_rng_key inside a JAX transform that was started during the call: it would"
        " be repeated or lost. Use Haiku's own in its place: hk.scan"
    )


def test_a_raw_scan_over_an_exported_module_with_dropout_is_refused():
    training = dropout("equinox").train()
    haiku = hk.transform(lambda x: raw(br.to_haiku(training), x))
    assert refusal(haiku.apply, {}, KEYS[0], X).startswith("dropout draws from the stream 'default' in")
    linen = functools.partial(RawLinen(br.to_linen(training)).apply, rngs=keys(0))
    assert refusal(linen, {}, X).startswith(
        "core draws from the stream 'default' inside a JAX transform"
    )


@of_each_anywhere
def test_two_shapes_with_two_numbers_of_child_calls_are_two_programs_and_both_right(guest, host):
    rows = jnp.stack([X, 2 * X, 3 * X])
    hosted = HOSTS[host](Net(norm(guest), by_rows), rows)
    for given in (rows[:2], rows):
        assert near(hosted(given), by_rows(plain_norm(guest), given))
        assert near(hosted.after(*[given]).child, plain_norm(guest).after(*given).child)
    assert hosted.run._cache_size() == 2


def encode(self, x):
    return x * self.w


def shift(self, x):
    return self.encode(x) + 1


class LinenCoder(nn.Module):
    def setup(self):
        self.w = self.param("w", nn.initializers.constant(2.0), (5,))

    __call__, encode = shift, encode


class NnxCoder(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.full(5, 2.0))

    __call__, encode = shift, encode


class HaikuCoder(hk.Module):
    @property
    def w(self):
        return hk.get_parameter("w", (5,), init=hk.initializers.Constant(2.0))

    __call__, encode = shift, encode


class EquinoxCoder(eqx.Module):
    w: jax.Array

    __call__, encode = shift, encode


CODERS = {
    "linen": lambda: br.from_linen(LinenCoder()),
    "nnx": lambda: br.from_nnx(NnxCoder()),
    "haiku": lambda: br.from_haiku(HaikuCoder)(),
    "equinox": lambda: br.from_equinox(EquinoxCoder(jnp.full(5, 2.0))),
}


@of_each_anywhere
def test_a_method_other_than_call_runs_in_a_tree_and_in_a_host(guest, host):
    hosted = HOSTS[host](made(CODERS[guest]()))
    assert near(hosted(method="encode"), 2 * X)
    assert near(hosted(), 2 * X + 1)


# Params that do not fit


def test_params_that_do_not_fit_a_linen_or_haiku_model_are_named():
    dense = {"params": {"kernel": jnp.ones((5, 7))}}
    assert refusal(Net(br.from_linen(nn.Dense(3), dense)).apply, X).startswith(
        "the variables of child do not fit the model and its input:\n"
        "  params.bias: missing; the model makes float32[3]\n"
        "  params.kernel: is float32[5, 7]; the model makes float32[5, 3]\nGive from_linen what the"
    )
    linear = {"linear": {"w": jnp.ones((5, 7))}}
    assert refusal(Net(br.from_haiku(hk.Linear, linear)(3)).apply, X).startswith(
        "the arrays of child do not fit the model:\n"
        "  params.linear.b: missing; the model makes float32[3]\n"
        "  params.linear.w: is float32[5, 7]; the model makes float32[5, 3]\nGive from_haiku the params"
    )


@pytest.mark.parametrize(
    ("host", "change", "what"),
    [
        *(
            (host, lambda leaf: leaf[:3], "is float32[3]")
            for host in ("linen", "nnx", "haiku", "equinox")
        ),
        *((host, lambda _: None, "missing") for host in ("linen", "haiku", "equinox")),
    ],
)
def test_params_that_do_not_fit_an_exported_module_are_named(host, change, what):
    hosted = HOSTS[host](Net(norm("linen")))
    params = jax.tree.map(change, hosted.params)
    assert refusal(hosted.call, params, hosted.rest, X, None, False, "__call__") == (
        f"these arrays do not fit the Net:\n"
        f"  params: child.bias: {what}; the Module has float32[5]\n"
        f"  params: child.scale: {what}; the Module has float32[5]\n"
        f"  params: gain: {what}; the Module has float32[5]\n"
        f"Give it what its own init makes"
    )
