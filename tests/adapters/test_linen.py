"""What is peculiar to Linen: its collections, what fits them, and what a wrapped module is."""

import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import ModelError, StructureError
from bridge.core.paths import join
from bridge.core.tree import entries
from tests.adapters.linen_made import KEY, X, made, message, same

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
freeze = pytest.importorskip("flax.core").freeze


def listing(module: Any) -> list[str]:
    return [join(entry.path) for entry in entries(module)]


# Collections


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("w", nn.initializers.ones, (3,))
        seen = self.variable("seen", "w", jnp.zeros, (3,))
        if not self.is_initializing():
            seen.value = seen.value + x.sum(0)
        return x * kernel


def test_the_same_path_in_two_collections_is_two_leaves():
    module = made(Twice())
    assert listing(module) == ["params.w", "state.seen.w"]
    out, after = module.apply(X)
    own, updates = Twice().apply(module.native(), X, mutable=["seen"])
    assert same((out, after.native()["seen"]), (own, updates["seen"]))
    np.testing.assert_array_equal(after.at["state.seen.w"].get(), X.sum(0))


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
    assert module.init(KEY, jnp.zeros((1, 7, 6))) is module


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
        "Make them in init as well; what a call only gives out is sown, and read by"
        " module.capture(..., paths=[...])"
    )
    module = made(Late("memory"))
    assert message(ModelError, lambda: module.apply(X)) == MISFIT.format(
        'Tried to access "late" from collection "memory" in "/" but the collection is empty.'
    )


class Shared(nn.Module):
    """The same part called twice, and one part held by two others."""

    first: nn.Module
    second: nn.Module

    @nn.compact
    def __call__(self, x):
        again = nn.Dense(3, name="again")
        return self.second(self.first(again(again(x))))


class Holder(nn.Module):
    part: nn.Module

    def __call__(self, x):
        return self.part(x)


class Extended(nn.Module):
    """Adds a parameter to the scope of another module."""

    base: nn.Module

    def setup(self):
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x):
        return self.base(x) + self.param("more", nn.initializers.ones, (3,))


def test_parts_that_linen_shares_are_shared():
    part = nn.Dense(3)
    model = Shared(Holder(part), Holder(part))
    module = made(model)
    assert listing(module) == [
        "params.again.bias",
        "params.again.kernel",
        "params.first.part.bias",
        "params.first.part.kernel",
    ]
    assert same(module.native(), model.init(KEY, X))
    assert same(module(X), model.apply(module.native(), X))
    joint = made(Extended(nn.Dense(3)))
    assert listing(joint) == ["params.bias", "params.kernel", "params.more"]
    assert same(joint(X), Extended(nn.Dense(3)).apply(joint.native(), X))


# Boxes


class Boxed(nn.Module):
    box: Any

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(5, kernel_init=self.box(nn.initializers.lecun_normal(), ("in", "out")))(x)
        mean = self.variable("stats", "mean", self.box(lambda: jnp.zeros(5), ("out",)))
        if train:
            mean.value = mean.value + x.mean(0)
        return x


@pytest.mark.parametrize("box", [nn.with_partitioning, nn.with_logical_partitioning])
def test_boxes_stay_in_params_and_state_through_jit_grad_optax_and_files(box, tmp_path):
    module = made(Boxed(box))
    assert listing(module) == [
        "params.Dense_0.bias",
        "params.Dense_0.kernel.value",
        "state.stats.mean.value",
    ]
    assert same(module.native(), Boxed(box).init(KEY, X))
    out, after = jax.jit(lambda module: module.apply(X, mode="train"))(module)
    own = jax.jit(lambda tree: Boxed(box).apply(tree, X, True, mutable=["stats"]))(module.native())
    assert same((out, after.native()["stats"]), (own[0], own[1]["stats"]))

    @jax.jit
    def step(module):
        grads = br.grad(lambda module: (module(X) ** 2).sum())(module)
        return br.Optimizer(optax.adam(0.1)).init(module).step(grads, module)[0]

    trained = step(after)
    assert jax.tree.structure(trained) == jax.tree.structure(module)
    br.save(tmp_path / "boxed.safetensors", trained)
    assert same(br.load(tmp_path / "boxed.safetensors", module), trained)
    specs = nn.get_partition_spec(trained.native())
    assert specs["params"]["Dense_0"]["kernel"] == jax.sharding.PartitionSpec("in", "out")
    assert specs["stats"]["mean"] == jax.sharding.PartitionSpec("out")


def test_arrays_without_their_boxes_fit_and_misfits_in_boxes_are_told_by_their_names():
    boxed = made(Boxed(nn.with_partitioning))
    plain = br.from_linen(Boxed(nn.with_partitioning), nn.meta.unbox(boxed.native()))
    assert same(plain(X), boxed(X))
    assert plain.init(KEY, X) is not plain
    assert same(plain.init(KEY, X).native(), plain.native())
    given = {"params": {"Dense_0": {"kernel": jnp.ones((3, 7))}}}
    module = br.from_linen(Boxed(nn.with_partitioning), given)
    assert message(ModelError, lambda: module(X)) == MISFIT.format(
        "params.Dense_0.bias: missing; the model makes float32[5]\n"
        "  state.stats.mean: missing; the model makes float32[5]\n"
        "  params.Dense_0.kernel: is float32[3, 7]; the model makes float32[3, 5]"
    )


