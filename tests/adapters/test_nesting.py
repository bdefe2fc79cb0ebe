"""One list of behaviours for a Module of every library inside a model of every library."""

import copy
import functools
import importlib
import operator
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import bridge as br
from bridge.core.errors import DroppedStateError
from bridge.core.paths import join
from bridge.core.tree import entries
from tests.adapters.subjects import HOSTS, PACKAGES, subject_of

KEYS = jax.random.split(jax.random.key(17), 3)
INPUTS = jax.random.normal(jax.random.key(3), (8, 5))


class Guest(br.Module):
    """A tree of one's own around a block of a library: two tied arrays, and a count of the calls."""

    child: br.Module
    scale: br.Parameter
    shift: br.Parameter
    calls: br.State

    def __init__(self, child):
        self.child = child
        self.scale = self.shift = jnp.linspace(0.5, 1.5, 5)
        self.calls = 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return self.child(x) * self.scale + self.shift

    def encode(self, x):
        return self.child(x) * self.scale


def hosting(library: str) -> Any:
    """The host of a library; skips the test where it is not installed."""
    pytest.importorskip(HOSTS[library])
    return importlib.import_module(f"tests.adapters.host_{library}")


@functools.cache
def guest_of(library: str) -> Any:
    block = subject_of(library).block
    return br.tie(made(lambda: Guest(block())), "shift", "scale")


@functools.cache
def hosted(guest: str, host: str) -> Any:
    inner = guest_of(guest)  # made outside of the trace below, since it is kept
    return made(lambda: hosting(host).host(inner))


def made(build: Any) -> Any:
    return jax.jit(lambda key: build().init(key, INPUTS))(jax.random.key(5))


@functools.partial(jax.jit, static_argnames="mode")
def step(module: Any, x: Any, key: Any, mode: str) -> tuple[Any, Any]:
    return module.apply(x, rng=key, mode=mode)


@pytest.fixture(params=[(guest, host) for host in HOSTS for guest in PACKAGES], ids="-in-".join)
def pair(request) -> Any:
    return request.param


@pytest.fixture
def guest(pair) -> Any:
    return guest_of(pair[0])


@pytest.fixture
def module(pair) -> Any:
    return hosted(*pair)


def numbers(tree: Any) -> list[np.ndarray]:
    def plain(leaf: Any) -> np.ndarray:
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)

    return [plain(leaf) for leaf in jax.tree.leaves(tree)]


def same(first: Any, second: Any) -> bool:
    """Whether two trees hold the same arrays bit for bit, in the same order."""
    first, second = numbers(first), numbers(second)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def near(first: Any, second: Any) -> bool:
    first, second = numbers(first), numbers(second)
    return len(first) == len(second) and all(
        # Batch norm of seven rows divides rounding errors of 1e-6 by small deviations.
        a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-5)
        for a, b in zip(first, second, strict=True)
    )


# Making it


def test_the_host_has_every_array_of_the_guest_bit_for_bit(guest, module):
    held = [leaf.tobytes() for leaf in numbers(module)]
    for leaf in numbers(guest):
        assert leaf.tobytes() in held


def test_init_under_eval_shape_makes_the_same_structure(pair, module):
    build = functools.partial(hosting(pair[1]).host, guest_of(pair[0]))
    sample = jax.ShapeDtypeStruct(INPUTS.shape, INPUTS.dtype)
    shapes = jax.eval_shape(lambda key: build().init(key, sample), jax.random.key(5))
    forms = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)]
    assert forms == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(module)]


# The guest's own numbers


def test_the_guest_gives_in_the_host_what_it_gives_alone(guest, module):
    (inner, out), after = step(module, INPUTS, None, "eval")
    alone, _ = step(guest, INPUTS, None, "eval")
    assert near(inner, alone)
    assert out.shape == (8, 3)
    assert jax.tree.structure(after) == jax.tree.structure(module)


def test_both_keep_their_state_over_three_steps(guest, module):
    for key in KEYS:
        _, guest = step(guest, INPUTS, key, "train")
        _, after = step(module, INPUTS, key, "train")
        assert not same(after, module)
        module = after
    held = [entry.value for entry in entries(module) if entry.kind.name == "state"]
    for entry in entries(guest):
        if entry.kind.name == "state" and entry.kind.collection != "rngs":
            assert any(near(entry.value, leaf) for leaf in held), join(entry.path)


def test_gradients_reach_the_guest_as_they_do_alone(guest, module):
    def of_guest(guest):
        return (guest.apply(INPUTS)[0] ** 2).sum()

    def of_module(module):
        return (module.apply(INPUTS)[0][0] ** 2).sum()

    alone = jax.jit(br.grad(of_guest))(guest)
    inside = numbers(jax.jit(br.grad(of_module))(module))
    for leaf in numbers(alone):
        assert any(near(leaf, other) for other in inside)
    assert any(leaf.any() for leaf in numbers(alone))


def test_training_moves_every_parameter_and_the_loss_falls(module):
    optimizer = br.Optimizer(optax.adam(1e-2)).init(module)

    def loss(module, key):
        (_, out), module = module.apply(INPUTS, rng=key, mode="train")
        return ((out - 1) ** 2).mean(), module

    @jax.jit
    def train(module, optimizer, key):
        def body(carry, key):
            module, optimizer = carry
            (value, module), grads = br.value_and_grad(loss, has_aux=True)(module, key)
            module, optimizer = optimizer.step(grads, module)
            return (module, optimizer), value

        return jax.lax.scan(body, (module, optimizer), jax.random.split(key, 40))

    (after, _), losses = train(module, optimizer, KEYS[0])
    before, now = numbers(module.parameters()), numbers(after.parameters())
    assert all((old != new).any() for old, new in zip(before, now, strict=True))
    assert losses[-5:].mean() < losses[:5].mean()


