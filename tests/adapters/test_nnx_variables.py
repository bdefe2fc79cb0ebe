"""Every type of NNX Variable has its kind, and what a Variable carries beside its array is kept."""

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

nnx = pytest.importorskip("flax.nnx")

X = jax.random.normal(jax.random.key(3), (7, 3))


class Scale(nnx.Param):
    pass


class Ema(nnx.Variable):
    pass


@nnx.register_variable_name("test_nnx_registered")
class Registered(nnx.Variable):
    pass


class OtherStat(nnx.BatchStat):
    pass


class Holding(nnx.Module):
    """A module of given attributes."""

    def __init__(self, **attributes):
        for name, value in attributes.items():
            setattr(self, name, value)

    def __call__(self, x):
        return x


def listing(module: Any) -> dict[str, str]:
    return {join(entry.path): entry.kind.collection or entry.kind.name for entry in entries(module)}


def held(**attributes: Any) -> Any:
    return br.from_nnx(Holding(**attributes))


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


ONES = jnp.ones(3)
KINDS = {
    "Param": (lambda: nnx.Param(ONES), {"params.v": "parameter"}),
    "a type of Params": (lambda: Scale(ONES), {"params.v": "parameter"}),
    "LoRAParam": (lambda: nnx.LoRAParam(ONES), {"params.v": "parameter"}),
    "BatchStat": (lambda: nnx.BatchStat(ONES), {"state.batch_stats.v": "batch_stats"}),
    "a type of BatchStats": (lambda: OtherStat(ONES), {"state.OtherStat.v": "OtherStat"}),
    "Cache": (lambda: nnx.Cache(ONES), {"state.cache.v": "cache"}),
    "Variable": (lambda: nnx.Variable(ONES), {"state.Variable.v": "Variable"}),
    "a type of one's own": (lambda: Ema(ONES), {"state.Ema.v": "Ema"}),
    "a registered type": (
        lambda: Registered(ONES),
        {"state.test_nnx_registered.v": "test_nnx_registered"},
    ),
    "Intermediate": (lambda: nnx.Intermediate(ONES), {}),
    "Perturbation": (lambda: nnx.Perturbation(ONES), {}),
    "a key": (lambda: nnx.RngKey(jax.random.key(0), tag="a"), {"state.rngs.v": "rngs"}),
    "a stream": (
        lambda: nnx.RngStream(0, tag="a"),
        {"state.rngs.v.count": "rngs", "state.rngs.v.key": "rngs"},
    ),
    "an array": (lambda: ONES, {"state.arrays.v": "arrays"}),
    "a NumPy array": (lambda: np.ones(3), {"state.arrays.v": "arrays"}),
    "a tree of arrays": (
        lambda: nnx.data({"a": ONES, "b": [np.ones(3), "text", abs]}),
        {"state.arrays.v.a": "arrays", "state.arrays.v.b.0": "arrays"},
    ),
    "a metric": (
        lambda: nnx.metrics.Average(),
        {"state.MetricState.v.count": "MetricState", "state.MetricState.v.total": "MetricState"},
    ),
    "a Variable that holds a tree": (
        lambda: nnx.Param({"a": ONES, "b": (ONES, None)}),
        {"params.v.a": "parameter", "params.v.b.0": "parameter"},
    ),
    "a Variable that holds None": (lambda: nnx.Param(None), {}),
    "a Variable that holds a number": (lambda: Ema(0), {"state.Ema.v": "Ema"}),
    "a dict with tuples for keys": (
        lambda: nnx.data({("a", "b"): nnx.BatchStat(ONES)}),
        {"state.batch_stats.v.a.b": "batch_stats"},
    ),
    "a Dict with a dot in a key": (
        lambda: nnx.Dict({"a.b": nnx.Param(ONES)}),
        {"params.v.a\\.b": "parameter"},
    ),
    "an attribute that is no data": (lambda: {"a": [1, 2.5], "b": "text"}, {}),
}


@pytest.mark.parametrize("case", KINDS)
def test_every_kind_of_attribute_has_its_kind_and_is_given_back(case):
    make, expected = KINDS[case]
    own = Holding(v=make())
    module = br.from_nnx(own)
    assert listing(module) == expected
    assert (jax.jit(lambda module: module(X))(module) == X).all()
    native = module.native()
    if expected and not isinstance(own.v, np.ndarray):
        assert type(native.v) is type(own.v)
        assert jax.tree.structure(nnx.state(native)) == jax.tree.structure(nnx.state(own))