# Given variables


def test_given_variables_are_kept_and_given_back():
    variables = nn.BatchNorm(use_running_average=True).init(KEY, X)
    module = br.from_linen(nn.BatchNorm(), variables)
    assert jax.tree.structure(module.native()) == jax.tree.structure(variables)
    assert module.native()["params"]["scale"] is variables["params"]["scale"]
    again = module.init(KEY, X)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(module), strict=True))


@pytest.mark.parametrize("frozen", [freeze, lambda tree: {"params": freeze(tree["params"])}])
def test_frozen_dicts_are_dicts(frozen):
    variables = nn.Dense(5).init(KEY, X)
    module = br.from_linen(nn.Dense(5), frozen(variables))
    assert jax.tree.structure(module) == jax.tree.structure(br.from_linen(nn.Dense(5), variables))
    assert same(module(X), nn.Dense(5).apply(variables, X))


def test_a_bound_module_brings_its_own_variables():
    variables = nn.Dense(5).init(KEY, X)
    module = br.from_linen(nn.Dense(5).bind(variables))
    assert module.native()["params"]["kernel"] is variables["params"]["kernel"]
    assert jax.tree.structure(module) == jax.tree.structure(br.from_linen(nn.Dense(5), variables))
    whole = Shared(Holder(nn.Dense(7)), Holder(nn.Dense(3)))
    bound = whole.bind(whole.init(KEY, X))
    part = br.from_linen(bound.first)
    assert listing(part) == ["params.part.bias", "params.part.kernel"]
    assert same(part(X), bound.first(X))


MISFIT = (
    "the variables of the root module do not fit the model and its input:\n"
    "  {}\n"
    "Give from_linen what the model's own init makes, or none and call module.init(key, *sample); what"
    " only another method needs is made by module.init(key, *sample, method=...)"
)
ONES = {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}


def test_variables_that_do_not_fit_are_told_together_at_the_call_and_by_init():
    params = {"kernel": jnp.ones((7, 5)), "bias": jnp.ones(2, jnp.int8)}
    module = br.from_linen(nn.Dense(5), {"params": params})
    told = MISFIT.format(
        "params.bias: is int8[2]; the model makes float32[5]\n"
        "  params.kernel: is float32[7, 5]; the model makes float32[3, 5]"
    )
    assert message(ModelError, lambda: module(X)) == told
    assert message(ModelError, lambda: module.init(KEY, X)) == told


def test_integers_for_a_float_parameter_are_refused_though_linen_takes_them():
    module = br.from_linen(nn.Dense(5), {"params": {**ONES, "kernel": jnp.ones((3, 5), jnp.int8)}})
    told = MISFIT.format("params.kernel: is int8[3, 5]; the model makes float32[3, 5]")
    assert message(ModelError, lambda: module(X)) == told
    assert message(ModelError, lambda: module.init(KEY, X)) == told