# Random numbers and modes


def test_dropout_differs_at_each_step_and_is_equal_for_equal_keys(module):
    outs = [step(module, INPUTS, key, "train")[0] for key in (*KEYS, KEYS[0])]
    for part in range(2):
        assert same(outs[0][part], outs[3][part])
        assert not same(outs[0][part], outs[1][part])
        assert not same(outs[1][part], outs[2][part])


def test_eval_needs_no_rng_and_drops_nothing(module):
    first, after = step(module, INPUTS, None, "eval")
    second, _ = step(after, INPUTS, None, "eval")
    assert same(first, second)


def test_a_call_that_would_drop_state_is_refused(module):
    with pytest.raises(DroppedStateError):
        jax.eval_shape(lambda: module.new_state(KEYS[0], mode="train")(INPUTS))


def test_many_steps_are_one_compilation_and_two_modes_are_two(module):
    counted = jax.jit(
        lambda module, key, mode: module.apply(INPUTS, rng=key, mode=mode), static_argnums=2
    )
    for mode in ("train", "eval", "train"):
        for key in KEYS:
            _, module = counted(module, key, mode)
    assert counted._cache_size() == 2


# The guest's structure


def scales(module: Any, guest: Any) -> list[Any]:
    """The entries of a host that are the guest's own `scale`, known by its numbers."""
    return [entry for entry in entries(module) if same(entry.value, guest.scale)]


def test_what_is_tied_in_the_guest_is_one_parameter_in_the_host(guest, module):
    assert len(jax.tree.leaves(guest)) == len(jax.tree.leaves(guest.child)) + 2  # scale and calls
    assert len(scales(module, guest)) == 1


def test_a_frozen_guest_stays_bit_for_bit(pair, guest):
    frozen = made(lambda: hosting(pair[1]).host(guest.freeze("scale")))

    def loss(module):
        return (module.apply(INPUTS)[0][1] ** 2).sum()

    @jax.jit
    def train(module):
        optimizer = br.Optimizer(optax.sgd(0.1)).init(module)
        return optimizer.step(br.grad(loss)(module), module)[0]

    after = train(frozen)
    assert not same(after, frozen)
    assert len(scales(after, guest)) == 1


def test_the_host_reaches_the_guests_other_methods(guest, module):
    expected, _ = jax.jit(lambda guest: guest.apply(INPUTS, method="encode"))(guest)
    out, _ = jax.jit(lambda module: module.apply(INPUTS, method="encode"))(module)
    assert near(out, expected)


def test_the_guest_is_captured_in_the_host(guest, module):
    captured = module.capture(INPUTS, paths=["*guest*"])
    alone, _ = guest.apply(INPUTS)
    assert any(near(out, alone) for out in captured.values())


# As a Module


def test_saved_and_loaded_it_goes_on_as_before(module, tmp_path):
    br.save(tmp_path / "net.safetensors", module)
    loaded = br.load(tmp_path / "net.safetensors", module)
    assert same(loaded, module)


def test_a_copy_is_the_same_module(module):
    twin = copy.deepcopy(module)
    assert same(step(twin, INPUTS, KEYS[0], "train"), step(module, INPUTS, KEYS[0], "train"))


def test_pickled_it_gives_the_same_numbers(module):
    twin = pickle.loads(pickle.dumps(module))
    assert same(step(twin, INPUTS, KEYS[0], "train"), step(module, INPUTS, KEYS[0], "train"))


# Under transforms


def test_it_is_a_carry_of_a_compiled_loop(module):
    def body(module, key):
        out, module = module.apply(INPUTS, rng=key, mode="train")
        return module, out

    carried, _ = jax.jit(lambda module: jax.lax.scan(body, module, KEYS))(module)
    for key in KEYS:
        _, module = step(module, INPUTS, key, "train")
    assert near(carried, module)


def test_rematerialised_it_has_the_same_gradients(module):
    def loss(module, x):
        return (module.apply(x, rng=KEYS[0], mode="train")[0][1] ** 2).sum()

    plain = jax.jit(br.grad(loss))(module, INPUTS)
    again = jax.jit(br.grad(jax.checkpoint(loss)))(module, INPUTS)
    assert near(plain, again)


def test_an_ensemble_of_it_is_two_models(module):
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), module)
    outs, after = jax.jit(jax.vmap(lambda one, key: one.apply(INPUTS, rng=key, mode="train")))(
        two, KEYS[:2]
    )
    for number in range(2):
        first = jax.tree.map(operator.itemgetter(number), (outs, after))
        assert near(first, step(module, INPUTS, KEYS[number], "train"))


def test_on_eight_devices_it_gives_the_same_numbers(module):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    rows = PartitionSpec("data")
    spread = jax.jit(
        jax.shard_map(
            lambda module, x: module.apply(x)[0],
            mesh=mesh,
            in_specs=(PartitionSpec(), rows),
            out_specs=rows,
        )
    )
    assert near(spread(module, INPUTS), step(module, INPUTS, None, "eval")[0])
