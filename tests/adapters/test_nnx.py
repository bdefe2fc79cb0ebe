"""What is peculiar to NNX: its graph, its kinds of Variables, and random streams of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import DroppedStateError, ModelError, StructureError, TraceError
from bridge.core.paths import fingerprint, join
from bridge.core.tree import entries
from bridge.core.wrapped import Wrapped

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (7, 3))


class Net(nnx.Module):
    """Two dropouts, so two streams; the last layer is the first one again."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.tied = self.layers[0]
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for layer in (*self.layers, self.tied):
            x = layer(x)
        return self.second(self.first(self.norm(x)))


def net() -> Any:
    return Net(nnx.Rngs(0, dropout=1))


def listing(module: Any) -> list[str]:
    return [join(entry.path) for entry in entries(module)]


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_rng_the_modules_own_streams_draw_as_in_nnx_and_advance():
    own, module = net(), br.from_nnx(net())
    own.train()
    run = jax.jit(lambda module: module.apply(X, mode="train"))
    outs, expected = [], []
    for _ in range(3):
        out, module = run(module)
        outs.append(out)
        expected.append(own(X))
    for out, wanted in zip(outs, expected, strict=True):
        np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
        assert ((out == 0) == (wanted == 0)).all()
    assert not (outs[0] == outs[1]).all()
    assert int(module.at["state.rngs.first.rngs.count"].get()) == 3
    assert run._cache_size() == 1


def test_a_call_of_the_module_alone_would_drop_the_advance_of_its_streams():
    module = br.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0))).train()
    assert message(DroppedStateError, lambda: module(X)) == (
        "this call updates state.rngs.rngs.count, and calling the module gives only its output: the"
        " update would be lost. Type `out, module = module.apply(...)`"
    )


def test_an_explicit_rng_seeds_each_stream_by_its_path_and_leaves_the_modules_own_alone():
    module = br.from_nnx(net())
    out, after = module.apply(X, rng=KEY, mode="train")
    own = net()
    own.train()
    for name in ("first", "second"):
        stream = getattr(own, name).rngs
        stream.key[...] = jax.random.fold_in(KEY, fingerprint((name, "rngs")))
    assert (out == own(X)).all()
    for name in ("count", "key"):
        path = f"state.rngs.first.rngs.{name}"
        assert after.at[path].get() is module.at[path].get()


def test_a_named_stream_seeds_the_streams_of_that_name_only():
    class Two(nnx.Module):
        def __init__(self):
            self.rngs = nnx.Rngs(dropout=0, noise=1)

        def __call__(self):
            return self.rngs.dropout.uniform(()), self.rngs.noise.uniform(())

    module = br.from_nnx(Two())
    own = module.apply()[0]
    (dropout, noise), after = module.apply(rng={"noise": KEY})
    assert dropout == own[0]
    assert noise != own[1]
    assert int(after.at["state.rngs.rngs.dropout.count"].get()) == 1
    assert int(after.at["state.rngs.rngs.noise.count"].get()) == 0


def test_the_given_object_is_never_changed():
    given = net()
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(given, nnx.Param, nnx.BatchStat))]
    graph = nnx.graphdef(given)
    module = br.from_nnx(given)
    _, module = module.apply(X, mode="train")
    module.native().norm.mean[...] += 1
    after = jax.tree.leaves(nnx.state(given, nnx.Param, nnx.BatchStat))
    assert same(before, after)
    assert nnx.graphdef(given) == graph
    given.layers[0].kernel[...] = jnp.zeros((3, 3))
    assert module.at["params.layers.0.kernel"].get().any()


def test_a_tie_inside_the_graph_is_one_leaf_and_its_gradients_add_up():
    module = br.from_nnx(net())
    assert [path for path in listing(module) if "tied" in path] == []
    native = module.native()
    assert native.tied is native.layers[0]

    def loss(model):
        return (model(X) ** 2).sum()

    grads = jax.jit(br.grad(loss))(module)
    native.eval()
    own = nnx.grad(loss)(native)
    np.testing.assert_allclose(
        grads.params["layers"]["0"]["kernel"], own["layers"][0]["kernel"][...], rtol=1e-5
    )


class Ema(nnx.Variable):
    pass


class Scale(nnx.Param):
    pass


class Kinds(nnx.Module):
    def __init__(self):
        self.scale = Scale(jnp.ones(3))
        self.ema = Ema(jnp.zeros(3))
        self.cache = nnx.Cache(jnp.zeros(3))
        self.table = nnx.data(jnp.arange(3.0))

    def __call__(self, x):
        self.ema[...] = 0.5 * self.ema[...] + x.sum(0)
        self.sow(nnx.Intermediate, "scaled", x * self.scale)
        return x * self.scale + self.table


def test_every_type_of_variable_has_its_collection():
    module = br.from_nnx(Kinds())
    assert listing(module) == [
        "params.scale",
        "state.Ema.ema",
        "state.arrays.table",
        "state.cache.cache",
    ]
    assert [entry.kind.collection for entry in entries(module)] == [None, "Ema", "arrays", "cache"]
    _, after = module.apply(X)
    np.testing.assert_array_equal(after.at["state.Ema.ema"].get(), X.sum(0))


