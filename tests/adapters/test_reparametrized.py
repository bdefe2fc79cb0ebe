"""bridge.reparametrized and bridge.regularized around a model of every library, its code untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge as br
from tests.adapters.subjects import SUBJECTS, initialised, subject_of

KEYS = jax.random.split(jax.random.key(17), 2)


class Holder(br.Module):
    """Stands where a reparametrized module stands, so that the paths below it are the same."""

    module: br.Module

    def __call__(self, x):
        return self.module(x)


class Loss(br.Module):
    model: br.Module

    def __call__(self, x):
        return jnp.sum(self.model(x) ** 2)


class Scaled(br.Module):
    scale: br.Parameter = br.ParamInit((), jax.nn.initializers.constant(2.0))

    def __call__(self, array):
        return self.scale * array


def double(array):
    return 2 * array


def doubled(module):
    return module.update(jax.tree.map(double, module.parameters()))


def equal(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(*map(plain, (a, b))), first, second)


def plain(array):
    typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(array) if typed else array


def close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), first, second)


@pytest.fixture(params=SUBJECTS)
def subject(request):
    return subject_of(request.param)


def test_the_model_runs_as_with_the_transformed_arrays_and_keeps_its_own(subject):
    module = initialised(subject.library)
    run = jax.jit(lambda module, key: module.apply(subject.inputs, rng=key, mode="train"))
    out, after = run(br.reparametrized(module, double), KEYS[0])
    wanted, wanted_after = run(Holder(doubled(module)), KEYS[0])
    equal(out, wanted)
    equal(after.module.parameters(), module.parameters())
    equal(doubled(after.module), wanted_after.module)


def test_gradients_go_to_what_is_stored_and_to_the_transforms(subject):
    module = initialised(subject.library)
    grad = jax.jit(br.grad(lambda loss: loss.apply(subject.inputs)[0]))
    scaled = jax.jit(lambda key: br.reparametrized(module, Scaled()).init(key))(KEYS[1])
    grads = grad(Loss(scaled)).model
    plain = grad(Loss(doubled(module))).model
    close(grads.module, jax.tree.map(double, plain))
    scales = jax.tree.map(lambda array, slope: jnp.sum(array * slope), module.parameters(), plain)
    assert len(jax.tree.leaves(scales)) == len(jax.tree.leaves(grads.transforms))
    total = sum(jax.tree.leaves(scales))
    close(sum(jax.tree.leaves(grads.transforms)), total)


@pytest.mark.parametrize(
    ("subject", "abstract"), [("linen", True), ("haiku", False), ("sprig", True)], indirect=["subject"]
)
def test_init_makes_the_same_arrays_and_the_transforms_of_what_was_lazy(subject, abstract):
    inputs = subject.inputs
    sample = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype) if abstract else inputs
    init = jax.jit(lambda key: br.reparametrized(subject.build(), Scaled()).init(key, sample))
    module = init(KEYS[0])
    plain = jax.jit(lambda key: Holder(subject.build()).init(key, inputs))(KEYS[0])
    equal(module.module.parameters(), plain.module.parameters())
    count = len(jax.tree.leaves(module.module.parameters()))
    assert len(module.places) == len(jax.tree.leaves(module.transforms)) == count
    run = jax.jit(lambda module: module.apply(inputs)[0])
    close(run(module), run(Holder(doubled(module.module))))


@pytest.mark.parametrize("subject", ["linen", "haiku"], indirect=True)
def test_what_follows_a_lazy_model_is_made_of_what_it_gives_as_transformed(subject):
    class Centre(br.Module):
        model: br.Module
        mean: br.Parameter = br.LAZY

        def __call__(self, x):
            out = self.model(x)
            if self.initialising:
                self.fill(mean=out.mean(0))
            return out - self.mean

    centre = Centre(br.reparametrized(subject.build(), double))
    centre = jax.jit(lambda key: centre.init(key, subject.inputs))(KEYS[0])
    close(centre.mean, jax.jit(lambda c: c.model.apply(subject.inputs)[0].mean(0))(centre))


def test_materialized_is_the_librarys_own_model_again(subject):
    module = initialised(subject.library)
    seen = br.reparametrized(module, double)
    merged = jax.jit(br.materialized)(seen)
    assert jax.tree.structure(merged) == jax.tree.structure(module)
    equal(merged, doubled(module))


def test_penalties_are_added_for_the_parameters_of_the_model(subject):
    module = initialised(subject.library)
    loss = br.regularized(Loss(module), br.l2(2))
    run = jax.jit(lambda module: module.apply(subject.inputs)[0])
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(module.parameters()))
    close(run(loss), run(loss.module) + squares)


def test_an_init_over_another_method_of_a_haiku_model_adds_its_parameters_and_keeps_the_others():
    hk = pytest.importorskip("haiku")

    class Two(hk.Module):
        def __call__(self, x):
            return hk.Linear(3, name="one")(x)

        def other(self, x):
            return hk.Linear(2, name="two", w_init=hk.initializers.Constant(1))(x)

    x = jnp.ones((7, 5))
    module = br.reparametrized(br.from_haiku(Two)(), Scaled(), "*.w").init(KEYS[0], x)
    both = module.init(KEYS[0], x, method="other")
    equal(both.module.native()[0]["two/one"], module.module.native()[0]["two/one"])
    assert both.places == (*module.places, "params.two/~other/two.w")
    np.testing.assert_array_equal(both.apply(x, method="other")[0], jnp.full((7, 2), 10.0))
    np.testing.assert_array_equal(both.other(x), jnp.full((7, 2), 10.0))


def test_lora_makes_and_keeps_its_factors_by_the_paths_of_the_model():
    nn = pytest.importorskip("flax.linen")

    class LoRA(br.Module):
        down: br.Parameter = br.LAZY
        up: br.Parameter = br.LAZY

        def __call__(self, kernel):
            if self.initialising:
                rows, columns = kernel.shape
                down = jax.random.normal(self.rng, (rows, 2))
                self.fill(down=down, up=jnp.zeros((2, columns)))
            return kernel + self.down @ self.up

    class Net(br.Module):
        first: br.Module
        second: br.Module

        def __call__(self, x):
            return self.second(self.first(x))

    dense = br.from_linen(nn.Dense(3))
    net = Net(dense, br.reparametrized(br.from_linen(nn.Dense(7)), LoRA(), "*.kernel"))
    x = jnp.ones((11, 5))
    net = net.init(KEYS[0], jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert net.second.transforms["params"]["kernel"].down.shape == (3, 2)
    np.testing.assert_array_equal(net(x), Net(net.first, net.second.module)(x))
    assert jax.tree.structure(br.materialized(net)) == jax.tree.structure(
        Net(net.first, net.second.module)
    )


def test_weights_neither_go_into_what_is_stored_nor_come_from_it():
    module = br.reparametrized(initialised("sprig"), double)
    for path, tree in (("the root module", module), ("module", Holder(module))):
        for use in (br.state_dict, lambda tree: br.load_state_dict(tree, {})):
            with pytest.raises(br.BridgeError) as caught:
                use(tree)
            assert str(caught.value) == (
                f"{path}: is reparametrized, so the arrays that it stores are not those that its model"
                f" sees; load weights before bridge.reparametrized, and give"
                f" bridge.materialized(module) where they are taken"
            )
