"""What a Module costs, where it can be counted: folds of keys, compilations, Python calls, bytes."""

import functools
import importlib
import inspect
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import bridge as br
from tests.adapters.subjects import NATIVE, initialised, subject_of
from tests.adapters.test_compiled_program import step

KEY, X = jax.random.key(3), jnp.ones((5, 7))
MODULES = 200
ADAM = optax.adam(1e-2)
PACKAGE = str(Path(br.__file__).parent)


class Scale(br.Module):
    factor: br.Parameter
    shift: br.Parameter

    def __call__(self, x):
        return x * self.factor + self.shift


class Dropout(br.Module):
    scale: br.Module

    def __call__(self, x):
        return dropped(self.rng, self.scale(x))


def dropped(key, x):
    return jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x, 0)


def scales(count):
    return [Scale(jnp.float32(number), jnp.float32(-number)) for number in range(count)]


def primitives(function, *args):
    """How often each primitive stands in the trace of a function, inner programs included."""
    found = Counter()

    def count(jaxpr):
        for equation in jaxpr.eqns:
            found[equation.primitive.name] += 1
            for value in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    count(inner)

    count(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def drawing(module, key):
    return module.apply(X, rng=key, mode="train")[0]


# Keys


def test_a_key_is_folded_for_each_module_that_draws_and_for_no_other():
    quiet, loud = scales(MODULES), [Dropout(scale) for scale in scales(3)]
    assert primitives(drawing, br.Sequential(*quiet), KEY)["random_fold_in"] == 0
    assert primitives(drawing, br.Sequential(*quiet, *loud), KEY)["random_fold_in"] == 2 * len(loud)


def test_a_tree_with_dropout_everywhere_is_the_program_of_a_plain_function_with_as_many_folds():
    def plain(factors, shifts, key):
        x = X
        for number, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
            below = jax.random.fold_in(jax.random.fold_in(key, number), 0)
            x = dropped(below, x * factor + shift)
        return x

    numbers = [jnp.float32(number) for number in range(MODULES)]
    ours = primitives(drawing, br.Sequential(*map(Dropout, scales(MODULES))), KEY)
    native = primitives(plain, numbers, numbers, KEY)
    assert ours["random_fold_in"] == 2 * MODULES
    assert ours == native


def test_a_module_that_draws_at_the_root_folds_nothing():
    class Noise(br.Module):
        def __call__(self, x):
            return x + jax.random.normal(self.rng)

    assert primitives(drawing, Noise(), KEY)["random_fold_in"] == 0


# Compilations


@pytest.fixture(params=NATIVE)
def library(request) -> str:
    return subject_of(request.param).library


def train(module, optimizer, x, key):
    def loss_of(module):
        out, after = module.apply(x, rng=key, mode="train")
        return (out**2).mean(), after

    (loss, module), grads = br.value_and_grad(loss_of, has_aux=True)(module)
    module, optimizer = optimizer.step(grads, module)
    return module, optimizer, loss


def started(library):
    """A module with arrays of its own, its optimizer, and an input."""
    module = jax.tree.map(jnp.copy, initialised(library))
    return module, br.Optimizer(ADAM).init(module), subject_of(library).inputs


def test_training_and_evaluating_in_turns_are_two_compilations(library):
    module, optimizer, x = started(library)
    step = jax.jit(lambda *args: train(*args))  # one jit of `train` would count for all libraries
    evaluate = jax.jit(lambda module, x: module.apply(x, mode="eval")[0])
    for key in jax.random.split(KEY, 3):
        module, optimizer, _ = step(module, optimizer, x, key)
        evaluate(module, x)
    assert (step._cache_size(), evaluate._cache_size()) == (1, 1)


def test_an_epoch_compiles_once_and_runs_python_as_often_as_one_step(library):
    traces = 0

    def body(carry, key):
        nonlocal traces
        traces += 1
        *carry, loss = train(*carry, subject_of(library).inputs, key)
        return tuple(carry), loss

    @jax.jit
    def epoch(carry, keys):
        return jax.lax.scan(body, carry, keys)

    *carry, _ = started(library)
    carry = tuple(carry)
    for keys in jax.random.split(KEY, (2, 5)):
        carry, _ = epoch(carry, keys)
    assert (epoch._cache_size(), traces) == (1, 1)


# Dispatch


def python_calls(function):
    """The functions of bridge that run in Python during a call."""
    names = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            names.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


def test_a_jitted_call_runs_no_python_of_bridge():
    module = br.Sequential(*map(Dropout, scales(29)))
    first = jax.jit(lambda module: jax.tree.leaves(module)[0])
    first(module)
    assert python_calls(lambda: first(module)) == []


def test_a_jitted_call_of_a_wrapped_model_runs_as_much_python_as_its_bundles_are(library):
    module = initialised(library)
    first = jax.jit(lambda module: jax.tree.leaves(module)[0])
    first(module)
    assert len(python_calls(lambda: first(module))) <= 2


# Calls outside of jax.jit


def from_linen():
    linen = pytest.importorskip("flax.linen")
    return br.from_linen(linen.Dense(3)).init(KEY, X)


def from_nnx():
    nnx = pytest.importorskip("flax.nnx")
    return br.from_nnx(nnx.Linear(7, 3, rngs=nnx.Rngs(0)))


def from_haiku():
    haiku = pytest.importorskip("haiku")
    return br.from_haiku(lambda x: haiku.Linear(3)(x)).init(KEY, X)


@pytest.mark.parametrize("build", [from_linen, from_nnx, from_haiku])
def test_a_call_that_no_flag_concerns_asks_for_signatures_once(build, monkeypatch):
    callers, signature = [], inspect.signature

    def asked(*args, **kwargs):
        callers.append(sys._getframe(1).f_code.co_filename)
        return signature(*args, **kwargs)

    module = build()
    module(X)
    monkeypatch.setattr(inspect, "signature", asked)
    module(X)
    assert not [name for name in callers if name.startswith(PACKAGE)]


# Donation


@functools.cache
def sides(library):
    """The step of a Module and of its library, each with the trees that it may take the memory of."""
    own = importlib.import_module(f"tests.adapters.programs_{library}")
    module, optimizer, x = started(library)
    static, tree = own.split(module)

    y = jnp.zeros(jax.eval_shape(lambda module, x: module.eval()(x), module, x).shape)
    native = functools.partial(own.step, static, ADAM), tree, ADAM.init(tree[0])
    return (step, module, optimizer), native, (x, y, KEY)


@pytest.fixture(params=[name for name in NATIVE if name != "sprig"])
def host(request) -> str:
    return subject_of(request.param).library


def donating(step, **options):
    """The step under jax.jit, which takes the memory of its first two arguments."""
    # JAX keeps the program of a function that it knows, whatever the options were.
    return jax.jit(lambda *args: step(*args), donate_argnums=(0, 1), **options)


def freed(step, trees, batch, **options):
    """Which arrays of the donated trees are gone after a step."""
    given = jax.tree.map(jnp.copy, trees)
    after = donating(step, **options)(*given, *batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, batch)))
    return [leaf.is_deleted() for leaf in jax.tree.leaves(given)]


def test_a_donated_step_frees_every_array_of_module_and_optimizer(host):
    (step, *trees), (native, *own), batch = sides(host)
    assert all(freed(step, trees, batch, keep_unused=True))
    # What a step writes and never reads, as the averages of Haiku, is no argument of it, and stays.
    assert freed(step, trees, batch) == freed(native, own, batch)


def bytes_of(step, *args, **options):
    """What a compiled step with two donated trees is given, shares, gives and needs besides."""
    memory = donating(step, **options).lower(*args).compile().memory_analysis()
    return {
        "given": memory.argument_size_in_bytes,
        "shared": memory.alias_size_in_bytes,
        "out": memory.output_size_in_bytes,
        "besides": memory.temp_size_in_bytes,
    }


def test_a_donated_step_takes_the_bytes_of_the_native_one(host):
    (step, *trees), (native, *own), batch = sides(host)
    for options in ({}, {"keep_unused": True}):
        ours = bytes_of(step, *trees, *batch, **options)
        assert ours == bytes_of(native, *own, *batch, **options)
    assert ours["shared"] == sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
