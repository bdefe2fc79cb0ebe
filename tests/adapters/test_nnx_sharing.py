"""What an NNX graph shares stays shared in a Module, and nothing is shared with the wrapped object."""

import copy
import pickle
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import CheckpointError, SharingError, StructureError
from bridge.core.leaves import Tied
from bridge.core.paths import join
from bridge.core.tree import entries

nnx = pytest.importorskip("flax.nnx")

X = jax.random.normal(jax.random.key(3), (7, 3))
IDS = jnp.array([2, 3, 5, 7])


class Tying(nnx.Module):
    """One module at two places, and one Variable at two."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 3, rngs=rngs)
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.again = self.first
        self.head = self.embed.embedding

    def __call__(self, ids):
        x = self.again(self.norm(nnx.relu(self.first(self.embed(ids)))))
        return x @ self.head[...].T


class Twins(nnx.Module):
    """Two Variables of one array, which are not tied for NNX."""

    def __init__(self):
        self.one = nnx.Param(jnp.linspace(0.5, 1.5, 3))
        self.other = nnx.Param(self.one[...])

    def __call__(self, x):
        return x * self.one + self.other


def tying() -> Any:
    return Tying(nnx.Rngs(0))


def is_tied(model: Any) -> bool:
    return model.again is model.first and model.head is model.embed.embedding


@jax.jit
def step(module: Any, optimizer: Any) -> Any:
    def loss_of(module):
        out, after = module.apply(IDS, mode="train")
        return (out**2).sum(), after

    (_, module), grads = br.value_and_grad(loss_of, has_aux=True)(module)
    return optimizer.step(grads, module)


@nnx.jit
def native_step(model: Any, optimizer: Any) -> None:
    optimizer.update(model, nnx.grad(lambda model: (model(IDS) ** 2).sum())(model))


@pytest.fixture(scope="module")
def trained() -> Any:
    module = br.from_nnx(tying())
    optimizer = br.Optimizer(optax.adam(1e-2)).init(module)
    for _ in range(2):
        module, optimizer = step(module, optimizer)
    return module


def numbers(model: Any) -> list[Any]:
    return jax.tree.leaves(nnx.state(model, nnx.Param, nnx.BatchStat))


def assert_near(first: Any, second: Any) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Ties


def test_a_shared_module_and_a_shared_variable_are_one_leaf_each():
    assert [join(entry.path) for entry in entries(br.from_nnx(tying()))] == [
        "params.again.bias",  # NNX takes attributes in the order of their names
        "params.again.kernel",
        "params.embed.embedding",
        "params.norm.bias",
        "params.norm.scale",
        "state.batch_stats.norm.mean",
        "state.batch_stats.norm.var",
    ]


def test_gradients_of_what_is_shared_add_up_as_in_nnx():
    own = tying()
    own.eval()
    native = nnx.grad(lambda model: (model(IDS) ** 2).sum())(own)
    grads = jax.jit(br.grad(lambda module: (module(IDS) ** 2).sum()))(br.from_nnx(own))
    assert_near(jax.tree.leaves(grads), jax.tree.leaves(native))


def test_sharing_survives_training_with_optax_and_gives_what_nnx_gives(trained):
    own = tying()
    own.train()
    optimizer = nnx.Optimizer(own, optax.adam(1e-2), wrt=nnx.Param)
    for _ in range(2):
        native_step(own, optimizer)
    assert_near(numbers(trained.native()), numbers(own))
    assert is_tied(trained.native())


def test_sharing_survives_save_load_pickle_and_a_deep_copy(trained, tmp_path):
    br.save(tmp_path / "net.safetensors", trained)
    twins = [
        br.load(tmp_path / "net.safetensors", trained),
        br.load(tmp_path / "net.safetensors", br.from_nnx(tying())),
        pickle.loads(pickle.dumps(trained)),
        copy.deepcopy(trained),
    ]
    for twin in twins:
        assert is_tied(twin.native())
        assert all(map(np.array_equal, numbers(twin.native()), numbers(trained.native())))


def test_two_variables_of_one_array_are_two_until_bridge_ties_them(tmp_path):
    module = br.from_nnx(Twins())
    assert len(jax.tree.leaves(module)) == 2
    tied = br.tie(module, "params.other", "params.one")

    def loss(module):
        return (module(X) ** 2).sum()

    first, second = jax.tree.leaves(br.grad(loss)(module))
    (both,) = jax.tree.leaves(jax.jit(br.grad(loss))(tied))
    np.testing.assert_allclose(both, first + second, rtol=1e-5)
    br.save(tmp_path / "net.safetensors", tied)
    loaded = br.load(tmp_path / "net.safetensors", tied)
    assert isinstance(loaded.params.values[1], Tied)
    assert (loaded(X) == module(X)).all()


def test_a_tie_of_bridges_own_refuses_a_call_that_assigns_parameters():
    class Doubling(Twins):
        def __call__(self, x):
            self.one[...] = 2 * self.one[...]
            return x * self.one

    tied = br.tie(br.from_nnx(Doubling()), "params.other", "params.one")
    with pytest.raises(SharingError) as caught:
        tied.apply(X)
    assert str(caught.value) == (
        "the root module assigns parameters in a call, and has others that bridge.tie has tied, which"
        " would part; share one nnx.Param in the NNX module instead"
    )


def test_cycles_and_references_to_a_parent_are_kept():
    class Child(nnx.Module):
        def __init__(self, parent):
            self.parent, self.shift = parent, nnx.Param(jnp.ones(3))

    class Parent(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.full(3, 2.0))
            self.children = nnx.List([Child(self), Child(self)])

        def __call__(self, x):
            one, other = self.children
            return one.parent.scale * x + other.parent.children[0].shift

    module = br.from_nnx(Parent())
    assert (jax.jit(lambda module: module(X))(module) == 2 * X + 1).all()
    grads = br.grad(lambda module: module(X).sum())(module)
    np.testing.assert_allclose(grads.params["children"]["0"]["shift"], jnp.full(3, 7.0))
    native = module.native()
    assert native.children[0].parent is native


# Nothing that can be changed is shared


class Configured(nnx.Module):
    """Lists, dicts and sets among the attributes, which NNX shares between a model and its clones."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(3))
        self.config = {"factors": [2, 3], "names": {"a"}}

    def __call__(self, x):
        return x * self.scale * self.config["factors"][0]


