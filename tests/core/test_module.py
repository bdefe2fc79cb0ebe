"""Fields and kinds, the generated __init__, containers, statics, and the pytree side."""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import pickle
import threading
import typing
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import FieldError, ImmutableError, SharingError
from bridge.core.node import spec_of
from bridge.core.tree import entries

zeros = jax.nn.initializers.zeros


class Dense(br.Module):
    w: br.Parameter
    b: br.Parameter | None

    def __init__(self, n_in, n_out, bias=True):
        self.w = jnp.ones((n_in, n_out))
        self.b = jnp.zeros(n_out) if bias else None

    def __call__(self, x):
        return x @ self.w if self.b is None else x @ self.w + self.b


class Every(br.Module):
    """One field of each kind."""

    child: br.Module
    scale: br.Parameter
    steps: br.State
    cache: Annotated[jax.Array, br.collection("cache")]
    noise: br.Key
    name: str


class Pair(br.Module):
    first: br.Module
    second: br.Module

    def __call__(self, x):
        return self.second(self.first(x))


class Holder(br.Module):
    value: object


class Weights(br.Module):
    value: br.Parameter


def every(name="net"):
    return Every(Dense(3, 5), jnp.ones(2), 0, jnp.zeros(7), jax.random.key(0), name)


def kinds(module):
    return {".".join(e.path): (e.kind.name, e.kind.collection) for e in entries(module)}


KINDS = {
    "child.w": ("parameter", None),
    "child.b": ("parameter", None),
    "scale": ("parameter", None),
    "steps": ("state", "state"),
    "cache": ("state", "cache"),
    "noise": ("key", None),
}


def test_kinds_are_what_the_annotations_say():
    assert kinds(every()) == KINDS


def test_a_kind_does_not_come_from_the_dtype():
    class Odd(br.Module):
        integer: br.Parameter
        floating: br.State

    assert kinds(Odd(3, 2.5)) == {"integer": ("parameter", None), "floating": ("state", "state")}


def test_leaves_are_arrays_and_nothing_else():
    leaves = jax.tree.leaves(every())
    assert len(leaves) == 6
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


@pytest.mark.parametrize(
    ("annotation", "value", "count"),
    [
        ("list[br.Module]", [Dense(3, 5), Dense(5, 7)], 4),
        ("tuple[Dense, ...]", (Dense(3, 5), Dense(5, 7)), 4),
        ("dict[str, br.Module]", {"b": Dense(3, 5), "a": Dense(5, 7)}, 4),
        ("list[dict[str, Dense]]", [{"x": Dense(3, 5)}, {}], 2),
        ("list['Dense']", [Dense(3, 5)], 2),
        ("typing.Optional[Dense]", None, 0),
        ("Dense | None", Dense(3, 5), 2),
        ("br.Parameter | None", None, 0),
        ("list[br.Parameter]", [jnp.ones(3), jnp.ones(5)], 2),
        ("dict[str, list[br.Parameter]]", {"b": [jnp.ones(3)], "a": [1.0, 2.0]}, 3),
        ("tuple[br.State, ...]", (1, 2, 3), 3),
        ("typing.Callable[[br.Module], int]", len, 0),
        ("typing.Literal['br.Module']", "br.Module", 0),
        ("type[br.Module]", Dense, 0),
    ],
)
def test_annotations_as_strings_and_containers(annotation, value, count):
    class Net(br.Module):
        field: annotation

    Net.__annotations__["field"] = annotation
    net = Net(value)
    assert len(jax.tree.leaves(net)) == count


def test_string_annotations_in_a_function_find_their_neighbours():
    class Inner(br.Module):
        w: br.Parameter

    class Outer(br.Module):
        inner: Inner
        parts: list[Inner]
        after: Outer | None = None

    inner = Inner(1.0)
    net = Outer(inner, [Inner(2.0)], Outer(Inner(3.0), []))
    assert [float(leaf) for leaf in jax.tree.leaves(net)] == [1.0, 2.0, 3.0]


def test_a_generic_module_and_a_bounded_variable_are_children():
    part = typing.TypeVar("part", bound=br.Module)

    class Box(br.Module, typing.Generic[part]):
        inside: part

    class Net(br.Module):
        box: Box[Dense]

    assert len(jax.tree.leaves(Net(Box(Dense(3, 5))))) == 2


