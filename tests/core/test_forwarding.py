"""What a call passes through is told from what it computes, also where both are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.core.forwarding import told_apart

KEY = jax.random.key(0)


def step(kept, changed):
    return kept, changed * 2


ruled = jax.custom_vjp(step)
ruled.defvjp(lambda *args: (ruled(*args), None), lambda _, grads: grads)

CALLS = {
    "jit": jax.jit(step),
    "checkpoint": jax.checkpoint(step),
    "jit of checkpoint": jax.jit(jax.checkpoint(step)),
    "custom_vjp": ruled,
    "no call": lambda kept, changed: (kept + 0, changed * 2),
}


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_what_is_passed_through_is_the_old_array_and_what_is_computed_the_new_one(how, compiled):
    seen = []

    def run(*before):
        told = told_apart(lambda pair: CALLS[how](*pair), before, CALLS[how](*before))
        seen.append([new is old for new, old in zip(told, before, strict=True)])
        return told

    (jax.jit if compiled else lambda function: function)(run)(jnp.ones(3), jnp.ones(3))
    # What is computed may have the same bits, which is known of concrete arrays alone.
    assert seen == [[how != "no call" or not compiled, False]]


def test_a_swap_passes_nothing_through_in_its_place():
    swap = jax.jit(lambda pair: (pair[1], pair[0]))

    def run(*before):
        assert told_apart(swap, before, swap(before))[0] is not before[0]
        return before

    jax.jit(run)(jnp.ones(3), jnp.zeros(3))


def test_equal_bits_are_the_old_array_and_other_bits_are_not():
    before = [jnp.array(0.0), KEY, jnp.array(jnp.nan), jnp.ones(3), jnp.ones(3)]
    after = [jnp.array(-0.0), jax.random.clone(KEY), jnp.array(jnp.nan), jnp.ones(2), np.ones(3, bool)]
    told = told_apart(lambda tree: tree, before, after)
    same = [new is old for new, old in zip(told, before, strict=True)]
    assert same == [False, True, True, False, False]


def test_a_tree_of_another_structure_stays_as_it_is():
    after = [jnp.ones(3), jnp.ones(3)]
    assert told_apart(lambda tree: tree, [jnp.ones(3)], after) is after
