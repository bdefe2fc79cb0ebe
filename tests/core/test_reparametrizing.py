"""bridge.reparametrized and bridge.materialized: what a model sees, and what is stored and trained."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridge as br
from bridge.core.errors import (
    FieldError,
    PathError,
    SharingError,
    StructureError,
    UninitialisedError,
)

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(5), (7, 3))
ones = jax.nn.initializers.ones


class Number(br.Module):
    value: br.Parameter = br.ParamInit((), jax.nn.initializers.constant(2.0))

    def __call__(self):
        return self.value


class Dense(br.Module):
    weight: br.Parameter
    bias: br.Parameter
    calls: br.State

    def __init__(self, inputs, outputs):
        self.weight = br.ParamInit((inputs, outputs), jax.nn.initializers.normal())
        self.bias = br.ParamInit((outputs,), jax.nn.initializers.normal())
        self.calls = 0

    def __call__(self, x):
        self.calls = self.calls + 1
        return x @ self.weight + self.bias

    def twice(self, x):
        return 2 * self(x)


class Lazy(br.Module):
    """Its weight has the size of what reaches it."""

    weight: br.Parameter = br.LAZY

    def __call__(self, x):
        if self.initialising:
            self.fill(weight=x.mean(0))
        return x * self.weight


class Pair(br.Module):
    first: br.Module
    second: br.Module

    def __call__(self, x):
        return self.first(x), self.second(x)


class Chain(br.Module):
    parts: list[br.Module]

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


class Scaled(br.Module):
    """Twice a scale of its own times a parameter."""

    scale: br.Parameter = br.ParamInit((), ones)
    seen: br.State = 0

    def __call__(self, array):
        self.seen = self.seen + 1
        return 2 * self.scale * array


class Relative(br.Module):
    """The parameter over what it was at the start: LAZY, made of what is stored."""

    start: br.Parameter = br.LAZY

    def __call__(self, array):
        if self.initialising:
            self.fill(start=array)
        return array / self.start


class Noisy(br.Module):
    def __call__(self, array):
        return array + jax.random.normal(self.rng, array.shape) if self.training else array


def double(array):
    return 2 * array


def dense(inputs=3, outputs=5):
    return Dense(inputs, outputs).init(KEY)


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), first, second)


def test_a_function_and_a_module_with_a_parameter_of_its_own_give_jaxnets_numbers():
    assert float(br.reparametrized(Number(), double).init(KEY)()) == 4
    scaled = br.reparametrized(Number(), Scaled()).init(KEY)
    out, scaled = scaled.apply()
    assert float(out) == 4
    assert float(scaled.transforms["value"].scale) == 1
    assert int(scaled.transforms["value"].seen) == 1


@pytest.mark.parametrize("jit", [False, True])
def test_the_model_sees_the_transform_and_gradients_go_to_what_is_stored(jit):
    module = dense()
    seen = br.reparametrized(module, double, "weight")

    def loss(module):
        return jnp.sum(module.apply(X)[0])

    grad = jax.jit(br.grad(loss)) if jit else br.grad(loss)
    grads = grad(seen).module
    np.testing.assert_allclose(grads.weight, jnp.tile(2 * X.sum(0)[:, None], 5), rtol=1e-5)
    np.testing.assert_array_equal(grads.bias, jnp.full(5, 7.0))
    out, after = (jax.jit(lambda m: m.apply(X)) if jit else lambda m: m.apply(X))(seen)
    np.testing.assert_allclose(out, X @ (2 * module.weight) + module.bias, rtol=1e-6)
    np.testing.assert_array_equal(after.module.weight, module.weight)
    assert int(after.module.calls) == 1


def test_nothing_that_a_call_puts_in_place_stays_there():
    seen = br.reparametrized(dense(), double)
    _, after = seen.apply(X)
    changed = after.at["module.calls"].set(seen.module.calls)
    equal(changed, seen)
    assert jax.tree.structure(after) == jax.tree.structure(seen)
    assert after.module.weight is seen.module.weight


def test_after_an_error_in_the_model_its_parameters_are_as_stored():
    class Careful(br.Module):
        child: br.Module

        def __call__(self, x):
            try:
                self.child(x[0, 0])
            except ValueError:
                return self.child.module.weight
            return None

    module = br.reparametrized(dense(), double)
    equal(Careful(module).apply(X)[0], module.module.weight)


def test_each_parameter_has_a_copy_of_the_transform_with_keys_of_its_own():
    class Factor(br.Module):
        factor: br.Parameter = br.ParamInit((), jax.nn.initializers.normal())

        def __call__(self, array):
            return self.factor * array

    module = br.reparametrized(Pair(dense(), dense(3, 2)), Factor()).init(KEY)
    factors = [module.at[f"transforms.{p}.factor"].get() for p in ("first.weight", "first.bias")]
    assert float(factors[0]) != float(factors[1])
    assert len(jax.tree.leaves(module.transforms)) == 4
    alone = br.reparametrized(Pair(dense(), dense(3, 2)), Factor(), "first.*").init(KEY)
    equal(alone.transforms["first"], module.transforms["first"])


def test_where_takes_paths_globs_and_functions_and_frozen_ones_by_name_alone():
    pair = Pair(dense(), dense(3, 2)).freeze("first")
    assert br.reparametrized(pair, double).places == ("second.weight", "second.bias")
    assert br.reparametrized(pair, double, "*.weight").places == ("first.weight", "second.weight")
    several = br.reparametrized(pair, double, ["first.bias", "second"])
    assert several.places == ("first.bias", "second.weight", "second.bias")
    flat = br.reparametrized(pair, double, lambda entry: entry.value.ndim == 1)
    assert flat.places == ("first.bias", "second.bias")
    seen = br.reparametrized(pair, double, "first.weight")
    first, _ = seen.apply(X)[0]
    np.testing.assert_allclose(first, X @ (2 * pair.first.weight) + pair.first.bias, rtol=1e-6)
    assert seen.parameters().module.first.weight is None


def test_freezing_later_changes_nothing_that_is_seen():
    seen = br.reparametrized(dense(), double)
    equal(seen.freeze().apply(X)[0], seen.apply(X)[0])


def test_what_chooses_nothing_says_so(refuses):
    with refuses(PathError, "'weigth' selects nothing in this module; the nearest are 'weight'"):
        br.reparametrized(dense(), double, "weigth")
    with refuses(PathError, "'calls' selects no parameter; there are 'weight', 'bias'"):
        br.reparametrized(dense(), double, "calls")
    text = (
        "reparametrized chose no parameter of this Dense; a path as where also chooses what is"
        " frozen: where='*'"
    )
    with refuses(PathError, text):
        br.reparametrized(dense().freeze(), double)


def test_what_is_no_transform_says_what_is(refuses):
    with refuses(
        FieldError,
        "the transform of reparametrized is declared as a module and holds a int (3); give it a"
        " bridge.Module or a function",
    ):
        br.reparametrized(dense(), 3)
    with refuses(
        FieldError,
        "the transform Scaled has a traced array at scale, and each parameter gets a copy of it, also"
        " in later calls: put a bridge.ParamInit or bridge.LAZY there, which init makes",
    ):
        jax.eval_shape(lambda s: br.reparametrized(dense(), Scaled(s)), jnp.ones(()))
    with refuses(
        FieldError,
        "weight as transformed holds a str ('no'); a parameter, state or key is an"
        " array, a bridge.ParamInit, or a tree of them: annotate anything else as what it is",
    ):
        br.reparametrized(dense(), lambda array: "no").apply(X)


def test_a_call_before_init_and_after_surgery_says_what_to_type(refuses):
    module = br.reparametrized(dense(), Scaled())
    text = "the root module has not made its transforms; type module = module.init(key, *sample) first"
    with refuses(UninitialisedError, text):
        module.apply(X)
    for transform, use in (
        (double, lambda pair: pair.apply(X)),
        (Scaled(), lambda pair: pair.init(KEY)),
    ):
        pair = Pair(br.reparametrized(dense(), transform), Noisy())
        pair = pair.at["first.module"].set(Number().init(KEY))
        with refuses(
            StructureError,
            "first transforms 'weight', 'bias', and its module has not all of these parameters any"
            " more; change a module first, and then type bridge.reparametrized(module, ...)",
        ):
            use(pair)


def test_an_init_of_another_part_changes_nothing_whatever_is_frozen_since():
    part = br.reparametrized(dense(), Scaled()).init(KEY).freeze()
    assert Pair(part, Lazy()).init(KEY, X).first is part


def test_what_a_transform_makes_of_stored_values_needs_no_sample():
    module = br.reparametrized(dense(), Relative()).init(KEY)
    np.testing.assert_allclose(module.apply(X)[0], X @ jnp.ones((3, 5)) + 1, rtol=1e-6)
    assert module.init(KEY) is module
    jitted = jax.jit(lambda key: br.reparametrized(dense(), Relative()).init(key))(KEY)
    close(jitted, module)


def test_lazy_models_are_transformed_from_the_first_call_of_init_on():
    module = br.reparametrized(Chain([Lazy(), Dense(3, 2)]), Relative()).init(KEY, X)
    assert module.places == ("parts.0.weight", "parts.1.weight", "parts.1.bias")
    equal(module.at["module.parts.0.weight"].get(), X.mean(0))
    np.testing.assert_allclose(module.apply(X)[0], X @ jnp.ones((3, 2)) + 1, rtol=1e-5)
    # What comes after it is made of what it really gives.
    chain = Chain([br.reparametrized(Lazy(), double), Lazy()]).init(KEY, X)
    once = chain.at["parts.0"].get()(X)
    np.testing.assert_allclose(chain.at["parts.1.weight"].get(), once.mean(0), rtol=1e-6)
    jitted = jax.jit(lambda key, x: Chain([br.reparametrized(Lazy(), double), Lazy()]).init(key, x))
    close(jitted(KEY, X), chain)


def test_transforms_draw_in_train_mode_and_differ_by_parameter_and_by_call():
    class Twice(br.Module):
        child: br.Module

        def __call__(self, x):
            return self.child(x), self.child(x)

    module = Twice(br.reparametrized(Pair(dense(), dense()), Noisy(), "*.weight")).init(KEY)
    (first, other), (again, _) = module.apply(X, rng=KEY, mode="train")[0]
    plain, same = module.apply(X)[0][0]
    equal(plain, same)
    assert not np.allclose(first, other)
    assert not np.allclose(first, again)
    step = jax.jit(lambda m, k: m.apply(X, rng=k, mode="train")[0])
    np.testing.assert_allclose(step(module, KEY)[0][0], first, rtol=1e-5)


LIFTED = {
    "scan": lambda child, xs: br.scan(lambda c, x: (c, child(x)), 0, xs)[1],
    "vmap": lambda child, xs: jax.vmap(child)(xs),
    "bridge.vmap": lambda child, xs: br.vmap(child)(xs),
    "remat": lambda child, xs: br.remat(child)(xs),
}


@pytest.mark.parametrize("name", LIFTED)
def test_it_runs_inside_lifted_transforms_with_right_gradients(name):
    class Host(br.Module):
        child: br.Module

        def __call__(self, xs):
            return LIFTED[name](self.child, xs)

    class Product(br.Module):
        weight: br.Parameter

        def __call__(self, x):
            return x @ self.weight

    inner = br.reparametrized(Product(dense().weight), Relative()).init(KEY)
    grads = jax.jit(br.grad(lambda m: jnp.sum(m.apply(X)[0])))(Host(inner))
    expected = jnp.tile(X.sum(0)[:, None], 5) / inner.module.weight
    np.testing.assert_allclose(grads.child.module.weight, expected, rtol=1e-4)


def test_a_cached_inner_jit_sees_new_parameters():
    inner = jax.jit(lambda module, x: module.apply(x)[0])
    module = br.reparametrized(dense(), double)
    first = inner(module, X)
    close(inner(module.at["module.bias"].apply(lambda bias: bias + 1), X), first + 2)


def test_reparametrized_of_reparametrized_composes_from_the_outside_in():
    inner = br.reparametrized(Number(), lambda array: array + 1)
    assert float(br.reparametrized(inner, lambda array: 10 * array).init(KEY)()) == 21
    both = br.reparametrized(br.reparametrized(Number(), Scaled()), Scaled()).init(KEY)
    assert both.places == ("module.value",)
    assert float(both.apply()[0]) == 8
    assert float(br.materialized(both).value) == 8
    lazy = br.reparametrized(br.reparametrized(Lazy(), Scaled()), Scaled()).init(KEY, X)
    np.testing.assert_allclose(lazy.apply(X)[0], 4 * X * X.mean(0), rtol=1e-6)


def test_tied_and_shared_arrays_are_seen_as_one_and_have_one_transform():
    shared = dense()
    pair = Pair(shared, shared)
    module = br.reparametrized(pair, Scaled(), "second.weight").init(KEY)
    first, second = module.apply(X)[0]
    equal(first, second)
    np.testing.assert_allclose(first, X @ (2 * shared.weight) + shared.bias, rtol=1e-6)
    lazy = Lazy()
    module = br.reparametrized(Pair(lazy, lazy), Scaled()).init(KEY, X)
    assert module.places == ("first.weight",)
    equal(*module.apply(X)[0])
    tied = br.tie(Pair(dense(), Dense(3, 5).init(jax.random.key(9))), "second.weight", "first.weight")
    module = br.reparametrized(tied, Scaled()).init(KEY)
    assert set(module.transforms["second"]) == {"bias"}
    first, second = module.apply(X)[0]
    bias = 2 * (tied.second.bias - tied.first.bias)
    np.testing.assert_allclose(second - first, jnp.tile(bias, (7, 1)), atol=1e-6)
    merged = br.materialized(module)
    np.testing.assert_allclose(merged.apply(X)[0], module.apply(X)[0], rtol=1e-6)
    assert len(jax.tree.leaves(merged.parameters())) == 3


def test_what_shares_from_outside_sees_what_is_stored_and_cannot_be_materialized(refuses):
    shared = dense()
    for pair in (
        Pair(shared, br.reparametrized(shared, double)),
        Pair(br.reparametrized(shared, Scaled()), shared),
    ):
        pair = pair.init(KEY)
        outs = pair.apply(X)[0]
        stored, seen = outs if isinstance(pair.first, Dense) else reversed(outs)
        np.testing.assert_allclose(seen, 2 * stored, rtol=1e-6)
    text = (
        "these are arrays that one side sees transformed and the other as they are stored, so they"
        " cannot be one array any more:\n  second is shared with first.module\nReparametrize the module"
        " that holds both, or set one of the two places to a module of its own"
    )
    with refuses(SharingError, text):
        br.materialized(pair)


def test_materialized_gives_the_plain_model_deep_in_a_tree_with_its_names_mode_and_freezing():
    plain = Chain([dense(3, 5), Chain([dense(5, 2).eval()])]).freeze("parts.0")
    module = plain.at["parts.0"].apply(lambda part: br.reparametrized(part, double, "weight"))
    module = module.at["parts.1.parts.0"].apply(
        lambda part: br.reparametrized(part, Scaled()).init(KEY)
    )
    merged = br.materialized(module)
    assert jax.tree.structure(merged) == jax.tree.structure(plain)
    np.testing.assert_allclose(merged.apply(X)[0], module.apply(X)[0], rtol=1e-6)
    np.testing.assert_array_equal(merged.parts[0].weight, 2 * plain.parts[0].weight)
    noisy = br.reparametrized(dense(), Noisy()).init(KEY).new_state(KEY, "train")
    assert br.materialized(noisy).mode == "train"
    equal(br.materialized(noisy).weight, noisy.module.weight)


def test_materialized_before_init_says_what_to_type(refuses):
    text = "there is nothing to put in place yet; type module = module.init(key, *sample) first"
    with refuses(UninitialisedError, text):
        br.materialized(br.reparametrized(Lazy(), double))


def test_what_is_stored_may_have_another_shape_than_what_is_seen():
    class Rows(br.Module):
        weight: br.Parameter

        def __call__(self, x):
            return x @ self.weight

    factors = jnp.concatenate([jnp.ones((3, 2)), 2 * jnp.ones((5, 2))])
    low_rank = br.reparametrized(Rows(factors), lambda both: both[:3] @ both[3:].T)
    np.testing.assert_allclose(low_rank(X), jnp.tile(4 * X.sum(1)[:, None], 5), rtol=1e-5)
    assert br.materialized(low_rank).weight.shape == (3, 5)
    assert low_rank.parameters().module.weight.shape == (8, 2)


def test_other_methods_capture_training_saving_and_pickling_work(tmp_path):
    module = br.reparametrized(dense(), Scaled()).init(KEY)
    np.testing.assert_allclose(module.apply(X, method="twice")[0], 2 * module.apply(X)[0])
    np.testing.assert_allclose(
        Chain([module]).apply(X, method=lambda m, x: m.parts[0].twice(x))[0], 2 * module.apply(X)[0]
    )
    with pytest.raises(AttributeError) as caught:
        module.thrice  # noqa: B018
    assert str(caught.value) == (
        "Dense has no method 'thrice'; what a reparametrized module stores is read below it:"
        " .module.thrice"
    )
    captured = module.capture(X, paths=["module", "transforms.bias"])
    np.testing.assert_allclose(captured["transforms.bias"], 2 * module.module.bias)
    equal(captured["module"], module.apply(X)[0])
    optimizer = br.Optimizer(optax.sgd(0.1)).init(module)
    grads = br.grad(lambda m: jnp.sum(m.apply(X)[0]))(module)
    trained, _ = optimizer.step(grads, module)
    np.testing.assert_allclose(trained.module.bias, module.module.bias - 0.1 * 2 * 7, rtol=1e-5)
    path = tmp_path / "module.safetensors"
    br.save(path, trained)
    equal(br.load(path, module), trained)
    equal(pickle.loads(pickle.dumps(trained)), trained)


def test_two_that_are_built_alike_compile_once():
    compilations = 0

    @jax.jit
    def run(module):
        nonlocal compilations
        compilations += 1
        return module.apply(X)[0]

    for _ in range(2):
        run(br.reparametrized(dense(), Scaled(), ["weight"]).init(KEY))
    assert compilations == 1


def test_a_transform_that_has_arrays_already_gives_each_parameter_a_copy_of_them():
    run = jax.jit(lambda module: module.apply()[0])
    number = Number().init(KEY)
    seen = [br.reparametrized(number, Scaled(jnp.array(scale))).init(KEY) for scale in (3.0, 5.0)]
    assert [float(run(module)) for module in seen] == [12, 20]
    assert seen[0].transform != seen[1].transform


def test_it_prints_as_part_of_the_tree():
    assert str(br.reparametrized(Dense(3, 5), Scaled(), "weight")) == (
        "Reparametrized uninit (\n  Scaled, weight\n  (module): Dense uninit ()\n)"
    )
    assert (
        str(br.reparametrized(dense(), double)) == "Reparametrized(\n  double\n  (module): Dense()\n)"
    )