def test_class_variables_are_no_fields():
    class Net(br.Module):
        rate: ClassVar[float] = 0.5
        w: br.Parameter

    assert Net(1.0).rate == 0.5
    assert len(jax.tree.leaves(Net(1.0))) == 1


def test_a_generated_init_takes_positions_keywords_and_defaults():
    class Net(br.Module):
        width: int
        depth: int = 2
        names: list = dataclasses.field(default_factory=lambda: ["a"])
        scale: br.Parameter = dataclasses.field(default=1.5)
        label: str = dataclasses.field(default="x", kw_only=True)
        area: int = dataclasses.field(init=False)

        def __post_init__(self):
            self.area = self.width * self.depth

    net = Net(3, depth=5, label="y")
    assert (net.width, net.depth, net.names, net.label, net.area) == (3, 5, ("a",), "y", 15)
    assert float(net.scale) == 1.5
    assert Net(3).depth == 2


def test_fields_are_inherited_and_overridden():
    class Base(br.Module):
        w: br.Parameter
        rate: float = 0.5

    class Sub(Base):
        extra: br.State
        rate: float = 0.25

    assert Sub(1.0, 2).rate == 0.25
    assert Base(1.0).rate == 0.5
    assert kinds(Sub(1.0, 2)) == {"w": ("parameter", None), "extra": ("state", "state")}


def test_a_parent_init_runs_through_super():
    class Base(br.Module):
        w: br.Parameter

        def __init__(self):
            self.w = self.made(3)

        def made(self, size):
            return jnp.ones(size)

    class Sub(Base):
        b: br.Parameter

        def __init__(self):
            super().__init__()
            self.b = self.w * 2

    assert Sub().b.tolist() == [2, 2, 2]


def test_functions_stand_among_children():
    net = Pair(jnp.negative, Pair(Dense(3, 5), jax.nn.relu))
    assert net(jnp.ones((2, 3))).tolist() == [[0] * 5] * 2
    assert len(jax.tree.leaves(net)) == 2


@pytest.mark.parametrize("layers", [{"stem": jnp.sin, "body": jnp.cos, "head": jnp.tanh}])
def test_a_dict_keeps_its_order_through_jax(layers):
    class Net(br.Module):
        layers: dict[str, br.Module]
        weights: dict[str, br.Parameter]

    net = Net(layers, {"z": 1.0, "a": 2.0})
    for module in (net, jax.tree.map(lambda leaf: leaf, net), jax.jit(lambda m: m)(net)):
        assert list(module.layers) == ["stem", "body", "head"]
        assert list(module.weights) == ["z", "a"]


# What must not be, with its text.


def test_an_undeclared_attribute(refuses):
    class Net(br.Module):
        scale: br.Parameter

        def __init__(self, name):
            setattr(self, name, 1.0)

    with refuses(
        FieldError,
        "Net.scal is not declared. Did you mean 'scale'? Declare it in the class body, for example"
        " `scal: bridge.Parameter` (trained), `scal: bridge.State` (carried), `scal: bridge.Module`"
        " (a child) or `scal: int` (static)",
    ):
        Net("scal")


def test_a_field_that_is_never_set(refuses):
    class Net(br.Module):
        scale: br.Parameter

        def __init__(self):
            pass

    with refuses(FieldError, "Net.scale is declared and never set in __init__"):
        Net()


def test_a_field_that_is_read_too_early(refuses):
    class Net(br.Module):
        scale: br.Parameter

        def __init__(self):
            self.scale = self.scale * 2

    with refuses(AttributeError, "Net.scale is read before `__init__` has set it"):
        Net()


@pytest.mark.parametrize("value", [jnp.ones((3, 5)), np.ones((3, 5), np.float32)])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda a: a,
        lambda a: [1, a],
        lambda a: {"x": (a,)},
        lambda a: collections.namedtuple("T", "a")(a),
    ],
)
def test_an_array_in_a_static_field(value, wrap, refuses):
    with refuses(
        FieldError,
        "Holder.value is a static field and holds an array (float32[3, 5]); arrays are leaves:"
        " annotate the field as bridge.Parameter or bridge.State",
    ):
        Holder(wrap(value))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: [m], lambda m: {"a": [m]}])
