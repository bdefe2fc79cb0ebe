"""One list of behaviours, for every adapter."""

import copy
import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import bridge as br
from bridge.core.errors import DroppedStateError, MissingRngError, TraceError, UninitialisedError
from bridge.core.paths import join
from bridge.core.tree import entries
from tests.adapters.subjects import NATIVE, SUBJECTS, Subject, initialised, subject_of

KEYS = jax.random.split(jax.random.key(17), 3)
BLOCK_INPUTS = jax.random.normal(jax.random.key(19), (7, 5))
LAZY = ("linen", "haiku", "sprig")
# An NNX model has random streams of its own, and draws from them where a call brings no key.
KEYLESS = ("linen", "haiku", "equinox", "torch", "sprig")
natively = pytest.mark.parametrize("subject", NATIVE, indirect=True)


@pytest.fixture(params=SUBJECTS)
def subject(request) -> Subject:
    return subject_of(request.param)


@pytest.fixture
def module(subject) -> Any:
    return initialised(subject.library)


class Holder(br.Module):
    child: br.Module

    def __call__(self, x):
        return self.child(x)


class Pair(br.Module):
    first: br.Module
    second: br.Module

    def __call__(self, x):
        return self.first(x), self.second(x)


class Over(br.Module):
    """Runs a child under a transform, given as a function of the child and the input."""

    child: br.Module
    how: Any

    def __call__(self, x):
        return self.how(self.child, x)


@functools.partial(jax.jit, static_argnames="mode")
def step(module: Any, x: Any, key: Any, mode: str) -> tuple[Any, Any]:
    return module.apply(x, rng=key, mode=mode)


def another(module: Any) -> Any:
    """A second object with the same arrays."""
    return jax.tree.map(lambda leaf: leaf, module)


def numbers(tree: Any) -> list[np.ndarray]:
    def plain(leaf: Any) -> np.ndarray:
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)

    return [plain(leaf) for leaf in jax.tree.leaves(tree)]


def near(first: Any, second: Any) -> bool:
    """Whether two trees hold the same numbers up to rounding, in the same order."""
    pairs = zip(numbers(first), numbers(second), strict=True)
    return all(np.allclose(one, other, rtol=1e-5, atol=1e-5) for one, other in pairs)


def same(first: Any, second: Any) -> bool:
    """Whether two trees hold the same arrays bit for bit, in the same order."""
    first, second = numbers(first), numbers(second)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


# Making it


def test_init_under_jit_and_eval_shape_makes_the_same_structure(subject, module):
    sample = jax.ShapeDtypeStruct(subject.inputs.shape, subject.inputs.dtype)
    shapes = jax.eval_shape(lambda key: subject.build().init(key, sample), jax.random.key(5))
    assert jax.tree.structure(shapes) == jax.tree.structure(module)
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [
        leaf.shape for leaf in jax.tree.leaves(module)
    ]


def test_init_makes_the_same_values_eagerly(subject, module):
    eager = subject.build().init(jax.random.key(5), subject.inputs)
    for first, second in zip(numbers(eager), numbers(module), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_init_makes_the_same_parameters_for_an_abstract_sample(subject, module):
    sample = jax.ShapeDtypeStruct(subject.inputs.shape, subject.inputs.dtype)
    abstract = jax.jit(lambda key: subject.build().init(key, sample))(jax.random.key(5))
    assert same(abstract.parameters(), module.parameters())


def test_init_changes_nothing_that_is_initialised(subject, module):
    again = module.init(jax.random.key(99), subject.inputs, mode="train")
    assert jax.tree.structure(again) == jax.tree.structure(module)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(module), strict=True))


def test_init_deep_in_a_tree_takes_the_shapes_that_reach_it(subject, module):
    holder = Over(Holder(subject.build()), lambda child, x: child(x[0]))
    batches = jax.ShapeDtypeStruct((2, *subject.inputs.shape), subject.inputs.dtype)
    holder = jax.jit(lambda key: holder.init(key, batches))(jax.random.key(5))
    assert jax.tree.structure(holder.child.child) == jax.tree.structure(module)


@pytest.mark.parametrize("library", LAZY)
def test_a_call_before_init_says_what_to_type(library):
    subject = subject_of(library)
    with pytest.raises(UninitialisedError) as caught:
        Holder(subject.build()).apply(subject.inputs)
    assert str(caught.value) == (
        "child is not initialised; type module = module.init(key, *sample) first"
    )


# The library's own numbers


@natively
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_output_and_state_are_bit_for_bit_the_librarys_own(subject, module, mode):
    key = KEYS[0] if mode == "train" else None
    out, after = step(module, subject.inputs, key, mode)
    expected, state = subject.native(module, key, mode)
    assert same(out, expected)
    assert same(after.state, state)


