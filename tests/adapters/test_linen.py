"""What is peculiar to Linen: collections, streams, flags, and what it says about a misfit."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import MissingRngError, ModelError, StructureError
from bridge.core.paths import join
from bridge.core.tree import entries
from bridge.core.wrapped import Opaque

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (2, 3))


def made(module: Any, *args: Any, **kwargs: Any) -> Any:
    return br.from_linen(module).init(KEY, *(args or (X,)), **kwargs)


def listing(module: Any) -> list[str]:
    return [join(entry.path) for entry in entries(module)]


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(5)(x)
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_init_gives_bit_for_bit_what_linens_own_init_does():
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), made(Noisy()).native(), Noisy().init(KEY, X))
    )
    named = {"params": KEY, "noise": jax.random.key(7)}
    wrapped = br.from_linen(Noisy()).init(named, X, mode="train").native()
    own = Noisy().init({**named, "dropout": KEY}, X, True)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), wrapped, own))


def test_named_streams_go_to_linen_by_name():
    module = made(Noisy())
    keys = {"noise": jax.random.key(7), "dropout": jax.random.key(11)}
    out, _ = module.apply(X, rng=keys, mode="train")
    assert (out == Noisy().apply(module.native(), X, True, rngs=keys)).all()


def test_a_missing_stream_is_named_with_those_that_were_given():
    module = made(Noisy())
    call = lambda: module.apply(X, rng={"dropout": KEY}, mode="train")  # noqa: E731
    assert message(MissingRngError, call) == (
        "the root module draws from the stream 'noise'; the streams given are 'dropout'. Give it a"
        " key: rng={'noise': key, ...}, or \"default\" to serve every stream"
    )


def test_the_same_path_in_two_collections_is_two_leaves():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("w", nn.initializers.ones, (3,))
            seen = self.variable("seen", "w", jnp.zeros, (3,))
            if not self.is_initializing():
                seen.value = seen.value + x.sum(0)
            return x * kernel

    module = made(Twice())
    assert listing(module) == ["params.w", "state.seen.w"]
    _, after = module.apply(X)
    np.testing.assert_array_equal(after.at["state.seen.w"].get(), X.sum(0))


def test_sown_values_come_by_capture_and_never_grow_the_state():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(5, name="first")(x)
            self.sow("intermediates", "hidden", x)
            return self.perturb("offset", x)

    module = made(Sowing())
    assert listing(module) == ["params.first.bias", "params.first.kernel"]
    for _ in range(3):
        _, module = module.apply(X)
    captured = module.capture(X, paths=["first", "intermediates.hidden"])
    assert (captured["intermediates.hidden"][0] == captured["first"]).all()
    assert len(captured["intermediates.hidden"]) == 1


class Late(nn.Module):
    collection: str

    @nn.compact
    def __call__(self, x):
        self.variable("cache", "always", jnp.zeros, (3,))
        if not self.is_initializing():
            self.variable(self.collection, "late", jnp.zeros, (3,))
        return x


def test_a_variable_made_after_init_is_refused_with_its_collection():
    module = br.from_linen(Late("cache"), Late("cache").init(KEY, X))
    assert message(StructureError, lambda: module.apply(X)) == (
        "the root module has other variables after the call than before:\n"
        "  cache.late: made by the call, not by init\n"
        "Make them in init as well; what grows from call to call (sow) belongs into the collection"
        ' "intermediates", which module.capture(..., paths=[...]) reads'
    )
    module = made(Late("memory"))
    assert message(ModelError, lambda: module.apply(X)) == (
        'the root module: the variables do not fit the model. Tried to access "late" from collection'
        ' "memory" in "/" but the collection is empty. Give from_linen what the model\'s own init'
        " makes, or none and call module.init(key, *sample); what only another method uses is made by"
        " module.init(key, *sample, method=...)"
    )


def test_variables_of_another_shape_are_refused_at_the_call():
    module = br.from_linen(nn.Dense(5), {"params": {"kernel": jnp.ones((7, 5)), "bias": jnp.ones(5)}})
    assert message(ModelError, lambda: module(X)).startswith(
        'the root module: the variables do not fit the model. For parameter "kernel" in "/", the given'
        " initializer is expected to generate shape (3, 5), but the existing parameter it received has"
        " shape (7, 5)."
    )


def test_given_variables_are_kept_and_given_back():
    variables = nn.BatchNorm(use_running_average=True).init(KEY, X)
    module = br.from_linen(nn.BatchNorm(), variables)
    assert jax.tree.structure(module.native()) == jax.tree.structure(variables)
    assert module.native()["params"]["scale"] is variables["params"]["scale"]
    again = module.init(KEY, X)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(module), strict=True))


class Flagged(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic: bool | None = None):
        return nn.Dropout(0.5)(x, deterministic=nn.merge_param("d", self.deterministic, deterministic))


def test_the_train_flag_follows_the_mode_unless_it_was_given_or_built_in():
    module = made(Flagged())
    assert (module.apply(X)[0] == X).all()
    assert (module.apply(X, rng=KEY, mode="train")[0] == 0).any()
    assert (module.apply(X, deterministic=True, mode="train")[0] == X).all()
    assert (module.apply(X, True, mode="train")[0] == X).all()
    assert (made(Flagged(deterministic=True)).apply(X, mode="train")[0] == X).all()


def test_partitioned_boxes_stay_in_the_tree():
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    module = made(nn.Dense(5, kernel_init=boxed))
    assert listing(module) == ["params.bias", "params.kernel.value"]
    assert module.native()["params"]["kernel"].names == ("in", "out")
    assert module(X).shape == (2, 5)


def test_two_methods_are_made_by_one_init_and_called_by_name():
    class Coder(nn.Module):
        def setup(self):
            self.encoder, self.decoder = nn.Dense(5), nn.Dense(3)

        def encode(self, x):
            return self.encoder(x)

        def decode(self, z):
            return self.decoder(z)

    module = br.from_linen(Coder())
    module = module.init(KEY, X, method=lambda m, x: m.decode(m.encode(x)))
    own = Coder().init(KEY, X, method=lambda m, x: m.decode(m.encode(x)))
    assert jax.tree.structure(module.native()) == jax.tree.structure(own)
    assert module.encode(X).shape == (2, 5)
    assert (
        module.apply(X, method="encode")[0] == Coder().apply(module.native(), X, method="encode")
    ).all()


def test_a_decoding_cache_is_state_in_eval_too():
    attention = nn.MultiHeadDotProductAttention(2, qkv_features=6, decode=True, deterministic=True)
    steps = jax.random.normal(KEY, (7, 1, 1, 6))
    module = made(attention, jnp.zeros((1, 7, 6)))
    own = attention.init(KEY, jnp.zeros((1, 7, 6)))
    for x in steps[:3]:
        expected, updates = attention.apply(own, x, mutable=["cache"])
        out, module = module.apply(x)
        own = {**own, **updates}
        np.testing.assert_array_equal(out, expected)
    assert int(module.at["state.cache.cache_index"].get()) == 3


def test_models_built_alike_share_one_treedef_and_a_dict_among_the_fields_is_allowed():
    class Widths(nn.Module):
        widths: dict

        def __call__(self, x):
            return x

    assert jax.tree.structure(made(nn.Dense(5))) == jax.tree.structure(made(nn.Dense(5)))
    widths = Widths({"a": 3})
    assert jax.tree.structure(made(widths)) == jax.tree.structure(made(widths))


def test_a_pickled_model_is_hashed_anew():
    stale = Opaque(Flagged())
    stale.hashed = 7
    assert hash(pickle.loads(pickle.dumps(stale))) == hash(Opaque(Flagged()))
    module = made(Flagged())
    assert jax.tree.structure(pickle.loads(pickle.dumps(module))) == jax.tree.structure(module)


class Constant(nn.Module):
    table: Any

    def __call__(self, x):
        return x + self.table


REFUSED = {
    "a class": (
        lambda: nn.Dense,
        "from_linen was given the class Dense; make it first: from_linen(Dense(...))",
    ),
    "an NNX module": (
        lambda: nnx.Linear(3, 5, rngs=nnx.Rngs(0)),
        "from_linen takes a flax.linen.Module; it was given a Linear; wrap it with bridge.wrap(model)",
    ),
    "a bridge module": (
        lambda: br.from_linen(nn.Dense(5)),
        "from_linen was given a LinenModule, which is a bridge.Module already",
    ),
    "a number": (lambda: 3, "from_linen takes a flax.linen.Module; it was given a int"),
    "a bound module": (
        lambda: nn.Dense(5).bind({"params": {}}),
        "from_linen was given a Dense that is bound to variables; part them:"
        " module, variables = module.unbind(), and then from_linen(module, variables)",
    ),
    "an array among the attributes": (
        lambda: nn.Sequential([Constant(jnp.ones(3))]),
        "Sequential.layers.table: an array among the attributes of a Linen module would be compiled"
        " in and never trained; hand it to the call, or make it a variable",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_unbound_linen_module_is_refused_with_the_fix(case):
    make, text = REFUSED[case]
    assert message(ModelError, lambda: br.from_linen(make())) == text


def test_variables_that_are_no_collections_are_refused():
    call = lambda: br.from_linen(nn.Dense(5), {"params": jnp.ones(3)})  # noqa: E731
    assert message(ModelError, call) == (
        'variables are collections by name, {"params": ..., "batch_stats": ...}, as module.init makes'
        " them; from_linen was given PyTreeDef({'params': *})"
    )


def test_lifted_layers_of_linen_draw_as_in_linen():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            rngs = {"params": False, "dropout": True}
            layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs=rngs, length=5)
            return layers()(x, None)[0]

    module = br.from_linen(Stack()).init(KEY, X)
    out, _ = jax.jit(lambda module: module.apply(X, rng=KEY))(module)
    own = jax.jit(lambda variables: Stack().apply(variables, X, rngs={"dropout": KEY}))
    np.testing.assert_array_equal(out, own(module.native()))