def test_a_module_in_a_static_field(wrap, refuses):
    with refuses(
        FieldError,
        "Holder.value is a static field and holds a module; annotate it as `value: bridge.Module`,"
        " `list[bridge.Module]` or `dict[str, bridge.Module]`",
    ):
        Holder(wrap(Dense(3, 5)))


def test_a_static_value_without_a_hash(refuses):
    with refuses(
        FieldError,
        "Holder.value is a static field, part of what jax.jit compares, and holds a bytearray that"
        " has no hash: unhashable type: 'bytearray'; use a hashable value",
    ):
        Holder(bytearray(3))


@pytest.mark.parametrize(("value", "what"), [(3.0, "an array"), (Dense(3, 5), "a module")])
def test_an_annotation_that_names_nothing(value, what, refuses):
    class Net(br.Module):
        field: Missing  # noqa: F821

    if what == "an array":
        value = jnp.array(value)
    with refuses(
        FieldError,
        "Net.field is annotated as 'Missing', which names nothing that exists where the class was"
        f" made, so the field counts as static, and it holds {what}. Define or import the name"
        " before the class, and not under `if TYPE_CHECKING:`",
    ):
        Net(value)
    assert Net("a string").field == "a string"


def test_two_kinds_in_one_field(refuses):
    class Net(br.Module):
        both: dict[str, br.Parameter | br.State]

    with refuses(
        FieldError,
        "Net.both mixes parameter and state in one annotation; a field has one kind: declare two"
        " fields",
    ):
        Net({})


@pytest.mark.parametrize("name", ["mode", "rng", "update", "at", "_rng", "_state"])
def test_a_field_with_a_name_of_the_module(name, refuses):
    with refuses(
        FieldError,
        f"Net.{name} cannot be a field: every bridge.Module has {name!r} of its own; give the field"
        " another name",
    ):
        type(br.Module)("Net", (br.Module,), {"__annotations__": {name: int}})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "a str ('a')"),
        (["a"], "a str ('a')"),
        (np.array(["a"]), "a ndarray (array(['a'], dtype='<U1'))"),
    ],
)
def test_no_array_in_a_parameter(value, shown, refuses):
    with refuses(
        FieldError,
        f"Weights.value holds {shown}; a parameter, state or key is an array, a bridge.ParamInit, or"
        " a tree of them: annotate anything else as what it is",
    ):
        Weights(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "holds a int (3); give it a bridge.Module or a function"),
        (Dense, "holds the class Dense; give it a module: call the class"),
    ],
)
def test_no_module_in_a_child(value, text, refuses):
    if value is Dense:
        text = f"Pair.first {text}"
    else:
        text = f"Pair.first is declared as a module and {text}"
    with refuses(FieldError, text):
        Pair(value, Dense(3, 5))


def test_an_alias_of_another_tree_is_no_child(refuses):
    dense = Dense(3, 3)
    both = Pair(dense, dense)
    with refuses(
        SharingError,
        "Pair.second was given what stands for a shared module in another tree; give it the module"
        " itself: whole.at[path].get()",
    ):
        Pair(Dense(3, 3), both.second)
    assert len(jax.tree.leaves(Pair(Dense(3, 3), both.at["second"].get()))) == 4


@pytest.mark.parametrize("keys", [{1: 1.0, 2: 2.0}, {"1": 1.0, 1: 2.0}])
def test_dict_keys_are_strings(keys, refuses):
    odd = ", ".join(repr(key) for key in keys if not isinstance(key, str))
    with refuses(
        FieldError,
        "a dict in a Module has strings for its keys, which are part of the paths; it was given " + odd,
    ):
        Weights(keys)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "Holder(value): missing a required argument: 'value'"),
        ((1, 2), {}, "Holder(value): too many positional arguments"),
        ((1,), {"x": 2}, "Holder(value): got an unexpected keyword argument 'x'"),
    ],
)
def test_wrong_arguments(args, kwargs, text, refuses):
    with refuses(FieldError, text):
        Holder(*args, **kwargs)


