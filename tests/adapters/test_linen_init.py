"""What init makes of a Linen module: Linen's own arrays, by one method or by several, and layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from bridge.core.errors import MissingRngError, TraceError
from bridge.core.paths import join
from bridge.core.tree import entries
from tests.adapters.linen_made import KEY, X, made, message, same

nn = pytest.importorskip("flax.linen")


def layers(module: Any) -> list[str]:
    return [join(layer.path) for layer in module.layers()]


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(5)(x)
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_init_gives_bit_for_bit_what_linens_own_init_does():
    assert same(made(Noisy()).native(), Noisy().init(KEY, X))
    named = {"params": KEY, "noise": jax.random.key(7)}
    wrapped = br.from_linen(Noisy()).init(named, X, mode="train").native()
    assert same(wrapped, Noisy().init({**named, "dropout": KEY}, X, True))


# Several methods


class Coder(nn.Module):
    def setup(self):
        self.encoder, self.decoder, self.norm = nn.Dense(5), nn.Dense(3), nn.BatchNorm()

    def __call__(self, x, train: bool = False):
        return self.norm(self.encoder(x), use_running_average=not train)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


def both(module, x):
    return module.decode(module(x))


def test_an_init_of_two_methods_makes_what_linens_own_does():
    module = made(Coder(), method=both)
    assert same(module.native(), Coder().init(KEY, X, method=both))
    assert same(
        module.decode(jnp.ones((2, 5))),
        Coder().apply(module.native(), jnp.ones((2, 5)), method="decode"),
    )
    assert same(module.apply(X, method="encode")[0], Coder().apply(module.native(), X, method="encode"))
    assert layers(module) == ["encoder", "norm", "decoder"]


def test_a_second_init_adds_what_another_method_needs_and_leaves_the_rest():
    module = made(Coder())
    assert layers(module) == ["encoder", "norm"]
    whole = module.init(KEY, jnp.ones((2, 5)), method="decode")
    own = Coder().init(KEY, jnp.ones((2, 5)), method="decode")
    assert same(whole.native()["params"]["decoder"], own["params"]["decoder"])
    kept = {entry.path: entry.value for entry in entries(whole)}
    assert all(kept[entry.path] is entry.value for entry in entries(module))
    assert layers(whole) == ["encoder", "norm", "decoder"]
    assert jax.tree.structure(whole) == jax.tree.structure(made(Coder(), method=both))
    assert whole.init(jax.random.key(99), jnp.ones((2, 5)), method="decode") is whole
    assert whole.init(jax.random.key(99), X) is whole


def test_an_init_adds_to_given_variables_too_deep_in_a_tree():
    class Holder(br.Module):
        child: br.Module

        def __call__(self, x):
            return self.child.decode(self.child(x))

    given = Coder().init(KEY, X)
    holder = Holder(br.from_linen(Coder(), given)).init(KEY, X)
    assert holder.child.native()["params"]["encoder"]["kernel"] is given["params"]["encoder"]["kernel"]
    assert holder(X).shape == (2, 3)


def test_methods_with_a_scope_of_their_own_are_made_one_after_another():
    class Scoped(nn.Module):
        @nn.compact_name_scope
        def up(self, x):
            return nn.Dense(5)(x)

        @nn.compact_name_scope
        def down(self, x):
            return nn.Dense(3)(x)

    module = br.from_linen(Scoped()).init(KEY, X, method="up").init(KEY, X, method="down")
    assert same(module.native(), Scoped().init(KEY, X, method=lambda m, x: (m.up(x), m.down(x))))


def test_a_parameter_that_joins_others_is_not_drawn_as_one_of_them():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x, more: bool = False):
            return x * self.param("more" if more else "one", nn.initializers.normal(), (3,))

    module = made(Wide()).init(KEY, X, more=True)
    params = module.native()["params"]
    assert same({"one": params["one"]}, Wide().init(KEY, X)["params"])
    assert not np.array_equal(params["one"], params["more"])


def test_init_again_over_lifted_layers_changes_nothing():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(3)(x), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes, splits = {"params": 0}, {"params": True}
            steps = nn.scan(Step, variable_axes=axes, split_rngs=splits, length=5)()
            return nn.remat(nn.Dense)(5)(steps(x, None)[0])

    module = made(Stack())
    assert same(module.native(), Stack().init(KEY, X))
    assert module.init(KEY, X) is module


def test_init_advances_no_state_though_a_method_without_an_output_runs_again():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x):
            count = self.variable("seen", "count", lambda: 0)
            if not self.is_initializing():
                count.value += 1

    module = made(Counter(), method=lambda module, x: (module(x), module(x)))
    assert int(module.native()["seen"]["count"]) == 0
    assert int(module.apply(X)[1].native()["seen"]["count"]) == 1


# Layers


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


class Compiled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.jit(Inner)()(nn.Dense(5)(x))


COMPILED = nn.jit(Compiled)


@pytest.mark.parametrize("model", [Compiled(), COMPILED()])
def test_layers_inside_nn_jit_are_known_though_linen_has_traced_it_before(model):
    first = made(model)
    assert layers(first) == ["Dense_0", "JitInner_0.Dense_0"]
    assert jax.tree.structure(made(model)) == jax.tree.structure(first)
    assert same(made(model).native(), model.init(KEY, X))


OTHER = nn.Sequential([nn.Dense(7), nn.Dense(3)])


class Visited(nn.Module):
    """Runs another model, which has variables of its own, and a module of bridge."""

    guest: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(OTHER.apply(OTHER.init(KEY, x), x))
        return self.guest(x)


def test_layers_of_another_model_that_runs_inside_are_not_this_ones():
    guest = made(nn.Sequential([nn.Dense(11), nn.Dense(13)]), jnp.ones((2, 5)))
    module = made(Visited(lambda x: guest(x)))
    assert layers(module) == ["Dense_0"]
    assert list(module.capture(X, paths=["*"])) == ["Dense_0", ""]
    assert layers(guest) == ["layers_0", "layers_1"]


# What cannot be made


class Raw(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3)
        if self.how == "scan":
            return jax.lax.scan(lambda x, _: (dense(x), None), x, None, 2)[0]
        return jax.vmap(dense)(x)


def test_a_parameter_made_inside_a_raw_scan_is_refused_and_inside_a_raw_vmap_is_linens_own():
    assert same(made(Raw("vmap")).native(), Raw("vmap").init(KEY, X))
    module = made(Raw("vmap"))
    assert same(module(X), Raw("vmap").apply(module.native(), X))
    assert message(TraceError, lambda: made(Raw("scan"))) == (
        "Dense_0 makes params.kernel inside a JAX transform that the model's own code starts: it would"
        " be repeated or lost. Use flax.linen.scan, flax.linen.vmap or flax.linen.remat in place of"
        " jax.lax.scan, jax.vmap or jax.checkpoint (flax.linen has cond, while_loop, jit and vjp as"
        " well)"
    )


def test_init_without_a_key_for_params_is_refused():
    text = message(MissingRngError, lambda: br.from_linen(Noisy()).init({"noise": KEY}, X))
    assert text.startswith(
        "init makes parameters with the stream 'params'; the streams given are 'noise'"
    )
