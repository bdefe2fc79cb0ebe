"""Static values that a module says to everything below it."""

import pickle

import jax
import jax.numpy as jnp
import optax
import pytest

import bridge as br
from bridge.core.errors import FieldError, ImmutableError, PathError

X = jnp.array(1.0)


class Reads(br.Module):
    """Gives what it can read, and what its parts can."""

    parts: list[br.Module]
    weight: br.Parameter

    def __init__(self, *parts):
        self.parts, self.weight = parts, 1.0

    def __call__(self, x):
        return [dict(self.global_config), *(part(x) for part in self.parts)]


class Power(br.Module):
    weight: br.Parameter

    def __init__(self):
        self.weight = 3.0

    def __call__(self, x):
        return x * self.weight ** self.global_config["power"]


class Within(br.Module):
    inner: br.Module

    def __call__(self, x):
        return self.inner(x)


def test_the_root_reaches_every_node_and_is_over_what_they_say():
    one = Reads(Reads()).with_global_config(k="one", only="here")
    module = Reads(one, Reads().with_global_config(k="two")).with_global_config(k="root")
    assert module(X) == [
        {"k": "root"},
        [{"only": "here", "k": "root"}, [{"only": "here", "k": "root"}]],
        [{"k": "root"}],
    ]


def test_outside_of_a_call_a_module_knows_its_own_word_alone():
    module = Within(Power().with_global_config(power=2)).with_global_config(power=3)
    assert module.global_config == {"power": 3}
    assert module.inner.global_config == {"power": 2}
    assert Power().global_config == {}


def test_it_is_bound_and_bound_again_without_touching_an_array():
    module = Within(Power())
    squares, cubes = (module.with_global_config(power=power) for power in (2, 3))
    assert (float(squares(X)), float(cubes(X))) == (9, 27)
    assert squares.inner is cubes.inner is module.inner
    assert float(squares.with_global_config(power=1)(X)) == 3
    assert jax.tree.structure(squares.with_global_config()) == jax.tree.structure(module)
    assert squares.with_global_config(other=1).global_config == {"other": 1}


def test_each_config_compiles_once():
    compilations = 0

    @jax.jit
    def run(module, x):
        nonlocal compilations
        compilations += 1
        return module(x)

    for power in (2, 3, 2, 3, 2):
        assert float(run(Within(Power()).with_global_config(power=power), X)) == 3.0**power
    assert compilations == 2
    run(Within(Power()).with_global_config(power=2.0), X)
    assert compilations == 3


def test_an_inner_jit_reads_the_config_of_the_call():
    class Jitted(br.Module):
        inner: br.Module

        def __call__(self, x):
            return jax.jit(lambda inner, x: inner(x))(self.inner, x)

    assert float(Jitted(Power()).with_global_config(power=2)(X)) == 9


def test_optimizers_and_saved_files_know_nothing_of_it(tmp_path):
    module = Within(Power())
    squares = module.with_global_config(power=2)
    assert jax.tree.structure(squares.parameters()) == jax.tree.structure(module.parameters())
    optimizer = br.Optimizer(optax.sgd(0.5)).init(module)
    trained, _ = optimizer.step(squares.grad(X), squares)
    assert (float(trained.inner.weight), trained.global_config) == (0, {"power": 2})
    br.save(tmp_path / "squares.safetensors", trained)
    loaded = br.load(tmp_path / "squares.safetensors", like=module.with_global_config(power=3))
    assert (float(loaded.inner.weight), loaded.global_config) == (0, {"power": 3})


def test_it_goes_through_pickle_and_stays_one_treedef():
    module = Power().with_global_config(power=2, sizes=[3, {"deep": [5]}])
    assert jax.tree.structure(pickle.loads(pickle.dumps(module))) == jax.tree.structure(module)
    assert module.global_config["sizes"] == (3, {"deep": (5,)})


def test_a_missing_name_says_which_there_are(refuses):
    with refuses(
        PathError,
        "the global config has no 'power'; it has 'depth', 'width'. Type module ="
        " module.with_global_config(power=...) for this module or for one above it",
    ):
        Within(Power()).with_global_config(depth=3, width=5)(X)
    with refuses(
        PathError,
        "the global config has no 'power'; it is empty. Type module ="
        " module.with_global_config(power=...) for this module or for one above it",
    ):
        Power()(X)
    assert Power().global_config.get("power", 1) == 1
    assert "power" not in Power().global_config


@pytest.mark.parametrize("change", ["set", "delete", "update"])
def test_it_is_read_only(change, refuses):
    config = Power().with_global_config(power=2).global_config
    changes = {
        "set": lambda: config.__setitem__("power", 3),
        "delete": lambda: config.__delitem__("power"),
        "update": lambda: config.update(power=3),
    }
    with refuses(
        ImmutableError,
        "a global config is read-only; type module = module.with_global_config(name=value, ...)",
    ):
        changes[change]()


def test_an_array_is_no_config():
    with pytest.raises(FieldError, match="the global config's 'mean' is a static field and holds an"):
        Power().with_global_config(mean=X)