@pytest.mark.parametrize(
    ("shape", "initializer"), [(3, zeros), ((3, 5), np.ones((3, 5))), ((3,), None)]
)
def test_a_param_init_of_something_else(shape, initializer, refuses):
    with refuses(
        FieldError,
        "ParamInit takes a shape and an initializer: ParamInit((3, 5), jax.nn.initializers.zeros); it"
        f" was given {shape!r} and {initializer!r}",
    ):
        br.ParamInit(shape, initializer)


def test_immutable_outside_of_calls(refuses):
    net = every()
    with refuses(
        ImmutableError,
        "Every.scale cannot be assigned: a Module never changes. Use module ="
        " module.at['scale'].set(value), or assign a State field inside apply",
    ):
        net.scale = 1.0
    with refuses(ImmutableError, "Every.scale cannot be deleted: a Module never changes"):
        del net.scale
    with pytest.raises(FieldError, match=r"^Every.sclae is not declared. Did you mean 'scale'\?"):
        net.sclae = 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(a=1),
        lambda d: d.pop("a"),
        lambda d: d.__setitem__("a", 1),
        lambda d: d.clear(),
        lambda d: d.setdefault("b", 1),
    ],
)
def test_a_dict_in_a_module_never_changes(change, refuses):
    module = Weights({"a": 1.0})
    with refuses(
        ImmutableError,
        "a dict inside a Module cannot be changed in place; assign a new one to the field:"
        " self.field = {**self.field, key: value}",
    ):
        change(module.value)


# Statics: interned by value.

TWIN = collections.namedtuple("TWIN", "a")
OTHER_TWIN = collections.namedtuple("OTHER_TWIN", "a")
ALIKE = [
    1,
    1.0,
    True,
    0.0,
    -0.0,
    False,
    0,
    1 + 0j,
    complex(1, -0.0),
    np.float32(1),
    np.float64(1),
    "1",
    b"1",
    None,
]
NESTED = [
    *((value,) for value in ALIKE),
    *({"a": value} for value in ALIKE),
    {1: 0},
    {1.0: 0},
    {True: 0},
    frozenset([1]),
    frozenset([1.0]),
    TWIN(1),
    TWIN(1.0),
    OTHER_TWIN(1),
    abs,
    max,
    jnp.float32,
    jnp.dtype("float32"),
]


def test_static_values_that_only_seem_equal_are_different():
    values = ALIKE + NESTED
    for position, one in enumerate(values):
        for other_position, other in enumerate(values):
            equal = jax.tree.structure(Holder(one)) == jax.tree.structure(Holder(other))
            assert equal == (position == other_position), (one, other)


@pytest.mark.parametrize("value", ALIKE + NESTED, ids=repr)
def test_equal_builds_have_the_same_spec(value):
    again = copy.deepcopy(value)
    one, other = Holder(value), Holder(again)
    assert spec_of(one) is spec_of(other)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))
    assert type(one.value) is type(other.value)


def test_nan_is_equal_to_itself_among_statics():
    assert spec_of(Holder(float("nan"))) is spec_of(Holder(float("nan")))


def test_a_spec_is_hashed_without_its_values():
    class Slow:
        hashed = 0

        def __hash__(self):
            Slow.hashed += 1
            return 3

        def __eq__(self, other):
            return isinstance(other, Slow)

    treedef = jax.tree.structure(Holder(Slow()))
    before = Slow.hashed
    hash(treedef)
    assert treedef == jax.tree.structure(jax.tree.unflatten(treedef, []))
    assert Slow.hashed == before


def test_the_pool_of_specs_is_weak():
    class Token:
        pass

    import weakref

    token = Token()
    seen = weakref.ref(token)
    module = Holder(token)
    del module, token
    gc.collect()
    assert seen() is None


def test_static_containers_cannot_change():
    given = {"sizes": [3, 5], "names": {"a"}}
    module = Holder(given)
    given["sizes"].append(7)
    assert dict(module.value) == {"sizes": (3, 5), "names": frozenset("a")}
    with pytest.raises(TypeError):
        module.value["sizes"] = ()


# The pytree side.


@pytest.mark.parametrize(
    "leaf", [None, object(), "text", (3, 5), jax.ShapeDtypeStruct((3,), jnp.float32), [1, [2]]]
)
def test_nothing_is_validated_in_unflatten(leaf):
    treedef = jax.tree.structure(every())
    module = jax.tree.unflatten(treedef, [leaf] * 6)
    assert module.scale is leaf
    assert module.child.w is leaf


