import jax
import numpy as np
import pytest

import bridge as br


class Noise(br.Module):
    scale: br.Parameter = 1.0

    def __call__(self):
        return self.scale * jax.random.normal(self.draw("noise"), (5,))


class Keeper(br.Module):
    key: br.Key

    def forward(self):
        return jax.random.normal(self.key, (5,))


class Two(br.Module):
    one: br.Module
    other: br.Module

    def forward(self):
        return self.one() + self.other()


def outputs(modules):
    return np.stack([module.apply()[0] for module in modules])


@pytest.mark.parametrize(
    "key", [jax.random.key(3), jax.random.PRNGKey(3), {"noise": jax.random.key(3)}]
)
def test_copies_draw_other_numbers_and_have_the_same_arrays(key):
    module = Noise().new_state(key)
    copies = module.split(3)
    assert len({one.tobytes() for one in outputs([module, *copies])}) == 4
    assert all(copy.scale is module.scale for copy in copies)
    assert all(jax.tree.structure(copy) == jax.tree.structure(module) for copy in copies)
    np.testing.assert_array_equal(outputs(copies), outputs(module.split(3)))


def test_keys_that_parts_have_are_split_as_well():
    part = Keeper(jax.random.key(5))
    whole = Two(part, Noise().new_state(jax.random.key(3)))
    first, second = whole.split(2)
    assert not (outputs([first.one]) == outputs([second.one])).any()
    assert not (outputs([first.other]) == outputs([second.other])).any()
    shared = Two(part, part)
    assert all((copy.apply()[0] == 2 * copy.one.apply()[0]).all() for copy in shared.split(2))


def test_without_a_key_there_is_nothing_to_split():
    with pytest.raises(br.BridgeError) as error:
        Noise().split(2)
    assert str(error.value) == (
        "Noise has no key that could be split; attach one first: module.new_state(key).split(2)"
    )


def test_forward_is_the_other_name_of_call_and_a_subclass_may_replace_it():
    class Louder(Keeper):
        def forward(self):
            return 2 * super().forward()

    quiet, loud = Keeper(jax.random.key(5)), Louder(jax.random.key(5))
    assert (loud() == 2 * quiet()).all()
    assert (loud.forward() == loud()).all()
    assert loud.capture(paths=[""]).keys() == {""}


def test_split_of_what_is_no_number_says_how_a_wrapped_models_own_is_called():
    with pytest.raises(br.BridgeError) as caught:
        Noise().new_state(jax.random.key(3)).split("3")
    assert str(caught.value) == (
        "split takes the number of copies; it was given a str. A wrapped model's own method of that"
        " name is called by module.apply(..., method='split')"
    )