def test_a_parameter_that_the_model_makes_of_integers_may_be_one():
    class Table(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + self.param("shift", lambda _: jnp.arange(3))

    module = made(Table())
    assert same(module(X), Table().apply(module.native(), X))


def test_another_precision_is_the_users_choice():
    half = {"params": {**ONES, "kernel": jnp.ones((3, 5), jnp.bfloat16)}}
    module = br.from_linen(nn.Dense(5), half)
    assert module.init(KEY, X).native()["params"]["kernel"] is half["params"]["kernel"]
    assert same(module(X), nn.Dense(5).apply(half, X))


def test_a_missing_collection_is_told_at_the_call_and_made_by_init():
    params = {"params": {"scale": 2 * jnp.ones(3), "bias": jnp.ones(3)}}
    module = br.from_linen(nn.BatchNorm(), params)
    assert message(ModelError, lambda: module(X)) == MISFIT.format(
        "state.batch_stats.mean: missing; the model makes float32[3]\n"
        "  state.batch_stats.var: missing; the model makes float32[3]"
    )
    whole = module.init(KEY, X)
    assert whole.native()["params"]["scale"] is params["params"]["scale"]
    assert same(whole(X), nn.BatchNorm(use_running_average=True).apply(whole.native(), X))


def test_statistics_of_another_shape_are_refused_by_init():
    stats = {"mean": jnp.zeros(1), "var": jnp.ones(3)}
    params = {"scale": jnp.ones(3), "bias": jnp.ones(3)}
    module = br.from_linen(nn.BatchNorm(), {"params": params, "batch_stats": stats})
    assert message(ModelError, lambda: module.init(KEY, X)) == MISFIT.format(
        "state.batch_stats.mean: is float32[1]; the model makes float32[3]"
    )


VARIABLES = {
    "no collections": (
        {"params": jnp.ones(3)},
        'variables are collections by name, {"params": ..., "batch_stats": ...}, as module.init makes'
        " them; from_linen was given PyTreeDef({'params': *})",
    ),
    "params below params": (
        {"params": {"params": ONES}},
        'variables have "params" below "params", which Linen refuses; from_linen takes {"params": ...}'
        " once",
    ),
    "perturbations": (
        {"params": ONES, "perturbations": {"p": jnp.ones(3)}},
        "variables have 'perturbations' that are not known to be zero, and would be lost; leave that"
        " collection out, and read what passes there by module.capture(..., paths=[...])",
    ),
}


@pytest.mark.parametrize("case", VARIABLES)
def test_variables_of_another_form_are_refused(case):
    variables, text = VARIABLES[case]
    assert message(ModelError, lambda: br.from_linen(nn.Dense(5), variables)) == text


# The module itself


class Constant(nn.Module):
    table: Any

    def __call__(self, x):
        return x + self.table


BOUND = nn.Dense(5).bind({"params": ONES})
REFUSED = {
    "a class": (
        (nn.Dense,),
        "from_linen was given the class Dense; make it first: from_linen(Dense(...))",
    ),
    "an NNX module": (
        (nnx.Linear(3, 5, rngs=nnx.Rngs(0)),),
        "from_linen takes a flax.linen.Module; it was given a Linear; wrap it with bridge.wrap(model)",
    ),
    "a bridge module": (
        (br.from_linen(nn.Dense(5)),),
        "from_linen was given a LinenModule, which is a bridge.Module already",
    ),
    "a number": ((3,), "from_linen takes a flax.linen.Module; it was given a int"),
    "a bound module and variables": (
        (BOUND, {"params": ONES}),
        "from_linen was given a Dense that is bound to variables, and variables besides; give one of"
        " them: from_linen(bound), or from_linen(bound.unbind()[0], variables)",
    ),
    "an array and a bound module among the attributes": (
        (nn.Sequential([Constant(jnp.ones(3)), BOUND]),),
        "Sequential cannot be wrapped:\n"
        "  Sequential.layers.table: an array among the attributes would be compiled in and never"
        " trained; hand it to the call, or make it a variable\n"
        "  Sequential.layers: a module bound to variables, which Linen would make anew; give it"
        " unbound, and its variables under the name of the attribute",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_wrapped_is_refused_with_the_fix(case):
    given, text = REFUSED[case]
    assert message(ModelError, lambda: br.from_linen(*given)) == text


def treedef(model: Any) -> Any:
    return jax.tree.structure(br.from_linen(model))


@pytest.mark.parametrize("table", [1, 1.0, {"a": 3}, [3, 5], nn.relu, None])
def test_models_built_alike_share_one_treedef(table):
    assert treedef(Constant(table)) == treedef(Constant(table))
    assert treedef(nn.Sequential([Constant(table)])) == treedef(nn.Sequential([Constant(table)]))


def test_what_linen_takes_for_equal_and_runs_otherwise_is_not_mixed_up():
    constants = [br.from_linen(Constant(table), {}) for table in (1, 1.0, True)]
    outs = [constant(jnp.zeros(3, bool)) for constant in constants]
    assert [out.dtype for out in outs] == [jnp.int32, jnp.float32, bool]
    part = nn.Dense(3)
    assert treedef(nn.Sequential([part, part])) != treedef(nn.Sequential([nn.Dense(3), nn.Dense(3)]))
    assert treedef(Constant(0.0)) != treedef(Constant(-0.0))
    assert treedef(nn.Dense(3, name="a")) != treedef(nn.Dense(3, name="b"))


def test_arguments_and_outputs_are_what_the_method_takes_and_gives():
    class Free(nn.Module):
        @nn.compact
        def __call__(self, batch, *, power, name: str):
            out = nn.Dense(5)(batch["x"]) ** power
            return {name: out, "pair": (out, None), "text": name}

    module = br.from_linen(Free()).init(KEY, {"x": X}, power=2, name="y")
    out = module({"x": X}, power=3, name="z")
    own = Free().apply(module.native(), {"x": X}, power=3, name="z")
    assert out.pop("text") == own.pop("text") == "z"
    assert same(out, own)


def test_a_module_with_default_functions_is_pickled_into_another_process(tmp_path):
    layer = nn.Dense(3)
    module = made(nn.Sequential((layer, nn.relu, layer, nn.gelu)))
    (tmp_path / "module.pickle").write_bytes(pickle.dumps(module))
    program = (
        "import pickle, sys, pathlib, numpy; folder = pathlib.Path(sys.argv[1]);"
        "module = pickle.loads((folder / 'module.pickle').read_bytes());"
        "numpy.save(folder / 'out.npy', module(numpy.load(folder / 'x.npy')))"
    )
    np.save(tmp_path / "x.npy", X)
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), module(X))
    twin = pickle.loads(pickle.dumps(module))
    assert jax.tree.structure(twin) == jax.tree.structure(module)
    assert listing(br.from_linen(twin.model.value).init(KEY, X)) == listing(module)