@natively
def test_state_is_threaded_as_the_library_does_over_three_steps(subject, module):
    for key in KEYS:
        expected, state = subject.native(module, key, "train")
        out, after = step(module, subject.inputs, key, "train")
        assert same(out, expected)
        assert same(after.state, state)
        assert not same(after.state, module.state)
        module = after


@natively
def test_gradients_are_the_librarys_own(subject, module):
    def of_module(module):
        return (module.apply(subject.inputs, rng=KEYS[0], mode="train")[0] ** 2).sum()

    def of_params(params):
        return (subject.native(module.update(params), KEYS[0], "train")[0] ** 2).sum()

    expected = jax.jit(jax.grad(of_params))(module.parameters())
    grads = jax.jit(br.grad(of_module))(module)
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for first, second in zip(numbers(grads), numbers(expected), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    assert any(leaf.any() for leaf in numbers(grads))


# Random numbers


def test_dropout_differs_at_each_step_and_is_equal_for_equal_keys(subject, module):
    outs = [step(module, subject.inputs, key, "train")[0] for key in (*KEYS, KEYS[0])]
    assert same(outs[0], outs[3])
    assert not same(outs[0], outs[1])
    assert not same(outs[1], outs[2])


def test_a_legacy_key_and_a_named_stream_serve_as_well(subject, module):
    legacy = jax.random.PRNGKey(17)
    out, _ = step(module, subject.inputs, legacy, "train")
    typed, _ = step(module, subject.inputs, jax.random.key(17), "train")
    named, _ = step(module, subject.inputs, {"default": jax.random.key(17)}, "train")
    assert same(out, typed)
    assert same(named, typed)


def test_eval_needs_no_rng_and_changes_nothing(subject, module):
    out, after = module.apply(subject.inputs)
    assert after is module
    assert same(out, module(subject.inputs))


def test_a_call_that_would_drop_state_is_refused(subject, module):
    training = module.new_state(KEYS[0], mode="train")
    with pytest.raises(DroppedStateError) as caught:
        training(subject.inputs)
    states = [join(entry.path) for entry in entries(module) if entry.kind.name == "state"]
    assert any(str(caught.value).startswith(f"this call updates {path}") for path in states)


@pytest.mark.parametrize("library", KEYLESS)
def test_train_without_rng_says_where(library):
    holder, x = Holder(initialised(subject_of(library).library)), subject_of(library).inputs
    with pytest.raises(MissingRngError) as caught:
        jax.eval_shape(lambda: holder.apply(x, mode="train"))
    place = "child.dropout" if library == "torch" else "child"
    stream = "dropout" if library in ("linen", "torch") else "default"
    assert str(caught.value).startswith(
        f"{place} draws from the stream {stream!r}, and no rng was given. Type"
        f" module.apply(..., rng=key), or attach one: module.new_state(key)"
    )


def test_two_copies_in_one_tree_draw_differently(subject, module):
    pair = Pair(module, another(module))
    (first, second), _ = step(pair, subject.inputs, KEYS[0], "train")
    assert not same(first, second)


def test_a_new_sibling_leaves_the_masks_alone(subject, module):
    class Only(br.Module):
        first: br.Module

        def __call__(self, x):
            return self.first(x)

    alone, _ = step(Only(module), subject.inputs, KEYS[0], "train")
    (first, _), _ = step(Pair(module, another(module)), subject.inputs, KEYS[0], "train")
    assert same(alone, first)


# In a tree


def test_the_same_module_twice_is_one_set_of_parameters_and_draws_differently(subject, module):
    pair = Pair(module, module)
    assert len(jax.tree.leaves(pair)) == len(jax.tree.leaves(module))
    (first, second), after = step(pair, subject.inputs, KEYS[0], "train")
    assert not same(first, second)
    twice = step(another(after), subject.inputs, KEYS[1], "train")[1]
    assert jax.tree.structure(twice) == jax.tree.structure(pair)


def test_a_module_pinned_to_eval_keeps_its_statistics(subject, module):
    holder = Holder(module).at["child"].apply(lambda child: child.eval())
    out, after = step(holder, subject.inputs, None, "train")
    assert same(after, holder)
    assert same(out, step(module, subject.inputs, None, "eval")[0])


def test_many_steps_are_one_compilation_and_two_modes_are_two(subject, module):
    @functools.partial(jax.jit, static_argnames="mode")
    def counted(module, x, key, mode):
        return module.apply(x, rng=key, mode=mode)

    before = jax.tree.structure(module)
    for mode in ("train", "eval", "train", "eval"):
        for key in KEYS:
            _, module = counted(module, subject.inputs, key, mode)
    assert counted._cache_size() == 2
    assert jax.tree.structure(module) == before


def test_it_is_a_carry_of_a_compiled_loop(subject, module):
    def body(module, key):
        out, module = module.apply(subject.inputs, rng=key, mode="train")
        return module, out

    carried, outs = jax.jit(lambda module: jax.lax.scan(body, module, KEYS))(module)
    for number, key in enumerate(KEYS):
        out, module = step(module, subject.inputs, key, "train")
        np.testing.assert_allclose(outs[number], out, rtol=1e-5, atol=1e-6)
    for first, second in zip(numbers(carried), numbers(module), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_freezing_takes_parameters_out_of_the_gradient_and_back(subject, module):
    paths = [join(entry.path) for entry in entries(module) if entry.trained]
    frozen = module.freeze(paths[0])
    assert len(jax.tree.leaves(frozen.parameters())) == len(paths) - 1
    assert jax.tree.leaves(module.freeze().parameters()) == []
    assert jax.tree.structure(frozen.unfreeze()) == jax.tree.structure(module)
    assert same(step(frozen, subject.inputs, None, "eval"), step(module, subject.inputs, None, "eval"))


def test_every_array_is_read_and_set_by_its_path(module):
    for entry in entries(module):
        assert module.at[join(entry.path)].get() is entry.value
    path = next(join(entry.path) for entry in entries(module) if entry.trained)
    changed = module.at[path].apply(jnp.zeros_like)
    assert not changed.at[path].get().any()
    assert jax.tree.structure(changed) == jax.tree.structure(module)


def test_capture_gives_the_output_of_the_model(subject, module):
    captured = Holder(module).capture(subject.inputs, paths=["child"])
    assert same(captured, {"child": module(subject.inputs)})


def test_capture_gives_the_outputs_of_the_parts(subject, module):
    captured = Holder(module).capture(subject.inputs, paths=["child.*"])
    assert len(captured) >= 3
    output = module(subject.inputs)
    assert any(same(out, output) for out in captured.values())


def test_a_deep_copy_is_the_same_module(module):
    twin = copy.deepcopy(module)
    assert jax.tree.structure(twin) == jax.tree.structure(module)
    assert same(twin, module)


def test_pickled_it_gives_the_same_output_and_state(subject, module):
    twin = pickle.loads(pickle.dumps(module))
    first, second = (step(one, subject.inputs, KEYS[0], "train") for one in (module, twin))
    assert same(first, second)


def test_saved_and_loaded_it_goes_on_as_before(subject, module, tmp_path):
    _, module = step(module, subject.inputs, KEYS[0], "train")
    br.save(tmp_path / "net.safetensors", module)
    loaded = br.load(tmp_path / "net.safetensors", module)
    assert same(loaded, module)
    assert jax.tree.structure(loaded) == jax.tree.structure(module)


# Many of it


def stacked(block: Any, keys: jax.Array) -> Any:
    """A block for each key, as one module whose arrays have a leading axis."""
    return jax.jit(jax.vmap(lambda key: block.init(key, BLOCK_INPUTS)))(keys)


def parts(stack: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda leaf, at=at: leaf[at], stack) for at in range(count)]


@pytest.mark.parametrize("remat", [False, True], ids=["plain", "remat"])
def test_stacked_blocks_are_scanned_as_they_run_one_after_the_other(subject, remat):
    blocks = stacked(subject.block(), KEYS)

    def body(x, block_and_key):
        block, key = block_and_key
        return block.apply(x, rng=key, mode="train")

    body = jax.checkpoint(body) if remat else body

    def loss(blocks):
        out, after = jax.lax.scan(body, BLOCK_INPUTS, (blocks, KEYS))
        return (out**2).sum(), (out, after)

    grads, (out, after) = jax.jit(br.grad(loss, has_aux=True))(blocks)
    expected, afters = BLOCK_INPUTS, []
    for block, key in zip(parts(blocks, len(KEYS)), KEYS, strict=True):
        expected, block = step(block, expected, key, "train")
        afters.append(block)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for first, second in zip(parts(after, len(KEYS)), afters, strict=True):
        assert near(first, second)
    assert all(np.isfinite(leaf).all() for leaf in numbers(grads))
    assert any(leaf.any() for leaf in numbers(grads))


def test_an_ensemble_is_as_many_models_as_it_has_members(subject, module):
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf, leaf]), module)
    run = jax.vmap(lambda member, key: member.apply(subject.inputs, rng=key, mode="train"))
    outs, after = jax.jit(run)(members, KEYS)
    for number, key in enumerate(KEYS):
        out, alone = step(module, subject.inputs, key, "train")
        np.testing.assert_allclose(outs[number], out, rtol=1e-5, atol=1e-5)
        assert near(parts(after, len(KEYS))[number], alone)


