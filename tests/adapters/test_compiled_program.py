"""The program that JAX compiles for a wrapped model is that of the library's own functional form.

Both sides are given the same arrays in the same order - params, state, optimizer state, batch, key -
and give theirs back in the same order, so that two equal texts are one program. Values are numbered in
the order in which they are computed: the texts are compared as they are, without the names that JAX
takes from Python for the module and for the results. What a library's own users write is in
`programs_<library>.py`.
"""

import difflib
import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import bridge as br
from tests.adapters.subjects import HOSTS, initialised, subject_of

KEY = jax.random.key(17)
# Its state, its schedule and the norm over all gradients depend on the order of the leaves.
TRANSFORM = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 97))
)
_PYTHON_NAMES = re.compile(r'^module @jit_\w+| \{jax\.result_info = "[^"]*"\}')


@pytest.fixture(params=HOSTS)
def library(request) -> str:
    return subject_of(request.param).library


def program(function: Any, *args: Any) -> list[str]:
    """The lines of the StableHLO of a function; an argument that it does not use keeps its place."""
    text = jax.jit(function, keep_unused=True).lower(*args).as_text()
    return _PYTHON_NAMES.sub("", text).splitlines()


def differences(ours: list[str], native: list[str]) -> list[str]:
    """The first lines in which two programs differ, none where they are one and the same."""
    found = difflib.unified_diff(native, ours, "native", "bridge", lineterm="", n=0)
    return [line[:300] for line, _ in zip(found, range(20), strict=False)]


def evaluate(module: Any, x: Any) -> Any:
    return module.eval()(x)


def step(module: Any, optimizer: Any, x: Any, y: Any, key: Any) -> Any:
    def loss_of(module):
        out, after = module.apply(x, rng=key, mode="train")
        return optax.l2_loss(out, y).mean(), after

    (loss, module), grads = br.value_and_grad(loss_of, has_aux=True)(module)
    module, optimizer = optimizer.step(grads, module)
    return module, optimizer, loss


@dataclass(frozen=True)
class Side:
    """A forward `(tree, x)`, a step `(tree, state, x, y, key)`, and the tree and state to start from.

    They are a module and its optimizer, or what the library and Optax have in their place.
    """

    evaluate: Callable[..., Any]
    step: Callable[..., Any]
    tree: Any
    state: Any

    def epoch(self, tree: Any, state: Any, *batches: Any) -> Any:
        """A scan of steps."""

        def body(carry, batch):
            tree, state, loss = self.step(*carry, *batch)
            return (tree, state), loss

        return jax.lax.scan(body, (tree, state), batches)


def bridge_side(library: str) -> Side:
    module = initialised(library)
    return Side(evaluate, step, module, br.Optimizer(TRANSFORM).init(module))


def native_side(library: str) -> Side:
    own = importlib.import_module(f"tests.adapters.programs_{library}")
    static, tree = own.split(initialised(library))
    return Side(
        evaluate=functools.partial(own.evaluate, static),
        step=functools.partial(own.step, static, TRANSFORM),
        tree=tree,
        state=TRANSFORM.init(tree[0]),
    )


def sides(library: str) -> tuple[Side, Side]:
    return bridge_side(library), native_side(library)


def batch(library: str) -> tuple[Any, Any]:
    x = subject_of(library).inputs
    out = jax.eval_shape(evaluate, initialised(library), x)
    return x, jnp.zeros(out.shape)


# The comparison itself


OTHERS = {
    "one op more": lambda x, y: (jnp.sin(x * 2.0 - y), y),
    "a constant": lambda x, y: (x * 3.0 - y, y),
    "operands": lambda x, y: (y - x * 2.0, y),
    "arguments": lambda y, x: (x * 2.0 - y, y),
    "results": lambda x, y: (y, x * 2.0 - y),
    "a result": lambda x, y: (x * 2.0 - y, x),
    "a dtype": lambda x, y: (x * 2.0 - y, y.astype(jnp.float16)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_programs_that_differ_in_one_thing_are_two(what):
    x = jnp.ones(3)
    assert differences(program(OTHERS[what], x, x), program(lambda x, y: (x * 2.0 - y, y), x, x))


def test_names_of_functions_and_results_are_no_difference():
    def positional(x, y):
        return x * 2.0 - y, y

    def named(left, right):
        return {"a": left * 2.0 - right, "b": right}

    x = jnp.ones(3)
    assert not differences(program(named, x, x), program(positional, x, x))


def test_an_argument_that_is_not_used_keeps_its_place():
    x = jnp.ones(3)
    assert differences(program(lambda x, _: x, x, x), program(lambda _, x: x, x, x))


# Wrapped models


def test_a_wrapped_model_holds_the_arrays_of_its_library_in_the_same_order(library):
    ours, native = sides(library)
    pairs = zip(jax.tree.leaves(ours.tree), jax.tree.leaves(native.tree), strict=True)
    assert all(array is own for array, own in pairs)


def test_a_forward_compiles_to_the_native_program(library):
    x, _ = batch(library)
    ours, native = (program(s.evaluate, s.tree, x) for s in sides(library))
    assert not differences(ours, native)


def test_a_train_step_compiles_to_the_native_program(library):
    ours, native = (program(s.step, s.tree, s.state, *batch(library), KEY) for s in sides(library))
    assert not differences(ours, native)


def test_an_epoch_in_one_scan_compiles_to_the_native_program(library):
    keys = jax.random.split(KEY, 3)
    batches = *(jnp.stack([array] * len(keys)) for array in batch(library)), keys
    ours, native = (program(s.epoch, s.tree, s.state, *batches) for s in sides(library))
    assert not differences(ours, native)


def test_an_nnx_step_on_its_own_random_streams_compiles_to_the_native_program():
    ours, native = (program(s.step, s.tree, s.state, *batch("nnx"), None) for s in sides("nnx"))
    assert not differences(ours, native)


def test_a_step_with_one_more_fold_of_the_key_is_another_program(library):
    ours, native = sides(library)

    def folded(tree, state, x, y, key):
        return ours.step(tree, state, x, y, jax.random.fold_in(key, 0))

    found = program(folded, ours.tree, ours.state, *batch(library), KEY)
    assert differences(found, program(native.step, native.tree, native.state, *batch(library), KEY))