def test_tree_map_to_shapes():
    shapes = jax.tree.map(jnp.shape, every())
    assert (shapes.child.w, shapes.cache, shapes.steps) == ((3, 5), (7,), ())


def test_tracers_stand_in_fields():
    seen = []
    jax.jit(lambda m: seen.append(m.scale) or m)(every())
    assert isinstance(seen[0], jax.core.Tracer)


def test_key_paths_are_the_field_names():
    keyed, _ = jax.tree_util.tree_flatten_with_path(every())
    assert jax.tree_util.keystr(keyed[0][0]) == ".child.w"


@pytest.mark.parametrize("value", [3, 3.0, True, jnp.asarray(3.0), np.float32(3), np.int64(3)])
def test_no_leaf_is_weakly_typed(value):
    leaf = Weights(value).value
    assert isinstance(leaf, jax.Array)
    assert not leaf.weak_type


def test_numpy_arrays_are_copied_and_jax_arrays_are_not():
    given = np.ones(3, np.float32)
    kept = Weights(given)
    given[:] = 5
    assert kept.value.tolist() == [1, 1, 1]
    array = jnp.ones(3)
    assert Weights(array).value is array


def test_a_module_brought_to_the_host_is_trained_all_the_same():
    host = jax.device_get(Dense(3, 5))
    assert isinstance(host.w, np.ndarray)
    assert len(jax.tree.leaves(host.parameters())) == 2


def test_plain_dispatch_compiles_once():
    calls = []

    @jax.jit
    def step(module):
        calls.append(1)
        return jax.tree.map(lambda leaf: leaf + 1, module)

    def build():
        return Pair(Dense(3, 5), Dense(5, 7))

    module = step(step(build()))
    step(build())
    step(jax.tree.map(lambda leaf: leaf, module))
    step(pickle.loads(pickle.dumps(build())))
    assert len(calls) == 1
    assert step._cache_size() == 1
    step(Pair(Dense(3, 5), Dense(5, 7, bias=False)))
    assert step._cache_size() == 2


def test_copies_and_pickles():
    module = every()
    assert copy.copy(module) is module
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert jax.tree.structure(again) == jax.tree.structure(module)
        assert again.child.w.tolist() == module.child.w.tolist()


def test_a_class_can_be_used_first_by_many_threads():
    for _ in range(20):

        class Fresh(br.Module):
            w: br.Parameter
            name: str = "x"

        errors = []
        start = threading.Barrier(8)

        def work(cls=Fresh, start=start, errors=errors):
            start.wait()
            try:
                jax.tree.leaves(cls(np.float32(3)))
            except Exception as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


def test_a_prefix_tree_has_one_entry_for_a_child():
    class Line(br.Module):
        slope: br.Parameter
        offset: br.Parameter

        def __call__(self, x):
            return x * self.slope + self.offset

    class Pair(br.Module):
        first: br.Module
        second: br.Module
        scale: br.Parameter

        def __call__(self, x):
            return self.second(self.first(x)) * self.scale

    pair = Pair(Line(jnp.arange(3.0), jnp.ones(3)), Line(2.0, 1.0), 5.0)

    def prefix(of_first, of_others):
        def entry(part):
            return of_first if part is pair.first else of_others

        return jax.tree.map(entry, pair, is_leaf=lambda part: isinstance(part, Line))

    axes = prefix(0, None)
    out = jax.vmap(lambda pair, x: pair(x), in_axes=(axes, None))(pair, 2.0)
    np.testing.assert_array_equal(out, [15, 35, 55])
    again = jax.vmap(lambda pair: pair.apply(2.0)[1], in_axes=(axes,), out_axes=axes)(pair)
    np.testing.assert_array_equal(again.first.slope, [0, 1, 2])
    assert again.second.slope.shape == ()
    mesh = jax.make_mesh((1,), ("x",))
    places = prefix(
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")),
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    )
    moved = jax.jit(lambda pair: pair, out_shardings=places)(pair)
    assert moved.first.offset.sharding.spec == jax.sharding.PartitionSpec("x")
    assert moved.second.offset.sharding.spec == jax.sharding.PartitionSpec()