def test_on_eight_devices_each_has_its_rows(subject, module):
    rows = jnp.concatenate([subject.inputs, subject.inputs[:1]])
    mesh = Mesh(np.array(jax.devices()[:8]), ("rows",))
    by_rows = PartitionSpec("rows")
    spread = jax.shard_map(
        lambda module, x: module.apply(x)[0],
        mesh=mesh,
        in_specs=(PartitionSpec(), by_rows),
        out_specs=by_rows,
    )
    out = jax.jit(spread)(module, rows)
    assert len(out.sharding.device_set) == 8
    np.testing.assert_allclose(out, module(rows), rtol=1e-5, atol=1e-6)


def test_tied_parameters_of_two_models_stay_one_through_training(subject, module):
    path = next(join(entry.path) for entry in entries(module) if entry.trained)
    pair = br.tie(Pair(module, another(module)), f"second.{path}", f"first.{path}")
    assert len(jax.tree.leaves(pair)) == 2 * len(jax.tree.leaves(module)) - 1
    optimizer = br.Optimizer(optax.sgd(0.1)).init(pair)

    @jax.jit
    def train(pair, optimizer):
        def loss(pair):
            first, second = pair.apply(subject.inputs)[0]
            return (first**2).sum() + (second**3).sum()

        return optimizer.step(br.grad(loss)(pair), pair)

    after, _ = train(pair, optimizer)
    assert jax.tree.structure(after) == jax.tree.structure(pair)
    tied = after.at[f"first.{path}"].get()
    assert not same(tied, module.at[path].get())
    assert same(after.at[f"second.{path}"].get(), tied)


