"""What happens in a call of an NNX model: modes and flags, transforms and captures of NNX's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import DroppedStateError, ModelError, TraceError
from bridge.core.paths import join
from bridge.core.tree import entries

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (7, 3))


class Over(br.Module):
    child: br.Module
    how: Any

    def __call__(self, x):
        return self.how(self.child, x)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def arrays(module: Any) -> dict[str, Any]:
    def plain(leaf: Any) -> Any:
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)

    return {join(entry.path): plain(entry.value) for entry in entries(module)}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


# Modes and flags


class Flagged(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))


def flagged(signature: str) -> Any:
    """A model whose call takes a flag, and says by its sign whether it trains."""
    spelled = signature.split("=")[0]
    means = "not " if spelled in ("deterministic", "use_running_average", "inference") else ""
    scope: dict[str, Any] = {}
    exec(f"def call(self, x, {signature}): return x if {means}{spelled} else -x", scope)
    return type("Net", (Flagged,), {"__call__": scope["call"]})()


@pytest.mark.parametrize(
    "signature",
    ["train", "train=False", "training", "is_training", "deterministic=None", "use_running_average"],
)
def test_a_flag_of_the_call_in_any_spelling_follows_the_mode(signature):
    module = br.from_nnx(flagged(signature))
    assert (module(X) == -X).all()
    assert (module.train()(X) == X).all()
    name = signature.split("=")[0]
    said = name in ("train", "training", "is_training")
    assert (module(X, **{name: said}) == X).all()
    assert (module.train()(X, not said) == -X).all()


def test_a_flag_given_twice_is_refused():
    module = Over(br.from_nnx(flagged("train=False")), lambda child, x: child(x, True, train=True))
    assert message(ModelError, lambda: module(X)) == (
        "child: 'train' is given twice, by position and by name; give it once, or leave it to the mode:"
        " apply(..., mode='train')"
    )


class Attributes(nnx.Module):
    """Flags among the attributes: two that NNX sets by the mode, one of the model's own."""

    def __init__(self, training):
        self.deterministic, self.use_running_average, self.training = None, True, training

    def __call__(self, training=None):
        return self.deterministic, self.use_running_average, training


def test_flags_among_the_attributes_are_set_as_nnx_sets_them_and_others_are_the_models_own():
    module = br.from_nnx(Attributes(training=None))
    assert module() == (True, True, False)
    assert module.train()() == (False, False, True)
    assert br.from_nnx(Attributes(training=False)).train()() == (False, False, None)


def test_a_model_of_its_own_train_method_or_attribute_is_taken_as_it_is():
    class Method(nnx.Module):
        noisy = False

        def train(self, **attributes):
            super().train(**attributes)
            self.noisy = True

        def eval(self, **attributes):
            super().eval(**attributes)
            self.noisy = False

        def __call__(self):
            return self.noisy

    class Attribute(Block):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.train = "a word"

        def __call__(self, x):
            return super().__call__(x), self.train

    module = br.from_nnx(Method())
    assert (module.train()(), module()) == (True, False)
    module = br.from_nnx(Attribute(nnx.Rngs(0)))
    assert module(X)[1] == "a word"
    assert not (module.apply(X, rng=KEY, mode="train")[0][0] == module(X)[0]).all()


def test_training_and_evaluating_are_two_compilations():
    module = br.from_nnx(Block(nnx.Rngs(0)))
    run = jax.jit(lambda module, mode: module.apply(X, mode=mode), static_argnames="mode")
    for mode in ("train", "eval", "train", "eval", "eval"):
        _, module = run(module, mode=mode)
    assert run._cache_size() == 2
    assert int(module.at["state.rngs.dropout.rngs.count"].get()) == 2