def test_a_type_of_parameters_keeps_its_type_through_training():
    module = held(v=Scale(ONES))
    optimizer = br.Optimizer(optax.sgd(0.1)).init(module)
    module, _ = optimizer.step(module.parameters(), module)
    assert type(module.native().v) is Scale
    np.testing.assert_allclose(module.native().v[...], 0.9 * ONES)


class Dictish(nnx.Module):
    def __init__(self):
        self.seen = Ema({"sum": jnp.zeros(3), "calls": 0, "nothing": None})
        self.scale = nnx.Param({"one": jnp.full(3, 2.0)})

    def __call__(self, x):
        self.seen["sum"] = self.seen["sum"] + x.sum(0)
        self.seen.set_value({**self.seen.get_value(), "calls": self.seen["calls"] + 1})
        return x * self.scale["one"]


def test_a_tree_in_a_variable_is_threaded_leaf_by_leaf():
    own, module = Dictish(), br.from_nnx(Dictish())
    run = jax.jit(lambda module: module.apply(X))
    for _ in range(2):
        out, module = run(module)
        assert (out == own(X)).all()
    assert run._cache_size() == 1
    np.testing.assert_allclose(module.native().seen["sum"], own.seen["sum"], rtol=1e-6)
    assert module.native().seen["calls"] == own.seen["calls"] == 2
    grads = br.grad(lambda module: module.apply(X)[0].sum())(module)
    np.testing.assert_allclose(grads.params["scale"]["one"], X.sum(0), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Variable hooks are deprecated:UserWarning")
def test_hooks_run_in_each_call_and_the_array_behind_them_is_kept():
    class Hooked(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(ONES, on_get_value=lambda variable, value: 2 * value)
            self.sum = nnx.Variable(ONES, on_set_value=lambda variable, value: value + 1)

        def __call__(self, x):
            self.sum[...] = self.sum[...] + x.sum(0)
            return x * self.scale[...]

    own = Hooked()
    module = br.from_nnx(own)
    out, module = module.apply(X)
    assert (out == own(X)).all()
    assert (module.at["state.Variable.sum"].get() == own.sum.get_raw_value()).all()
    assert (module.at["params.scale"].get() == ONES).all()


def test_a_type_with_a_value_of_its_own_is_read_as_it_means():
    class Doubled(nnx.Param):
        def get_value(self, **options):
            return 2 * super().get_value(**options)

    class Net(nnx.Module):
        def __init__(self):
            self.scale = Doubled(ONES)

        def __call__(self, x):
            return x * self.scale[...]

    module = br.from_nnx(Net())
    assert (module(X) == 2 * X).all()
    assert (module.at["params.scale"].get() == ONES).all()


class First:
    class Ema(nnx.Variable):
        pass


params = type("params", (nnx.Variable,), {})

REFUSED = {
    "two types of one name": (
        lambda: {"a": Ema(ONES), "b": First.Ema(ONES)},
        "state.Ema.b: another type of Variables is named 'Ema' as well; give this one a name of its"
        " own: nnx.register_variable_name('...', First.Ema)",
    ),
    "a type named params": (
        lambda: {"a": params(ONES)},
        "params.a: another type of Variables is named 'params' as well; give this one a name of its"
        " own: nnx.register_variable_name('...', params)",
    ),
    "text and functions": (
        lambda: {"a": nnx.Param({"w": ONES, "f": abs}), "b": nnx.data("text")},
        "params.a: holds a builtin_function_or_method, no array; make it a plain attribute\n"
        "  state.arrays.b: holds a str, no array; make it a plain attribute",
    ),
    "a Ref": (
        lambda: {"a": nnx.Param(ONES, ref=True)},
        "params.a: was made with hijax=True or ref=True; make it without",
    ),
    "a Module": (
        lambda: {"a": nnx.data([br.from_nnx(Holding(v=ONES))])},
        "a.0: is a NnxModule, whose arrays are no nnx.Param, so that nothing trains them; make it an"
        " NNX module: bridge.to_nnx(bridge.wrap(model))",
    ),
    "one path twice": (
        lambda: {"a": nnx.data({("b",): {"c": nnx.Param(ONES)}, ("b", "c"): nnx.Param(ONES)})},
        "params.a.b.c: is the path of several Variables\n"
        "  params.a.b.c: is the path of several Variables",
    ),
    "a path below a path": (
        lambda: {"a": nnx.data({("b",): nnx.Param(ONES), ("b", "c"): nnx.Param(ONES)})},
        "params.a.b: is the path of several Variables",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_with_every_path(case):
    make, text = REFUSED[case]
    assert message(ModelError, lambda: held(**make())) == f"this Holding cannot be wrapped:\n  {text}"


def test_modes_that_have_other_variables_are_refused():
    class Lazy(nnx.Module):
        def train(self, **attributes):
            super().train(**attributes)
            self.cache = nnx.Cache(ONES)

        def eval(self, **attributes):
            super().eval(**attributes)
            del self.cache

    assert message(ModelError, lambda: br.from_nnx(Lazy())) == (
        "this Lazy cannot be wrapped:\n"
        "  train() and eval() change which Variables it has; make them all in __init__"
    )


# Metadata and sharding


def annotated(**metadata: Any) -> Any:
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"), **metadata)
    return nnx.Linear(3, 4, kernel_init=init, rngs=nnx.Rngs(0))


def step(module: Any, optimizer: Any) -> Any:
    return optimizer.step(br.grad(lambda module: (module(X) ** 2).sum())(module), module)


@pytest.mark.parametrize("on_mesh", [False, True], ids=["no mesh", "mesh"])
def test_annotations_are_kept_through_jit_optax_save_and_load(on_mesh, tmp_path):
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=axes)
    with jax.set_mesh(mesh), nnx.use_eager_sharding(on_mesh):
        module = br.from_nnx(annotated(axis="features"))
        optimizer = br.Optimizer(optax.adam(1e-2)).init(module)
        for _ in range(2):
            module, optimizer = jax.jit(step)(module, optimizer)
        br.save(tmp_path / "net.safetensors", module)
        for twin in (module, br.load(tmp_path / "net.safetensors", module)):
            kernel = twin.native().kernel
            assert kernel.get_metadata("out_sharding") == (None, "model")
            assert kernel.get_metadata("axis") == "features"
            spec = nnx.get_partition_spec(nnx.state(twin.native()))["kernel"].get_value()
            assert spec == jax.sharding.PartitionSpec(None, "model")
            assert (kernel[...].sharding.spec == spec) is on_mesh


def test_metadata_that_cannot_be_hashed_is_kept_and_compiled_once():
    class Masked(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(ONES, mask=jnp.array([1.0, 0.0, 1.0]), note={"a": 1})

        def __call__(self, x):
            return x * self.scale * self.scale.mask

    module = br.from_nnx(Masked())
    run = jax.jit(lambda module: module.apply(X)[0])
    for _ in range(2):
        assert (run(jax.tree.map(lambda leaf: leaf * 1, module)) == Masked()(X)).all()
    assert run._cache_size() == 1
    assert module.native().scale.get_metadata("note") == {"a": 1}


def test_metadata_that_a_call_writes_is_refused():
    class Noting(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(ONES, calls=0)

        def __call__(self, x):
            self.scale.set_metadata(calls=self.scale.calls + 1)
            return x * self.scale

    assert message(StructureError, lambda: br.from_nnx(Noting())(X)) == (
        "the root module is another NNX module after the call than before:\n"
        "  params.scale: its metadata were assigned\n"
        "Make each Variable in __init__, and keep in Variables what changes from call to call"
    )


def test_an_abstract_model_is_wrapped_and_filled_by_load(tmp_path):
    module = br.from_nnx(nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    abstract = br.from_nnx(nnx.eval_shape(lambda: nnx.Linear(3, 5, rngs=nnx.Rngs(1))))
    assert abstract.at["params.kernel"].get() == jax.ShapeDtypeStruct((3, 5), jnp.float32)
    br.save(tmp_path / "net.safetensors", module)
    assert (br.load(tmp_path / "net.safetensors", abstract)(X) == module(X)).all()


def test_a_state_that_changes_its_shape_is_refused_with_its_path():
    class Growing(nnx.Module):
        def __init__(self):
            self.rows = Ema(jnp.zeros((2, 3)))

        def __call__(self, x):
            self.rows.set_value(jnp.concatenate([self.rows[...], x]))

    text = message(StructureError, lambda: br.from_nnx(Growing()).apply(X))
    assert "state.Ema.rows: was float32[2, 3], was assigned float32[9, 3]" in text