def test_sown_values_come_by_capture_and_never_grow_the_state():
    module = br.from_nnx(Kinds())
    for _ in range(3):
        _, module = module.apply(X)
    captured = module.capture(X, paths=["intermediates.scaled"])
    assert len(captured["intermediates.scaled"]) == 1
    assert len(listing(module)) == 4


def test_parts_are_captured_by_path_and_a_second_call_by_number():
    class Twice(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(0))])

        def __call__(self, x):
            return self.layers[0](self.layers[0](x))

    module = br.from_nnx(Twice())
    captured = module.capture(X, paths=["layers.0"])
    assert list(captured) == ["layers.0", "layers.0#2"]
    assert (captured["layers.0#2"] == module(X)).all()


class Growing(nnx.Module):
    calls = 0

    def __init__(self, how):
        self.how = how

    def __call__(self, x):
        if self.how == "variable":
            self.late = nnx.Cache(x)
        else:
            self.calls = self.calls + 1
        return x


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("variable", "state.cache.late: made by the call"),
        ("attribute", "calls: is no Variable and was assigned"),
    ],
)
def test_a_graph_that_changes_in_a_call_is_refused(how, line):
    module = br.from_nnx(Growing(how))
    assert message(StructureError, lambda: module.apply(X)) == (
        f"the root module is another NNX module after the call than before:\n  {line}\n"
        "Make each Variable in __init__, and keep in Variables what changes from call to call"
    )


class Over(br.Module):
    child: br.Module
    how: Any

    def __call__(self, x):
        return self.how(self.child, x)


@pytest.mark.parametrize("rng", [None, KEY], ids=["own streams", "explicit rng"])
def test_each_example_of_a_lifted_vmap_has_a_mask_of_its_own(rng):
    dropout = br.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    over = Over(dropout, lambda child, x: br.vmap(child)(x))
    out, _ = over.apply(jnp.ones((2, 11)), rng=rng, mode="train")
    assert not (out[0] == out[1]).all()


def test_own_streams_refuse_to_draw_under_a_raw_transform():
    over = Over(br.from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0))), lambda child, x: jax.vmap(child)(x))
    text = message(TraceError, lambda: over.apply(jnp.ones((2, 11)), mode="train"))
    assert text.startswith("child writes its state 'state' inside a JAX transform")


def test_native_is_a_new_module_in_the_modules_mode():
    module = br.from_nnx(net())
    assert module.native() is not module.native()
    assert module.native().first.deterministic
    assert not module.train().native().norm.use_running_average


def test_the_train_flag_of_a_call_follows_the_mode():
    class Flagged(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x, training):
            return self.scale * (x if training else -x)

    module = br.from_nnx(Flagged())
    assert (module(X) == -X).all()
    assert (module.train()(X) == X).all()
    assert (module.train()(X, False) == -X).all()


def test_a_cycle_in_the_graph_is_allowed():
    class Child(nnx.Module):
        def __init__(self, parent):
            self.parent, self.shift = parent, nnx.Param(jnp.ones(3))

    class Parent(nnx.Module):
        def __init__(self):
            self.child = Child(self)

        def __call__(self, x):
            return x + self.child.parent.child.shift

    assert (br.from_nnx(Parent())(X) == X + 1).all()


def test_methods_are_called_by_name():
    embed = br.from_nnx(nnx.Embed(11, 3, rngs=nnx.Rngs(0)))
    assert embed.attend(X).shape == (7, 11)
    assert (embed.apply(X, method="attend")[0] == embed.native().attend(X)).all()
    assert message(AttributeError, lambda: embed.decode) == (
        "the wrapped Embed has no method 'decode'; its arrays are read by path:"
        " module.at['params...'].get()"
    )


REFUSED = {
    "a class": (
        lambda: nnx.Linear,
        "from_nnx was given the class Linear; make it first: from_nnx(Linear(..., rngs=nnx.Rngs(0)))",
    ),
    "a Linen module": (
        lambda: nn.Dense(5),
        "from_nnx takes a flax.nnx.Module; it was given a Dense; wrap it with bridge.wrap(model)",
    ),
    "a bridge module": (
        lambda: br.from_nnx(net()),
        "from_nnx was given a NnxModule, which is a bridge.Module already",
    ),
    "a number": (lambda: 3, "from_nnx takes a flax.nnx.Module; it was given a int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_nnx_module_is_refused_with_the_fix(case):
    make, text = REFUSED[case]
    assert message(ModelError, lambda: br.from_nnx(make())) == text


@pytest.mark.parametrize("make", [lambda: nn.Dense(5), net], ids=["linen", "nnx"])
def test_wrap_finds_the_adapter_of_each_half_of_flax(make):
    module = br.wrap(make())
    assert isinstance(module, Wrapped)
    assert br.wrap(module) is module