def test_statistics_and_masks_that_plain_jit_and_grad_lose_in_nnx_are_threaded():
    own = Block(nnx.Rngs(0))
    own.train()
    jax.jit(lambda model, x: model(x))(own, X)
    assert not own.norm.mean[...].any()

    @jax.jit
    def step(module):
        def loss_of(module):
            out, after = module.apply(X, mode="train")
            return (out**2).sum(), (out, after)

        (_, (out, module)), _ = br.value_and_grad(loss_of, has_aux=True)(module)
        return out, module

    module = br.from_nnx(own)
    first, module = step(module)
    second, module = step(module)
    own(X), own(X)
    np.testing.assert_allclose(
        module.at["state.batch_stats.norm.mean"].get(), own.norm.mean[...], rtol=1e-5
    )
    assert not ((first == 0) == (second == 0)).all()


# Transforms and containers of NNX


class Stack(nnx.Module):
    """Four blocks of one stacked module, run by nnx.scan."""

    def __init__(self, rngs):
        make = nnx.split_rngs(splits=4)(nnx.vmap(Block, in_axes=0, out_axes=0))
        self.blocks = make(rngs)

    def __call__(self, x):
        return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(
            self.blocks, x
        )


def around(transform: Any) -> Any:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.block = Block(rngs)

        def __call__(self, x):
            return transform(lambda block, x: block(x))(self.block, x)

    return Net


class Mapped(nnx.Module):
    """An nnx.Dict, which lists its attributes, whoever has set them."""

    def __init__(self, rngs):
        self.parts = nnx.Dict(one=Block(rngs), other=Block(rngs))

    def __call__(self, x):
        for name in self.parts:
            x = self.parts[name](x)
        return x * len(self.parts)


TRANSFORMED = {
    "scan over vmapped": Stack,
    "remat": around(nnx.remat),
    "jit": around(nnx.jit),
    "jit of remat": around(lambda function: nnx.jit(nnx.remat(function))),
    "a Dict": Mapped,
}


@pytest.mark.parametrize("how", TRANSFORMED)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_transforms_inside_the_model_give_what_they_give_in_nnx(how, mode):
    own = TRANSFORMED[how](nnx.Rngs(0, dropout=1))
    module = br.from_nnx(own)
    getattr(own, mode)()
    graph, state = nnx.split(own)

    @jax.jit
    def native(state):
        model = nnx.merge(graph, state, copy=True)
        out = model(X)
        return out, nnx.state(model)

    out, after = jax.jit(lambda module: module.apply(X, mode=mode))(module)
    expected, state = native(state)
    assert (out == expected).all()
    assert same(arrays(after), arrays(br.from_nnx(nnx.merge(graph, state))))
    eager = module.apply(X, mode=mode)[1]
    for path, array in arrays(eager).items():
        np.testing.assert_allclose(array, arrays(after)[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", TRANSFORMED)
def test_what_transforms_inside_only_pass_through_is_no_update(how):
    module = br.from_nnx(TRANSFORMED[how](nnx.Rngs(0)))
    np.testing.assert_allclose(
        jax.jit(lambda module: module(X))(module), module(X), rtol=1e-5, atol=1e-6
    )
    assert module.apply(X)[1] is module or same(arrays(module.apply(X)[1]), arrays(module))
    grads = jax.jit(br.grad(lambda module: (module(X) ** 2).sum()))(module)
    assert all(leaf.any() for leaf in jax.tree.leaves(grads))


def test_a_stacked_stream_gives_each_of_its_blocks_another_mask_from_one_rng():
    class Dropouts(Stack):
        def __call__(self, x):
            return nnx.vmap(lambda block, x: block.dropout(x), in_axes=(0, None))(self.blocks, x)

    ones, module = jnp.ones((5, 7)), br.from_nnx(Dropouts(nnx.Rngs(0)))
    out, after = module.apply(ones, rng=KEY, mode="train")
    assert len({mask.tobytes() for mask in np.asarray(out)}) == 4
    assert (module.apply(ones, rng=KEY, mode="train")[0] == out).all()
    assert same(arrays(after), arrays(module))


class Normed(nnx.Module):
    """It assigns its parameter in each call, as WeightNorm does."""

    def __init__(self, transform=lambda function: function):
        self.weight = nnx.Param(jnp.full((3, 5), 2.0))
        self.transform = transform

    def __call__(self, x):
        def run(model, x):
            model.weight[...] = model.weight[...] / jnp.linalg.norm(model.weight[...])
            return x @ model.weight

        return self.transform(run)(self, x)


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit, nnx.remat], ids=["plain", "jit", "remat"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_parameters_that_a_call_assigns_are_kept_and_never_dropped(transform, compiled):
    own, module = Normed(transform), br.from_nnx(Normed(transform))
    run = (jax.jit if compiled else lambda function: function)(lambda module: module.apply(X))
    out, after = run(module)
    np.testing.assert_allclose(out, own(X), rtol=1e-5)
    np.testing.assert_allclose(after.at["params.weight"].get(), own.weight[...], rtol=1e-6)
    assert message(DroppedStateError, lambda: module(X)).startswith("this call updates params.weight,")


@pytest.mark.parametrize("how", [br.remat, lambda child: lambda x: br.vmap(child)(x[None])])
def test_parameters_assigned_inside_a_transform_of_bridge_are_refused(how):
    over = Over(br.from_nnx(Normed()), lambda child, x: how(child)(x))
    assert message(TraceError, lambda: over.apply(X)) == (
        "child assigns its parameters inside a transform, through which only state is carried; call it"
        " outside of one, or make a Variable of what it assigns"
    )


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_a_linen_module_in_tonnx_follows_the_mode_and_keeps_its_collections():
    own = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0, dropout=1)).lazy_init(X)
    module = br.from_nnx(own)
    assert "params.Dense_0.kernel" in arrays(module)
    out, after = module.apply(X, mode="train", mutable=["batch_stats"])
    assert (out == own(X, train=True, mutable=["batch_stats"])).all()
    mean = after.at["state.batch_stats.BatchNorm_0.mean"].get()
    assert (mean == own.BatchNorm_0["mean"][...]).all()
    assert (after.apply(X)[0] == own(X)).all()