# Under transforms


def raw_scan(child, x):
    return jax.lax.scan(lambda carry, _: (carry, child(x)), 0, None, 3)[1]


def raw_vmap(child, x):
    return jax.vmap(child)(jnp.stack([x, x]))


def raw_remat(child, x):
    return jax.checkpoint(lambda x: child(x))(x)


@pytest.mark.parametrize("how", [raw_scan, raw_vmap, raw_remat])
def test_a_raw_transform_is_refused_where_it_draws_or_writes(subject, module, how):
    over = Over(module, how)
    with pytest.raises(TraceError) as caught:
        jax.eval_shape(lambda: over.apply(subject.inputs, rng=KEYS[0], mode="train"))
    assert str(caught.value).startswith(("child ", "child.dropout "))
    assert "Use bridge.scan, bridge.vmap or bridge.remat in place of" in str(caught.value)


@pytest.mark.parametrize("how", [raw_scan, raw_vmap, raw_remat])
def test_a_raw_transform_is_welcome_where_nothing_is_drawn_or_written(subject, module, how):
    out, after = step(Over(module, how), subject.inputs, None, "eval")
    assert same(after, module)
    assert jnp.isfinite(out).all()


def test_lifted_scan_threads_state_and_draws_anew_at_each_step(subject, module):
    def scanned(child, x):
        return br.scan(lambda carry, _: (carry, child(x)), 0, None, length=3)[1]

    over = Over(module, scanned)
    outs, after = step(over, subject.inputs, KEYS[0], "train")
    assert not same(outs[0], outs[1])
    assert not same(outs[1], outs[2])
    expected = module
    for key in KEYS:
        _, expected = step(expected, subject.inputs, key, "train")
    trained = {join(entry.path[1:]): entry.value for entry in entries(after)}
    for entry in entries(expected):
        if entry.kind.collection != "rngs":
            np.testing.assert_allclose(trained[join(entry.path)], entry.value, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(after) == jax.tree.structure(over)


def test_lifted_remat_changes_no_number(subject, module):
    def checkpointed(child, x):
        return br.remat(lambda x: child(x))(x)

    def loss(module):
        return (module.apply(subject.inputs, rng=KEYS[0], mode="train")[0] ** 2).sum()

    plain = Over(module, lambda child, x: child(x))
    first = jax.jit(br.grad(loss))(plain)
    second = jax.jit(br.grad(loss))(Over(module, checkpointed))
    for one, other in zip(numbers(first), numbers(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert same(
        step(plain, subject.inputs, KEYS[0], "train")[0],
        step(Over(module, checkpointed), subject.inputs, KEYS[0], "train")[0],
    )


def test_lifted_vmap_of_an_evaluation_is_a_batch_of_evaluations(subject, module):
    inputs = jnp.stack([subject.inputs, 2 * subject.inputs])
    out, _ = step(Over(module, lambda child, x: br.vmap(child)(x)), inputs, None, "eval")
    np.testing.assert_allclose(out[1], module(inputs[1]), rtol=1e-5, atol=1e-6)