def test_the_given_object_is_never_changed():
    given = Tying(nnx.Rngs(0))
    given.train()
    graph, arrays = nnx.graphdef(given), numbers(given)
    module = br.from_nnx(given)
    _, module = module.apply(IDS, mode="train")
    module.capture(IDS, paths=["*"])
    module.native().norm.mean[...] += 1
    assert nnx.graphdef(given) == graph
    assert all(now is before for now, before in zip(numbers(given), arrays, strict=True))


def test_the_given_object_and_the_module_go_their_own_ways():
    given = Configured()
    module = br.from_nnx(given)
    out = module(X)
    given.scale[...] = jnp.zeros(3)
    given.config["factors"][0] = 100
    assert (module(X) == out).all()
    native = module.native()
    native.scale[...] = 5.0
    native.config["names"].add("b")
    native.config["factors"].append(7)
    assert (module(X) == out).all()
    assert module.native().config == {"factors": [2, 3], "names": {"a"}}
    assert given.config == {"factors": [100, 3], "names": {"a"}}


def test_a_container_that_a_call_changes_is_refused_and_stays_as_it_was():
    class Noting(Configured):
        def __call__(self, x):
            self.config["factors"].append(x.shape[0])
            return x

    given = Noting()
    module = br.from_nnx(given)
    for _ in range(2):
        with pytest.raises(StructureError) as caught:
            module.apply(X)
        assert str(caught.value) == (
            "the root module is another NNX module after the call than before:\n"
            "  config.factors.2: is no Variable and was assigned\n"
            "Make each Variable in __init__, and keep in Variables what changes from call to call"
        )
    assert given.config["factors"] == [2, 3]


def test_attributes_without_a_hash_are_compared_by_value_and_cost_no_compilation(tmp_path):
    module = br.from_nnx(Configured())
    assert jax.tree.structure(module) == jax.tree.structure(br.from_nnx(Configured()))
    run = jax.jit(lambda module, x: module.apply(x))
    for _ in range(3):
        _, module = run(jax.tree.map(lambda leaf: leaf + 1, module), X)
    assert run._cache_size() == 1
    br.save(tmp_path / "net.safetensors", module)
    assert (br.load(tmp_path / "net.safetensors", br.from_nnx(Configured()))(X) == module(X)).all()
    assert (copy.deepcopy(module)(X) == pickle.loads(pickle.dumps(module))(X)).all()


@pytest.mark.parametrize("values", [(1, True), (1, 1.0), (0.0, -0.0), ([1], [True]), ((1,), [1])])
def test_two_models_that_python_takes_for_equal_are_two(values):
    class Holding(nnx.Module):
        def __init__(self, value):
            self.value = value

        def __call__(self):
            return repr(self.value)

    first, second = (br.from_nnx(Holding(value)) for value in values)
    assert jax.tree.structure(first) != jax.tree.structure(second)
    assert [first(), second()] == list(map(repr, values))


def test_a_function_without_a_name_among_the_layers_is_called_copied_and_never_pickled():
    module = br.from_nnx(nnx.Sequential(lambda x: 2 * x))
    assert (module(X) == 2 * X).all()
    assert (copy.deepcopy(module)(X) == 2 * X).all()
    with pytest.raises(CheckpointError, match=r"cannot be pickled: .*<lambda>"):
        pickle.dumps(module)


def test_native_after_training_trains_on_with_nnx(trained):
    model = trained.train().native()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    native_step(model, optimizer)
    expected, _ = step(trained, br.Optimizer(optax.adam(1e-2)).init(trained))
    assert_near(numbers(model), numbers(expected.native()))
    assert is_tied(model)


def test_threads_call_and_capture_one_module_without_a_trace_of_each_other():
    class Net(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(n)) for n in range(3)])

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            self.sow(nnx.Intermediate, "last", x)
            return x

    module, call = br.from_nnx(Net()), nnx.Linear.__call__
    native, expected, failures = module.native(), module(X), []
    wanted = ["intermediates.last", "layers.0", "layers.1", "layers.2"]

    def listen():
        for _ in range(5):
            captured = module.capture(X, paths=["layers.*", "intermediates.*"])
            if sorted(captured) != wanted or not (captured["layers.2"] == expected).all():
                failures.append(captured)

    def run():
        for _ in range(5):
            first = native.layers[0](X)
            if vars(native.layers[0]).keys() != vars(module.native().layers[0]).keys():
                failures.append(first)
            if not (module(X) == expected).all():
                failures.append(first)

    threads = [threading.Thread(target=target) for target in (listen, run, listen, run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert nnx.Linear.__call__ is call