def test_a_linen_module_in_tonnx_that_lacks_something_says_what_to_type():
    fix = (
        ". A Linen module in nnx.bridge.ToNNX has variables after nnx.bridge.lazy_init(model, *sample),"
        ' and changes those of the collections that its call names: mutable=["batch_stats"]'
    )
    lazy = br.from_nnx(nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)))
    text = message(ModelError, lambda: lazy.apply(X))
    assert text.startswith('the root module, __call__: Tried to access "kernel"')
    assert text.endswith(fix)
    module = br.from_nnx(nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)).lazy_init(X))
    text = message(ModelError, lambda: module.apply(X, mode="train"))
    assert text.startswith('the root module, __call__: Cannot update variable "mean"')
    assert text.endswith(fix)


# Arguments and results


class Several(nnx.Module):
    def __init__(self):
        self.inner = nnx.Linear(3, 5, rngs=nnx.Rngs(0))

    def __call__(self, x, *, power=1, scale):
        return {"out": self.inner(x) ** power * scale, "shape": x.shape}

    def twice(self, x):
        return self.inner(x), (self.inner(x), None)


def test_methods_keywords_static_arguments_and_trees_of_outputs():
    own, module = Several(), br.from_nnx(Several())
    run = jax.jit(
        lambda module, x, scale, power: module(x, power=power, scale=scale)["out"], static_argnums=3
    )
    for power in (1, 2):
        np.testing.assert_allclose(
            run(module, X, 3.0, power), own(X, power=power, scale=3.0)["out"], rtol=1e-5
        )
    assert module(X, scale=1)["shape"] == (7, 3)
    for out in (module.twice(X), module.apply(X, method="twice")[0]):
        assert jax.tree.structure(out) == jax.tree.structure(own.twice(X))
        assert all(
            (a == b).all()
            for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(own.twice(X)), strict=True)
        )
